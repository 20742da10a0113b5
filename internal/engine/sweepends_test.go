package engine

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/health"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// sweptRig is a flow whose path is followed.
func sweptRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t, false, 4)
	r.w.Retrace = time.Minute
	r.handshake()
	r.exchange()
	r.answering(4, 8*time.Second)
	if tr := r.traces(); len(tr) != 1 || len(r.e.sweeps) != 1 {
		t.Fatalf("%d traces, %d flows are followed", len(tr), len(r.e.sweeps))
	}
	return r
}

// What a trace asks first about another router that a sweep saw is no more than all probes
// may be, and takes nothing of a router's allowance where the flow has no room for it.
func TestVerifyWithinBounds(t *testing.T) {
	r := sweptRig(t)
	f := r.flow()
	at := attached(f)
	swept := at.sweep.run
	at.path.doubtTTL, at.path.doubt = 2, waypoint{addrs: []netip.Addr{netip.MustParseAddr("192.0.2.99")}}
	for name, test := range map[string]struct {
		tokens float64
		narrow bool // before
		want   int
	}{
		"as many": {10, false, verifications}, "one left": {1.5, false, 1}, "none left": {0.5, false, 0},
		"no room before": {10, true, verifications},
	} {
		r.now = r.now.Add(time.Minute) // all allowances are full
		r.e.budget.available(r.now)
		r.e.budget.tokens = test.tokens
		sent := r.e.stats.Probes.Sent
		if test.narrow {
			window := f.TCP.MaxPeerWindow
			f.TCP.MaxPeerWindow = 0
			for range 10 {
				r.e.verify(r.now, swept)
			}
			f.TCP.MaxPeerWindow = window
		}
		r.e.verify(r.now, swept)
		if got := int(r.e.stats.Probes.Sent - sent); got != test.want {
			t.Errorf("%s: %d probes, want %d", name, got, test.want)
		}
		r.e.actions = Actions{}
	}
}

// The next connection of a tuple has a path and a health of its own: until it was traced
// nothing of the one before is followed, even where its FIN was not seen and it may not be
// traced soon.
func TestTheNextConnectionIsNotSwept(t *testing.T) {
	r := sweptRig(t)
	r.w.StopNewAfter = time.Nanosecond // no more traces
	old := attached(r.flow()).health
	r.seq, r.ack = 1<<20, 1<<21
	r.handshake()
	r.exchange()
	if a := attached(r.flow()); a.sweep != nil || a.health == old || len(r.e.sweeps) != 0 {
		t.Errorf("sweep %v, the same health: %t, %d flows are followed", a.sweep, a.health == old, len(r.e.sweeps))
	}
	for range 20 { // beyond what Retrace waits for
		r.after(10 * time.Second)
		r.out(segment{flags: wire.ACK | wire.PSH, data: 10})
		r.in(segment{flags: wire.ACK})
	}
}

// What is not to be traced again is followed no more.
func TestRetraceSwitchedOff(t *testing.T) {
	r := sweptRig(t)
	by := *r.w
	by.Retrace = 0
	r.e.Replace(r.now, r.w, by)
	r.after(5 * time.Second)
	if len(r.e.sweeps) != 0 {
		t.Error("the flow is still followed")
	}
}

// What a trace asks first it asks when probes may leave, also where what begins it comes between
// two steps, as the answer about a UDP flow's socket does.
func TestVerifyLeaves(t *testing.T) {
	r := sweptRig(t)
	at := attached(r.flow())
	r.w.Retrace = time.Hour
	r.now = r.now.Add(20 * time.Second)
	r.exchange()
	at.path.doubtTTL, at.path.doubt = 2, waypoint{addrs: []netip.Addr{netip.MustParseAddr("192.0.2.99")}}
	if r.e.consider(r.now, r.flow()); len(r.e.runs) != 1 {
		t.Fatal("no trace began")
	}
	before := len(r.probes)
	if sent := int(r.e.stats.Probes.Sent); sent != before {
		t.Errorf("%d probes are counted, %d left", sent, before)
	}
	r.after(50 * time.Millisecond)
	asked := 0
	for _, p := range r.probes[before:] {
		if p.TTL == 2 {
			asked++
		}
	}
	if sent := int(r.e.stats.Probes.Sent); asked < verifications || sent != len(r.probes) {
		t.Errorf("%d probes with TTL 2 left, %d of all, %d are counted", asked, len(r.probes), sent)
	}
}

// A flow that was silent before it was traced, and leaves the table meanwhile: the trace ends no
// sooner than it began.
func TestEndsAfterItsBegin(t *testing.T) {
	r := sweptRig(t)
	r.now = r.now.Add(9 * time.Minute)
	if r.e.consider(r.now, r.flow()); len(r.e.runs) != 1 {
		t.Fatal("no trace began")
	}
	r.e.removed(r.flow())
	if tr := r.traces(); len(tr) != 1 || tr[0].End.Before(tr[0].Start) {
		t.Errorf("%+v", tr)
	}
}

// A flow that leaves the table while it is traced is not followed.
func TestRemovedWhileTraced(t *testing.T) {
	r := newRig(t, false, 4)
	r.w.Retrace = time.Minute
	r.handshake()
	r.exchange()
	r.answering(4, 500*time.Millisecond)
	if len(r.e.runs) != 1 {
		t.Fatal("it is not traced")
	}
	r.e.removed(r.flow())
	if tr := r.traces(); len(tr) != 1 || tr[0].Stop != trace.StopFlowIdle || len(r.e.sweeps) != 0 {
		t.Errorf("%+v, %d flows are followed", tr, len(r.e.sweeps))
	}
}

// Behind a box that hides sequence numbers, and leaves quotes as they are, the path is followed
// as anywhere: what the trace's jury believes is believed of sweeps, too.
func TestSweepsBehindABox(t *testing.T) {
	r := newRig(t, false, 5)
	r.w.Retrace = time.Hour
	shifted := func(ttl int, quote []byte) []byte {
		if ttl >= 3 {
			quote[24] += 0x50
		}
		return quote
	}
	r.handshake()
	r.exchange()
	spoke := r.now
	follow := func(d time.Duration, change func(int, []byte) []byte) {
		for end := r.now.Add(d); r.now.Before(end); {
			n := r.reaching(5)
			r.after(7 * time.Millisecond)
			if r.answered(5, change); r.reaching(5) > n {
				r.now = r.now.Add(rtt)
				r.in(segment{flags: wire.ACK})
			}
			if r.now.Sub(spoke) > 200*time.Millisecond {
				spoke = r.now
				r.exchange()
			}
		}
	}
	follow(8*time.Second, shifted)
	if tr := r.traces(); len(tr) != 1 || !tr[0].Complete || len(r.e.sweeps) != 1 {
		t.Fatalf("%d traces, %d flows are followed", len(tr), len(r.e.sweeps))
	}
	at := attached(r.flow())
	lost := func() (lost int) {
		for ttl := 1; ttl <= 4; ttl++ {
			n, missed := at.path.samples.at(ttl).Counts(r.now)
			if n < 5 {
				t.Errorf("TTL %d: %d samples", ttl, n)
			}
			lost += missed
		}
		return lost
	}
	follow(20*time.Second, shifted)
	if n := lost(); n > 0 {
		t.Errorf("%d answers are taken for lost", n)
	}
	// Another shift is not theirs: then they are.
	follow(10*time.Second, func(ttl int, quote []byte) []byte {
		if ttl >= 3 {
			quote[25] += 0x11
		}
		return shifted(ttl, quote)
	})
	if lost() == 0 {
		t.Error("any shift is believed")
	}
	// When somebody guesses, nothing is believed any more, and silence there says nothing.
	before := lost()
	at.sweep.run.jury = probe.Jury{}
	follow(10*time.Second, shifted)
	if n := lost(); n > before || at.sweep == nil {
		t.Errorf("%d answers were lost, %d are now", before, n)
	}
}

// What this host may not have seen is not lost, and a closed flow's samples take no room.
func TestSamplesOfSweeps(t *testing.T) {
	r := sweptRig(t)
	at := attached(r.flow())
	lost := func() (lost int) {
		for ttl := 1; ttl <= 3; ttl++ {
			_, missed := at.path.samples.at(ttl).Counts(r.now)
			lost += missed
		}
		return lost
	}
	silent := func(d time.Duration) {
		for end := r.now.Add(d); r.now.Before(end); {
			r.after(100 * time.Millisecond)
			clear(r.packets) // nobody answers
			r.out(segment{flags: wire.ACK | wire.PSH, data: 10})
			r.in(segment{flags: wire.ACK})
		}
	}
	silent(time.Second)
	r.e.Dropped(r.now, 1, 100)
	silent(1900 * time.Millisecond) // what left since may be answered yet
	if n := lost(); n > 0 {
		t.Errorf("%d answers are lost that the capture may have dropped", n)
	}
	silent(5 * time.Second)
	if lost() == 0 {
		t.Error("none is lost though nobody answers")
	}
	r.out(segment{flags: wire.FIN | wire.ACK})
	r.in(segment{flags: wire.FIN | wire.ACK})
	r.after(5 * time.Second)
	if len(r.e.sweeps) != 0 || len(at.path.samples.hops) != 0 {
		t.Errorf("%d flows are followed, %d hops' samples are kept", len(r.e.sweeps), len(at.path.samples.hops))
	}
}

// With a trigger a flow that never hurt leaves no record, whoever its owner is.
func TestNoRecordOfWhatNeverHurt(t *testing.T) {
	for name, hurts := range map[string]Trigger{"a trigger": never{}, "none": nil} {
		r := ownedRig(t)
		r.w.When = hurts
		r.handshake()
		r.out(segment{flags: wire.FIN | wire.ACK})
		r.in(segment{flags: wire.FIN | wire.ACK})
		r.owned(r.now, 42)
		if n := len(r.traces()); n != 0 && hurts != nil || n != 1 && hurts == nil {
			t.Errorf("%s: %d records of a flow that was over before it was known whose it is", name, n)
		}
	}
}

type never struct{}

func (never) Hurts(health.State) bool { return false }
func (never) String() string          { return "never" }
