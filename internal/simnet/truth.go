package simnet

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Truth answers what really happened, from what the nodes did and not from what
// any packet says. It asks and answers as the lab's observers do. Its methods may
// be called while the network runs.
type Truth struct {
	net     *Net
	trips   map[Tuple][]oneTrip
	probes  map[Probe][]*probeRecord
	byFlow  map[Tuple][]*probeRecord // in the order of sending
	routes  []step                   // prefixes of ways through the network
	follows map[step]int32
}

// Probe names a packet as its sender put it on the wire.
type Probe struct {
	Tuple
	Seq uint32 // TCP
	ID  uint16 // IPv4
	TTL uint8
}

// Answer is an ICMP error that a node made about a probe.
type Answer struct {
	Node           string
	Addr           netip.Addr // its source, as it left that node
	Type, Code     uint8
	Sent, Answered time.Time // the probe left its sender, the error its node
}

// Verdict is what became of a probe.
type Verdict struct {
	Sent    bool // such a packet was sent
	Answers []Answer
	Nodes   []string // that it came to, in order
	Reached bool     // it came to the node that it was addressed to
}

// Hop is who answered at a TTL.
type Hop struct {
	Addr netip.Addr
	Node string
}

// Interval is a time during which all packets of a flow took the same way.
type Interval struct {
	From, To time.Time // when the first and the last of them left their sender
	Packets  int
	Nodes    []string // that forwarded them, from sender to receiver
}

// maxProbeTTL is the highest TTL of what is kept one by one. What comes through a
// Sink is always kept.
const maxProbeTTL = 32

// trip is what a packet remembers of its journey.
type trip struct {
	from  *node
	sent  int64
	tuple Tuple // as it was then
	way   int32 // index in Truth.routes: the nodes it came to
	probe *probeRecord
}

type probeRecord struct {
	Probe
	sent    int64
	answers []Answer
	way     int32
	reached bool
}

// step is a way through the network: one node after another way.
type step struct {
	before int32
	node   *node
}

// oneTrip is a packet that arrived.
type oneTrip struct {
	sent int64
	way  int32
}

func newTruth(n *Net) *Truth {
	return &Truth{
		net: n, trips: map[Tuple][]oneTrip{}, probes: map[Probe][]*probeRecord{}, byFlow: map[Tuple][]*probeRecord{},
		routes: []step{{}}, follows: map[step]int32{},
	}
}

// left notes that a packet leaves the node that made it.
func (t *Truth) left(p *packet, from *node, injected bool) {
	p.trip = trip{from: from, sent: t.net.now, tuple: p.tuple}
	if (!p.isTCP && p.ip.Proto != 17) || p.ip.TTL > maxProbeTTL && !injected {
		return
	}
	r := &probeRecord{Probe: Probe{Tuple: p.tuple, Seq: p.tcp.Seq, ID: p.ip.ID, TTL: p.ip.TTL}, sent: t.net.now}
	p.trip.probe = r
	t.probes[r.Probe] = append(t.probes[r.Probe], r)
	t.byFlow[r.Tuple] = append(t.byFlow[r.Tuple], r)
}

// came notes that a packet came to a node.
func (t *Truth) came(p *packet, at *node) {
	s := step{p.trip.way, at}
	way, ok := t.follows[s]
	if !ok {
		way = int32(len(t.routes))
		t.routes = append(t.routes, s)
		t.follows[s] = way
	}
	p.trip.way = way
	if p.trip.probe != nil {
		p.trip.probe.way = way
	}
}

// arrived notes that a packet came to the node it was meant for.
func (t *Truth) arrived(p *packet) {
	if r := p.trip.probe; r != nil {
		r.reached = true
		return
	}
	if !p.isTCP {
		return
	}
	t.trips[p.trip.tuple] = append(t.trips[p.trip.tuple], oneTrip{p.trip.sent, p.trip.way})
}

// answered notes an ICMP error about a packet.
func (t *Truth) answered(p *packet, by *node, src netip.Addr, typ, code uint8) {
	if r := p.trip.probe; r != nil {
		r.answers = append(r.answers, Answer{by.name, src, typ, code, t.net.time(r.sent), t.net.time(t.net.now)})
	}
}

// nodes returns the names of a way's nodes.
func (t *Truth) nodes(way int32) (names []string) {
	for ; way != 0; way = t.routes[way].before {
		names = append(names, t.routes[way].node.name)
	}
	slices.Reverse(names)
	return names
}

// Truth returns the witness of all nodes.
func (n *Net) Truth() *Truth { return n.truth }

// Judge tells what became of a probe. Of equal ones, all answers count.
func (t *Truth) Judge(p Probe) Verdict {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	return t.judge(p)
}

func (t *Truth) judge(p Probe) (v Verdict) {
	for _, r := range t.probes[p] {
		v.Sent = true
		v.Reached = v.Reached || r.reached
		v.Answers = append(v.Answers, r.answers...)
		v.Nodes = t.nodes(r.way)
	}
	return v
}

// Answered reports whether, and by whom, a probe was answered.
func (t *Truth) Answered(p Probe) (addr netip.Addr, node string, ok bool) {
	if a := t.Judge(p).Answers; len(a) > 0 {
		return a[0].Addr, a[0].Node, true
	}
	return addr, "", false
}

// Sent returns the probes of a flow with a TTL of at most maxTTL, in the order of
// sending.
func (t *Truth) Sent(f Tuple, maxTTL uint8) (all []Probe) {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	for _, r := range t.byFlow[f] {
		if r.TTL <= maxTTL {
			all = append(all, r.Probe)
		}
	}
	return all
}

// Hops returns, for each TTL at which probes of the flow were sent, who answered,
// in the order of addresses. A TTL whose probes nobody answered is there with none.
func (t *Truth) Hops(f Tuple, maxTTL uint8) map[uint8][]Hop {
	hops := map[uint8][]Hop{}
	for _, p := range t.Sent(f, maxTTL) {
		all := hops[p.TTL]
		for _, a := range t.Judge(p).Answers {
			if h := (Hop{a.Addr, a.Node}); !slices.Contains(all, h) {
				all = append(all, h)
			}
		}
		slices.SortFunc(all, func(a, b Hop) int {
			return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Node, b.Node))
		})
		hops[p.TTL] = all
	}
	return hops
}

// Path returns which nodes forwarded the flow's own packets, probes aside, and
// when. Only packets that arrived count. Packets that took turns between ways make
// as many intervals.
func (t *Truth) Path(f Tuple) (path []Interval) {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	all := slices.Clone(t.trips[f])
	slices.SortStableFunc(all, func(a, b oneTrip) int { return cmp.Compare(a.sent, b.sent) })
	last := int32(-1)
	for _, o := range all {
		at := t.net.time(o.sent)
		if o.way == last {
			i := &path[len(path)-1]
			i.To, i.Packets = at, i.Packets+1
			continue
		}
		last = o.way
		nodes := t.nodes(o.way)
		path = append(path, Interval{at, at, 1, nodes[:len(nodes)-1]}) // the last one kept it
	}
	return path
}
