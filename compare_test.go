//go:build linux

package servicetraceroute_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab/observe"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// fan is a network with one load balancer over so many ways, then a firewall that lets new
// connections to port 443 through and nothing else (if walled), then the server: client,
// r0, one of m0.., r1, r2, server at TTL 5.
func fan(ways int, walled bool) scenario.Network {
	n := scenario.Network{Name: "fan", Nodes: []scenario.Node{
		{Name: "client", Kind: scenario.Host}, {Name: "r0", Kind: scenario.Router}, {Name: "r1", Kind: scenario.Router},
		{Name: "r2", Kind: scenario.Router}, {Name: "server", Kind: scenario.Host},
	}, Links: []scenario.Link{{A: "client", B: "r0"}}}
	if walled {
		n.Nodes[3].Firewall = &scenario.Firewall{AllowTCP: []uint16{443}}
	}
	for i := range ways {
		m := fmt.Sprintf("m%d", i)
		n.Nodes = append(n.Nodes, scenario.Node{Name: m, Kind: scenario.Router})
		n.Links = append(n.Links, scenario.Link{A: "r0", B: m}, scenario.Link{A: m, B: "r1"})
	}
	n.Links = append(n.Links, scenario.Link{A: "r1", B: "r2"}, scenario.Link{A: "r2", B: "server"})
	return n
}

// comparer opens a comparer beside the field's tracer.
func (f *field) comparer(cfg servicetraceroute.CompareConfig) *servicetraceroute.Comparer {
	f.t.Helper()
	var c *servicetraceroute.Comparer
	err := f.lab.Node("client").Do(func() (err error) {
		c, err = servicetraceroute.NewComparer(f.tracer, cfg)
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			f.t.Error(err)
		}
	})
	return c
}

// compared is what a watch with comparisons yielded.
type compared struct {
	found
	compares []*trace.Compare
	lastIs   trace.Event
}

// watchBeside watches the flows to the server until so many comparisons came, while during
// runs.
func (f *field) watchBeside(c *servicetraceroute.Comparer, want int, ipv6 bool, during func()) (all compared) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 2*time.Minute)
	defer cancel()
	done := make(chan struct{})
	sel := servicetraceroute.Selection{
		Hosts: []string{f.lab.Node("server").Addr(ipv6).String()},
		Ready: func() { go func() { defer close(done); during() }() },
	}
	for ev, err := range c.Watch(ctx, sel) {
		if err != nil {
			f.t.Fatal(err)
		}
		all.lastIs = ev
		switch ev := ev.(type) {
		case *trace.Trace:
			all.traces = append(all.traces, ev)
		case *trace.Flow:
			all.flows = append(all.flows, ev)
		case *trace.Compare:
			if all.compares = append(all.compares, ev); len(all.compares) == want {
				cancel()
			}
		}
	}
	<-done
	return all
}

// end is the address of a node at a link.
func (f *field) end(link, node string, ipv6 bool) netip.Addr {
	it := f.lab.Layout().Nodes[node].Interface(link)
	if ipv6 {
		return it.Addr6.Addr()
	}
	return it.Addr4.Addr()
}

// TestCompare: siblings take other ways than the flow, all of which are found, or are
// blocked where the flow is not; the Tracer takes none for a flow, and the server's
// application sees none.
func TestCompare(t *testing.T) {
	t.Parallel()
	const ways = 4
	f := newField(t, fan(ways, true), servicetraceroute.Config{})
	c := f.comparer(servicetraceroute.CompareConfig{})
	for _, ipv6 := range []bool{false, true} {
		before, err := peer.ReadCounters(t.Context(), f.lab.Node("server"))
		if err != nil {
			t.Fatal(err)
		}
		all := f.watchBeside(c, 1, ipv6, func() {
			f.run(scenario.Workload{IPv6: ipv6, Traffic: scenario.OneByte, Bytes: 1, Every: 100 * time.Millisecond, Duration: 4 * time.Second}, 1, 0)
		})
		if len(all.compares) != 1 || len(all.traces) != 1 || len(all.flows) != 1 {
			t.Fatalf("%d comparisons, %d traces, flows %+v", len(all.compares), len(all.traces), all.flows)
		}
		if _, ok := all.lastIs.(*trace.Stats); !ok {
			t.Errorf("the last record is %T", all.lastIs)
		}
		tr, cmp := all.traces[0], all.compares[0]
		if !tr.Reached || tr.Destination.TTL != 5 || cmp.Trace != tr.ID {
			t.Fatalf("%v", describe(tr))
		}
		f.judgeCompare(tr, cmp, ways, ipv6)
		after, err := peer.ReadCounters(t.Context(), f.lab.Node("server"))
		if err != nil {
			t.Fatal(err)
		}
		// The one that was accepted is the flow's own.
		if d := after.Delta(before); d["Tcp.PassiveOpens"] != 1 || d["TcpExt.ListenOverflows"] != 0 {
			t.Errorf("the server's applications saw %d connections", d["Tcp.PassiveOpens"])
		}
		conns, err := peer.Conns(t.Context(), f.lab.Node("server"), f.server)
		if err != nil || len(conns) > 2 {
			t.Errorf("%d connections, %v", len(conns), err)
		}
	}
	if s := c.Stats(); s.Compared != 2 || s.Divergent != 2 || s.Failed+s.Dropped+s.Skipped != 0 {
		t.Errorf("%+v", s)
	}
}

// judgeCompare holds a comparison on a fan against what its routers are and what they
// really forwarded.
func (f *field) judgeCompare(tr *trace.Trace, c *trace.Compare, ways int, ipv6 bool) {
	f.t.Helper()
	// r1 answers with the address of the link by which a probe came.
	own := tr.Hops[1].Replies[0].Addr
	for ttl, at := range map[int]func(way string) netip.Addr{
		2: func(way string) netip.Addr { return f.end("r0-"+way, way, ipv6) },
		3: func(way string) netip.Addr { return f.end(way+"-r1", "r1", ipv6) },
	} {
		inFlow := tr.Hops[ttl-1].Replies[0].Addr
		var others []netip.Addr
		for i := range ways {
			if a := at(fmt.Sprintf("m%d", i)); a != inFlow {
				others = append(others, a)
			}
		}
		slices.SortFunc(others, netip.Addr.Compare)
		if i := ttl - 2; len(c.Alternatives) != 2 || c.Alternatives[i].TTL != ttl || c.Alternatives[i].InFlow != inFlow ||
			c.Alternatives[i].Confidence < 0.95 || !slices.Equal(c.Alternatives[i].Addrs, others) {
			f.t.Errorf("alternatives %+v, want at TTL %d %v beside %v", c.Alternatives, ttl, others, inFlow)
		}
	}
	if want := []trace.Blocked{{Proto: "udp", AfterTTL: 4}, {Proto: "icmp", AfterTTL: 4}}; !slices.Equal(c.Blocked, want) {
		f.t.Errorf("blocked %+v, want %+v", c.Blocked, want)
	}
	truth, apart, syns := f.truth(), 0, 0
	for _, s := range c.Siblings {
		if s.Hops[1].Replies[0].Addr != own {
			apart++
		}
		if s.Proto == "tcp" && s.Reached {
			syns++
		}
		if s.Proto != "tcp" {
			continue // the observers tell UDP's probes apart by what the lab's own hold, and know no echo requests
		}
		flow := observe.Flow{Proto: 6, Src: netip.AddrPortFrom(c.Flow.Src.Addr(), s.SourcePort), Dst: c.Flow.Dst}
		hops := truth.Hops(flow, 255)
		for _, h := range s.Hops {
			for _, r := range h.Replies {
				if r.Kind == trace.TimeExceeded && !answered(hops[uint8(h.TTL)], r.Addr) {
					f.t.Errorf("%v: %v never answered TTL %d; truth %v", flow, r.Addr, h.TTL, hops[uint8(h.TTL)])
				}
			}
		}
	}
	if want := float64(apart) / float64(len(c.Siblings)); c.Divergence != want || !c.Divergent {
		f.t.Errorf("divergence %v, want %v", c.Divergence, want)
	}
	if syns != 3 {
		f.t.Errorf("%d SYNs of siblings reached the server", syns)
	}
	f.t.Logf("%d siblings in %v, divergence %.2f", len(c.Siblings), c.Time.Sub(tr.End), c.Divergence)
}
