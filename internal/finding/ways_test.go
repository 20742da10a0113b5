package finding

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/trace"
)

// answers replaces those of a TTL, in the order of the probes.
func answers(t *trace.Trace, ttl int, from ...netip.Addr) {
	h := &t.Hops[ttl-1]
	one := h.Replies[0]
	h.Replies = nil
	for i, a := range from {
		r := one
		r.Addr = a
		x := *one.Exchange
		x.Sent = at.Add(time.Duration(i) * time.Second)
		r.Exchange = &x
		h.Replies = append(h.Replies, r)
	}
}

func TestResponders(t *testing.T) {
	a, b, c := addr("192.0.2.20"), addr("192.0.2.21"), addr("192.0.2.22")
	for name, test := range map[string]struct {
		order []netip.Addr
		want  want
	}{
		"one after the other": {[]netip.Addr{a, a, b, b}, want{trace.MultiResponder, 1, 2, "192.0.2.20, 192.0.2.21", seen, "one after the other"}},
		"three":               {[]netip.Addr{a, b, c}, want{trace.MultiResponder, 1, 2, "192.0.2.20, 192.0.2.21, 192.0.2.22", seen, ""}},
		"there and back":      {[]netip.Addr{a, b, a}, want{trace.PerPacketLB, 1, 2, "192.0.2.20, 192.0.2.21, 192.0.2.20", seenOnce, "by turns"}},
		"by turns":            {[]netip.Addr{a, b, a, b}, want{trace.PerPacketLB, 1, 2, "192.0.2.20, 192.0.2.21, 192.0.2.20, 192.0.2.21", seen, ""}},
	} {
		t.Run(name, func(t *testing.T) {
			tr := clean(4)
			tr.Mixed = true // as the engine calls it where they come one after the other
			answers(tr, 2, test.order...)
			check(t, Of(at, tr, nil), test.want)
		})
	}
}

// Answers come in any order; that of the probes counts.
func TestRespondersInTheOrderOfProbes(t *testing.T) {
	a, b := addr("192.0.2.20"), addr("192.0.2.21")
	tr := clean(4)
	answers(tr, 2, a, b, a)
	r := tr.Hops[1].Replies
	r[0], r[1] = r[1], r[0] // as they came: b, a, a
	check(t, Of(at, tr, nil), want{trace.PerPacketLB, 1, 2, "192.0.2.20, 192.0.2.21, 192.0.2.20", seenOnce, ""})
}

// TTLs in a row are one finding; one that answers by turns tells of all.
func TestRespondersInARow(t *testing.T) {
	a, b := addr("192.0.2.20"), addr("192.0.2.21")
	tr := clean(7)
	answers(tr, 2, a, b)
	answers(tr, 3, a, b, a)
	answers(tr, 6, a, b)
	check(t, Of(at, tr, nil),
		want{trace.PerPacketLB, 1, 2, "192.0.2.20, 192.0.2.21", seenOnce, "TTL 3 answers by turns"},
		want{trace.MultiResponder, 5, 6, "192.0.2.20, 192.0.2.21", seen, ""})
}

func TestLoop(t *testing.T) {
	loop := func(ttls ...int) *trace.Trace {
		tr := clean(len(ttls))
		for i, ttl := range ttls {
			each(tr, i+1, i+1, func(r *trace.Reply) { r.Addr = router(ttl) })
		}
		return tr
	}
	check(t, Of(at, loop(1, 2, 1, 3, 4), nil), want{trace.Loop, 2, 3, "192.0.2.1", seenOnce, "192.0.2.1 answers at TTL 1 and, with others in between, at TTL 3"})
	check(t, Of(at, loop(1, 2, 3, 2, 3, 2), nil), want{trace.Loop, 3, 4, "192.0.2.2", seen, "3 hops"})
	mixed := loop(1, 2, 1, 3)
	mixed.Mixed = true
	check(t, Of(at, mixed, nil))
}

// Behind a destination NAT all answer with one address: that is no loop, and no TTL was changed.
func TestOneAddressBehindADestinationNAT(t *testing.T) {
	tr := clean(5)
	for ttl := 2; ttl <= 5; ttl += 2 {
		each(tr, ttl, ttl, func(r *trace.Reply) { r.Addr = dst.Addr() })
	}
	check(t, Of(at, tr, nil), want{trace.NATDst, 1, 2, "routers from here on answer as 203.0.113.7", contradicts, ""})
	each(tr, 2, 5, func(r *trace.Reply) { r.Addr, r.ReplyTTL = dst.Addr(), 60 })
	for _, f := range Of(at, tr, nil) {
		if f.Kind == trace.TTLMangled || f.Kind == trace.Loop {
			t.Errorf("%+v", *f)
		}
	}
}

func TestRaisedTTLs(t *testing.T) {
	raised := func() *trace.Trace {
		tr := clean(6)
		each(tr, 3, 5, func(r *trace.Reply) { r.Addr, r.ReplyTTL = router(5), 60 })
		return tr
	}
	check(t, Of(at, raised(), nil), want{trace.TTLMangled, 2, 3, "192.0.2.5 answers at TTL 3 to 5", seenOnce, ""})
	// The end of a hidden tunnel: the next router answers twice.
	twice := clean(6)
	each(twice, 3, 4, func(r *trace.Reply) { r.Addr, r.ReplyTTL = router(4), 61 })
	check(t, Of(at, twice, nil))
	// A router that forwards what has none left: the next one answers twice.
	zero := clean(6)
	each(zero, 3, 3, func(r *trace.Reply) { r.Addr, r.ReplyTTL, r.Exchange.QuoteTTL = router(4), 61, 0 })
	check(t, Of(at, zero, nil))
	each(zero, 3, 5, func(r *trace.Reply) { r.Addr, r.ReplyTTL = router(5), 60 }) // and two behind each other
	check(t, Of(at, zero, nil))
	// A NAT whose address all beyond it bear: each a hop farther.
	nat := clean(6)
	each(nat, 3, 5, func(r *trace.Reply) { r.Addr = router(9) })
	check(t, Of(at, nat, nil))
}

func TestWayBack(t *testing.T) {
	longer := func(from, by int) *trace.Trace {
		tr := clean(5)
		each(tr, from, 6, func(r *trace.Reply) { r.ReplyTTL -= by })
		return tr
	}
	check(t, Of(at, longer(3, 2), nil), want{trace.AsymmetricReturn, 2, 3, "the way back is longer: TTL 3 there, 5 back", seenOnce, "TTL 4: 192.0.2.4, 6 back"})
	check(t, Of(at, longer(3, 1), nil), want{trace.AsymmetricReturn, 2, 3, "the way back is longer: TTL 3 there, 4 back", guessed, ""})
	check(t, Of(at, longer(3, -2), nil), want{trace.AsymmetricReturn, 2, 3, "the way back is shorter: TTL 3 there, 1 back", seenOnce, ""})
	check(t, Of(at, longer(6, 2), nil)) // the destination alone
	one := longer(3, 1)
	each(one, 4, 6, func(r *trace.Reply) { r.ReplyTTL++ }) // one router counts in a way of its own
	check(t, Of(at, one, nil))
	initial := clean(5)
	each(initial, 2, 6, func(r *trace.Reply) { r.ReplyTTL += 200 - 64 }) // a stack that begins with 200
	check(t, Of(at, initial, nil))
	mixed := longer(3, 2)
	mixed.Mixed = true
	check(t, Of(at, mixed, nil))
}

func TestInterfaces(t *testing.T) {
	tr := clean(4)
	each(tr, 2, 2, func(r *trace.Reply) {
		r.Exchange.Interfaces = []*trace.Interface{
			{Role: trace.InterfaceIn, Index: 7, Name: "ge-0/0/1", MTU: 9000}, {Role: trace.InterfaceOut, Addr: addr("192.0.2.99")},
		}
	})
	check(t, Of(at, tr, nil),
		want{trace.InterfaceInfo, 1, 2, "in, index 7, name ge-0/0/1, MTU 9000", seen, ""},
		want{trace.InterfaceInfo, 1, 2, "out, address 192.0.2.99", seen, ""})
}

// A router that said so is put where it answered; one that nobody met, nowhere.
func TestMTU(t *testing.T) {
	check(t, Of(at, clean(4), []TooBig{{From: router(3), MTU: 1300, Len: 1500}, {From: addr("192.0.2.77"), MTU: 1200}}),
		want{trace.MTU, 2, 3, "1300", seen, "192.0.2.3 at TTL 3 had no room for a packet of 1500 bytes"})
}
