package engine

import (
	"net/netip"
	"testing"
	"time"

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
