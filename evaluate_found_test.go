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

// discovery is what one way of tracing found of the ways of flows.
type discovery struct {
	name    string
	flows   int
	routers int // that answer, on the flows' own ways
	shown   int // of those: that answered, at their place
	others  int // hops shown that are not on the flow's own way
	reached int
	probes  int
	took    []float64 // ms
}

// paths runs exchanges from each client to each server and traces them by one algorithm; then
// what more is wanted.
func (e evaluation) paths(t *testing.T, a trace.Algorithm, then func(m *internet, traces []*trace.Trace)) (d discovery) {
	d.name = a.String()
	synctest.Test(t, func(t *testing.T) {
		m := inMemory(t, e.shares(), servicetraceroute.Config{Defaults: servicetraceroute.Params{Algorithm: a}})
		stop := m.watch(servicetraceroute.Selection{Every: -1})
		flows := m.rounds(func(flow int) scenario.Workload {
			return scenario.Workload{IPv6: family(flow), Traffic: scenario.RequestResponse, Bytes: 300, Every: odd, Duration: 30 * time.Second}
		})
		all := stop()
		if len(all.traces) != len(flows) {
			t.Errorf("%v: %d flows, %d traces", a, len(flows), len(all.traces))
		}
		for _, tr := range all.traces {
			m.judge(tr) // so that what is shown is true
			shown, routers := m.found(tr)
			d.flows, d.shown, d.routers = d.flows+1, d.shown+shown, d.routers+routers
			if tr.Reached {
				d.reached++
			}
			d.took = append(d.took, float64(tr.End.Sub(tr.Start).Microseconds())/1000)
		}
		d.probes = int(all.stats.Probes.Sent)
		if then != nil {
			then(m, all.traces)
		}
	})
	return d
}

// paris traces one sibling over each protocol beside each flow.
func (e evaluation) paris(m *internet, traces []*trace.Trace) []discovery {
	out := make([]discovery, len(sibling.Protocols))
	for i, proto := range sibling.Protocols {
		out[i] = discovery{name: "sibling, " + proto}
	}
	for i, tr := range traces {
		began := time.Now()
		for _, x := range m.siblings(tr, 1, uint64(i)) {
			d := &out[slices.Index(sibling.Protocols, x.Proto)]
			m.beside(tr, &x, d)
			d.took = append(d.took, float64(time.Since(began).Microseconds())/1000)
		}
	}
	return out
}

// beside holds a sibling against the flow's own way.
func (m *internet) beside(tr *trace.Trace, x *trace.Sibling, d *discovery) {
	d.flows++
	if x.Reached {
		d.reached++
	}
	for i, name := range m.truth(tr) {
		ttl := i + 1
		if m.answers[name] {
			d.routers++
		}
		own, other := addrOfHop(tr.Hops, ttl), addrOfHop(x.Hops, ttl)
		switch {
		case !other.IsValid():
		case own == other:
			d.shown++
		default:
			d.others++
		}
	}
	for _, h := range x.Hops {
		d.probes += h.Sent
	}
}

var algorithms = []trace.Algorithm{trace.HopByHop, trace.PacketByPacket, trace.Concurrent, trace.Adaptive}

// found is part (b): what each algorithm and each kind of sibling finds.
func (e evaluation) found(t *testing.T) *evaluate.Report {
	r := &evaluate.Report{}
	var all []discovery
	for _, a := range algorithms {
		var then func(*internet, []*trace.Trace)
		var siblings []discovery
		if a == trace.Adaptive {
			then = func(m *internet, traces []*trace.Trace) { siblings = e.paris(m, traces) }
		}
		all = append(append(all, e.paths(t, a, then)), siblings...)
	}
	r.Printf("### (b) What is found of a flow's path\n\n%s", e.command("found"))
	r.Printf("An exchange of requests and responses from each of %d clients to each of %d servers, IPv4 and IPv6 in turns, traced inside by the three algorithms of the paper and by `adaptive` (`--algorithm`), the same flows each time; "+
		"after `adaptive`, beside each flow one new flow over TCP, UDP and ICMP (Paris style, as `compare` sends them). Routers: those on the flow's own way, as the nodes forwarded its packets, that are not silent. Own: of these, shown at their place. "+
		"Other: hops shown that the flow does not have (at places of its own way). No algorithm showed a hop that did not answer one of its probes, or that is not on the flow's own way: that would fail the evaluation. "+
		"Time: of a trace, median and 90 %%, virtual; much of it waits for routers that limit their answers, and the destination is asked once in 0.6 s at most. Siblings of one flow go out together.\n\n", e.shares().Clients, e.shares().Servers)
	table := evaluate.Table{Head: []string{"by", "flows", "routers", "own", "", "other", "destinations", "", "probes", "probes a flow", "time in ms: median", "90 %"}}
	bars := evaluate.Bars{Title: "Found of flows' own paths", Y: "share", Percent: true, Series: []evaluate.Bar{{Name: "routers of the flow's own way"}, {Name: "destinations"}, {Name: "hops of other ways"}}}
	for _, d := range all {
		took := []string{ms(d.took, 0.5), ms(d.took, 0.9)}
		probes := []string{fmt.Sprint(d.probes), fmt.Sprintf("%.1f", float64(d.probes)/float64(d.flows))}
		table.Add(d.name, d.flows, d.routers, d.shown, evaluate.Percent(d.shown, d.routers), d.others, d.reached, evaluate.Percent(d.reached, d.flows), probes[0], probes[1], took[0], took[1])
		bars.Groups = append(bars.Groups, d.name)
		for i, v := range []float64{ratio(d.shown, d.routers), ratio(d.reached, d.flows), ratio(d.others, d.others+d.shown)} {
			bars.Series[i].Values = append(bars.Series[i].Values, v)
		}
	}
	r.Printf("%v\n", table)
	r.Show("found", bars.Title, bars.SVG())
	return r
}

func ratio(n, of int) float64 {
	if of == 0 {
		return math.NaN()
	}
	return float64(n) / float64(of)
}
