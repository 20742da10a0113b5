package engine

import (
	"testing"
	"time"

	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/wire"
)

// The flow's application is late: what its round trips say is longer than its way is. The
// routers are not, and from them it is known how soon the destination can answer, which is
// before the flow's own least round trip.
func TestALateApplication(t *testing.T) {
	for seed := range byte(60) {
		r := newRigSeeded(t, seed)
		r.handshake() // round trips of 20 ms
		r.routers(4)  // at once: a router that answers later than the destination tells nothing
		r.exchange()
		for end := r.now.Add(10 * time.Second); r.now.Before(end); {
			n := r.reaching(4)
			r.after(time.Millisecond)
			r.routers(4)
			if r.reaching(4) > n {
				r.now = r.now.Add(12*time.Millisecond + time.Duration(seed%3)*time.Millisecond)
				r.in(segment{flags: wire.ACK})
			}
		}
		tr := r.traces()
		if len(tr) != 1 || !tr[0].Reached || tr[0].Destination.TTL != 4 {
			t.Errorf("seed %d: %+v", seed, tr)
		}
	}
}

// An answer that comes too soon to be believed is not a silence either: else the
// destination seems to be where the first slower one comes from.
func TestAnAnswerTooSoonIsNoSilence(t *testing.T) {
	found := 0
	for seed := range byte(60) {
		r := newRigSeeded(t, seed)
		r.handshake() // round trips of 20 ms
		r.exchange()
		for end := r.now.Add(20 * time.Second); r.now.Before(end); {
			n := r.reaching(4)
			r.after(time.Millisecond)
			r.routers(3) // the last one is silent
			if r.reaching(4) > n {
				after := 12 * time.Millisecond
				if r.probes[len(r.probes)-1].TTL > 4 {
					after = 19 * time.Millisecond
				}
				r.now = r.now.Add(after)
				r.in(segment{flags: wire.ACK})
			}
		}
		for _, tr := range r.traces() {
			if tr.Reached && tr.Destination.TTL != 4 {
				t.Errorf("seed %d: %+v", seed, tr)
			}
			found++
		}
	}
	if found == 0 {
		t.Error("no trace ended")
	}
}

// After an answer that came too soon the next attempt waits for the router before the
// destination, from which it can be told what is too soon; that one's probe may wait for
// others'.
func TestAttemptsWaitForTheRouterBefore(t *testing.T) {
	first := newRigSeeded(t, 1)
	first.handshake()
	place := first.e.runs[0].place(3)

	r := newRigSeeded(t, 1)
	for range 11 { // it may be asked six times at once, and then once a second
		r.e.buckets.For(r.now, place, noAddr).Wait(&probe.Waiter{Place: place, Rank: -1, Grant: func(time.Time, *probe.Bucket) bool { return true }})
	}
	r.handshake() // round trips of 20 ms
	r.routers(4)
	r.exchange()
	before := 0
	for end := r.now.Add(25 * time.Second); r.now.Before(end); {
		n := r.reaching(4)
		r.after(time.Millisecond)
		r.routers(4)
		if r.reaching(4) == n {
			continue
		}
		if r.e.runs[0].reach.Lowest() < 3 {
			before++
		}
		r.now = r.now.Add(12 * time.Millisecond)
		r.in(segment{flags: wire.ACK})
	}
	if before > 1 {
		t.Errorf("%d attempts before that router answered", before)
	}
	if tr := r.traces(); len(tr) != 1 || !tr[0].Reached || tr[0].Destination.TTL != 4 {
		t.Errorf("%+v", tr)
	}
}

// newRigSeeded is a rig whose engine has a seed of its own.
func newRigSeeded(t *testing.T, seed byte) *rig {
	r := newRig(t, false, 4)
	r.e = New(r.now, Config{Rate: 1000, HopRate: 200, Seed: [32]byte{seed}})
	r.e.Add(r.now, r.w)
	return r
}
