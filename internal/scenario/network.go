// Package scenario describes test networks and the traffic in them: nodes, links,
// load balancing, firewalls, rate limits, applications. A description is plain
// data. internal/lab builds it from network namespaces and real kernels,
// internal/simnet from memory and virtual time; both take addresses and routes
// from Layout, so that one table of scenarios runs on both.
package scenario

import (
	"net/netip"
	"time"
)

// Network is a topology. Names of nodes and links are unique.
type Network struct {
	Name  string
	Nodes []Node
	Links []Link
	// Destinations are the nodes that routes lead to; empty: all, and all links. A network
	// of hundreds of routers has few hosts, and routes to each of its links would be
	// millions.
	Destinations []string
}

// Kind is what a node does with packets. The zero value is invalid.
type Kind uint8

// The kinds of nodes.
const (
	Host   Kind = iota + 1 // an end of flows; forwards nothing
	Router                 // forwards, answers expired packets with Time Exceeded
)

// Node is a host or a router.
type Node struct {
	Name string
	Kind Kind
	// Addrs are addresses of the node itself, beside those of its links: at most
	// one IPv4 and one IPv6. A host with several uplinks needs them: its flows
	// then use them as source whatever the uplink.
	Addrs []netip.Addr
	// Silent routers drop expired packets without a word.
	Silent bool
	// ICMP limits the errors a router sends.
	ICMP ICMPLimit
	// Hash is what the node balances equal-cost next hops by.
	Hash Hash
	// Firewall, when set, filters what the node forwards.
	Firewall *Firewall
	// NAT, when set, rewrites what leaves by one of the node's links.
	NAT *NAT
	// PortRoutes send what the node itself sends to a destination port another
	// way ("ip rule dport").
	PortRoutes []PortRoute
}

// ICMPLimit is a router's rate limit of ICMP errors. The zero value is none.
type ICMPLimit struct {
	// KernelDefaults keeps what Linux does by itself: IPv4 one per second and
	// target after a burst of 6, IPv6 ten per second, 1000/s (burst 50) in all.
	KernelDefaults bool
	// Interval is the least time between two errors to one target, for both
	// families, when KernelDefaults is false. 0 is no limit.
	Interval time.Duration
}

// Hash is the input of a load balancer's hash. The zero value is L4.
type Hash uint8

// What load balancers hash.
const (
	HashL4        Hash = iota // addresses, protocol and ports
	HashFlowLabel             // IPv6: the same and the flow label; IPv4: L4
	HashL3                    // addresses only
)

// Firewall is a stateful one: it forwards what conntrack knows, drops what
// conntrack calls invalid, and lets only new SYNs to AllowTCP in; ping, UDP and
// other new flows are dropped without an answer.
type Firewall struct {
	AllowTCP []uint16
	// Inside is the name of the link from which any new flow may come (empty:
	// none, both sides are held to AllowTCP).
	Inside string
}

// NAT masquerades what leaves by the link Outside.
type NAT struct {
	Outside     string
	FullyRandom bool
	IPv6        bool // NAT66 as well
}

// PortRoute sends TCP to DstPort out by the link Via.
type PortRoute struct {
	DstPort uint16
	Via     string
}

// Link joins two nodes. The zero values mean: cost 1, no delay, no limit of
// rate, no loss, MTU 1500, and that nothing is rewritten.
type Link struct {
	Name string // empty: "A-B"
	A, B string
	// CostAB and CostBA are the routing costs of the two ways; equal costs make
	// equal-cost multipath, different ones asymmetric return paths.
	CostAB, CostBA int
	Delay          time.Duration // one way
	Jitter         time.Duration // added to Delay, uniform in [0, Jitter], never reorders
	Rate           int64         // bit/s each way
	Loss           float64       // share of packets lost, each way
	Queue          int           // bytes that wait for Rate; 0: 256 KiB
	MTU            int
	// Prefix4 and Prefix6 replace the automatic subnets. A has the first host
	// address, B the second.
	Prefix4, Prefix6 netip.Prefix
	Down             bool

	// The rest makes a middlebox of the link. Only internal/lab knows these;
	// internal/simnet, whose nodes have options like them, refuses them.

	// SeqShift hides A's sequence numbers, as firewalls do that randomise them: it
	// is added to the sequence numbers of TCP segments from A to B, and taken off
	// the acknowledgement numbers and SACK blocks of those from B to A, and off the
	// sequence number that ICMP errors from B to A quote. 0: none.
	SeqShift uint32
	// QuotesUntranslated leaves the shifted number in those quotes.
	QuotesUntranslated bool
	// ShortQuotes cuts ICMPv4 errors from B to A to what old routers quote (RFC
	// 792): the IP header and 8 bytes. What stood behind, RFC 4884 extensions
	// included, is gone. ICMPv6 stays as it is.
	ShortQuotes bool
}

// Impaired reports whether the link is anything but a plain wire.
func (l Link) Impaired() bool {
	return l.Delay > 0 || l.Jitter > 0 || l.Rate > 0 || l.Loss > 0 || l.Rewrites()
}

// Rewrites reports whether the link changes packets.
func (l Link) Rewrites() bool { return l.SeqShift != 0 || l.QuotesUntranslated || l.ShortQuotes }

func (l Link) name() string {
	if l.Name != "" {
		return l.Name
	}
	return l.A + "-" + l.B
}
