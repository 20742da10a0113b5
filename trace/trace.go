package trace

import (
	"net/netip"
	"time"
)

// Trace is one run over one flow, with its result.
type Trace struct {
	ID          string // unique among all traces of all tracers, 16 hex digits
	Label       string // the user's own text, in every record
	Start       time.Time
	End         time.Time
	Algorithm   Algorithm
	Flow        Tuple
	Service     *Service // why the flow was selected; nil in traces from elsewhere that do not tell
	Process     *Process // nil when unknown
	Hops        []Hop    // by rising TTL, the destination's answer last
	Reached     bool     // the destination was proven to answer
	Stop        Stop
	Reason      Reason // with StopRefused
	Destination *Destination
	Complete    bool   // nothing is missing up to the end of the path
	Mixed       bool   // the path changed during the trace
	PathID      string // only when Complete
	Observed    Observed
	Impact      Impact
	Trigger     string // the expression over the flow's health that began it; empty: none did
}

// Hop is all that answered at one TTL.
type Hop struct {
	TTL      int     `json:"ttl"`
	Sent     int     `json:"sent"`     // probes that left
	Deferred int     `json:"deferred"` // probes held back by a responder's rate limit and never sent
	Limited  bool    `json:"limited"`  // its silence coincides with a responder's rate limit: not loss
	Replies  []Reply `json:"replies"`  // in the order of arrival; empty for a silent hop
}

// Reply is one answer to one probe.
type Reply struct {
	Addr     netip.Addr
	RTT      time.Duration // from kernel timestamps on both sides
	Kind     ReplyKind
	ReplyTTL int    // TTL or hop limit with which the reply arrived
	Name     string // reverse DNS, if asked for
	ASN      uint32 // 0 when unknown
	MPLS     []Label
	Changes  []FindingKind
	Late     bool // it came after the probe's timeout
	// SharedFrom is the id of the trace that measured it, if that is not this one: another
	// flow's, and so is the RTT. The hop's Sent is 0 then, and the trace not Complete.
	SharedFrom string
	// Exchange is not part of the JSON form: nil in records that were read.
	Exchange *Exchange
}

// Exchange is what the two packets of an answer held beyond what a record shows,
// for formats that want it.
type Exchange struct {
	Sent     time.Time // when the probe left
	Attempt  int       // of its TTL, from 1
	ProbeLen int       // bytes of the probe from the IP header on
	ProbeTOS uint8     // DSCP<<2 | ECN, or traffic class
	ReplyLen int       // bytes of the answer from the IP header on
	ReplyTOS uint8
	ReplyID  uint16 // IPv4 identification
	TCPFlags uint8  // of an answer over TCP, else 0

	// Of an ICMP error, and of the probe's IP header as it quotes that.
	ICMPType, ICMPCode uint8
	MTU                uint32 // of packet-too-big
	QuoteTTL, QuoteTOS uint8
	QuoteLen           int
	QuoteShort         bool         // it ends before all of the transport header was quoted
	Quoted             *Quoted      // nil: what was quoted is as it was sent, but for TTL and TOS
	Interfaces         []*Interface // of the router (RFC 5837)
}

// Label is one entry of an MPLS label stack (RFC 4950).
type Label struct {
	Label uint32 `json:"label"`
	TC    uint8  `json:"tc"`
	S     bool   `json:"s"`
	TTL   uint8  `json:"ttl"`
}

// Destination tells where the path ends. RTT is the probe's (ByAck, ByICMP) or
// the flow's own smoothed one (ByPassive), in which case TTL is 0: unknown.
type Destination struct {
	TTL int
	RTT time.Duration
	By  DestinationBy
}

// Observed is what the flow itself showed during the trace, without probes.
type Observed struct {
	RTT         time.Duration // smoothed; negative when no sample was seen
	Retransmits int           // retransmitted segments of both sides
	BytesIn     uint64        // payload bytes from the peer since the flow was first seen
	BytesOut    uint64        // payload bytes to the peer
	RTTMin      time.Duration // the least; 0 when not known
	// In and Out are what the peer and the local end sent, as far as the capture saw it since
	// the flow was selected; nil where that is not known, as of UDP.
	In, Out *Health
}

// Health counts how one direction of a TCP flow did.
type Health struct {
	Retransmits int   `json:"retransmits"`
	DupAcks     int   `json:"dup_acks"`     // acknowledgements repeated while data was under way
	OutOfOrder  int   `json:"out_of_order"` // segments behind later ones that were no retransmissions
	ZeroWindows int   `json:"zero_windows"` // how often the sender of this direction closed its window
	Goodput     int64 `json:"goodput_bps"`  // bit/s over the last ten seconds, each byte counted once
}

// Impact counts what happened to the flow within one round trip of a probe that
// could reach its destination. All zero is the rule; Aborted means that the
// circuit breaker ended such probes.
type Impact struct {
	Retransmits int  `json:"retransmits"`
	DupAcks     int  `json:"dup_acks"`
	RSTs        int  `json:"rsts"`
	Aborted     bool `json:"aborted"`
}
