package engine

import (
	"testing"
	"time"

	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// reopened closes the connection from both ends and opens another one with the same
// addresses and ports.
func (r *rig) reopened() {
	r.out(segment{flags: wire.FIN | wire.ACK})
	r.in(segment{flags: wire.FIN | wire.ACK})
	r.out(segment{flags: wire.ACK})
	r.now = r.now.Add(5 * time.Second)
	r.seq += 100_000
	r.ack += 200_000
	r.handshake()
}

// Another connection of the same tuple is traced again no sooner than Every after
// the trace before, and then at once.
func TestEvery(t *testing.T) {
	for name, test := range map[string]struct {
		every time.Duration
		soon  int // traces of the second connection within 30 s of the first's
		later int // and in the minute after
	}{
		"a minute": {time.Minute, 0, 1},
		"a second": {time.Second, 1, 0},
		"once":     {-1, 0, 0},
	} {
		r := newRig(t, false, 3)
		r.w.Every = test.every
		r.handshake()
		r.exchange()
		r.answering(3, 5*time.Second)
		if tr := r.traces(); len(tr) != 1 || tr[0].Stop != trace.StopDestination {
			t.Fatalf("%s: %+v", name, tr)
		}
		r.reopened()
		traces := func(d time.Duration) (n int) {
			for end := r.now.Add(d); r.now.Before(end); {
				r.exchange()
				r.answering(3, 4*time.Second)
				n += len(r.traces())
			}
			return n
		}
		if n := traces(30 * time.Second); n != test.soon {
			t.Errorf("%s: %d traces soon after the first, want %d", name, n, test.soon)
		}
		if n := traces(time.Minute); n != test.later {
			t.Errorf("%s: %d traces later, want %d", name, n, test.later)
		}
	}
}

// A trace that the tuple's next connection ends tells of the connection that it was in.
func TestReusedTellsOfTheConnectionBefore(t *testing.T) {
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		r := newRig(t, v6, 3)
		r.label = 7
		r.handshake()
		r.exchange()
		r.after(50 * time.Millisecond)
		r.seq += 100_000
		r.ack += 200_000
		r.label = 8
		r.handshake()
		all := r.traces()
		if len(all) != 1 {
			t.Fatalf("%s: %d traces", name, len(all))
		}
		if o := all[0].Observed; all[0].Stop != trace.StopFlowClosed || o.BytesOut != 100 || o.BytesIn != 300 || o.RTT < rtt {
			t.Errorf("%s: %+v, %+v", name, all[0].Stop, o)
		}
		if f := r.flow(); f.BytesOut != 0 || f.TCP.Newest.FlowLabel != r.label && v6 {
			t.Errorf("%s: the next connection has %+v", name, f)
		}
	}
}

// Another tracer's probe in the same flow, which the destination answers just like
// one of ours, makes no destination of ours.
func TestAForeignProbeVoidsAnAttempt(t *testing.T) {
	r := newRig(t, false, 3)
	r.handshake()
	r.exchange()
	foreign := 0
	for range 300 {
		n := r.reaching(3)
		r.after(10 * time.Millisecond)
		r.routers(3)
		if r.reaching(3) > n {
			foreign++
			r.out(segment{flags: wire.ACK, seq: r.seq - 60 - uint32(foreign)})
			r.now = r.now.Add(rtt)
			r.in(segment{flags: wire.ACK})
		}
	}
	if foreign < 3 {
		t.Errorf("%d attempts", foreign)
	}
	for _, tr := range r.traces() {
		if tr.Reached {
			t.Errorf("the answer to a foreign probe was taken for the answer to ours: %+v", tr)
		}
	}
}

// While too much of the flow is under way nothing is probed, and nothing is asked over
// and over. A trace that never could says so.
func TestNoRoom(t *testing.T) {
	r := newRig(t, false, 4)
	r.handshake()
	r.after(30 * time.Millisecond)
	r.exchange()
	r.routers(4)
	r.out(segment{flags: wire.ACK, data: 501 << 7})
	before, steps := len(r.probes), 0
	for end := r.now.Add(time.Second); r.now.Before(end); steps++ {
		r.now = r.wake
		r.step(nil)
	}
	if len(r.probes) != before || steps > 200 {
		t.Errorf("%d probes without room, %d steps in a second", len(r.probes)-before, steps)
	}

	r = newRig(t, false, 4)
	r.out(segment{flags: wire.ACK, data: 1000}) // joined late: the scale is not known
	r.out(segment{flags: wire.ACK, data: 600})
	r.seq -= 600 // of which nothing is acknowledged
	r.in(segment{flags: wire.ACK})
	r.seq += 600
	if asked := r.e.Scales(); len(asked) != 1 || asked[0].Key.Dst != r.peer {
		t.Errorf("asked for %v", asked)
	}
	r.after(25 * time.Second)
	tr := r.traces()
	if len(tr) != 1 || tr[0].Stop != trace.StopRefused || tr[0].Reason != trace.ReasonNoState || len(r.probes) > 0 {
		t.Errorf("%d probes, %+v", len(r.probes), tr)
	}

	r = newRig(t, false, 4)
	r.out(segment{flags: wire.ACK, data: 1000})
	r.out(segment{flags: wire.ACK, data: 600})
	r.seq -= 600 // of which nothing is acknowledged
	r.in(segment{flags: wire.ACK})
	r.seq += 600
	r.e.Scale(r.e.Scales()[0].Key, 7, 7, true)
	if r.after(100 * time.Millisecond); len(r.probes) < 3 {
		t.Errorf("%d probes though the window is known", len(r.probes))
	}
}

// Traces of one flow keep the distance in time between probes that may reach it.
func TestReachingProbesOfTwoTraces(t *testing.T) {
	r := newRig(t, false, 3)
	r.w.Retrace = 10 * time.Millisecond
	r.handshake()
	r.exchange()
	var last time.Time
	reached, traces := 0, 0
	for end := r.now.Add(20 * time.Second); r.now.Before(end); {
		n := r.reaching(3)
		r.after(10 * time.Millisecond)
		r.routers(3)
		if r.reaching(3) > n {
			if since := r.now.Sub(last); since < probe.ReachingInterval {
				t.Errorf("two within %v", since)
			}
			last = r.now
			reached++
			r.now = r.now.Add(rtt)
			r.in(segment{flags: wire.ACK})
		}
		traces += len(r.traces())
	}
	if reached < 10 || traces < 5 {
		t.Errorf("%d reaching probes, %d traces", reached, traces)
	}
}

// Packets that were captured before others were lost do not bring a flow back in sync.
func TestOldPacketsAreNoSync(t *testing.T) {
	r := newRig(t, false, 20)
	r.handshake()
	r.exchange()
	old := r.now
	r.e.Dropped(r.now.Add(5*time.Millisecond), 1, 1)
	before := len(r.probes)
	r.out(segment{flags: wire.ACK, data: 10})
	r.in(segment{flags: wire.ACK})
	r.after(2 * time.Second)
	if n := len(r.probes) - before; n > 0 {
		t.Errorf("%d probes after packets from %v before the loss", n, r.now.Sub(old))
	}
	r.exchange()
	if r.after(300 * time.Millisecond); len(r.probes) == before {
		t.Error("no probe although both sides were seen since")
	}
}

// While a flow's packets are seen to leave at another interface only, and it is not yet
// known whether for good, nothing is probed.
func TestNotProbedWhileRerouted(t *testing.T) {
	r := newRig(t, false, 20)
	r.handshake()
	r.after(30 * time.Millisecond)
	r.exchange()
	r.link = 9
	for range 4 {
		r.after(10 * time.Millisecond)
		r.out(segment{flags: wire.ACK, data: 10})
	}
	before := len(r.probes)
	if r.after(2 * time.Second); len(r.probes) != before {
		t.Errorf("%d probes", len(r.probes)-before)
	}
	r.out(segment{flags: wire.ACK, data: 10}) // it stays there
	if r.after(time.Second); len(r.probes) == before || r.flow().Egress.Interface != 9 {
		t.Errorf("%d probes, followed at %d", len(r.probes)-before, r.flow().Egress.Interface)
	}
}

// A TTL of which no probe could be sent is no silent hop of a complete path.
func TestUnsentIsNotSilent(t *testing.T) {
	r := newRig(t, false, 4)
	failed := 0
	r.fails = func(p wire.TCPProbe) bool {
		if p.TTL == 2 {
			failed++
		}
		return p.TTL == 2
	}
	r.handshake()
	r.exchange()
	r.answering(4, 15*time.Second)
	tr := r.traces()
	if len(tr) != 1 || tr[0].Complete || tr[0].Hops[1].Sent != 0 || failed == 0 {
		t.Errorf("%d failures, %+v", failed, tr)
	}
	if n := r.e.Stats(r.now).Probes.Failed; n != uint64(failed) {
		t.Errorf("%d counted as failed, %d did", n, failed)
	}
}
