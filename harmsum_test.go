//go:build linux

package servicetraceroute_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/selftest"
)

// summary adds up pairs.
type summary struct {
	all                   []pair
	sums                  [3]peer.Counters // traced, alone, again
	probes, traces, ended map[string]int   // by rate
	repeats               int
	ratios                map[scenario.Traffic][]float64 // traced to alone
	noise                 map[scenario.Traffic][]float64 // again to alone
	latency, latencyNoise []float64
}

// The counters that are ours, beside the kernel's.
const (
	linkLost = "*segments that the link lost*"
	// A lost segment is repaired by one retransmission. Where a sender's buffer runs
	// dry two flows cut their data differently, and one may lose a short segment more.
	beyondLost = "*RetransSegs beyond those lost*"
)

// counted are the harm counters of a flow, tail-loss probes apart.
func (o outcome) counted() peer.Counters {
	c := o.harm()
	for name, v := range o.sum(peer.Jitter) {
		c[selftest.TailLoss+name] = v
	}
	if o.lost > 0 {
		c[linkLost] = int64(o.lost)
	}
	if beyond := c["Tcp.RetransSegs"] - int64(o.lost); o.lost > 0 && beyond != 0 {
		c[beyondLost] = beyond
	}
	return c
}

func (p *pair) outcomes() [3]*outcome { return [3]*outcome{&p.traced, &p.alone, &p.again} }

func sumUp(all []pair) summary {
	s := summary{
		all: all, sums: [3]peer.Counters{{}, {}, {}}, probes: map[string]int{}, traces: map[string]int{}, ended: map[string]int{},
		ratios: map[scenario.Traffic][]float64{}, noise: map[scenario.Traffic][]float64{},
	}
	for i := range all {
		p := &all[i]
		for k, o := range p.outcomes() {
			for name, v := range o.counted() {
				s.sums[k][name] += v
			}
		}
		s.repeats += p.repeats
		s.probes[p.hard.name] += int(p.traced.sent)
		s.traces[p.hard.name] += len(p.traced.traces)
		for _, tr := range p.traced.traces {
			if tr.Reached {
				s.ended[p.hard.name]++
			}
		}
		again := p.again.flow.BitRate > 0
		switch kind := p.workload.Traffic; kind {
		case scenario.Download, scenario.Upload, scenario.SlowReader:
			s.ratios[kind] = append(s.ratios[kind], p.traced.flow.BitRate/p.alone.flow.BitRate)
			if again {
				s.noise[kind] = append(s.noise[kind], p.again.flow.BitRate/p.alone.flow.BitRate)
			}
		case scenario.RequestResponse:
			alone := float64(p.alone.flow.Latency.P50)
			s.latency = append(s.latency, float64(p.traced.flow.Latency.P50)/alone)
			if p.again.flow.Latency.P50 > 0 {
				s.latencyNoise = append(s.latencyNoise, float64(p.again.flow.Latency.P50)/alone)
			}
		}
	}
	return s
}

// names are the counters that moved in any of the twins.
func (s *summary) names() []string {
	names := slices.Collect(maps.Keys(s.sums[0]))
	for _, c := range s.sums[1:] {
		names = append(names, slices.Collect(maps.Keys(c))...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// chance is how often, were the traced twin but a third untraced one, its sum would
// be as high as it is or higher: in how many of many draws in which each case's
// outcomes are dealt anew to its twins.
func (s *summary) chance(name string) float64 {
	var values [][3]int64
	for i := range s.all {
		var v [3]int64
		for k, o := range s.all[i].outcomes() {
			v[k] = o.counted()[name]
		}
		if v[0] != v[1] || v[0] != v[2] {
			values = append(values, v)
		}
	}
	var seen int64
	for _, v := range values {
		seen += v[0]
	}
	const draws = 20_000
	rng := rand.New(rand.NewPCG(3, 4))
	var asHigh int
	for range draws {
		var sum int64
		for _, v := range values {
			sum += v[rng.IntN(3)]
		}
		if sum >= seen {
			asHigh++
		}
	}
	return float64(asHigh) / draws
}

// lowerBound is the bootstrap's lower bound, at 95 %, of the mean.
func lowerBound(x []float64) (mean, low float64) {
	rng := rand.New(rand.NewPCG(1, 2))
	means := make([]float64, 4000)
	for i := range means {
		for range x {
			means[i] += x[rng.IntN(len(x))] / float64(len(x))
		}
	}
	slices.Sort(means)
	for _, v := range x {
		mean += v / float64(len(x))
	}
	return mean, means[len(means)/20]
}

func (s *summary) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d pairs, %d repetitions because the machine was too busy.", len(s.all), s.repeats)
	for _, rate := range slices.Sorted(maps.Keys(s.probes)) {
		fmt.Fprintf(&b, " Rate %s: %d traces (%d with the destination), %d probes.", rate, s.traces[rate], s.ended[rate], s.probes[rate])
	}
	fmt.Fprintf(&b, "\n\n| counter, both ends | traced | alone | alone again | chance of so many |\n|---|---|---|---|---|\n")
	for _, n := range s.names() {
		chance := ""
		if full() && s.sums[0][n] > 0 {
			chance = fmt.Sprintf("%.2f", s.chance(n))
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %s |\n", n, s.sums[0][n], s.sums[1][n], s.sums[2][n], chance)
	}
	fmt.Fprintf(&b, "\nAll other harm counters were 0 in all.\n\n"+
		"| ratio | pairs | traced / alone: mean | 95 %% lower bound | again / alone: mean | 95 %% lower bound |\n|---|---|---|---|---|---|\n")
	row := func(what string, ratios, noise []float64) {
		mean, low := lowerBound(ratios)
		fmt.Fprintf(&b, "| %s | %d | %.4f | %.4f |", what, len(ratios), mean, low)
		if len(noise) > 0 {
			mean, low = lowerBound(noise)
			fmt.Fprintf(&b, " %.4f | %.4f |\n", mean, low)
		} else {
			fmt.Fprintf(&b, " | |\n")
		}
	}
	for _, kind := range slices.SortedFunc(maps.Keys(s.ratios), func(a, b scenario.Traffic) int { return cmp.Compare(a, b) }) {
		row("throughput, "+trafficName[kind], s.ratios[kind], s.noise[kind])
	}
	if len(s.latency) > 0 {
		row("median latency, request/response", s.latency, s.latencyNoise)
	}
	return b.String()
}

// compare reports every counter that is higher with probes than without.
func (s *summary) compare(t *testing.T, what string) {
	t.Helper()
	traced, alone := s.sums[0], s.sums[1]
	for _, name := range selftest.Excess(traced, alone) {
		t.Errorf("%s: %s is %d with probes and %d without", what, name, traced[name], alone[name])
	}
	for _, name := range s.names() {
		s.tell(t, name)
	}
}

// compareByChance reports every counter that is higher with probes than the
// differences among untraced twins can explain.
func (s *summary) compareByChance(t *testing.T) {
	t.Helper()
	for _, name := range s.names() {
		if p := s.chance(name); p < 0.005 {
			t.Errorf("with loss: %s is %d with probes, %d and %d without: by chance in %.4f", name, s.sums[0][name], s.sums[1][name], s.sums[2][name], p)
		}
		s.tell(t, name)
	}
}

// tell logs the pairs in which a counter differs.
func (s *summary) tell(t *testing.T, name string) {
	t.Helper()
	for i := range s.all {
		p := &s.all[i]
		if a, b, c := p.traced.counted()[name], p.alone.counted()[name], p.again.counted()[name]; a != b || full() && a != c {
			t.Logf("%s: %d traced, %d, %d: %v", name, a, b, c, p.pairCase)
			for _, o := range p.outcomes() {
				t.Logf("  %v, stall %v, trouble %d", o.counted(), o.stall, o.trouble)
			}
		}
	}
}
