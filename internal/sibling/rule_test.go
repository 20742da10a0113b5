package sibling

import (
	"math"
	"math/rand/v2"
	"testing"
)

// The published table of the stopping rule at 95 % (Veitch et al., INFOCOM 2009, and
// Augustin et al., ToN 2011).
func TestEnough(t *testing.T) {
	for i, want := range []int{6, 11, 16, 21, 27, 33, 38, 44, 51, 57, 63, 70, 76, 83, 90, 96} {
		if got := Enough(i+1, 0.95); got != want {
			t.Errorf("n_%d = %d, want %d", i+1, got, want)
		}
	}
	for i, want := range []int{8, 15, 21, 28, 36, 43, 51, 58, 66, 74} {
		if got := Enough(i+1, 0.99); got != want {
			t.Errorf("at 99 %%: n_%d = %d, want %d", i+1, got, want)
		}
	}
}

func TestMissed(t *testing.T) {
	for _, test := range []struct {
		ways, flows int
		want        float64
	}{{1, 1, 0}, {1, 0, 1}, {2, 1, 1}, {2, 2, 0.5}, {2, 6, 1.0 / 32}, {3, 3, 1 - 6.0/27}, {4, 3, 1}} {
		if got := Missed(test.ways, test.flows); math.Abs(got-test.want) > 1e-12 {
			t.Errorf("Missed(%d, %d) = %v, want %v", test.ways, test.flows, got, test.want)
		}
	}
}

// The bound is what the rule does when it is played with dice.
func TestRuleMisses(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, ways := range []int{2, 3, 4, 8} {
		const games = 40000
		missed := 0
		var enough []int
		for k := range ways + 1 {
			enough = append(enough, Enough(k, 0.95))
		}
		for range games {
			seen := map[int]bool{}
			for n := 1; ; n++ {
				seen[rng.IntN(ways)] = true
				if n >= enough[len(seen)] {
					break
				}
			}
			if len(seen) < ways {
				missed++
			}
		}
		want := RuleMisses(ways, 0.95)
		if got := float64(missed) / games; math.Abs(got-want) > 0.004 {
			t.Errorf("%d ways: missed %.4f of the games, bound %.4f", ways, got, want)
		}
	}
	if got := RuleMisses(2, 0.95); math.Abs(got-1.0/32) > 1e-12 {
		t.Errorf("two ways: %v", got)
	}
}
