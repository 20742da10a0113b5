package engine

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/wire"
)

// New flows that are made to compare with are no flows of an application: neither their
// packets nor errors about them count.
func TestIgnoresSiblings(t *testing.T) {
	for _, ours := range []bool{false, true} {
		r := newRig(t, false, 5)
		asked := 0
		r.e.Ignore(func(local uint16, remote netip.Addr) bool {
			asked++
			return ours && remote == r.peer.Addr() && local == r.me.Port()
		})
		r.handshake()
		r.exchange()
		r.after(3 * time.Second)
		if asked == 0 {
			t.Error("nobody was asked")
		}
		if probed := len(r.probes) > 0; probed == ours {
			t.Errorf("ours %v, and %d probes", ours, len(r.probes))
		}
	}
}

// An error about a sibling is not one about a traced flow to the same destination, which it
// looks like but for the source port.
func TestIgnoresErrorsAboutSiblings(t *testing.T) {
	for _, ours := range []bool{false, true} {
		r := newRig(t, false, 5)
		r.handshake()
		r.exchange()
		r.after(100 * time.Millisecond)
		r.e.Ignore(func(local uint16, _ netip.Addr) bool { return ours && local == 61001 })
		syn := wire.TCPProbe{Src: netip.AddrPortFrom(r.me.Addr(), 61001), Dst: r.peer, Seq: 7, ID: 9, TTL: 1, Flags: wire.SYN}
		before := r.e.Stats(r.now).Replies.Unmatched
		r.error("10.0.0.1", 11, 0, syn.AppendTo(nil), 28)
		if n := r.e.Stats(r.now).Replies.Unmatched - before; (n == 0) != ours {
			t.Errorf("ours %v: %d unmatched", ours, n)
		}
	}
}

// The budget that siblings share grants no more than its rate.
func TestBudgetTake(t *testing.T) {
	b, now, granted := NewBudget(100), time.Unix(1e9, 0), 0
	for d := time.Duration(0); d < 2*time.Second; d += time.Millisecond {
		if b.Take(now.Add(d)) == 0 {
			granted++
		}
	}
	if granted < 195 || granted > 206 {
		t.Errorf("%d probes in 2 s at 100/s", granted)
	}
}
