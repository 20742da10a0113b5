//go:build linux

package servicetraceroute_test

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/evaluate"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/sibling"
	"servicetraceroute/trace"
)

// wrong is how often a new flow showed another path than the application's, at one share and
// width of balanced links.
type wrong struct {
	width           int
	balanced        float64
	count           evaluate.Count
	pairs, differ   int // flows with a sibling over TCP each
	want            float64
	other           float64 // analytic: other ways, seen or not
	hops, balancers float64 // that a flow meets
}

func (w *wrong) share() float64 { return float64(w.differ) / float64(w.pairs) }

// analytic works out what the drawn Internet says, on average over all clients and servers.
func analytic(t *testing.T, s evaluate.Shares) (w wrong) {
	t.Helper()
	world, err := evaluate.Generate(s)
	if err != nil {
		t.Fatal(err)
	}
	layout, err := world.Network.Layout()
	if err != nil {
		t.Fatal(err)
	}
	w = wrong{width: s.Width, balanced: s.Balanced, count: world.Count}
	n := float64(len(world.Clients) * len(world.Servers))
	for _, client := range world.Clients {
		for _, server := range world.Servers {
			odds, err := evaluate.Differ(layout, client, server, false)
			if err != nil {
				t.Fatal(err)
			}
			w.want += odds.Shown / n
			w.other += odds.Other / n
			w.hops += odds.Hops / n
			w.balancers += odds.Balancers / n
		}
	}
	return w
}

// newFlows measures it: so often, from each client to each server, an application's flow is
// traced, and then one sibling over TCP.
func newFlows(t *testing.T, s evaluate.Shares, rounds int) wrong {
	t.Helper()
	w := analytic(t, s)
	synctest.Test(t, func(t *testing.T) {
		// Points of one curve are draws of their own: with the same ports and hashes, flows that
		// go apart at one would at all.
		hashes := s.Seed<<20 | uint64(s.Width)<<10 | uint64(math.Round(1000*s.Balanced))
		m := inMemorySeeded(t, s, hashes, servicetraceroute.Config{Defaults: servicetraceroute.Params{MaxSilent: -1}})
		for range rounds {
			stop := m.watch(servicetraceroute.Selection{Every: -1})
			flows := m.rounds(func(int) scenario.Workload {
				return scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 200, Every: odd, Duration: 10 * time.Second}
			})
			traces := slices.DeleteFunc(stop().traces, func(tr *trace.Trace) bool { // of siblings of the round before
				return !slices.ContainsFunc(flows, func(j *journey) bool { return j.Tuple.Src == tr.Flow.Src && j.Tuple.Dst == tr.Flow.Dst })
			})
			if len(traces) != len(flows) {
				t.Errorf("%d flows, %d traces", len(flows), len(traces))
			}
			for _, tr := range traces {
				m.judge(tr)
				siblings := slices.DeleteFunc(m.siblings(tr, 1, uint64(w.pairs)), func(x trace.Sibling) bool { return x.Proto != sibling.TCP })
				w.pairs++
				if sibling.Compare(tr, siblings).Divergent {
					w.differ++
				}
			}
			m.net.Forget()
		}
	})
	return w
}

// points are the shares and widths of balanced links that are measured.
func (e evaluation) points() (all []evaluate.Shares) {
	shares, widths := []float64{0.05, 0.1, 0.15, 0.2, 0.3, 0.45}, []int{2, 4, 8}
	if e.small {
		shares, widths = []float64{0.2}, []int{3}
	}
	s := e.shares()
	s.Lossy = 0 // what is lost is another question
	if !e.small {
		s.Balanced, s.Width = 0, widths[0]
		all = append(all, s)
	}
	for _, s.Width = range widths {
		for _, s.Balanced = range shares {
			all = append(all, s)
		}
	}
	return all
}

// wrong is part (c): how often a new flow shows another path.
func (e evaluation) wrong(t *testing.T) *evaluate.Report {
	r := &evaluate.Report{}
	rounds := 4
	if e.small {
		rounds = 5
	}
	var all []wrong
	for _, s := range e.points() {
		all = append(all, newFlows(t, s, rounds))
	}
	r.Printf("### (c) Flows whose path a new flow gets wrong\n\n%s", e.command("wrong"))
	r.Printf("%d times from each of %d clients to each of %d servers a flow is traced inside, then one new flow over TCP (another source port, Paris style, as `compare` sends it) is traced to the same port. It is wrong when at some TTL both were answered, by different addresses. IPv4. "+
		"The graph is the same at every point, only more of its links are balanced: at both ends of such a link a router spreads flows over so many others (the width) by a hash of addresses, protocol and ports. "+
		"Analytic: worked out from the drawn network's routes alone, hop by hop, over all pairs of places where two flows can be at once, given that each next hop is equally likely; what silent routers hide is not counted. "+
		"The interval is Wilson's, of the measured share; as destinations differ it is rather too wide than too narrow.\n\n", rounds, e.shares().Clients, e.shares().Servers)
	table := evaluate.Table{Head: []string{"links balanced", "width", "routers", "balancers on a flow's way", "pairs", "wrong", "measured", "95 % interval", "analytic", "inside"}}
	inside, hits, pairs, mean := 0, 0, 0, 0.0
	for i := range all {
		w := &all[i]
		interval := evaluate.Wilson(w.differ, w.pairs)
		verdict := "no"
		if interval.Has(w.want) {
			verdict, inside = "yes", inside+1
		}
		table.Add(fmt.Sprintf("%d of %d (%s)", w.count.Balanced, w.count.Links, evaluate.Share(w.balanced)), w.width, w.count.Routers, fmt.Sprintf("%.2f of %.1f", w.balancers, w.hops), w.pairs, w.differ,
			evaluate.Share(w.share()), interval, evaluate.Share(w.want), verdict)
		hits, pairs, mean = hits+w.differ, pairs+w.pairs, mean+w.want*float64(w.pairs)
	}
	mean /= float64(pairs)
	together := evaluate.Wilson(hits, pairs)
	r.Printf("%v\nThe analytic value lies inside the 95 %% interval at %d of %d points. All points together: %d of %d new flows were wrong, %s (%v); analytic %s.\n\n", table, inside, len(all), hits, pairs, evaluate.Percent(hits, pairs), together, evaluate.Share(mean))
	// Of intervals of 95 % one in twenty misses by chance: one of these points may, and of
	// seeds that one in twenty.
	if !together.Has(mean) || inside < len(all)-len(all)/10 {
		t.Errorf("the analytic values are not what was measured:\n%v", table)
	}
	e.curve(t, r, all)
	return r
}

// curve draws the measured points over the analytic curves, and says where these come to what
// the paper found.
func (e evaluation) curve(t *testing.T, r *evaluate.Report, all []wrong) {
	c := evaluate.Chart{Title: "Flows whose path a new flow gets wrong", X: "share of links that are balanced, in % (bars: 95 % intervals)", Y: "share of flows", YMax: 1, Percent: true,
		Bands: []evaluate.Band{{Name: "the paper: 40 to 50 %", Interval: evaluate.Interval{Low: 0.4, High: 0.5}}}}
	var marks []evaluate.Series
	table := evaluate.Table{Head: []string{"width", "links balanced where 40 % are wrong", "balancers on a way", "where 50 % are wrong", "balancers on a way"}}
	last := 0
	for _, w := range all {
		if w.balanced > 0 && w.width != last {
			last = w.width
			curve, balancers := e.analytic(t, w.width)
			n := len(c.Series)
			c.Series = append(c.Series, evaluate.Series{Name: fmt.Sprintf("width %d, analytic", last), Color: n, Points: curve})
			marks = append(marks, evaluate.Series{Name: fmt.Sprintf("width %d, measured", last), Color: n, Marks: true})
			row := []any{last}
			for _, height := range []float64{0.4, 0.5} {
				at, ok := evaluate.Crossing(curve, height)
				if !ok {
					row = append(row, "-", "-")
					continue
				}
				row = append(row, fmt.Sprintf("%.0f %%", at), fmt.Sprintf("%.2f", evaluate.At(balancers, at)))
			}
			table.Add(row...)
		}
		if w.balanced > 0 {
			interval := evaluate.Wilson(w.differ, w.pairs)
			m := &marks[len(marks)-1]
			m.Points = append(m.Points, evaluate.Point{X: 100 * w.balanced, Y: w.share(), Bar: &interval})
		}
	}
	c.Series = append(c.Series, marks...)
	r.Show("wrong", c.Title, c.SVG())
	r.Printf("The paper found another path for 40 to 50 %% of its flows (PAM 2019). Here the analytic curves come there at:\n\n%v\n", table)
}

// analytic is the curve of one width, in per cent of the links, and how many balancers a
// flow meets.
func (e evaluation) analytic(t *testing.T, width int) (curve, balancers []evaluate.Point) {
	steps := 10
	if e.small {
		steps = 2
	}
	s := e.shares()
	s.Lossy, s.Width = 0, width
	for i := range steps + 1 {
		s.Balanced = 0.5 * float64(i) / float64(steps)
		w := analytic(t, s)
		curve = append(curve, evaluate.Point{X: 100 * s.Balanced, Y: w.want})
		balancers = append(balancers, evaluate.Point{X: 100 * s.Balanced, Y: w.balancers})
	}
	return curve, balancers
}
