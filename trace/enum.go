package trace

import "fmt"

// enum is implemented by every named set of words in this package: its zero
// value is invalid, its text is a word of the published vocabulary.
type enum interface{ ~uint8 }

// word returns the text of v, or "invalid(n)" for a value outside words.
func word[T enum](v T, words []string) string {
	if int(v) < len(words) && words[v] != "" {
		return words[v]
	}
	return fmt.Sprintf("invalid(%d)", uint8(v))
}

// marshalWord refuses to write a word outside the vocabulary.
func marshalWord[T enum](v T, words []string, what string) ([]byte, error) {
	if int(v) >= len(words) || words[v] == "" {
		return nil, fmt.Errorf("trace: invalid %s %d", what, uint8(v))
	}
	return []byte(words[v]), nil
}

// parseWord is the inverse of marshalWord.
func parseWord[T enum](text string, words []string, what string) (T, error) {
	for i, w := range words {
		if w == text && w != "" {
			return T(i), nil
		}
	}
	return 0, fmt.Errorf("trace: unknown %s %q", what, text)
}

// Proto is a transport protocol. The zero value is invalid.
type Proto uint8

// The transport protocols that flows are made of.
const (
	TCP Proto = iota + 1
	UDP
)

var protoWords = []string{TCP: "tcp", UDP: "udp"}

// Algorithm is an order in which probes are sent. The zero value is invalid.
type Algorithm uint8

// The four algorithms. The first three are those of the PAM 2019 paper.
const (
	// PacketByPacket sends one probe and waits for its reply or its timeout.
	PacketByPacket Algorithm = iota + 1
	// HopByHop sends all probes of one TTL, then waits.
	HopByHop
	// Concurrent sends all probes of all TTLs, then waits once.
	Concurrent
	// Adaptive keeps every TTL in flight and asks again only what is missing.
	Adaptive
)

var algorithmWords = []string{
	PacketByPacket: "packet-by-packet", HopByHop: "hop-by-hop", Concurrent: "concurrent", Adaptive: "adaptive",
}

// Direction tells who opened a flow, seen from the host that runs the tracer.
// The zero value is invalid.
type Direction uint8

// The directions of a flow.
const (
	Out     Direction = iota + 1 // this host opened it
	In                           // this host accepted it
	Transit                      // this host only forwards it
)

var directionWords = []string{Out: "out", In: "in", Transit: "transit"}

// By says what made a flow belong to a service. The zero value is invalid.
type By uint8

// The reasons for which a flow is selected.
const (
	ByDNS By = iota + 1
	BySNI
	ByQUICSNI
	ByHTTPHost
	ByAddress
	ByPrefix
	ByPort
	ByProcess
	ByCgroup
	ByExpr
	ByNameAtStart
	ByConnection
	ByRun
	ByDial
)

var byWords = []string{
	ByDNS: "dns", BySNI: "sni", ByQUICSNI: "quic-sni", ByHTTPHost: "http-host", ByAddress: "address",
	ByPrefix: "prefix", ByPort: "port", ByProcess: "process", ByCgroup: "cgroup", ByExpr: "expr",
	ByNameAtStart: "name-at-start", ByConnection: "connection", ByRun: "run", ByDial: "dial",
}

// ReplyKind is what a reply to a probe was. The zero value is invalid.
type ReplyKind uint8

// The kinds of replies.
const (
	TimeExceeded ReplyKind = iota + 1
	NetUnreachable
	HostUnreachable
	PortUnreachable
	AdminProhibited
	Unreachable
	PacketTooBig
	TCPAck
	TCPRst
	EchoReply // to a sibling's ping
)

var replyKindWords = []string{
	TimeExceeded: "time-exceeded", NetUnreachable: "net-unreachable", HostUnreachable: "host-unreachable",
	PortUnreachable: "port-unreachable", AdminProhibited: "admin-prohibited", Unreachable: "unreachable",
	PacketTooBig: "packet-too-big", TCPAck: "tcp-ack", TCPRst: "tcp-rst", EchoReply: "echo-reply",
}

// Stop says why a trace ended. The zero value is invalid.
type Stop uint8

// The reasons for which a trace stops.
const (
	StopDestination Stop = iota + 1 // the destination answered
	StopUnreachable                 // an ICMP unreachable ended the path
	StopBorder                      // a border address answered
	StopMaxTTL                      // every TTL up to the limit was probed
	StopSilentHops                  // too many silent hops in a row
	StopFence                       // no higher TTL may be probed
	StopUnknown                     // the destination could not be told
	StopFlowClosed                  // FIN, RST or a new SYN of the tuple
	StopFlowIdle                    // the flow was silent for too long
	StopLostSync                    // packets were lost to the capture
	StopRateLimited                 // responders' limits held probes back to the end
	StopDeadline                    // the run's time is over
	StopCancelled                   // the caller stopped it
	StopRefused                     // the flow must not be probed, see Reason
)

var stopWords = []string{
	StopDestination: "destination", StopUnreachable: "unreachable", StopBorder: "border", StopMaxTTL: "max-ttl",
	StopSilentHops: "silent-hops", StopFence: "fence", StopUnknown: "unknown", StopFlowClosed: "flow-closed",
	StopFlowIdle: "flow-idle", StopLostSync: "lost-sync", StopRateLimited: "rate-limited", StopDeadline: "deadline",
	StopCancelled: "cancelled", StopRefused: "refused",
}

// Reason says why a flow was refused, or ignored. The zero value means neither.
type Reason uint8

// The reasons for which a flow is not probed.
const (
	ReasonRecvErr Reason = iota + 1
	ReasonMD5
	ReasonAO
	ReasonMPTCP
	ReasonNoInboundTTL
	ReasonNoState
	ReasonRouteMismatch
	ReasonLoopback
	ReasonExcluded
	ReasonUDPOff
	ReasonProtocol
	ReasonCapability
	ReasonAmbiguous // with FlowIgnored: the address has names that say different things
)

var reasonWords = []string{
	ReasonRecvErr: "recverr", ReasonMD5: "md5", ReasonAO: "ao", ReasonMPTCP: "mptcp",
	ReasonNoInboundTTL: "no-inbound-ttl", ReasonNoState: "no-state", ReasonRouteMismatch: "route-mismatch",
	ReasonLoopback: "loopback", ReasonExcluded: "excluded", ReasonUDPOff: "udp-off", ReasonProtocol: "protocol",
	ReasonCapability: "capability", ReasonAmbiguous: "ambiguous",
}

// DestinationBy says how the destination's distance was learnt. The zero value
// means "not learnt".
type DestinationBy uint8

// How a destination was told.
const (
	DestinationByAck     DestinationBy = iota + 1 // it acknowledged a probe
	DestinationByICMP                             // it sent an ICMP error about a probe
	DestinationByPassive                          // only the flow's own RTT is known
)

var destinationByWords = []string{
	DestinationByAck: "ack", DestinationByICMP: "icmp", DestinationByPassive: "passive",
}

// FlowState is what became of a flow that was looked at. The zero value is invalid.
type FlowState uint8

// The states of a flow record.
const (
	FlowMatched FlowState = iota + 1
	FlowIgnored
	FlowRefused
)

var flowStateWords = []string{FlowMatched: "matched", FlowIgnored: "ignored", FlowRefused: "refused"}

// FindingKind names a difference between what was sent and what was quoted, or
// another finding about a path. The zero value is invalid.
type FindingKind uint8

// The vocabulary of changes and findings.
const (
	NATSrc FindingKind = iota + 1
	NATDst
	NATPort
	SeqRewritten
	DSCPChanged
	ECNSet
	TTLMangled
	MTU
	MPLS
	InterfaceInfo
	MultiResponder
	PerPacketLB
	Loop
	AsymmetricReturn
	DelayBegins
	LossBegins
	ICMPLimited
)

var findingWords = []string{
	NATSrc: "nat-src", NATDst: "nat-dst", NATPort: "nat-port", SeqRewritten: "seq-rewritten",
	DSCPChanged: "dscp-changed", ECNSet: "ecn-set", TTLMangled: "ttl-mangled", MTU: "mtu", MPLS: "mpls",
	InterfaceInfo: "interface", MultiResponder: "multi-responder", PerPacketLB: "per-packet-lb", Loop: "loop",
	AsymmetricReturn: "asymmetric-return", DelayBegins: "delay-begins", LossBegins: "loss-begins",
	ICMPLimited: "icmp-limited",
}
