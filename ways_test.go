//go:build linux

package servicetraceroute_test

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab/observe"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// twoUplinks is a client with two equal ways out, a rule that sends port 443 by
// one of them if ruled, then a stage of ECMP.
func twoUplinks(ruled bool) scenario.Network {
	n := ladder(1, scenario.ICMPLimit{})
	n.Name = "uplinks"
	for i := range n.Nodes {
		if n.Nodes[i].Name == "client" {
			n.Nodes[i].Addrs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
			if ruled {
				n.Nodes[i].PortRoutes = []scenario.PortRoute{{DstPort: 443, Via: "client-u1"}}
			}
		}
	}
	n.Links = n.Links[1:] // client-r0
	for _, up := range []string{"u0", "u1"} {
		n.Nodes = append(n.Nodes, scenario.Node{Name: up, Kind: scenario.Router})
		n.Links = append(n.Links, scenario.Link{A: "client", B: up}, scenario.Link{A: up, B: "r0"})
	}
	return n
}

// behind puts a NAT between the client and the ladder.
func behind(nat scenario.NAT) scenario.Network {
	n := ladder(2, scenario.ICMPLimit{})
	n.Name = "nat"
	nat.Outside = "gw-r0"
	n.Links[0] = scenario.Link{A: "client", B: "gw"}
	n.Links = append(n.Links, scenario.Link{A: "gw", B: "r0"})
	n.Nodes = append(n.Nodes, scenario.Node{Name: "gw", Kind: scenario.Router, NAT: &nat})
	return n
}

// hashing makes all routers balance by h.
func hashing(n scenario.Network, h scenario.Hash) scenario.Network {
	for i := range n.Nodes {
		if n.Nodes[i].Kind == scenario.Router {
			n.Nodes[i].Hash = h
		}
	}
	return n
}

// TestTruthOfWays: the probes go where the flow's own packets go, whatever
// decides that.
func TestTruthOfWays(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		net  scenario.Network
		ttl  int // of the server
	}{
		{"ECMP on the client", twoUplinks(false), 5},
		{"a port rule on the client", twoUplinks(true), 5},
		{"flow labels", hashing(ladder(3, scenario.ICMPLimit{}), scenario.HashFlowLabel), 8},
		{"NAT", behind(scenario.NAT{IPv6: true}), 7},
		{"NAT, fully random", behind(scenario.NAT{FullyRandom: true, IPv6: true}), 7},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			f := newField(t, test.net, servicetraceroute.Config{})
			stop := f.watch(servicetraceroute.Selection{})
			flows := 12
			f.crowd(flows, 200*time.Millisecond, 7*time.Second)
			all := stop()
			v := f.judge(f.truth(), all.traces)
			t.Log(v)
			for _, tr := range all.traces {
				if !tr.Complete || tr.Destination.TTL != test.ttl {
					t.Errorf("want TTL %d: %v", test.ttl, describe(tr))
				}
			}
			if v.complete != flows {
				t.Errorf("%d of %d complete", v.complete, flows)
			}
		})
	}
}

// TestRouteChange moves a flow to another branch while it is traced. What is
// shown must be one path that its packets took, or be marked mixed.
func TestRouteChange(t *testing.T) {
	t.Parallel()
	net := ladder(2, scenario.ICMPLimit{})
	for i := range net.Links { // one way at first: by m0a and m1a
		if l := &net.Links[i]; l.A == "r0" || l.A == "r1" {
			if l.B != "m0a" && l.B != "m1a" {
				l.CostAB = 5
			}
		}
	}
	const flows = 4
	// A TTL takes 600 ms, so that no trace is over when the last one is in its midst.
	f := newField(t, net, servicetraceroute.Config{Defaults: servicetraceroute.Params{
		Algorithm: trace.PacketByPacket, ProbeInterval: 200 * time.Millisecond,
	}})
	stop := f.watch(servicetraceroute.Selection{})
	ctx, cancel := context.WithCancel(t.Context())
	var change sync.WaitGroup
	change.Go(func() {
		f.asked(ctx, 3, flows)
		for name, cost := range map[string]int{"r0-m0a": 9, "r0-m0b": 1, "r1-m1a": 9, "r1-m1b": 1} {
			if err := f.lab.SetLink(t.Context(), name, func(l *scenario.Link) { l.CostAB = cost }); err != nil {
				t.Error(err)
			}
		}
	})
	f.crowd(flows, 50*time.Millisecond, 8*time.Second)
	cancel()
	change.Wait()
	all := stop()
	v := f.judge(f.truth(), all.traces)
	t.Log(v)
	if len(all.traces) != flows {
		t.Fatalf("%d traces", len(all.traces))
	}
	for _, tr := range all.traces {
		if !tr.Mixed || tr.Complete || tr.PathID != "" {
			t.Errorf("a path that changed is not marked: %v", describe(tr))
		}
	}
}

// asked waits until so many flows were asked about a TTL.
func (f *field) asked(ctx context.Context, ttl uint8, flows int) {
	for {
		log, err := observe.Fetch(ctx, f.lab.Node("client"), false)
		if err != nil {
			f.t.Errorf("%d flows were not asked about TTL %d: %v", flows, ttl, err)
			return
		}
		seen := map[observe.Flow]bool{}
		for _, p := range log.Packets {
			if p.Outgoing && p.TTL == ttl {
				seen[p.Flow] = true
			}
		}
		if len(seen) >= flows {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}
