//go:build linux

package servicetraceroute_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
)

// TestSimScale traces many established connections through three routers with Linux's
// limits, in virtual time: how long that takes is for these to say; nothing is called loss.
func TestSimScale(t *testing.T) {
	flows := 300
	if full() {
		flows = 10_000
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# Many flows at once, at Linux's limits

%d connections, each with an exchange every 30 s, three routers on the way that answer one probe a second over IPv4 after a burst of 6, ten over IPv6 (ICMP limits of Linux; each answers what expires there for one host). In virtual time: half of the traces, 99 %% of them and all were over so long after the first connection; a trace that waits for a minute in vain ends, and says which hops it owes ("deferred"). Withheld: probes that a router's limit left without an answer. Loss: hops that were probed, did not answer, and are not said to be limited.

    SERVICE_TRACEROUTE_FULL=1 go test -count=1 -run TestSimScale -v .

| family | traces | complete | half | 99 %% | all | probes to the routers | withheld | deferred | taken for loss |
|---|---|---|---|---|---|---|---|---|---|
`, flows)
	for _, ipv6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("ipv6=%v", ipv6), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { b.WriteString(simScale(t, ipv6, flows)) })
		})
	}
	evidence(t, "scale-limits", b.String())
}

// TestSimManyAtOnce traces connections that all were there before, as fast as the tracer may:
// each waits for its turn, none in vain.
func TestSimManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, err := simnet.New(wires(ladder(1, scenario.ICMPLimit{}), time.Millisecond), simnet.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(net.Close)
		source, sink, err := net.Tap("client")
		if err != nil {
			t.Fatal(err)
		}
		const count, rate = 2000, 400
		tracer, err := servicetraceroute.New(servicetraceroute.Config{Source: source, Sink: sink, Rate: rate, HopRate: rate})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tracer.Close() })
		s := &sim{t: t, net: net, tracer: tracer}
		var flows []*simnet.Flow
		for range count {
			flows = append(flows, s.start(scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 200, Every: 10 * time.Second, Duration: time.Minute}))
			time.Sleep(time.Millisecond)
		}
		began := time.Now()
		stop := s.watch(servicetraceroute.Selection{Every: -1})
		for _, f := range flows {
			<-f.Done()
		}
		all := stop()
		complete, last := 0, began
		for _, tr := range all.traces {
			s.judge(tr)
			if tr.Complete {
				complete++
			} else {
				t.Logf("not complete: %v", describe(tr))
			}
			if tr.End.After(last) {
				last = tr.End
			}
		}
		t.Logf("%d traces, %d complete, after %v", len(all.traces), complete, last.Sub(began).Round(time.Second))
		if len(all.traces) != count || complete != count {
			t.Errorf("%d traces, %d complete", len(all.traces), complete)
		}
	})
}

func simScale(t *testing.T, ipv6 bool, count int) string {
	net, err := simnet.New(wires(ladder(1, scenario.ICMPLimit{KernelDefaults: true}), time.Millisecond), simnet.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(net.Close)
	source, sink, err := net.Tap("client")
	if err != nil {
		t.Fatal(err)
	}
	tracer, err := servicetraceroute.New(servicetraceroute.Config{Source: source, Sink: sink})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tracer.Close() })
	s := &sim{t: t, net: net, tracer: tracer}
	stop := s.watch(servicetraceroute.Selection{Every: -1})
	const life = 2 * time.Minute // no trace waits that long for its turn
	began := time.Now()
	var flows []*simnet.Flow
	for range count {
		flows = append(flows, s.start(scenario.Workload{IPv6: ipv6, Traffic: scenario.RequestResponse, Bytes: 200, Every: 30 * time.Second, Duration: life}))
		time.Sleep(time.Millisecond)
	}
	for _, f := range flows {
		<-f.Done()
	}
	all := stop()
	var sent, deferred, loss, complete int
	var ends []time.Duration
	for _, tr := range all.traces {
		s.judge(tr)
		ends = append(ends, tr.End.Sub(began))
		if tr.Complete {
			complete++
		}
		for _, h := range tr.Hops {
			if h.TTL > 3 {
				continue
			}
			sent += h.Sent
			deferred += h.Deferred
			if h.Sent > 0 && len(h.Replies) == 0 && h.Deferred == 0 && !h.Limited {
				loss++
				t.Logf("TTL %d looks like loss: %v", h.TTL, describe(tr))
			}
		}
	}
	if len(all.traces) != count || loss > 0 {
		t.Errorf("%d traces, %d hops look like loss", len(all.traces), loss)
	}
	slices.Sort(ends)
	at := func(share float64) time.Duration { return ends[int(share*float64(len(ends)-1))].Round(time.Second) }
	family := "IPv4"
	if ipv6 {
		family = "IPv6"
	}
	return fmt.Sprintf("| %s | %d | %d | %v | %v | %v | %d | %d | %d | %d |\n", family, len(all.traces), complete, at(0.5), at(0.99), at(1), sent, net.Withheld(), deferred, loss)
}
