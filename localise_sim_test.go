//go:build linux

package servicetraceroute_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
	"servicetraceroute/trace"
)

// lined is a client, so many routers in a row, and a server.
func lined(routers int, limit scenario.ICMPLimit) scenario.Network {
	n := scenario.Network{Name: "row", Nodes: []scenario.Node{{Name: "client", Kind: scenario.Host}}}
	at := "client"
	for i := 1; i <= routers; i++ {
		next := fmt.Sprintf("r%d", i)
		n.Nodes = append(n.Nodes, scenario.Node{Name: next, Kind: scenario.Router, ICMP: limit})
		n.Links = append(n.Links, scenario.Link{Name: fmt.Sprintf("link%d", i), A: at, B: next})
		at = next
	}
	n.Nodes = append(n.Nodes, scenario.Node{Name: "server", Kind: scenario.Host})
	n.Links = append(n.Links, scenario.Link{Name: fmt.Sprintf("link%d", routers+1), A: at, B: "server"})
	return n
}

// A delay or a loss that is put on one link for a minute is stated at the hop behind it, or
// not at all; in most runs it is.
func TestSimLocalise(t *testing.T) {
	runs, least := 24, 50 // percent; of a few runs no more can be asked
	if full() {
		runs, least = 200, 80
	}
	stated, sayable := map[trace.FindingKind]int{}, map[trace.FindingKind]int{}
	for seed := range runs {
		rng := rand.New(rand.NewPCG(uint64(seed), 6))
		kind := []trace.FindingKind{trace.DelayBegins, trace.LossBegins}[seed%2]
		routers := 4 + rng.IntN(4)
		k := 1 + rng.IntN(routers+1) // the last one is behind all hops
		if k <= routers {
			sayable[kind]++
		}
		synctest.Test(t, func(t *testing.T) {
			n := lined(routers, scenario.ICMPLimit{KernelDefaults: rng.IntN(2) == 0})
			for i := range n.Links {
				n.Links[i].Delay = time.Duration(1+rng.IntN(10)) * time.Millisecond
				n.Links[i].Jitter = time.Duration(rng.IntN(1500)) * time.Microsecond
			}
			s := newSim(t, n, simnet.Options{Seed: uint64(seed), LoseAll: true}, servicetraceroute.Config{})
			stop := s.watch(servicetraceroute.Selection{Retrace: 10 * time.Minute})
			f := s.start(chattyFor(3 * time.Minute))
			time.Sleep(time.Minute)
			err := s.net.SetLink(fmt.Sprintf("link%d", k), func(l *scenario.Link) {
				if kind == trace.DelayBegins {
					l.Delay += 10 * time.Millisecond // 20 ms there and back
				} else {
					l.Loss = 0.2
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			all := stop()
			right := 0
			for _, found := range all.findings {
				if found.Kind != kind || found.TTL != k || found.TTLFrom != k-1 {
					t.Errorf("seed %d: %v on link %d of %d: %+v", seed, kind, k, routers, found)
				} else {
					right++
				}
			}
			if len(all.changes) > 0 || right > 1 {
				t.Errorf("seed %d: %d statements, %d changes", seed, right, len(all.changes))
			}
			stated[kind] += right
			_ = f
		})
	}
	for kind, n := range sayable {
		t.Logf("%v: %d of %d stated", kind, stated[kind], n)
		if stated[kind]*100 < n*least {
			t.Errorf("%v: only %d of %d stated", kind, stated[kind], n)
		}
	}
}
