package evaluate

import (
	"math"
	"slices"
)

// Interval is a range of values, both ends belong to it.
type Interval struct{ Low, High float64 }

// Has reports whether a value lies inside, rounding errors aside.
func (i Interval) Has(v float64) bool { return v >= i.Low-1e-12 && v <= i.High+1e-12 }

// z95 is the quantile of the normal distribution that leaves 2.5 % at either side.
const z95 = 1.959963984540054

// Wilson is the 95 % interval of a share of which hits of n were seen (Wilson, 1927). Where
// the n have different probabilities, as flows to different destinations have, it is wider
// than needed and never narrower: such a sum varies less than a binomial one of the same
// mean. n 0: everything.
func Wilson(hits, n int) Interval {
	if n <= 0 {
		return Interval{0, 1}
	}
	p, m := float64(hits)/float64(n), float64(n)
	mid := (p + z95*z95/(2*m)) / (1 + z95*z95/m)
	half := z95 / (1 + z95*z95/m) * math.Sqrt(p*(1-p)/m+z95*z95/(4*m*m))
	return Interval{max(mid-half, 0), min(mid+half, 1)}
}

// Median returns the middle one of values, and the interval between two of them that holds the
// median of what they were drawn from with at least 95 %, whatever that is like: each value lies
// below it with one half. Of fewer than 6 values nothing does, and the interval is all of them.
func Median(values []float64) (median float64, i Interval) {
	n := len(values)
	if n == 0 {
		return 0, i
	}
	sorted := slices.Sorted(slices.Values(values))
	median = (sorted[(n-1)/2] + sorted[n/2]) / 2
	below, term := 0.0, math.Pow(0.5, float64(n)) // that so many lie below, and at most so many
	rank := 0
	for k := 0; k < n/2; k++ {
		if below += term; below > 0.025 {
			break
		}
		rank = k
		term *= float64(n-k) / float64(k+1)
	}
	return median, Interval{sorted[rank], sorted[n-1-rank]}
}

// Quantile is the value below which a share of the values lies, by the nearest rank; of none
// it is 0.
func Quantile(values []float64, share float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(share * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Crossing is where a curve through points, in the order of X, first comes to a height: X by
// linear interpolation. ok is false when it never does.
func Crossing(curve []Point, height float64) (x float64, ok bool) {
	for i := 1; i < len(curve); i++ {
		a, b := curve[i-1], curve[i]
		if (a.Y-height)*(b.Y-height) <= 0 && a.Y != b.Y {
			return a.X + (height-a.Y)/(b.Y-a.Y)*(b.X-a.X), true
		}
	}
	return 0, false
}

// At is the height of a curve at x by linear interpolation, beyond its ends that of the end; of
// no points it is 0.
func At(curve []Point, x float64) float64 {
	for i, p := range curve {
		if x > p.X && i < len(curve)-1 {
			continue
		}
		if i == 0 || x >= p.X {
			return p.Y
		}
		b := curve[i-1]
		return b.Y + (x-b.X)/(p.X-b.X)*(p.Y-b.Y)
	}
	return 0
}
