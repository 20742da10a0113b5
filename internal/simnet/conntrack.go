package simnet

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"servicetraceroute/internal/wire"
)

// conntrack is a router's table of flows, after Linux's: it is what firewalls
// judge by and what NAT and sequence shifting remember. Entries that have expired
// go when somebody looks for them.
type conntrack struct {
	node  *node
	table map[Tuple]*entry // by both ways of each flow, as they come in
	rng   *rand.Rand
	count Filtered
}

// entry is a tracked flow.
type entry struct {
	orig    Tuple // as the first packet came in
	reply   Tuple // as an answer comes in; differs with NAT
	tcp     tcpTrack
	shift   uint32 // added to the sequence numbers of orig
	timeout time.Duration
	dies    int64
}

// The directions of an entry.
const (
	original = iota
	replying
)

type trackState uint8

const (
	untracked trackState = iota
	fresh                // no flow is known, this may begin one
	established
	related // an ICMP error about a known flow
	invalid
)

// tracked is what conntrack says about a packet.
type tracked struct {
	entry *entry // nil when invalid or untracked
	dir   int
	state trackState
	quote bool // NAT changes quotes too
}

// Filtered counts packets by what a node's firewall and NAT did. The names are
// those of the lab's rules.
type Filtered struct {
	Established, Inside, Allowed uint64 // forwarded
	Invalid, Dropped             uint64
	Masquerade                   uint64 // new flows that were given another source
}

// Tracked is a connection in a node's table.
type Tracked struct {
	Protocol           uint8
	Src, Dst           netip.AddrPort // as the first packet came in
	ReplySrc, ReplyDst netip.AddrPort // as an answer comes in: differs behind NAT
	// Timeout is what the entry has left if nothing more is seen of the flow.
	Timeout time.Duration
}

// nf_conntrack's timeouts.
const (
	timeoutUDP   = 120 * time.Second
	timeoutICMP  = 30 * time.Second
	timeoutSYN   = 120 * time.Second
	timeoutTCP   = 5 * 24 * time.Hour
	timeoutClose = 120 * time.Second
	timeoutReset = 10 * time.Second
	// timeoutRetrans replaces a longer one when segments repeat, see tcpTrack.
	timeoutRetrans = 300 * time.Second
)

func newConntrack(nd *node) *conntrack {
	return &conntrack{node: nd, table: map[Tuple]*entry{}, rng: nd.net.random("nat " + nd.name)}
}

// find returns the entry of a packet's tuple and the direction that this is.
func (c *conntrack) find(t Tuple) (*entry, int) {
	e := c.table[t]
	if e == nil {
		return nil, 0
	}
	if e.dies <= c.node.net.now {
		c.drop(e)
		return nil, 0
	}
	if t == e.orig {
		return e, original
	}
	return e, replying
}

func (c *conntrack) drop(e *entry) {
	delete(c.table, e.orig)
	delete(c.table, e.reply)
}

// touch gives an entry its time anew.
func (e *entry) touch(now int64, timeout time.Duration) {
	e.timeout, e.dies = timeout, now+int64(timeout)
}

// classify tracks a packet that came in.
func (c *conntrack) classify(p *packet) tracked {
	if p.icmpError() {
		return c.about(p)
	}
	switch p.ip.Proto {
	case wire.ProtoTCP:
		if !p.isTCP || !validFlags(p.tcp.Flags) || !p.intact && !validChecksum(&p.ip) {
			return tracked{state: invalid}
		}
		return c.segment(p)
	case wire.ProtoUDP:
		if !validChecksum(&p.ip) {
			return tracked{state: invalid}
		}
		return c.datagram(p, timeoutUDP)
	case wire.ProtoICMP, wire.ProtoICMPv6:
		if p.isICMP && (p.icmp.Kind == wire.EchoRequest || p.icmp.Kind == wire.EchoReply) {
			return c.datagram(p, timeoutICMP)
		}
	}
	return tracked{}
}

// about finds the flow that an ICMP error is about. The error travels against the
// packet that it quotes.
func (c *conntrack) about(p *packet) tracked {
	var q wire.Quote
	if q.Decode(p.icmp.Quote) != nil {
		return tracked{state: invalid}
	}
	src, dst := q.SrcPort, q.DstPort
	if !q.HasPorts && len(q.Transport) >= 8 { // an echo
		src = be.Uint16(q.Transport[4:])
		dst = src
	}
	against := Tuple{q.Proto, netip.AddrPortFrom(q.Dst, dst), netip.AddrPortFrom(q.Src, src)}
	e, dir := c.find(against)
	if e == nil {
		return tracked{state: invalid}
	}
	return tracked{e, dir, related, !c.node.opts.QuotesUntranslated}
}

func (c *conntrack) datagram(p *packet, timeout time.Duration) tracked {
	now := c.node.net.now
	e, dir := c.find(p.tuple)
	if e == nil {
		e = &entry{orig: p.tuple, reply: p.tuple.Reverse()}
		e.touch(now, timeout)
		return tracked{entry: e, state: fresh}
	}
	e.touch(now, timeout)
	return tracked{entry: e, dir: dir, state: established}
}

// segment tracks a TCP segment.
func (c *conntrack) segment(p *packet) tracked {
	now, t := c.node.net.now, &p.tcp
	e, dir := c.find(p.tuple)
	opens := t.Flags&wire.SYN != 0 && t.Flags&wire.ACK == 0
	if e != nil && opens && e.tcp.closing {
		c.drop(e)
		e = nil
	}
	if e == nil {
		e = &entry{orig: p.tuple, reply: p.tuple.Reverse()}
		if !e.tcp.begin(p) {
			return tracked{state: invalid}
		}
		if opens {
			e.shift = c.node.opts.SeqShift
		}
		e.touch(now, timeoutSYN)
		if e.tcp.established {
			e.touch(now, timeoutTCP)
		}
		return tracked{entry: e, state: fresh}
	}
	var shift uint32 // of what an answer acknowledges
	if dir == replying {
		shift = e.shift
	}
	switch e.tcp.window(p, dir, shift, c.node.opts.OldConntrack) {
	case windowInvalid:
		return tracked{state: invalid}
	case windowIgnore:
		return tracked{entry: e, dir: dir, state: established}
	}
	e.touch(now, e.tcp.timeout())
	return tracked{entry: e, dir: dir, state: established}
}

// validFlags are the combinations that tcp_valid_flags of Linux allows.
func validFlags(f wire.TCPFlags) bool {
	switch f &^ (wire.PSH | wire.ECE | wire.CWR | wire.URG) {
	case wire.SYN, wire.SYN | wire.ACK, wire.RST, wire.RST | wire.ACK, wire.FIN | wire.ACK, wire.ACK:
		return true
	}
	return false
}

// Filtered returns the counters of a node's firewall and NAT.
func (n *Net) Filtered(name string) Filtered {
	n.mu.Lock()
	defer n.mu.Unlock()
	if nd := n.nodes[name]; nd != nil && nd.track != nil {
		return nd.track.count
	}
	return Filtered{}
}

// Conntrack returns a node's tracked flows, in the order of their tuples.
func (n *Net) Conntrack(name string) (all []Tracked) {
	n.mu.Lock()
	defer n.mu.Unlock()
	nd := n.nodes[name]
	if nd == nil || nd.track == nil {
		return nil
	}
	now := max(n.clock(), n.now)
	for t, e := range nd.track.table {
		if t == e.orig && e.dies > now {
			all = append(all, Tracked{
				t.Proto, t.Src, t.Dst, e.reply.Src, e.reply.Dst, time.Duration(e.dies - now),
			})
		}
	}
	slices.SortFunc(all, func(a, b Tracked) int { return cmp.Or(a.Src.Compare(b.Src), a.Dst.Compare(b.Dst)) })
	return all
}
