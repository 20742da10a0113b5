//go:build linux && peers

package servicetraceroute_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/sibling"
	"servicetraceroute/trace"
)

// enumeration is how often a tool missed a way, and how long it took.
type enumeration struct {
	name         string
	runs, missed int // a run misses when it lacks one way at least
	lacking      int // ways in all
	took         time.Duration
}

func (e *enumeration) add(ways []netip.Addr, found func(netip.Addr) bool, took time.Duration) {
	lacking := 0
	for _, w := range ways {
		if !found(w) {
			lacking++
		}
	}
	e.runs, e.lacking, e.took = e.runs+1, e.lacking+lacking, e.took+took
	if lacking > 0 {
		e.missed++
	}
}

// most is how many misses in so many runs, each with probability p, are exceeded by chance in
// one of a thousand tests.
func most(runs int, p float64) int {
	sum, term := 0.0, math.Pow(1-p, float64(runs))
	for k := range runs {
		if sum += term; sum >= 0.999 {
			return k
		}
		term *= float64(runs-k) / float64(k+1) * p / (1 - p)
	}
	return runs
}

// TestPeersCompare enumerates the ways of one load balancer with siblings and with scamper's
// multipath detection, again and again, on the same namespaces. The misses of each are held
// against what the stopping rule lets it miss.
func TestPeersCompare(t *testing.T) {
	const ways, confidence = 4, 0.95
	f := newField(t, fan(ways, false), servicetraceroute.Config{})
	c := f.comparer(servicetraceroute.CompareConfig{})
	first := f.watchBeside(c, 1, false, func() {
		f.run(scenario.Workload{Traffic: scenario.OneByte, Bytes: 1, Every: 100 * time.Millisecond, Duration: 3 * time.Second}, 1, 0)
	})
	if len(first.traces) != 1 || !first.traces[0].Reached {
		t.Fatalf("%d traces", len(first.traces))
	}
	var all []netip.Addr
	for i := range ways {
		m := fmt.Sprintf("m%d", i)
		all = append(all, f.end("r0-"+m, m, false))
	}
	runs := 3
	if full() {
		runs = 50
	}
	ours := map[string]*enumeration{}
	var rows []*enumeration
	for _, proto := range []string{sibling.TCP, sibling.UDP} { // echo requests have no ports to balance by
		ours[proto] = &enumeration{name: "siblings, " + proto}
		rows = append(rows, ours[proto])
	}
	scampers := map[string]*enumeration{}
	for _, method := range []string{"tcp-sport", "udp-sport"} {
		scampers[method] = &enumeration{name: "scamper tracelb, " + method}
		rows = append(rows, scampers[method])
	}
	for range runs {
		began := time.Now()
		got, err := c.Compare(t.Context(), first.traces[0])
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(began) / time.Duration(len(sibling.Protocols))
		for proto, e := range ours {
			e.add(all, func(a netip.Addr) bool { return met(got, proto, a) }, took)
		}
	}
	for method, e := range scampers {
		f.tracelbs(t, method, runs, func(out string, took time.Duration) {
			e.add(all, func(a netip.Addr) bool { return said(out, a) }, took)
		})
	}
	bound := sibling.RuleMisses(ways, confidence)
	var b strings.Builder
	fmt.Fprintf(&b, "# The ways of a load balancer, enumerated\n\nOne router spreads flows over %d ways by a hash of their addresses, protocol and ports (Linux, policy 3). Each run enumerates them anew, at 95 %%; one that lacks a way\n"+
		"has missed. If all ways are equally likely the stopping rule lets %.1f %% of the runs miss: by chance at most %d of %d, in 999 of 1000 series. Siblings are decided on in\n"+
		"batches and so are a few more than the rule wants. This router looks at no ICMP identifier: echo requests all go one way, so none are listed.\nEach run of scamper goes to another port, since runs beside each other begin with nearly the same source port. Runs that a signal ended are left out (it crashes now and then). Time of siblings: a third of that of all three protocols.\n\n"+
		"    SERVICE_TRACEROUTE_FULL=1 go test -tags peers -run TestPeersCompare .\n\n"+
		"| by | runs | missed | ways missed in all | time of a run |\n|---|---|---|---|---|\n", ways, 100*bound, most(runs, bound), runs)
	for _, e := range rows {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %.1f s |\n", e.name, e.runs, e.missed, e.lacking, e.took.Seconds()/float64(e.runs))
		if e.runs < runs*9/10 {
			t.Errorf("%s: only %d of %d runs came to an end", e.name, e.runs, runs)
		}
		if e.missed > most(e.runs, bound) {
			t.Errorf("%s missed %d of %d runs; the rule's bound is %.3f", e.name, e.missed, e.runs, bound)
		}
	}
	evidence(t, "compare-scamper", b.String())
}

// met reports whether siblings of a protocol met an address.
func met(c *trace.Compare, proto string, a netip.Addr) bool {
	return slices.ContainsFunc(c.Siblings, func(s trace.Sibling) bool {
		return s.Proto == proto && slices.ContainsFunc(s.Hops, func(h trace.Hop) bool {
			return slices.ContainsFunc(h.Replies, func(r trace.Reply) bool { return r.Addr == a })
		})
	})
}

// tracelbs runs scamper's multipath detection to the server so often, some at a time: each
// waits 150 ms after a probe, the least it takes.
func (f *field) tracelbs(t *testing.T, method string, runs int, each func(out string, took time.Duration)) {
	t.Helper()
	const atOnce = 5
	var mu sync.Mutex
	var work sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i := range runs {
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			began := time.Now()
			out, ok := f.tracelb(t, method, 443+i)
			if !ok {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			each(out, time.Since(began))
		})
	}
	work.Wait()
}

// tracelb is one run, to a port of its own: source ports begin with the process's number,
// whatever -s says, so that runs beside each other would ask the same flows and miss alike.
// ok is false when a signal ended it: it crashes now and then, and has enumerated nothing then.
func (f *field) tracelb(t *testing.T, method string, port int) (text string, ok bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	server := f.lab.Node("server").Addr(false)
	argv := []string{"scamper", "-p", "500", "-I", fmt.Sprintf("tracelb -W 15 -w 2 -d %d -P %s %v", port, method, server)}
	var out bytes.Buffer
	status, err := f.lab.Node("client").Run(ctx, lab.Program{Argv: argv, Dir: t.TempDir(), Stdout: &out, Stderr: &out})
	if err == nil && status < 0 && ctx.Err() == nil {
		t.Logf("%v: a signal ended it", argv)
		return "", false
	}
	if err != nil || status != 0 || !strings.Contains(out.String(), "tracelb from") {
		t.Errorf("%v: %v, status %d\n%s", argv, err, status, out.String())
	}
	return out.String(), true
}
