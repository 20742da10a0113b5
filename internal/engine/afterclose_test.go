package engine

import (
	"maps"
	"testing"
	"time"

	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// closedRig is a rig at some distance from the peer, as the peer's TTL tells it, whose flow
// is traced after its close. Of the trace before that only what is sent at once was sent.
func closedRig(t *testing.T, v6 bool, distance int) *rig {
	r := newRig(t, v6, distance)
	r.w.Params.AfterClose = true
	r.handshake()
	return r
}

// closes is an orderly end, which this side begins.
func (r *rig) closes() {
	r.out(segment{flags: wire.FIN | wire.ACK})
	r.now = r.now.Add(rtt)
	r.in(segment{flags: wire.FIN | wire.ACK})
	r.out(segment{flags: wire.ACK})
}

// shown are the TTLs at which a trace has answers.
func shownTTLs(tr *trace.Trace) map[int]bool {
	all := map[int]bool{}
	for _, h := range tr.Hops {
		if len(h.Replies) > 0 {
			all[h.TTL] = true
		}
	}
	return all
}

// highest is the highest TTL of the probes from the nth on; 0: there are none.
func (r *rig) highest(n int) (ttl int) {
	for _, p := range r.probes[n:] {
		ttl = max(ttl, int(p.TTL))
	}
	return ttl
}

// ended is the one trace so far.
func (r *rig) ended() *trace.Trace {
	r.t.Helper()
	tr := r.traces()
	if len(tr) != 1 {
		r.t.Fatalf("%d traces: %+v", len(tr), tr)
	}
	return tr[0]
}

// Who closes, and in whatever order: the hops that had not answered yet are asked, and their
// late answers count.
func TestAfterCloseGoesOn(t *testing.T) {
	for name, end := range map[string]func(*rig){
		"of ours first": (*rig).closes,
		"of the peer first": func(r *rig) {
			r.in(segment{flags: wire.FIN | wire.ACK})
			r.out(segment{flags: wire.FIN | wire.ACK})
			r.in(segment{flags: wire.ACK})
		},
		"one alone": func(r *rig) { r.in(segment{flags: wire.FIN | wire.ACK}) },
	} {
		for _, v6 := range []bool{false, true} {
			r := closedRig(t, v6, 10)
			n := len(r.probes)
			end(r)
			r.packets = make([][]byte, len(r.probes)) // the first of all were lost
			r.answering(10, 5*time.Second)
			tr := r.ended()
			want := map[int]bool{1: true, 2: true, 3: true, 4: true, 5: true, 6: true, 7: true, 8: true}
			if !maps.Equal(shownTTLs(tr), want) || tr.Stop != trace.StopFlowClosed || tr.Complete || tr.Reached {
				t.Errorf("%s, IPv6 %t: %v %+v", name, v6, shownTTLs(tr), tr)
			}
			if top := r.highest(n); top != 8 {
				t.Errorf("%s, IPv6 %t: asked up to TTL %d of a peer at 10", name, v6, top)
			}
		}
	}
}

// What was under way at the close is waited for, wherever it goes.
func TestAfterCloseWaitsForAnswers(t *testing.T) {
	r := closedRig(t, false, 10)
	r.after(15 * time.Millisecond)
	r.closes()
	for ttl := 1; ttl <= 9; ttl++ { // the farthest last
		for i, p := range r.probes {
			if int(p.TTL) == ttl && r.packets[i] != nil {
				r.timeExceeded(ttl, r.packets[i])
				r.packets[i] = nil
			}
		}
		r.now = r.now.Add(time.Millisecond)
	}
	r.after(5 * time.Second)
	if tr := r.ended(); !shownTTLs(tr)[9] || tr.Stop != trace.StopFlowClosed {
		t.Errorf("%v %+v", shownTTLs(tr), tr)
	}
}

// How far a closed flow is probed.
func TestAfterCloseStaysShort(t *testing.T) {
	const there = 10 // routers answer below it
	for name, test := range map[string]struct {
		play func(*rig)
		want int
	}{
		"by the peer's TTL":          {func(*rig) {}, 8},
		"another trace's proof":      {func(r *rig) { r.e.learnDistance(r.now, r.peer.Addr(), 10) }, 9},
		"which was farther":          {func(r *rig) { r.e.learnDistance(r.now, r.peer.Addr(), 14) }, 9},
		"which was nearer":           {func(r *rig) { r.e.learnDistance(r.now, r.peer.Addr(), 7) }, 6},
		"which is old":               {func(r *rig) { r.e.learnDistance(r.now.Add(-distanceLife), r.peer.Addr(), 7) }, 8},
		"a longer way back":          {func(r *rig) { r.detour = 3 }, 5},
		"an answer without a proof":  {func(r *rig) { r.e.runs[0].reach.Overshot(7) }, 0},
		"which another proof spares": {func(r *rig) { r.detour = 3; r.e.learnDistance(r.now, r.peer.Addr(), 7) }, 6},
	} {
		r := closedRig(t, false, there)
		test.play(r)
		r.closes()
		r.packets = make([][]byte, len(r.probes))
		n := len(r.probes)
		r.answering(there, 5*time.Second)
		if top := r.highest(n); top != test.want {
			t.Errorf("%s: probed up to TTL %d, want %d", name, top, test.want)
		}
	}
}

// No more than two TTLs beyond the last that answered: the peer may be nearer than its TTL says.
func TestAfterCloseStaysNearAnswers(t *testing.T) {
	r := closedRig(t, false, 20)
	r.closes()
	r.packets = make([][]byte, len(r.probes))
	n := len(r.probes)
	for range 1000 {
		r.after(10 * time.Millisecond)
		r.routers(5) // nobody answers from TTL 5 on
	}
	if top := r.highest(n); top != 6 {
		t.Errorf("probed up to TTL %d, the last that answered is 4", top)
	}
	if tr := r.ended(); tr.Stop != trace.StopFlowClosed {
		t.Errorf("%+v", tr)
	}
}

// No search for the destination, even where it had begun.
func TestAfterCloseNeverReaches(t *testing.T) {
	r := closedRig(t, false, 4)
	r.exchange()
	for r.reaching(4) == 0 {
		r.after(10 * time.Millisecond)
		r.routers(4)
	}
	n := r.reaching(4)
	r.closes()
	r.answering(4, 10*time.Second)
	if r.reaching(4) != n {
		t.Errorf("%d reaching probes after the close", r.reaching(4)-n)
	}
	if tr := r.ended(); tr.Reached || tr.Stop != trace.StopFlowClosed {
		t.Errorf("%+v", tr)
	}
}

// What was proven before the close stays so, and what is missing below it is asked for.
func TestAfterCloseKeepsTheDestination(t *testing.T) {
	for _, silent := range []bool{false, true} {
		r := newRig(t, false, 4)
		r.w.Params.AfterClose, r.w.Params.Probes = true, 20
		r.handshake()
		r.exchange()
		for r.e.runs[0].dest == nil {
			n := r.reaching(4)
			r.after(10 * time.Millisecond)
			for i, p := range r.probes { // 1 is silent so far
				if p.TTL == 1 && i < len(r.packets) {
					r.packets[i] = nil
				}
			}
			r.routers(4)
			if r.reaching(4) > n {
				r.now = r.now.Add(rtt)
				r.in(segment{flags: wire.ACK})
			}
		}
		r.closes()
		n, reached := len(r.probes), r.reaching(4)
		for range 3000 {
			r.after(10 * time.Millisecond)
			if silent {
				r.packets = make([][]byte, len(r.probes))
			}
			r.routers(4)
		}
		tr := r.ended()
		if len(r.probes) == n || r.reaching(4) != reached {
			t.Errorf("silent %t: %d probes, %d reaching after the close", silent, len(r.probes)-n, r.reaching(4)-reached)
		}
		if !tr.Reached || tr.Destination.TTL != 4 || tr.Stop != trace.StopDestination || shownTTLs(tr)[1] == silent || !silent && !tr.Complete {
			t.Errorf("silent %t: %+v", silent, tr)
		}
	}
}

// What ends it at once.
func TestAfterCloseEnds(t *testing.T) {
	syn := segment{flags: wire.SYN, options: synOptions}
	for name, end := range map[string]func(*rig){
		"a SYN of ours":     func(r *rig) { r.out(syn) },
		"a SYN of the peer": func(r *rig) { r.in(syn) },
		"a SYN at another interface": func(r *rig) {
			r.link = 7
			r.out(syn)
		},
		"a reset of the peer": func(r *rig) { r.in(segment{flags: wire.RST}) },
		"a reset of ours":     func(r *rig) { r.out(segment{flags: wire.RST}) },
		"lost packets":        func(r *rig) { r.e.Dropped(r.now, 1, 1) },
		"another flow label": func(r *rig) {
			r.label++
			r.out(segment{flags: wire.ACK})
		},
		"the table is full": func(r *rig) { r.e.table.Forget(func(*flow.Flow) bool { return true }) },
		"a minute": func(r *rig) {
			end := r.e.runs[0].closing.at.Add(timeWait)
			r.after(end.Sub(r.now) - time.Second)
			if n := len(r.probes); n < 2*50 {
				r.t.Errorf("%d probes until then", n)
			}
			r.after(time.Second)
		},
	} {
		r := newRig(t, true, 20)
		r.w.Params.AfterClose, r.w.Params.Probes = true, 1000 // nobody answers
		r.handshake()
		r.closes()
		r.after(100 * time.Millisecond)
		if len(r.e.runs) != 1 {
			t.Fatalf("%s: the trace is over before", name)
		}
		end(r)
		n := len(r.probes)
		r.after(5 * time.Second)
		if len(r.probes) != n {
			t.Errorf("%s: %d probes after it", name, len(r.probes)-n)
		}
		if tr := r.ended(); tr.Stop != trace.StopFlowClosed {
			t.Errorf("%s: %+v", name, tr)
		}
	}
}

// Where it is not to go on at all.
func TestAfterCloseNotThen(t *testing.T) {
	for name, end := range map[string]func(*rig){
		"unasked":     func(r *rig) { r.e.runs[0].params.AfterClose = false; r.closes() },
		"a reset":     func(r *rig) { r.in(segment{flags: wire.RST | wire.ACK}) },
		"our reset":   func(r *rig) { r.out(segment{flags: wire.RST | wire.ACK}) },
		"the breaker": func(r *rig) { r.e.breaker.trip(r.now, r.peer.Addr()); r.closes() },
		"harm":        func(r *rig) { r.e.runs[0].impact.Aborted = true; r.closes() },
		"out of sync": func(r *rig) { r.e.Dropped(r.now, 1, 1); r.out(segment{flags: wire.FIN | wire.ACK}) },
		"another path": func(r *rig) {
			r.label++
			r.out(segment{flags: wire.FIN | wire.ACK})
		},
	} {
		r := closedRig(t, true, 10)
		end(r)
		n := len(r.probes)
		if tr := r.ended(); tr.Stop != trace.StopFlowClosed {
			t.Errorf("%s: %+v", name, tr)
		}
		if r.after(5 * time.Second); len(r.probes) != n {
			t.Errorf("%s: %d probes after the close", name, len(r.probes)-n)
		}
	}
}

// Probes are old segments after the close, too, and none is the FIN's.
func TestAfterCloseProbesAreOld(t *testing.T) {
	r := closedRig(t, false, 10)
	r.closes()
	n := len(r.probes)
	r.after(3 * time.Second)
	if len(r.probes) == n {
		t.Fatal("no probe after the close")
	}
	fin := r.seq - 1
	for _, p := range r.probes[n:] {
		if !wire.SeqLess(p.Seq, fin) || p.Flags != wire.ACK || p.Ack != r.ack || p.TSVal != r.tsval {
			t.Errorf("the FIN has %d, the peer is at %d, the newest packet's timestamp is %d: %+v", fin, r.ack, r.tsval, p)
		}
	}
}

// A peer that says again what it said may have been come to: nothing goes beyond what expired.
func TestAfterCloseHeedsThePeer(t *testing.T) {
	r := closedRig(t, false, 10)
	r.closes()
	r.routers(3)
	r.in(segment{flags: wire.ACK})
	r.in(segment{flags: wire.ACK})
	n := len(r.probes)
	r.packets = make([][]byte, n)
	r.answering(10, 5*time.Second)
	if top := r.highest(n); top > 2 {
		t.Errorf("probed up to TTL %d after the peer answered, 2 had expired", top)
	}
}

// A destination that answers by ICMP is no farther than the probe that it answers: nothing
// comes to it again.
func TestAfterCloseStopsAtAnICMPError(t *testing.T) {
	r := newRig(t, false, 10)
	r.w.Params.AfterClose, r.w.Params.Algorithm, r.w.Params.Probes = true, trace.Concurrent, 20
	r.handshake()
	r.after(10 * time.Millisecond)
	r.closes()
	for i, p := range r.probes {
		switch {
		case p.TTL < 5:
			r.timeExceeded(int(p.TTL), r.packets[i])
		case p.TTL == 5:
			r.error(r.peer.Addr().String(), 3, 3, r.packets[i], 0)
		}
	}
	n := len(r.probes)
	r.after(5 * time.Second)
	if top := r.highest(n); top != 4 {
		t.Errorf("probed up to TTL %d", top)
	}
}

// A reset that answers a probe is counted, and keeps others from that destination.
func TestAfterCloseResetIsHarm(t *testing.T) {
	for name, test := range map[string]struct {
		ack  uint32 // beyond the probe's
		late time.Duration
		want bool
	}{"its answer": {0, rtt, true}, "another number": {1, rtt, false}, "too late": {0, time.Second, false}} {
		r := closedRig(t, false, 10)
		r.closes()
		r.copies = false
		n := len(r.probes)
		for len(r.probes) == n {
			r.after(time.Millisecond)
		}
		r.now = r.now.Add(test.late)
		ack := r.ack
		r.ack = r.probes[len(r.probes)-1].Ack + test.ack
		r.in(segment{flags: wire.RST})
		r.ack = ack
		tr := r.ended()
		if tr.Impact.Aborted != test.want || (tr.Impact.RSTs == 1) != test.want || r.e.breaker.open(r.now, r.peer.Addr()) != test.want {
			t.Errorf("%s: %+v", name, tr.Impact)
		}
	}
}

// The next connection is traced as if nobody had gone on with the one before.
func TestAfterCloseNextConnection(t *testing.T) {
	r := closedRig(t, false, 10)
	r.w.Every = time.Nanosecond
	r.closes()
	r.seq, r.ack = 900_000, 500_000
	r.now = r.now.Add(time.Second)
	r.handshake()
	r.exchange()
	r.answering(10, 10*time.Second)
	tr := r.traces()
	if len(tr) != 2 || tr[0].Stop != trace.StopFlowClosed || tr[1].Stop != trace.StopDestination {
		t.Errorf("%+v", tr)
	}
}

// A flow that is shown whole only as long as it is needed is shown until the trace is over.
func TestAfterCloseFollows(t *testing.T) {
	r, s := followedRig(t)
	r.w.Params.AfterClose, r.w.Params.Probes = true, 1000
	r.handshake()
	key := trace.FlowKey{Proto: trace.TCP, Src: r.me, Dst: r.peer}
	r.closes()
	r.after(2 * time.Second)
	if !s.on[key] || len(r.traces()) != 0 {
		t.Errorf("followed %t", s.on[key])
	}
	r.after(timeWait + 3*time.Second)
	if tr := r.ended(); s.on[key] || tr.Stop != trace.StopFlowClosed {
		t.Errorf("followed %t after %+v", s.on[key], tr)
	}
}
