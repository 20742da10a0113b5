//go:build linux

package servicetraceroute_test

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/observe"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// street is a server with a stage of ECMP before it, behind which so many client hosts
// stand.
func street(clients int) scenario.Network {
	n := scenario.Network{Name: "street", Nodes: []scenario.Node{
		{Name: "server", Kind: scenario.Host}, {Name: "r0", Kind: scenario.Router}, {Name: "r1", Kind: scenario.Router},
	}, Links: []scenario.Link{{A: "server", B: "r0"}}}
	for b := range 3 {
		mid := fmt.Sprintf("m%c", 'a'+b)
		n.Nodes = append(n.Nodes, scenario.Node{Name: mid, Kind: scenario.Router})
		n.Links = append(n.Links, scenario.Link{A: "r0", B: mid}, scenario.Link{A: mid, B: "r1"})
	}
	for i := range clients {
		client := fmt.Sprintf("c%d", i)
		n.Nodes = append(n.Nodes, scenario.Node{Name: client, Kind: scenario.Host})
		n.Links = append(n.Links, scenario.Link{A: "r1", B: client})
	}
	return n
}

// TestAccepted traces from a server back to 200 clients at once, in the connections that
// it accepted. Each client's path is the one on which the server's packets went to it, and
// no client notices.
func TestAccepted(t *testing.T) {
	const hosts, each, hops = 4, 50, 4 // r0, one of three, r1, the client
	n := street(hosts)
	f := &field{t: t, lab: labtest.Start(t, n), at: "server"}
	for _, node := range n.Nodes {
		if err := observe.Start(t.Context(), f.lab.Node(node.Name), observe.Config{MaxPackets: 1 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if f.server, err = peer.ServeTCP(t.Context(), f.lab.Node("server"), peer.TCPConfig{Port: 443}); err != nil {
		t.Fatal(err)
	}
	f.tracer = f.open(servicetraceroute.Config{})
	// By its own port: what the clients' addresses are is not known before.
	stop := f.watch(servicetraceroute.Selection{
		Hosts: []string{"0.0.0.0/0", "::/0"}, Ports: []string{"443"}, Directions: []trace.Direction{trace.In},
		Params: servicetraceroute.Params{Probes: 1},
	})
	var wg sync.WaitGroup
	for i := range hosts {
		wg.Go(func() {
			node := f.lab.Node(fmt.Sprintf("c%d", i))
			out, err := peer.Run(t.Context(), node, peer.RunConfig{
				Workload: scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 200, Every: 300 * time.Millisecond, Duration: 9 * time.Second},
				Server:   netip.AddrPortFrom(f.lab.Node("server").Addr(i%2 == 1), 443), Flows: each, Stagger: 5 * time.Millisecond,
			})
			if err != nil {
				t.Error(err)
			}
			for _, fl := range out {
				if !fl.Intact || fl.Error != "" {
					t.Errorf("flow %v: %s", fl.Local, fl.Error)
				}
			}
		})
	}
	wg.Wait()
	got := stop()
	v := f.judge(f.truth(), got.traces)
	t.Log(v)
	if len(got.traces) != hosts*each || v.complete == 0 {
		t.Errorf("%d traces of %d flows", len(got.traces), hosts*each)
	}
	seen := map[trace.FlowKey]bool{}
	for _, tr := range got.traces {
		if seen[tr.Flow.FlowKey] || tr.Flow.Direction != trace.In || tr.Flow.Src.Port() != 443 || tr.Reached && tr.Destination.TTL != hops {
			t.Error(describe(tr))
		}
		seen[tr.Flow.FlowKey] = true
		if i := tr.Impact; i.RSTs+i.Retransmits > 0 || i.Aborted {
			t.Errorf("impact %+v: %s", i, describe(tr))
		}
	}
}
