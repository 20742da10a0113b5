//go:build linux

package servicetraceroute_test

import (
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/scenario"
)

// TestChangeUnderDownload moves a long download to another branch, over real kernels: it is
// told within h/2 + 2 s, and the download suffers nothing.
func TestChangeUnderDownload(t *testing.T) {
	t.Parallel()
	net := oneWay(ladder(2, scenario.ICMPLimit{KernelDefaults: true}))
	f := newField(t, net, servicetraceroute.Config{})
	stop := f.watch(servicetraceroute.Selection{Retrace: time.Hour})
	changed := make(chan time.Time, 1)
	go func() {
		time.Sleep(8 * time.Second)
		for name, cost := range otherBranch {
			if err := f.lab.SetLink(t.Context(), name, func(l *scenario.Link) { l.CostAB = cost }); err != nil {
				t.Error(err)
			}
		}
		changed <- time.Now()
	}()
	f.run(scenario.Workload{Traffic: scenario.Download, Duration: 16 * time.Second}, 1, 0)
	all := stop()
	const hops = 5
	if len(all.changes) != 1 {
		t.Fatalf("%d changes: %+v", len(all.changes), all.changes)
	}
	c := all.changes[0]
	late := c.Time.Sub(<-changed)
	t.Logf("told after %v: %+v", late, c)
	if late > hops*time.Second/2+2*time.Second || c.TTL != 4 || c.Old.Trace == c.New.Trace || c.Old.PathID == c.New.PathID {
		t.Errorf("after %v: %+v", late, c)
	}
}
