//go:build linux

package servicetraceroute_test

import (
	"slices"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab/observe"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// sharing holds every reply that a trace has from another one against the observers' logs:
// that one measured it, this flow was not probed there, and the router that answered stands
// at that place on the way of this flow's own packets. Each lie is an error.
func (f *field) sharing(truth *observe.Truth, traces []*trace.Trace, v *verdict) {
	f.t.Helper()
	byID := byID(traces)
	seen := map[string]map[uint8][]observe.Hop{} // who answered the others, by trace
	for _, tr := range traces {
		if len(sharedAt([]*trace.Trace{tr})) == 0 {
			continue
		}
		ways := during(tr, truth.Path(observed(tr.Flow.FlowKey), 40))
		sent := truth.Sent(observed(tr.Flow.FlowKey), 255)
		for _, h := range tr.Hops {
			r := h.Replies
			if len(r) == 0 || r[0].SharedFrom == "" {
				continue
			}
			v.shared++
			from := byID[r[0].SharedFrom]
			if from == nil || !measured(from, h.TTL, r[0]) {
				f.t.Errorf("TTL %d: %v did not measure %+v", h.TTL, r[0].SharedFrom, r[0])
				continue
			}
			if seen[from.ID] == nil {
				seen[from.ID] = truth.Hops(observed(from.Flow.FlowKey), 255)
			}
			if !slices.ContainsFunc(ways, func(w observe.Interval) bool {
				return h.TTL <= len(w.Nodes) && slices.Contains(seen[from.ID][uint8(h.TTL)], observe.Hop{Addr: r[0].Addr, Node: w.Nodes[h.TTL-1]})
			}) {
				v.false_++
				f.t.Errorf("TTL %d: %v is not on the way %v of\n%v", h.TTL, r[0].Addr, ways, describe(tr))
			}
			probed := slices.ContainsFunc(sent, func(s observe.Sighting) bool { return int(s.TTL) == h.TTL })
			if probed || h.Sent != 0 || len(r) != 1 || tr.Complete || tr.PathID != "" {
				f.t.Errorf("TTL %d is shared, probed %v: %v", h.TTL, probed, describe(tr))
			}
		}
	}
}

func byID(traces []*trace.Trace) map[string]*trace.Trace {
	all := map[string]*trace.Trace{}
	for _, tr := range traces {
		all[tr.ID] = tr
	}
	return all
}

// TestShare: flows that have three routers in common, at Linux's limits, then three-way
// balancing by ports. What is shared are routers of each flow's own way, and none of those
// that are balanced or lie behind.
func TestShare(t *testing.T) {
	t.Parallel()
	limit := scenario.ICMPLimit{KernelDefaults: true}
	n := ladder(1, limit)
	n.Name = "shared"
	n.Nodes = append(n.Nodes, scenario.Node{Name: "x0", Kind: scenario.Router, ICMP: limit}, scenario.Node{Name: "x1", Kind: scenario.Router, ICMP: limit})
	n.Links[0] = scenario.Link{A: "client", B: "x0"}
	n.Links = append(n.Links, scenario.Link{A: "x0", B: "x1"}, scenario.Link{A: "x1", B: "r0"})
	f := newField(t, n, servicetraceroute.Config{Defaults: servicetraceroute.Params{Share: true}})
	stop := f.watch(servicetraceroute.Selection{})
	const flows = 60
	f.crowd(flows, 150*time.Millisecond, 12*time.Second)
	all := stop()
	v := f.judge(f.truth(), all.traces)
	at := sharedAt(all.traces)
	t.Logf("%v; at each TTL %v", v, at)
	if len(all.traces) != flows {
		t.Errorf("%d traces", len(all.traces))
	}
	if at[1] < flows/3 || at[2] < flows/3 || at[3] < flows/3 || at[4]+at[5]+at[6] != 0 {
		t.Errorf("shared at each TTL: %v", at)
	}
}
