package engine

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/wire"
)

// Flows whose clients said who they want, and those that say nothing, do not wake anybody each for
// itself: on a host where a thousand begin each second that would cost more than all else.
func TestWakesSeldom(t *testing.T) {
	for _, speaks := range []bool{false, true} {
		r := namedRig(t, "video.example")
		const flows = 300
		wakes := 0
		step := func(until time.Time) {
			for r.wake.Before(until) {
				r.now = r.wake
				wakes++
				r.step(nil)
			}
			r.now = until
		}
		for i := range flows {
			r.peer = netip.AddrPortFrom(r.peer.Addr(), uint16(1000+i))
			r.out(segment{flags: wire.SYN, options: synOptions})
			r.in(segment{flags: wire.SYN | wire.ACK, options: synOptions})
			r.out(segment{flags: wire.ACK})
			if speaks {
				r.say(clientHello(t, "bank.example"))
			}
			step(r.now.Add(time.Millisecond))
		}
		begun := r.now
		wakes = 0
		step(r.now.Add(2 * wordsWait))
		least := int(wordsWait / heardEvery)
		if speaks {
			least = 0
		}
		if most := least + int(2*wordsWait/tick) + 3; wakes > most {
			t.Errorf("speaks: %t; %d flows woke %d times, at most %d is enough", speaks, flows, wakes, most)
		}
		if r.out(segment{flags: wire.ACK}); len(r.e.expected) > 0 {
			t.Errorf("speaks: %t; %v later %d are still awaited", speaks, r.now.Sub(begun), len(r.e.expected))
		}
	}
}

// What is behind one who says nothing waits in the queue, which is bounded.
func TestExpectedBounded(t *testing.T) {
	r := namedRig(t, "video.example")
	r.e.expected = make([]expectation, maxExpected)
	if r.e.mayListen(false) || r.e.mayListen(true) || r.e.stats.Services.Dropped != 2 {
		t.Errorf("one more is awaited, %d dropped", r.e.stats.Services.Dropped)
	}
}
