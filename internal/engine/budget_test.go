package engine

import (
	"testing"
	"time"
)

// Two engines that share a budget send no more than one would.
func TestBudgetIsShared(t *testing.T) {
	const rate = 100
	b := NewBudget(rate)
	start := time.Unix(1000, 0)
	sent := [2]int{}
	for ms := range 10_000 {
		for i := range sent {
			if b.available(start.Add(time.Duration(ms) * time.Millisecond)) {
				b.spend()
				sent[i]++
			}
		}
	}
	if all := sent[0] + sent[1]; all < 10*rate-1 || all > 10*rate+rate/burstPart {
		t.Errorf("%v probes in 10 s at %d/s", sent, rate)
	}
	if w := b.wait(); w <= 0 || w > time.Second/rate+1 {
		t.Errorf("the next one may go in %v", w)
	}
}
