//go:build linux

package servicetraceroute_test

import (
	"sync"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// crowd opens flows over both families, half each, spread over time.
func (f *field) crowd(flows int, stagger time.Duration, life time.Duration) []peer.Flow {
	var all []peer.Flow
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, v6 := range []bool{false, true} {
		wg.Go(func() {
			w := scenario.Workload{IPv6: v6, Traffic: scenario.RequestResponse, Bytes: 200, Every: 200 * time.Millisecond, Duration: life}
			out := f.run(w, flows/2, 2*stagger)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, out...)
		})
	}
	wg.Wait()
	return all
}

// TestTruth traces many flows at once across load balancers and a firewall. All
// that is shown must be in the observers' logs.
func TestTruth(t *testing.T) {
	flows, stagger, life := 60, 100*time.Millisecond, 10*time.Second
	if full() {
		flows = 500
	}
	for _, test := range []struct {
		name  string
		limit scenario.ICMPLimit
	}{
		{"limits off", scenario.ICMPLimit{}},
		{"limits of Linux", scenario.ICMPLimit{KernelDefaults: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newField(t, ladder(4, test.limit), servicetraceroute.Config{})
			stop := f.watch(servicetraceroute.Selection{})
			f.crowd(flows, stagger, life)
			all := stop()
			v := f.judge(f.truth(), all.traces)
			t.Logf("%v; %+v", v, *all.stats)
			if len(all.traces) != flows {
				t.Errorf("%d flows gave %d traces", flows, len(all.traces))
			}
			if test.limit == (scenario.ICMPLimit{}) && v.complete*100 < flows*99 {
				t.Errorf("only %d of %d traces are complete", v.complete, flows)
				for _, tr := range all.traces {
					if !tr.Complete {
						t.Log(describe(tr))
					}
				}
			}
		})
	}
}

// TestAlgorithms compares all four with the truth.
func TestAlgorithms(t *testing.T) {
	for _, a := range []trace.Algorithm{trace.PacketByPacket, trace.HopByHop, trace.Concurrent, trace.Adaptive} {
		t.Run(a.String(), func(t *testing.T) {
			f := newField(t, ladder(2, scenario.ICMPLimit{}),
				servicetraceroute.Config{Defaults: servicetraceroute.Params{Algorithm: a}})
			stop := f.watch(servicetraceroute.Selection{})
			// One flow a family: a responder starts with an allowance of six probes,
			// and the paper's algorithms want four of each.
			f.crowd(2, 300*time.Millisecond, 10*time.Second)
			all := stop()
			v := f.judge(f.truth(), all.traces)
			t.Log(v)
			if v.complete != 2 {
				for _, tr := range all.traces {
					t.Error(describe(tr))
				}
			}
		})
	}
}
