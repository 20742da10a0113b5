//go:build linux

package servicetraceroute_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab/observe"
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
	long(t)
	t.Parallel()
	flows, stagger, life := 60, 100*time.Millisecond, 10*time.Second
	if full() {
		flows = 500
	}
	var text strings.Builder
	fmt.Fprintf(&text, "# Truth: what was shown against what the routers did\n\n%d flows, half of them IPv6, one every %v, each lives %v; four stages of "+
		"three-way balancing, a firewall before the server. A hop is false when no router of that address answered a probe of that flow and TTL.\n\n", flows, stagger, life)
	defer func() { evidence(t, "truth", text.String()) }()
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
			t.Logf("%+v", *all.stats)
			fmt.Fprintf(&text, "- **%s**: %v; %d probes, %d replies matched, %d unmatched, %d late\n", test.name, v,
				all.stats.Probes.Sent, all.stats.Replies.Matched, all.stats.Replies.Unmatched, all.stats.Replies.Late)
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

// TestCrowd opens many flows at once through routers with Linux's limits. By the
// observers' logs these limits cost few probes, and each flow's first probe of a TTL
// goes before any flow's second; what was not sent is deferred, nothing is called loss.
func TestCrowd(t *testing.T) {
	long(t)
	flows, life := 200, 15*time.Second
	if full() {
		life = 30 * time.Second
	}
	f := newField(t, ladder(2, scenario.ICMPLimit{KernelDefaults: true}), servicetraceroute.Config{})
	stop := f.watch(servicetraceroute.Selection{})
	f.crowd(flows, 0, life)
	all := stop()
	truth := f.truth()
	v := f.judge(truth, all.traces)
	if len(all.traces) != flows {
		t.Errorf("%d traces", len(all.traces))
	}
	var text strings.Builder
	fmt.Fprintf(&text, "# A crowd: many flows at once through routers at Linux's limits\n\n%d flows, half of them IPv6, opened at once, each lives %v; five "+
		"routers on the way, each of which answers one probe a second over IPv4, ten over IPv6, after a burst of six. By the observers' logs. "+
		"Withheld: a probe that expired at a router which sent no error. Deferred: flows whose first probe of that TTL was never sent, and said so.\n\n"+
		"%v; %d packets lost by the capture.\n\n| family | TTL | flows | asked | probes | withheld | deferred | asked again before another's first |\n"+
		"|---|---|---|---|---|---|---|---|\n", flows, life, v, all.stats.Packets.Dropped)
	sent, withheld := 0, 0
	for _, ipv6 := range []bool{false, true} {
		for ttl, c := range f.crowded(truth, all.traces, ipv6) {
			fmt.Fprintf(&text, "| %s | %d | %d | %d | %d | %d | %d | %d |\n", familyName[ipv6], ttl+1, c.flows, c.asked, c.sent, c.withheld, c.deferred, c.early)
			sent, withheld = sent+c.sent, withheld+c.withheld
			// A trace that lost packets has to wait. Where the machine is busy the destination's
			// answer can come after its attempt is over, and routers are then asked again in the
			// search for it, outside the queue; TestSimCrowd knows no such excuse.
			some := 0
			if !full() {
				some = c.flows / 2
			}
			if c.early > some && all.stats.Packets.Dropped == 0 {
				t.Errorf("%s, TTL %d: %d second probes went before another flow's first", familyName[ipv6], ttl+1, c.early)
			}
			// Linux lets no router answer more: six at once and one a second, to one client.
			if most := 6 + int(life.Seconds()) + 5; !ipv6 && ttl%2 == 0 && c.deferred < flows/2-most {
				t.Errorf("IPv4, TTL %d: one router cannot have answered %d flows, and only %d were deferred", ttl+1, flows/2, c.deferred)
			}
		}
	}
	fmt.Fprintf(&text, "\n%d of %d probes withheld: %.1f %%.\n", withheld, sent, float64(withheld)*100/float64(sent))
	evidence(t, "crowd", text.String())
	// One in twenty is what is promised. Where the machine is busy answers come late and
	// probes in heaps, and a router's bucket is emptier than it seems; TestSimCrowd and
	// the full run know no such excuse.
	allowed := sent / 20
	if !full() {
		allowed = sent / 10
	}
	if withheld > allowed {
		t.Errorf("the limits cost %d of %d probes", withheld, sent)
	}
}

var familyName = map[bool]string{false: "IPv4", true: "IPv6"}

// crowdHop is what became of a crowd's probes of one TTL.
type crowdHop struct {
	flows, asked, sent, withheld, deferred int
	early                                  int // second probes that went while another flow's first, due by then, did not
}

// crowded tells what became of the probes of one family's flows, by the observers'
// logs, at the five routers of a ladder of two stages. It reports what the records
// call loss.
func (f *field) crowded(truth *observe.Truth, traces []*trace.Trace, ipv6 bool) [5]crowdHop {
	f.t.Helper()
	var hops [5]crowdHop
	var due time.Time // all first probes are, once the last trace has begun
	var first, second [5][]time.Time
	for _, tr := range traces {
		if tr.Flow.Dst.Addr().Is6() != ipv6 {
			continue
		}
		if tr.Start.After(due) {
			due = tr.Start
		}
		flow := observed(tr.Flow.FlowKey)
		var sent [5][]time.Time
		for _, s := range truth.Sent(flow, 5) {
			i := s.TTL - 1
			sent[i] = append(sent[i], s.Time)
			hops[i].sent++
			if len(truth.Judge(observe.Probe{Flow: flow, Seq: s.Seq, ID: s.ID, TTL: s.TTL}).Answers) == 0 {
				hops[i].withheld++
			}
		}
		for i := range hops {
			hops[i].flows++
			hops[i].take(f, tr, i+1, sent[i])
			if len(sent[i]) > 0 {
				first[i] = append(first[i], sent[i][0])
			}
			// A retransmission may have begun the trace anew, with another flow label.
			if len(sent[i]) > 1 && tr.Observed.Retransmits == 0 {
				second[i] = append(second[i], sent[i][1])
			}
		}
	}
	for i := range hops {
		if len(first[i]) == 0 {
			continue
		}
		last := slices.MaxFunc(first[i], time.Time.Compare)
		for _, at := range second[i] {
			if at.After(due) && at.Before(last) {
				hops[i].early++
			}
		}
	}
	return hops
}

// take counts a trace's hop, of which it reports that it looks like loss.
func (c *crowdHop) take(f *field, tr *trace.Trace, ttl int, sent []time.Time) {
	f.t.Helper()
	i := slices.IndexFunc(tr.Hops, func(h trace.Hop) bool { return h.TTL == ttl })
	if len(sent) > 0 {
		c.asked++
	}
	switch {
	case i < 0 || tr.Hops[i].Sent != len(sent):
		f.t.Errorf("TTL %d: %d probes were sent: %v", ttl, len(sent), describe(tr))
	case len(sent) == 0 && tr.Hops[i].Deferred > 0:
		c.deferred++
	case len(sent) == 0:
		f.t.Errorf("TTL %d: nothing was sent, and nothing deferred: %v", ttl, describe(tr))
	case len(tr.Hops[i].Replies) == 0 && tr.Hops[i].Deferred == 0 && !tr.Hops[i].Limited && tr.End.Sub(sent[len(sent)-1]) > 2*time.Second:
		// A younger probe was still waited for.
		f.t.Errorf("TTL %d looks like loss: %v", ttl, describe(tr))
	}
}

// TestAlgorithms compares all four with the truth.
func TestAlgorithms(t *testing.T) {
	t.Parallel()
	for _, a := range []trace.Algorithm{trace.PacketByPacket, trace.HopByHop, trace.Concurrent, trace.Adaptive} {
		t.Run(a.String(), func(t *testing.T) {
			t.Parallel()
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
