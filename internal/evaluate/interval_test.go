package evaluate

import (
	"math"
	"math/rand/v2"
	"testing"
)

func near(a, b float64) bool { return math.Abs(a-b) < 5e-4 }

// Values of Newcombe (1998), table I, method 3.
func TestWilson(t *testing.T) {
	for _, c := range []struct {
		hits, n   int
		low, high float64
	}{{81, 263, 0.2553, 0.3662}, {15, 148, 0.0624, 0.1605}, {0, 20, 0, 0.1611}, {1, 29, 0.0061, 0.1718}, {20, 20, 1 - 0.1611, 1}, {0, 0, 0, 1}} {
		if got := Wilson(c.hits, c.n); !near(got.Low, c.low) || !near(got.High, c.high) {
			t.Errorf("%d of %d: %v, want %v to %v", c.hits, c.n, got, c.low, c.high)
		}
	}
	if i := (Interval{0.2, 0.3}); !i.Has(0.2) || !i.Has(0.3) || i.Has(0.19) || i.Has(0.31) {
		t.Error("an interval has what is not in it")
	}
}

// The interval holds the mean in 95 of 100 draws, also of draws with different odds.
func TestWilsonCovers(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	const series, n = 4000, 200
	inside := 0
	for range series {
		hits, mean := 0, 0.0
		for i := range n {
			p := 0.2 + 0.6*float64(i%3)/2
			mean += p / n
			if rng.Float64() < p {
				hits++
			}
		}
		if Wilson(hits, n).Has(mean) {
			inside++
		}
	}
	if share := float64(inside) / series; share < 0.945 || share > 0.995 {
		t.Errorf("%v of the intervals hold the mean", share)
	}
}

// The ranks are those of tables of the sign test: the 6th of 20 and the 15th, the first and the
// last of 6.
func TestMedian(t *testing.T) {
	values := func(n int) (v []float64) {
		for i := range n {
			v = append(v, float64((i*7)%n+1)) // 1 to n, mixed
		}
		return v
	}
	for n, want := range map[int][3]float64{20: {10.5, 6, 15}, 6: {3.5, 1, 6}, 5: {3, 1, 5}, 9: {5, 2, 8}, 1: {1, 1, 1}} {
		if m, i := Median(values(n)); m != want[0] || i != (Interval{want[1], want[2]}) {
			t.Errorf("of %d: %v, %v, want %v", n, m, i, want)
		}
	}
	if m, i := Median(nil); m != 0 || i != (Interval{}) {
		t.Errorf("of none: %v, %v", m, i)
	}
}

func TestQuantile(t *testing.T) {
	v := []float64{5, 1, 4, 2, 3}
	for share, want := range map[float64]float64{0: 1, 0.2: 1, 0.21: 2, 0.5: 3, 0.99: 5, 1: 5} {
		if got := Quantile(v, share); got != want {
			t.Errorf("%v: %v, want %v", share, got, want)
		}
	}
	if v[0] != 5 || Quantile(nil, 0.5) != 0 {
		t.Error("the values were sorted in place, or there are some of none")
	}
}

func TestCurve(t *testing.T) {
	c := []Point{{X: 0, Y: 0}, {X: 10, Y: 0.3}, {X: 20, Y: 0.5}}
	if x, ok := Crossing(c, 0.4); !ok || math.Abs(x-15) > 1e-9 {
		t.Errorf("%v, %v", x, ok)
	}
	if _, ok := Crossing(c, 0.6); ok {
		t.Error("a height it never comes to")
	}
	for x, want := range map[float64]float64{-1: 0, 0: 0, 5: 0.15, 10: 0.3, 15: 0.4, 20: 0.5, 30: 0.5} {
		if got := At(c, x); math.Abs(got-want) > 1e-9 {
			t.Errorf("at %v: %v, want %v", x, got, want)
		}
	}
	if At(nil, 1) != 0 {
		t.Error("the height of no curve")
	}
}
