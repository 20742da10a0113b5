package engine

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// Of all that the peer sends while a reaching probe is outstanding, only what the
// probe itself can have caused is the destination's answer.
func TestWhatIsNoAnswer(t *testing.T) {
	sack := append([]byte{1, 1, 5, 10}, make([]byte, 8)...)
	for name, answer := range map[string]func(*rig){
		"another TTL":             func(r *rig) { r.ttl -= 3; r.in(segment{flags: wire.ACK}); r.ttl += 3 },
		"a keepalive of the peer": func(r *rig) { r.ack--; r.in(segment{flags: wire.ACK}); r.ack++ },
		"with SACK blocks":        func(r *rig) { r.in(segment{flags: wire.ACK, options: sack}) },
		"with data":               func(r *rig) { r.in(segment{flags: wire.ACK, data: 1}); r.out(segment{flags: wire.ACK}) },
		"no timestamp of ours":    func(r *rig) { r.tsval += 1000; r.in(segment{flags: wire.ACK}); r.tsval -= 1000 },
		"sooner than a round trip": func(r *rig) {
			r.now = r.now.Add(-rtt) // that the loop below let pass: up to half of one is left
			r.in(segment{flags: wire.ACK})
		},
		"an acknowledgement of more": func(r *rig) {
			r.out(segment{flags: wire.ACK, data: 10})
			r.now = r.now.Add(rtt)
			r.in(segment{flags: wire.ACK})
		},
	} {
		r := newRig(t, false, 3)
		r.handshake()
		r.exchange()
		attempts := 0
		for end := r.now.Add(8 * time.Second); r.now.Before(end); {
			n := r.reaching(3)
			r.after(10 * time.Millisecond)
			r.routers(3)
			if r.reaching(3) > n {
				attempts++
				r.now = r.now.Add(rtt)
				answer(r)
			}
		}
		if attempts < 3 {
			t.Errorf("%s: %d attempts", name, attempts)
		}
		for _, tr := range r.traces() {
			if tr.Reached {
				t.Errorf("%s was taken for the destination's answer: %+v", name, tr)
			}
		}
	}
}

// On a busy flow one answer may be the flow's own.
func TestABusyFlowNeedsTwoAnswers(t *testing.T) {
	for answers, want := range map[int]bool{1: false, 2: true, 3: true} {
		r := newRig(t, false, 3)
		r.handshake()
		r.exchange()
		given := 0
		for end := r.now.Add(20 * time.Second); r.now.Before(end); {
			n := r.reaching(3)
			r.after(10 * time.Millisecond)
			r.routers(3)
			if r.reaching(3) > n {
				r.out(segment{flags: wire.ACK, data: 10})
				r.now = r.now.Add(rtt)
				r.in(segment{flags: wire.ACK})
				if last := r.probes[len(r.probes)-1]; last.TTL == 3 && given < answers {
					given++
					r.in(segment{flags: wire.ACK})
				}
			}
		}
		tr := r.traces()
		if len(tr) != 1 || tr[0].Reached != want || given != min(answers, 2) {
			t.Errorf("after %d answers: %+v", given, tr)
		}
	}
}

// The destination is nearer than its TTL says: its answer, while only lower TTLs are
// outstanding, ends them, and from then on each probe that may reach it goes alone.
func TestADistanceThatIsTooLarge(t *testing.T) {
	const truly = 3
	r := newRig(t, false, 7)
	r.handshake()
	r.after(10 * time.Millisecond)
	r.routers(truly)
	for _, p := range r.probes {
		if int(p.TTL) >= 7 {
			t.Fatalf("TTL %d before the first answer", p.TTL)
		}
	}
	r.now = r.now.Add(rtt)
	before, n := len(r.probes), r.reaching(truly)
	r.e.distances[r.peer.Addr()] = knownDistance{7, r.now} // as a flow before had it
	r.in(segment{flags: wire.ACK})
	if d := r.e.distances[r.peer.Addr()].ttl; d > 6 {
		t.Errorf("a UDP flow's fence would rest on a distance of %d", d)
	}
	var at []time.Time
	for end := r.now.Add(8 * time.Second); r.now.Before(end); n = r.reaching(truly) {
		r.after(10 * time.Millisecond)
		r.routers(truly)
		if more := r.reaching(truly) - n; more > 1 {
			t.Errorf("%d probes at once that may reach it", more)
		} else if more == 1 {
			at = append(at, r.now)
			r.now = r.now.Add(rtt)
			r.in(segment{flags: wire.ACK})
		}
	}
	for i := 1; i < len(at); i++ {
		if at[i].Sub(at[i-1]) < probe.ReachingInterval {
			t.Errorf("two within %v", at[i].Sub(at[i-1]))
		}
	}
	for _, p := range r.probes[before:] {
		if p.TTL > truly {
			t.Errorf("TTL %d after the answer", p.TTL)
		}
	}
	if tr := r.traces(); before < 6 || len(tr) != 1 || !tr[0].Reached || tr[0].Destination.TTL != truly || len(at) == 0 {
		t.Errorf("%d attempts, %+v", len(at), tr)
	}
}

// Whom nobody wants probed is not probed, and that is said.
func TestNeverProbed(t *testing.T) {
	for name, test := range map[string]struct {
		cfg    Config
		peer   string
		reason trace.Reason
	}{
		"excluded":         {Config{Exclude: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}, "203.0.113.7", trace.ReasonExcluded},
		"multicast":        {Config{}, "233.252.0.7", trace.ReasonExcluded},
		"loopback":         {Config{}, "127.0.0.7", trace.ReasonLoopback},
		"an address of us": {Config{Local: func(netip.Addr) bool { return true }}, "203.0.113.7", trace.ReasonLoopback},
	} {
		r := newRigOf(t, false, 6, test.cfg, netip.AddrPortFrom(netip.MustParseAddr(test.peer), 443))
		r.handshake()
		r.exchange()
		r.after(3 * time.Second)
		tr := r.traces()
		if len(r.probes) != 0 || len(tr) != 1 || tr[0].Stop != trace.StopRefused || tr[0].Reason != test.reason {
			t.Errorf("%s: %d probes, %+v", name, len(r.probes), tr)
		}
		if n := r.e.Stats(r.now).Probes.Refused; n != 1 {
			t.Errorf("%s: %d counted as refused", name, n)
		}
	}
}

// A probe that could not be sent did no harm, whatever happens then.
func TestWhatDidNotLeaveDoesNoHarm(t *testing.T) {
	for name, fails := range map[string]bool{"sent": false, "not sent": true} {
		r := newRig(t, false, 3)
		r.fails = func(p wire.TCPProbe) bool { return fails && p.TTL >= 3 }
		r.handshake()
		r.exchange()
		for r.e.runs[0].reachedBefore.IsZero() && r.e.runs[0].near.reachedAt.IsZero() && r.e.stats.Probes.Failed == 0 {
			r.after(10 * time.Millisecond)
			r.routers(3)
		}
		r.now = r.now.Add(rtt)
		r.out(segment{flags: wire.ACK | wire.PSH, data: 100, seq: r.seq - 100}) // again
		if got := r.e.runs[0].impact.Aborted; got == fails {
			t.Errorf("%s: aborted %v", name, got)
		}
	}
}

// A reset soon after a reaching probe opens the breaker, also for the next flow.
func TestAResetOpensTheBreaker(t *testing.T) {
	r := newRig(t, false, 3)
	r.handshake()
	r.exchange()
	for r.reaching(3) == 0 {
		r.after(10 * time.Millisecond)
		r.routers(3)
	}
	r.now = r.now.Add(rtt)
	r.in(segment{flags: wire.RST | wire.ACK})
	if tr := r.traces(); len(tr) != 1 || tr[0].Impact.RSTs != 1 || !tr[0].Impact.Aborted || tr[0].Stop != trace.StopFlowClosed {
		t.Errorf("%+v", tr)
	}
	before := r.reaching(3)
	r.me = netip.AddrPortFrom(r.me.Addr(), 40001)
	r.handshake()
	r.exchange()
	r.answering(3, 5*time.Second)
	if n := r.reaching(3) - before; n > 0 {
		t.Errorf("%d reaching probes to a destination that answered one with a reset", n)
	}
	if tr := r.traces(); len(tr) != 1 || tr[0].Stop != trace.StopUnknown || r.e.Stats(r.now).Impact.Aborts != 1 {
		t.Errorf("%+v", tr)
	}
}

// Several probes come to a host that answers with an error: the nearest tells how far
// it is.
func TestTheNearestUnreachable(t *testing.T) {
	r := newRig(t, false, 7)
	r.handshake()
	r.exchange()
	both := make([]capture.Packet, 2) // that come at once, the nearer one's first
	for i, b := range r.packets {
		switch ttl := int(r.probes[i].TTL); ttl {
		case 1, 2, 3:
			r.timeExceeded(ttl, b)
		case 4, 6:
			e := wire.ICMPError{Src: r.peer.Addr(), Dst: r.me.Addr(), TTL: 60, Type: 3, Code: 3, Quote: b}
			both[(ttl-4)/2] = r.captured(e.AppendTo(nil), capture.Incoming)
		}
		r.packets[i] = nil
	}
	r.e.Step(r.now, both)
	r.after(3 * time.Second)
	tr := r.traces()
	if len(tr) != 1 || tr[0].Destination == nil || tr[0].Destination.TTL != 4 || tr[0].Destination.By != trace.DestinationByICMP || !tr[0].Reached {
		t.Errorf("%+v", tr)
	}
}

// A border ends the path, also when the destination was found before it answers.
func TestBorderBehindTheDestination(t *testing.T) {
	r := newRig(t, false, 3)
	r.w.Params.Borders = []netip.Prefix{netip.MustParsePrefix("198.51.100.1/32")}
	r.handshake()
	r.exchange()
	for end := r.now.Add(5 * time.Second); r.now.Before(end) && len(r.e.runs) > 0; {
		n := r.reaching(3)
		r.after(10 * time.Millisecond)
		for i, b := range r.packets {
			if b != nil && r.probes[i].TTL == 2 {
				r.packets[i] = nil
				r.timeExceeded(2, b)
			}
		}
		if r.reaching(3) > n {
			r.now = r.now.Add(rtt)
			r.in(segment{flags: wire.ACK})
		}
		if len(r.e.runs) > 0 && r.e.runs[0].dest != nil {
			r.routers(3)
		}
	}
	all := r.traces()
	if len(all) != 1 || all[0].Stop != trace.StopBorder || all[0].Reached || len(all[0].Hops) != 1 || !all[0].Complete {
		t.Errorf("%v", all)
	}
}

// A segment that the network duplicated looks like the destination's answer. The router's own
// word about that probe, which comes later, takes it back.
func TestAnAnswerIsTakenBack(t *testing.T) {
	r := newRig(t, false, 4) // two more than the peer's TTL tells are on the way there
	r.handshake()
	r.exchange()
	r.routers(4)
	r.now = r.now.Add(rtt)
	r.in(segment{flags: wire.ACK}) // a duplicate
	r.after(30 * time.Millisecond)
	if e := r.e.Stats(r.now); r.reaching(4) != 1 || e.Replies.Matched != 4 {
		t.Fatalf("%d reaching probes, %d answers", r.reaching(4), e.Replies.Matched)
	}
	r.routers(5)
	r.answering(6, 8*time.Second)
	all := r.traces()
	if len(all) != 1 || !all[0].Reached || all[0].Destination.TTL != 6 || len(all[0].Hops) != 6 || !all[0].Complete {
		t.Fatalf("%+v", all)
	}
	for _, reply := range all[0].Hops[3].Replies {
		if reply.Kind != trace.TimeExceeded {
			t.Errorf("TTL 4: %+v", reply)
		}
	}
	if s := r.e.Stats(r.now); s.Replies.Duplicate != 0 {
		t.Errorf("%d duplicates", s.Replies.Duplicate)
	}
}

// Two destinations have one router in common, and behind it at one TTL each its own. The
// silence of the one is a limit's only if the other, which does answer, withheld then, too.
func TestWhoseLimit(t *testing.T) {
	for _, missing := range []int{0, 1, 2} { // of the answers to the first destination's flow
		r := newRig(t, false, 4)
		r.w.Selector.Rules[0].Prefix = netip.MustParsePrefix("203.0.113.0/24")
		first := r.peer
		open := func(a netip.AddrPort) {
			r.peer, r.seq, r.ack = a, 1000, 5000
			r.handshake()
			r.exchange()
		}
		open(first)
		r.after(10 * time.Millisecond)
		if missing == 0 {
			r.routers(4)
		}
		late := r.now.Add(2400 * time.Millisecond)
		open(netip.MustParseAddrPort("203.0.113.8:443"))
		asked := 0
		for range 600 {
			r.after(10 * time.Millisecond)
			for i, b := range r.packets {
				p := r.probes[i]
				if b == nil || p.TTL >= 4 {
					continue
				}
				if p.TTL == 2 && p.Dst == first && missing == 2 && asked == 2 && r.now.Before(late) {
					continue // the answer comes after two probes were given up
				}
				r.packets[i] = nil
				if p.TTL == 2 && p.Dst != first {
					continue
				}
				if p.TTL == 2 && asked < missing {
					asked++
					continue
				}
				r.timeExceeded(int(p.TTL), b)
			}
		}
		r.after(30 * time.Second)
		told := 0
		for _, tr := range r.traces() {
			hop := tr.Hops[1]
			if silent := tr.Flow.Dst != first; silent != (len(hop.Replies) == 0) || hop.Limited != (silent && missing > 0) {
				t.Errorf("%d missing: %v, %+v", missing, tr.Flow.Dst, hop)
			}
			told++
		}
		if told != 2 {
			t.Errorf("%d traces", told)
		}
	}
}

// A flow whose peer is busy shows round trips that are longer than its way is: then the
// router before the destination tells how soon that can answer, within bounds.
func TestSoonestBehind(t *testing.T) {
	const ms = time.Millisecond
	for _, test := range []struct{ floor, router, want time.Duration }{
		{4 * ms, ms / 10, ms / 10 * 4 / 5},
		{4 * ms, 3 * ms, 3 * ms * 4 / 5},
		{40 * ms, ms / 10, 40*ms - lateBy},
		{40 * ms, -1, 40 * ms}, // it did not answer
	} {
		r := &run{params: probe.Params{FirstTTL: 1, MaxTTL: 8}, hops: make([]hop, 3)}
		if test.router >= 0 {
			r.hops[2].replies = []trace.Reply{
				{Kind: trace.TimeExceeded, RTT: test.router + ms}, {Kind: trace.TimeExceeded, RTT: test.router}, {Kind: trace.TCPAck},
			}
		}
		if got := r.soonestBehind(3, test.floor); got != test.want {
			t.Errorf("the flow's %v, the router's %v: %v, want %v", test.floor, test.router, got, test.want)
		}
	}
}
