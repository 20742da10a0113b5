//go:build linux

package servicetraceroute_test

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/evaluate"
	"servicetraceroute/internal/scenario"
)

// shortLife is what became of flows that live so many round trips.
type shortLife struct {
	trips, flows int
	all          int // traces with every router of the way that answers
	ended        int // and with the destination, proven
	complete     int // and with each silent hop asked as often as it is to be
	shown, of    int // routers
	took         []float64
}

// lives traces flows of each life to servers at random.
func (e evaluation) lives(t *testing.T, trips []int, each int, after bool) (out []shortLife) {
	for i, n := range trips {
		s := shortLife{trips: n}
		synctest.Test(t, func(t *testing.T) {
			m := inMemory(t, e.shares(), servicetraceroute.Config{})
			stop := m.watch(servicetraceroute.Selection{Every: -1, Params: servicetraceroute.Params{AfterClose: after}})
			rng := rand.New(rand.NewPCG(e.seed, uint64(i)))
			var flows []*journey
			for k := range each {
				flows = append(flows, m.start(k%len(m.vantages), rng.IntN(len(m.world.Servers)), scenario.Workload{
					IPv6: family(k / len(m.vantages)), Traffic: scenario.OneByte, Bytes: int64(n - 1)}))
				time.Sleep(apart / time.Duration(len(m.vantages)))
			}
			for _, j := range flows {
				<-j.done
				s.took = append(s.took, float64(j.took.Microseconds())/1000)
			}
			time.Sleep(time.Minute) // what goes on behind the last one's close
			s.flows = len(flows)
			for _, tr := range stop().traces {
				m.judge(tr)
				shown, of := m.found(tr)
				s.shown, s.of = s.shown+shown, s.of+of
				if shown == of {
					s.all++
				}
				if shown == of && tr.Reached {
					s.ended++
				}
				if tr.Complete && tr.Reached {
					s.complete++
				}
			}
		})
		out = append(out, s)
	}
	return out
}

// short is part (d): how much of a path is found before a flow closes.
func (e evaluation) short(t *testing.T) *evaluate.Report {
	r := &evaluate.Report{}
	trips, each := []int{2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100}, 90
	if e.small {
		trips, each = []int{2, 5}, 4
	}
	off, on := e.lives(t, trips, each, false), e.lives(t, trips, each, true)
	r.Printf("### (d) Short flows traced to their end\n\n%s", e.command("short"))
	r.Printf("Flows from %d clients to servers at random that live so many round trips: the handshake, then exchanges of one byte without a pause, then the client closes. IPv4 and IPv6. \"Every router\": all of the way that are not silent are shown. "+
		"\"To the end\": every router, and the destination, proven by answers of its own, which a trace asks for once in 0.6 s at most, and mostly needs two of. \"Complete\" in the record's sense asks for more: that each silent hop was asked three times, 2 s each. "+
		"With `--after-close` (a trace goes on below the known distance when its flow has closed) the routers that come later count, too.\n\n", e.shares().Clients)
	table := evaluate.Table{Head: []string{"life in RTTs", "median life in ms", "flows", "routers found", "every router", "95 %", "to the end", "95 %", "complete", "`--after-close`: routers found", "every router", "95 %", "to the end", "complete"}}
	c := evaluate.Chart{Title: "Short flows traced before they close", X: "life of a flow in round trips (bars: 95 % intervals)", Y: "share of flows", LogX: true, YMax: 1, Percent: true, Series: []evaluate.Series{
		{Name: "every router", Color: 0}, {Name: "every router, --after-close", Color: 2, Dashed: true}, {Name: "to the end", Color: 1},
	}}
	for i, a := range off {
		b := on[i]
		table.Add(a.trips, ms(a.took, 0.5), a.flows, evaluate.Percent(a.shown, a.of), evaluate.Percent(a.all, a.flows), evaluate.Wilson(a.all, a.flows), evaluate.Percent(a.ended, a.flows), evaluate.Wilson(a.ended, a.flows), evaluate.Percent(a.complete, a.flows),
			evaluate.Percent(b.shown, b.of), evaluate.Percent(b.all, b.flows), evaluate.Wilson(b.all, b.flows), evaluate.Percent(b.ended, b.flows), evaluate.Percent(b.complete, b.flows))
		for k, n := range []int{a.all, b.all, a.ended} {
			v := evaluate.Wilson(n, each)
			c.Series[k].Points = append(c.Series[k].Points, evaluate.Point{X: float64(a.trips), Y: float64(n) / float64(each), Bar: &v})
		}
	}
	r.Printf("%v\n", table)
	r.Show("short", c.Title, c.SVG())
	return r
}
