package engine

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/trace"
)

// Where the sink cannot damage a datagram all probes are whole ones, up to the same fence.
func TestUDPIntact(t *testing.T) {
	for _, intact := range []bool{false, true} {
		r := newUDPRig(t, false, 9)
		r.e.cfg.Intact = func(dst netip.Addr) bool { return intact && dst == r.peer.Addr() }
		r.quic()
		r.hears(false)
		damaged := 0
		for range 60 {
			for n, b := range r.packets {
				if b != nil && r.damaged(n) {
					damaged++
				}
			}
			r.routers(9)
			r.after(50 * time.Millisecond)
		}
		all := r.traces()
		if len(all) != 1 || all[0].Stop != trace.StopFence || len(all[0].Hops) != 7 || r.highest() != 7 {
			t.Errorf("intact %v: up to TTL %d: %+v", intact, r.highest(), all)
		}
		if (damaged == 0) != intact {
			t.Errorf("intact %v: %d damaged", intact, damaged)
		}
	}
}
