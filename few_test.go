//go:build linux

package servicetraceroute_test

import (
	"sync"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// TestFew: on a packet socket, beside so many packets that the filter lets pass but those of flows
// that are followed, flows that begin are traced as ever, with true hops.
func TestFew(t *testing.T) {
	t.Parallel()
	f := newField(t, ladder(1, scenario.ICMPLimit{}), servicetraceroute.FewFrom(servicetraceroute.Config{Backend: servicetraceroute.BackendAFPacket}, 500))
	var beside sync.WaitGroup
	defer beside.Wait()
	// IPv6 is what nobody asks for.
	beside.Go(func() {
		f.run(scenario.Workload{IPv6: true, Traffic: scenario.RequestResponse, Bytes: 100, Every: 4 * time.Millisecond, Duration: 15 * time.Second}, 4, 0)
	})
	stop := collect(t, f.tracer, servicetraceroute.Selection{Match: []string{"dport == 443"}, IPv4Only: true})
	seen := func(d time.Duration) uint64 {
		before := f.tracer.Stats().Packets.Seen
		time.Sleep(d)
		return f.tracer.Stats().Packets.Seen - before
	}
	const look, all = 100 * time.Millisecond, 50 // packets; there are some 300
	for end := time.Now().Add(15 * time.Second); seen(look) > all; {
		if time.Now().After(end) {
			t.Fatal("the packet socket goes on to show all")
		}
	}
	f.run(scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 100, Every: 50 * time.Millisecond, Duration: 5 * time.Second}, 5, 20*time.Millisecond)
	got := stop()
	if v := f.judge(f.truth(), got.traces); v.traces != 5 || v.complete != 5 {
		t.Errorf("of 5 flows: %v", v)
		for _, tr := range got.traces {
			t.Log(describe(tr))
		}
	}
	for _, tr := range got.traces {
		if tr.Flow.Src.Addr().Is6() || tr.Stop != trace.StopDestination {
			t.Errorf("%v", describe(tr))
		}
	}
}
