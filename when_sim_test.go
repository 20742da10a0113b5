//go:build linux

package servicetraceroute_test

import (
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
	"servicetraceroute/trace"
)

// A flow is traced when it hurts, at that moment, and not again before it has cooled down.
func TestSimWhen(t *testing.T) {
	for name, test := range map[string]struct {
		when string
		hurt func(*scenario.Link)
		load scenario.Workload
		soon time.Duration
	}{
		"delay": {"rtt_factor > 1.5", func(l *scenario.Link) { l.Delay += 100 * time.Millisecond }, download(false), 4 * time.Second},
		"loss":  {"retransmits >= 3", func(l *scenario.Link) { l.Loss = 0.05 }, download(false), 4 * time.Second},
		"stall": {"stalled_ms > 1500", func(l *scenario.Link) { l.Loss = 1 }, chattyFor(20 * time.Second), 2500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSim(t, slow(oneWay(ladder(2, scenario.ICMPLimit{}))), simnet.Options{}, servicetraceroute.Config{})
				stop := s.watch(servicetraceroute.Selection{When: test.when, CoolDown: 10 * time.Second})
				f := s.start(test.load)
				time.Sleep(10 * time.Second)
				if n := s.diary.after(time.Time{}); n > 0 {
					t.Errorf("%d probes while nothing hurt", n)
				}
				at := time.Now()
				if err := s.net.SetLink("r2-server", test.hurt); err != nil {
					t.Fatal(err)
				}
				time.Sleep(9 * time.Second)
				traces := stop().traces
				if len(traces) != 1 || traces[0].Trigger != test.when || traces[0].Start.Before(at) || traces[0].Start.Sub(at) > test.soon {
					t.Errorf("%d traces, at %v: %+v", len(traces), at, describeAll(traces))
				}
				_ = f
			})
		})
	}
}

// The record of a trace says how its flow did.
func TestSimHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := slow(oneWay(ladder(2, scenario.ICMPLimit{})))
		n.Links[0].Loss = 0.02
		s := newSim(t, n, simnet.Options{}, servicetraceroute.Config{})
		stop := s.watch(servicetraceroute.Selection{Retrace: 10 * time.Second})
		f := s.start(download(false))
		<-f.Done()
		traces := stop().traces
		o := traces[len(traces)-1].Observed
		// 6 links of 5 ms, there and back, and at 2 Mbit/s a full segment takes 6 ms on each.
		if o.RTTMin < 60*time.Millisecond || o.RTTMin > 110*time.Millisecond || o.RTT < o.RTTMin {
			t.Errorf("RTT %v, %v at least", o.RTT, o.RTTMin)
		}
		if o.In == nil || o.In.Retransmits == 0 || o.Out.DupAcks == 0 || o.Out.Retransmits != 0 || o.In.Goodput < 20_000 || o.In.Goodput > 2_000_000 || o.Out.Goodput != 0 {
			t.Errorf("in %+v, out %+v", o.In, o.Out)
		}
	})
}

func describeAll(traces []*trace.Trace) (all []string) {
	for _, tr := range traces {
		all = append(all, tr.Start.String()+" "+tr.Trigger+" "+describe(tr))
	}
	return all
}
