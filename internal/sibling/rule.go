package sibling

import "math"

// Missed is the probability that so many flows, spread evenly and independently over
// ways next hops, leave at least one of them unseen (inclusion and exclusion over the
// hops left out).
func Missed(ways, flows int) float64 {
	if flows < ways {
		return 1
	}
	p, sign, choose := 0.0, 1.0, 1.0
	for left := 1; left < ways; left++ {
		choose *= float64(ways-left+1) / float64(left)
		p += sign * choose * math.Pow(1-float64(left)/float64(ways), float64(flows))
		sign = -sign
	}
	return min(max(p, 0), 1)
}

// Enough is how many flows rule out, at a confidence below 1, that there is one more next
// hop beside the seen ones: n_k of the stopping rule, at 0.95 the published 6, 11, 16, 21,
// 27, 33, ... for 1, 2, 3, ... seen.
func Enough(seen int, confidence float64) int {
	n := seen + 1
	for Missed(seen+1, n) > 1-confidence {
		n++
	}
	return n
}

// RuleMisses is the probability that the whole rule, applied after each flow, stops
// before it has seen all of ways next hops that are equally likely: the bound that an
// enumeration is held against. It is that of one node of the path.
func RuleMisses(ways int, confidence float64) float64 {
	seen := make([]float64, ways+1) // by how many were seen, given that the rule has not stopped
	seen[0] = 1
	missed := 0.0
	for n := 1; n <= Enough(ways, confidence); n++ {
		next := make([]float64, ways+1)
		for k, p := range seen {
			next[k] += p * float64(k) / float64(ways)
			if k < ways {
				next[k+1] += p * float64(ways-k) / float64(ways)
			}
		}
		seen = next
		for k := 1; k < ways; k++ {
			if n >= Enough(k, confidence) {
				missed += seen[k]
				seen[k] = 0
			}
		}
	}
	return missed
}
