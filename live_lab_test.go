//go:build linux

package servicetraceroute_test

import (
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// liveField is a line of routers whose links can become worse, and a server behind them.
func liveField(t *testing.T) *field {
	t.Helper()
	n := wires(lined(4, scenario.ICMPLimit{KernelDefaults: true}), 2*time.Millisecond)
	f := &field{t: t, lab: labtest.StartWith(t, n, lab.Options{LoseAll: true})}
	f.tracer = f.open(servicetraceroute.Config{})
	var err error
	if f.server, err = peer.ServeTCP(t.Context(), f.lab.Node("server"), peer.TCPConfig{Port: 443}); err != nil {
		t.Fatal(err)
	}
	return f
}

// later makes a link worse after a time, and returns when that was.
func (f *field) later(after time.Duration, name string, worse func(*scenario.Link)) <-chan time.Time {
	at := make(chan time.Time, 1)
	go func() {
		time.Sleep(after)
		if err := f.lab.SetLink(f.t.Context(), name, worse); err != nil {
			f.t.Error(err)
		}
		at <- time.Now()
	}()
	return at
}

// TestWhen: a flow over real kernels is traced at the moment at which it hurts, once.
func TestWhen(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		when  string
		worse func(*scenario.Link)
		soon  time.Duration
	}{
		"delay": {"rtt_factor > 2 && rtt_ms > 50", func(l *scenario.Link) { l.Delay += 50 * time.Millisecond }, 4 * time.Second},
		"loss":  {"retransmits >= 8", func(l *scenario.Link) { l.Loss = 0.15 }, 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := liveField(t)
			stop := f.watch(servicetraceroute.Selection{When: c.when, CoolDown: time.Minute})
			worse := f.later(6*time.Second, "link3", c.worse)
			f.run(scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 2000, Every: 20 * time.Millisecond, Duration: 14 * time.Second}, 1, 0)
			all := stop()
			at := <-worse
			if len(all.traces) != 1 {
				t.Fatalf("%d traces: %v", len(all.traces), describeAll(all.traces))
			}
			tr := all.traces[0]
			t.Logf("traced after %v: %v", tr.Start.Sub(at), describe(tr))
			if tr.Trigger != c.when || tr.Start.Before(at) || tr.Start.Sub(at) > c.soon {
				t.Errorf("%v after it hurt, by %q: %v", tr.Start.Sub(at), tr.Trigger, describe(tr))
			}
		})
	}
}

// TestLocalise: a link in the midst of the path becomes worse; where that is stated is where
// it is, and it is stated once.
func TestLocalise(t *testing.T) {
	t.Parallel()
	before, after := 25*time.Second, 30*time.Second
	if full() {
		before, after = time.Minute, time.Minute
	}
	for kind, worse := range map[trace.FindingKind]func(*scenario.Link){
		trace.DelayBegins: func(l *scenario.Link) { l.Delay += 10 * time.Millisecond },
		trace.LossBegins:  func(l *scenario.Link) { l.Loss = 0.2 },
	} {
		if kind == trace.LossBegins && !full() {
			continue // it takes a minute at least
		}
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			f := liveField(t)
			stop := f.watch(servicetraceroute.Selection{Retrace: 10 * time.Minute})
			f.later(before, "link3", worse)
			f.run(scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 200, Every: 100 * time.Millisecond, Duration: before + after}, 1, 0)
			all := stop()
			stated := 0
			for _, found := range all.findings {
				if found.Kind != kind || found.TTL != 3 || found.TTLFrom != 2 {
					t.Errorf("stated %+v", found)
				} else {
					stated++
				}
			}
			t.Logf("%d statements: %v", stated, told(all.findings))
			if stated != 1 || len(all.changes) > 0 {
				t.Errorf("%d statements, %d changes", stated, len(all.changes))
			}
		})
	}
}
