package sibling

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"
	"testing"
	"time"

	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// plane is a network in memory: r1, then one of ways routers as a hash of the flow
// identifier has it, r3, and the destination. All at once, without delay.
type plane struct {
	t        *testing.T
	src, dst netip.Addr
	ways     int
	closed   map[uint8]bool // protocols that r3 drops
	rst      bool
	proxy    bool                // answers TCP at TTL 2
	reached  map[uint16]int      // SYNs at the destination, by source port
	heads    map[uint16][][]byte // what a load balancer hashes, by flow
	seqs     map[uint16][]uint32 // of SYNs, by source port
	lie      func(r *Received)   // about every answer
	quoted   int                 // bytes of the transport in quotes; 0: 8
}

func router(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}) }

func (p *plane) carry(b []byte, now time.Time) (Received, bool) {
	var ip wire.Packet
	if err := ip.Decode(b, len(b)); err != nil {
		p.t.Fatal(err)
	}
	port := binary.BigEndian.Uint16(ip.Transport)
	if ip.Proto == wire.ProtoICMP {
		port = binary.BigEndian.Uint16(ip.Transport[4:])
	}
	head := slices.Concat([]byte{ip.Proto}, ip.Transport[:4])
	if ip.Proto == wire.ProtoICMP {
		head = append(head, ip.Transport[4:6]...)
	}
	if !slices.ContainsFunc(p.heads[port], func(h []byte) bool { return slices.Equal(h, head) }) {
		p.heads[port] = append(p.heads[port], head)
	}
	if ip.Proto == wire.ProtoTCP {
		p.seqs[port] = append(p.seqs[port], binary.BigEndian.Uint32(ip.Transport[4:]))
	}
	p.checksum(ip)
	h := fnv.New32a()
	h.Write(head)
	way := int(h.Sum32()>>7) % p.ways
	switch {
	case ip.TTL == 1:
		return p.exceeded(router(1), b, now), true
	case p.proxy && ip.Proto == wire.ProtoTCP:
		return p.deliver(ip, b, now), true
	case ip.TTL == 2:
		return p.exceeded(router(100+way), b, now), true
	case p.closed[ip.Proto] && ip.TTL > 3:
		return Received{}, false
	case ip.TTL == 3:
		return p.exceeded(router(3), b, now), true
	}
	return p.deliver(ip, b, now), true
}

// checksum: what is sent must be right.
func (p *plane) checksum(ip wire.Packet) {
	if ip.Proto != wire.ProtoICMP {
		return
	}
	var sum uint32
	for i := 0; i+1 < len(ip.Transport); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip.Transport[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	if sum != 0xffff {
		p.t.Errorf("ICMP checksum is wrong: %x", ip.Transport)
	}
}

func (p *plane) exceeded(from netip.Addr, b []byte, now time.Time) Received {
	quote := b[:min(len(b), 28+p.quoted)]
	return Received{From: from, Proto: wire.ProtoICMP, TTL: 60, Transport: slices.Concat([]byte{11, 0, 0, 0, 0, 0, 0, 0}, quote), Time: now}
}

func (p *plane) deliver(ip wire.Packet, b []byte, now time.Time) Received {
	tr := ip.Transport
	switch ip.Proto {
	case wire.ProtoTCP:
		p.reached[binary.BigEndian.Uint16(tr)]++
		out := make([]byte, 20)
		copy(out, tr[2:4])
		copy(out[2:], tr[:2])
		binary.BigEndian.PutUint32(out[8:], binary.BigEndian.Uint32(tr[4:])+1)
		out[12], out[13] = 5<<4, byte(wire.SYN|wire.ACK)
		if p.rst {
			out[13] = byte(wire.RST | wire.ACK)
		}
		return Received{From: p.dst, Proto: wire.ProtoTCP, TTL: 60, Transport: out, Time: now}
	case wire.ProtoUDP:
		r := p.exceeded(p.dst, b, now)
		r.Transport[0], r.Transport[1] = 3, 3
		return r
	}
	out := slices.Clone(tr)
	out[0] = 0
	return Received{From: p.dst, Proto: wire.ProtoICMP, TTL: 60, Transport: out, Time: now}
}

func newPlane(t *testing.T, ways int) *plane {
	return &plane{
		t: t, src: netip.MustParseAddr("192.0.2.1"), dst: netip.MustParseAddr("203.0.113.7"), ways: ways,
		closed: map[uint8]bool{}, reached: map[uint16]int{}, heads: map[uint16][][]byte{},
		seqs: map[uint16][]uint32{},
	}
}

// play runs a session to its end in virtual time.
func (p *plane) play(cfg Config) (*Session, time.Duration) {
	cfg.Src, cfg.Dst, cfg.Port = p.src, p.dst, 443
	s := New(cfg)
	start := time.Unix(1e9, 0)
	now := start
	for range 1 << 20 {
		b, at, over := s.Next(now)
		if over {
			return s, now.Sub(start)
		}
		if b == nil {
			if !at.After(now) {
				p.t.Fatal("it does not wait")
			}
			now = at
			continue
		}
		if r, ok := p.carry(slices.Clone(b), now); ok {
			if p.lie != nil {
				p.lie(&r)
			}
			s.Take(r)
		}
	}
	p.t.Fatal("it never ends")
	return nil, 0
}

func TestSession(t *testing.T) {
	for _, ways := range []int{1, 2, 4, 8} {
		p := newPlane(t, ways)
		s, _ := p.play(Config{Distance: 4, Seed: [32]byte{byte(ways), 3}})
		siblings := s.Siblings()
		for port, heads := range p.heads {
			if len(heads) != 1 {
				t.Fatalf("flow %d has %d flow identifiers", port, len(heads))
			}
		}
		for _, proto := range Protocols {
			n := graph(siblings, proto)[node{1, router(1)}]
			if len(n.addrs) != ways || n.flows < Enough(ways, 0.95) {
				t.Errorf("%d ways, %s: found %d with %d siblings", ways, proto, len(n.addrs), n.flows)
			}
			for at, n := range graph(siblings, proto) {
				if hops, flows := n.seen(); flows > 0 && flows < Enough(hops, 0.95) {
					t.Errorf("%d ways, %s: only %d siblings through %v", ways, proto, n.flows, at)
				}
			}
		}
		fenced, reached := 0, map[string]int{}
		for _, x := range siblings {
			if x.Reached != (x.Stop == trace.StopDestination) || x.Reached && len(x.Hops) != 4 {
				t.Errorf("%+v", x)
			}
			if x.Stop == trace.StopFence {
				fenced++
			}
			if x.Reached {
				reached[x.Proto]++
			}
		}
		if len(p.reached) != reaching || reached[TCP] != reaching || reached[UDP] != reaching || reached[ICMP] != reaching || fenced == 0 {
			t.Errorf("%d ways: SYNs reached the destination from %v, siblings %v; %d stopped before", ways, p.reached, reached, fenced)
		}
		if c := s.Counters(); c.Unmatched != 0 || c.Matched != c.Sent {
			t.Errorf("%+v", c)
		}
	}
}

// Where the destination's distance is not known, each sibling finds it with one SYN, and
// none is sent to it any more once enough have.
func TestOneSYN(t *testing.T) {
	p := newPlane(t, 4)
	p.play(Config{Seed: [32]byte{7}})
	if n := len(p.reached); n > Enough(1, 0.95) {
		t.Errorf("%d siblings reached the destination", n)
	}
	for port, n := range p.reached {
		if n != 1 {
			t.Errorf("port %d: %d SYNs reached the destination", port, n)
		}
	}
}

// The numbers of a sibling's SYNs rise, by little: connection tracking takes one below for
// another flow's.
func TestRisingSYNs(t *testing.T) {
	p := newPlane(t, 4)
	p.play(Config{Seed: [32]byte{7}})
	if len(p.seqs) == 0 {
		t.Fatal("no SYN was sent")
	}
	for port, seqs := range p.seqs {
		for i := 1; i < len(seqs); i++ {
			if up := seqs[i] - seqs[i-1]; up == 0 || up > 1<<24 {
				t.Errorf("port %d: %d after %d", port, seqs[i], seqs[i-1])
			}
		}
	}
}

// A SYN that may have reached the destination is not repeated.
func TestSilentDestination(t *testing.T) {
	p := newPlane(t, 1)
	p.closed[wire.ProtoTCP] = true
	syns := map[uint16]int{}
	p.lie = func(*Received) {}
	cfg := Config{Distance: 4, Seed: [32]byte{9}}
	s, _ := p.play(cfg)
	for _, x := range s.Siblings() {
		if x.Proto != TCP {
			continue
		}
		for _, h := range x.Hops {
			if h.TTL >= 4 {
				syns[x.SourcePort] += h.Sent
			}
		}
		if syns[x.SourcePort] > 1 {
			t.Errorf("%+v", x)
		}
	}
	if len(syns) != reaching {
		t.Errorf("%d siblings sent such a SYN", len(syns))
	}
}

func TestBlocked(t *testing.T) {
	p := newPlane(t, 4)
	p.closed[wire.ProtoUDP], p.closed[wire.ProtoICMP] = true, true
	s, took := p.play(Config{Distance: 4, Seed: [32]byte{1}})
	tr := flowTrace(4, router(1), router(100), router(3), p.dst)
	c := Compare(tr, s.Siblings())
	want := []trace.Blocked{{Proto: UDP, AfterTTL: 3}, {Proto: ICMP, AfterTTL: 3}}
	if !slices.Equal(c.Blocked, want) {
		t.Errorf("blocked: %v", c.Blocked)
	}
	if took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	// A flow that got no further either is no contrast.
	tr.Hops, tr.Reached, tr.Destination = tr.Hops[:3], false, nil
	if c := Compare(tr, s.Siblings()); len(c.Blocked) > 0 {
		t.Errorf("blocked: %v", c.Blocked)
	}
}

// A box that rewrites what is quoted blocks nobody: answers came, if none that can be believed.
func TestDoubtedIsNotBlocked(t *testing.T) {
	p := newPlane(t, 4)
	p.lie = func(r *Received) {
		if r.Proto == wire.ProtoICMP && r.Transport[0] == 11 {
			r.Transport[8+4] ^= 0x55 // the quoted identification
		}
		if r.From == p.dst { // nothing else comes back
			r.From = router(77)
		}
	}
	s, _ := p.play(Config{Seed: [32]byte{1}, MaxSilent: 2, MaxTTL: 8})
	if c := Compare(flowTrace(4, router(1), router(100), router(3), p.dst), s.Siblings()); len(c.Blocked) > 0 {
		t.Errorf("blocked: %+v", c.Blocked)
	}
	if s.Counters().Unmatched == 0 {
		t.Error("no answer was doubted")
	}
}

// Nor does a probe that could not be sent show that something is blocked.
func TestUnsentIsNotBlocked(t *testing.T) {
	p := newPlane(t, 4)
	s := New(Config{Src: p.src, Dst: p.dst, Port: 443, Seed: [32]byte{1}, MaxSilent: 2})
	now := time.Unix(1e9, 0)
	for {
		b, at, over := s.Next(now)
		if over {
			break
		}
		if b != nil {
			s.Failed()
		} else {
			now = at
		}
	}
	if c := Compare(flowTrace(4, router(1), router(100), router(3), p.dst), s.Siblings()); len(c.Blocked) > 0 {
		t.Errorf("blocked: %+v", c.Blocked)
	}
}

// Behind a destination NAT routers bear the destination's address: that they find no way is not
// the destination's word.
func TestOutOfReachIsNotReached(t *testing.T) {
	p := newPlane(t, 4)
	p.lie = func(r *Received) {
		if r.Proto == wire.ProtoICMP && r.From == router(3) {
			r.From, r.Transport[0], r.Transport[1] = p.dst, 3, 1
		}
	}
	s, _ := p.play(Config{Seed: [32]byte{1}})
	for _, x := range s.Siblings() {
		if x.Reached || x.Stop != trace.StopUnreachable {
			t.Errorf("%+v", x)
		}
	}
}

// A box that answers TCP in the destination's place, nearer, does not cut the others short.
func TestADistanceForEachProtocol(t *testing.T) {
	p := newPlane(t, 4)
	p.proxy = true
	s, _ := p.play(Config{Seed: [32]byte{1}})
	far := 0
	for _, x := range s.Siblings() {
		if x.Proto != TCP && x.Reached && len(x.Hops) == 4 {
			far++
		}
		if x.Proto == TCP && x.Reached && len(x.Hops) != 2 || x.Proto != TCP && x.Stop == trace.StopFence && len(x.Hops) < 3 {
			t.Errorf("%+v", x)
		}
	}
	if far != 2*reaching {
		t.Errorf("%d siblings reached the destination itself", far)
	}
}

// What the first siblings found to be blocked costs each of the others one probe.
func TestBlockedOnce(t *testing.T) {
	p := newPlane(t, 4)
	p.closed[wire.ProtoTCP], p.closed[wire.ProtoUDP], p.closed[wire.ProtoICMP] = true, true, true
	s, _ := p.play(Config{Seed: [32]byte{6}})
	begun, more := map[string]int{}, 0
	for _, x := range s.Siblings() {
		if begun[x.Proto]++; begun[x.Proto] <= Enough(1, 0.95) {
			continue
		}
		beyond := 0
		for _, h := range x.Hops[3:] {
			beyond += h.Sent
		}
		if more++; beyond != 1 || x.Stop != trace.StopSilentHops {
			t.Errorf("%d probes behind the wall: %+v", beyond, x)
		}
	}
	if more == 0 {
		t.Error("no more siblings")
	}
}

// flowTrace is a flow's trace with one answer each TTL; the last is the destination's.
func flowTrace(dest int, addrs ...netip.Addr) *trace.Trace {
	tr := &trace.Trace{ID: "0123456789abcdef", Reached: true, Destination: &trace.Destination{TTL: dest}}
	for i, a := range addrs {
		h := trace.Hop{TTL: i + 1, Sent: 1}
		if a.IsValid() {
			h.Replies = []trace.Reply{{Addr: a, Kind: trace.TimeExceeded}}
		}
		tr.Hops = append(tr.Hops, h)
	}
	return tr
}

func TestCompare(t *testing.T) {
	p := newPlane(t, 4)
	s, _ := p.play(Config{Distance: 4, Seed: [32]byte{2}})
	siblings := s.Siblings()
	c := Compare(flowTrace(4, router(1), router(102), router(3), p.dst), siblings)
	if len(c.Alternatives) != 1 || c.Alternatives[0].TTL != 2 || c.Alternatives[0].InFlow != router(102) || c.Alternatives[0].Confidence < 0.95 ||
		!slices.Equal(c.Alternatives[0].Addrs, []netip.Addr{router(100), router(101), router(103)}) {
		t.Errorf("%+v", c.Alternatives)
	}
	apart := 0
	for _, x := range siblings {
		if x.Hops[1].Replies[0].Addr != router(102) {
			apart++
		}
	}
	if !c.Divergent || c.Divergence != float64(apart)/float64(len(siblings)) {
		t.Errorf("divergence %v, want %d of %d", c.Divergence, apart, len(siblings))
	}
	// Silence of the flow's hop says nothing about its way.
	c = Compare(flowTrace(4, router(1), netip.Addr{}, router(3), p.dst), siblings)
	if c.Divergent || len(c.Alternatives) != 1 || c.Alternatives[0].InFlow.IsValid() || len(c.Alternatives[0].Addrs) != 4 {
		t.Errorf("%+v", c)
	}
}

// What is not exactly about the probe under way is no hop.
func TestStrictMatching(t *testing.T) {
	for name, lie := range map[string]func(*Received){
		"another identification": func(r *Received) { flip(r, 8+4) },
		"another source":         func(r *Received) { flip(r, 8+12) },
		"another destination":    func(r *Received) { flip(r, 8+19) },
		"another number":         func(r *Received) { flip(r, 8+20+7) }, // TCP's, ICMP's, UDP's checksum
		"another acknowledgement": func(r *Received) {
			if r.Proto == wire.ProtoTCP {
				r.Transport[11] ^= 1
			}
		},
		"somebody else's answer": func(r *Received) {
			if r.Proto == wire.ProtoTCP || r.Transport[0] == 0 {
				r.From = router(99)
			}
		},
		"another echo": func(r *Received) {
			if r.Proto == wire.ProtoICMP && r.Transport[0] == 0 {
				r.Transport[10] ^= 1
			}
		},
	} {
		p := newPlane(t, 1)
		lied := map[string]int{}
		p.lie = func(r *Received) {
			was := slices.Clone(r.Transport)
			from := r.From
			lie(r)
			if !slices.Equal(was, r.Transport) || from != r.From {
				lied["any"]++
			}
		}
		s, _ := p.play(Config{Distance: 4, Seed: [32]byte{5}})
		c := s.Counters()
		if lied["any"] == 0 || int(c.Sent-c.Matched) < lied["any"] {
			t.Errorf("%s: %d lies, %+v", name, lied["any"], c)
		}
	}
}

// flip changes a byte of the quote in an ICMP error.
func flip(r *Received, at int) {
	if r.Proto == wire.ProtoICMP && (r.Transport[0] == 11 || r.Transport[0] == 3) {
		r.Transport[at] ^= 1
	}
}

// Probes of one TTL keep to its pace, whatever is due.
func TestPace(t *testing.T) {
	now := time.Unix(1e9, 0)
	p := newPace(now, 200)
	sent := 0
	for d := time.Duration(0); d < 2*time.Second; d += time.Millisecond {
		if p.take(now.Add(d)) == 0 {
			sent++
		}
	}
	if sent < paceBurst+2*paceStart-1 || sent > paceBurst+2*paceStart {
		t.Errorf("%d probes in 2 s", sent)
	}
	for range 200 {
		p.answered()
	}
	if p.rate != 200 {
		t.Errorf("rate %v, want its ceiling", p.rate)
	}
	for range 20 {
		p.missed()
	}
	if p.rate != paceFloor || p.take(now.Add(2*time.Second)) == 0 {
		t.Errorf("rate %v after misses", p.rate)
	}
}

// The number of siblings is bounded whatever answers.
func TestBoundedSiblings(t *testing.T) {
	p := newPlane(t, 1)
	n := 0
	p.lie = func(r *Received) { // each answer from somebody new
		n++
		if r.Proto == wire.ProtoICMP && r.Transport[0] == 11 {
			r.From = router(1000 + n)
		}
	}
	s, _ := p.play(Config{Distance: 4, Siblings: 20, Seed: [32]byte{4}})
	if got := len(s.Siblings()); got > 3*20 {
		t.Errorf("%d siblings", got)
	}
	for _, a := range Compare(flowTrace(4, router(1), router(100), router(3), p.dst), s.Siblings()).Alternatives {
		if a.Confidence >= 0.95 {
			t.Errorf("confidence %v of what is not enumerated: %+v", a.Confidence, a)
		}
	}
}

// Where nobody answers, a sibling goes on for as many hops as it was told, or to the last.
func TestMaxSilent(t *testing.T) {
	for limit, want := range map[int]int{0: 4, 2: 3, -1: 8} { // a router, then nobody
		p := newPlane(t, 1)
		p.lie = func(r *Received) {
			if r.From != router(1) {
				r.Transport = nil
			}
		}
		s, _ := p.play(Config{Seed: [32]byte{1}, MaxSilent: limit, MaxTTL: 8})
		if got := len(s.Siblings()[0].Hops); got != want {
			t.Errorf("%d silent hops at most: %d hops, want %d", limit, got, want)
		}
	}
}

// No sibling has a port that is somebody's, and where all are there are none.
func TestPortsOfOthers(t *testing.T) {
	cfg := Config{Src: router(9), Dst: router(8), Port: 443, FirstPort: 61000, LastPort: 61999}
	asked := map[uint16]string{}
	cfg.Take = func(proto string, port uint16) bool {
		if asked[port] != "" {
			t.Errorf("port %d is asked for again", port)
		}
		if port%2 == 0 {
			return false
		}
		asked[port] = proto
		return true
	}
	s := New(cfg)
	if len(s.all) < 3*Enough(1, 0.95) {
		t.Errorf("%d siblings", len(s.all))
	}
	for _, x := range s.all {
		if asked[x.SourcePort] != x.Proto {
			t.Errorf("a sibling over %s has port %d, taken for %q", x.Proto, x.SourcePort, asked[x.SourcePort])
		}
	}
	cfg.Take = func(string, uint16) bool { return false }
	if s := New(cfg); len(s.all) > 0 {
		t.Errorf("%d siblings without a port", len(s.all))
	}
	if _, _, over := New(cfg).Next(time.Now()); !over {
		t.Error("a session without siblings is not over")
	}
}

// TestUnlikeLengths: behind a balancer one way is shorter, and siblings are spread over both; the
// shorter one's end counts as a next hop that was seen, and is no alternative.
func TestUnlikeLengths(t *testing.T) {
	dst := netip.MustParseAddr("203.0.113.7")
	sibling := func(addrs ...netip.Addr) trace.Sibling {
		return trace.Sibling{Proto: TCP, Reached: true, Hops: flowTrace(len(addrs)+1, append(addrs, dst)...).Hops}
	}
	var all []trace.Sibling
	for i := range Enough(2, 0.95) {
		if i < 2 {
			all = append(all, sibling(router(1), router(2)))
		} else {
			all = append(all, sibling(router(1)))
		}
	}
	if more := wanted(all, TCP, 0.95); more != 0 {
		t.Errorf("%d more wanted of %d", more, len(all))
	}
	if more := wanted(all[1:], TCP, 0.95); more < 1 {
		t.Error("one less is enough, too")
	}
	if more := wanted(all[2:], TCP, 0.95); more != 0 {
		t.Errorf("%d more wanted where all end alike", more)
	}
	// Those that may not go as far as the destination do not tell what else is there.
	few := slices.Clone(all[1:4])
	for range 10 {
		few = append(few, trace.Sibling{Proto: TCP, Stop: trace.StopFence, Hops: flowTrace(2, router(1)).Hops})
	}
	if more := wanted(few, TCP, 0.95); more != 0 {
		t.Errorf("%d more wanted that may not go there", more)
	}
	c := Compare(flowTrace(2, router(1), dst), all)
	if len(c.Alternatives) != 1 || c.Alternatives[0].TTL != 2 || !slices.Equal(c.Alternatives[0].Addrs, []netip.Addr{router(2)}) || c.Alternatives[0].Confidence < 0.95 {
		t.Errorf("%+v", c.Alternatives)
	}
}
