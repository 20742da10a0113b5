//go:build linux

package servicetraceroute_test

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"servicetraceroute"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/observe"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// forward lets the router at hand over what is addressed to public to the server, as a
// load balancer does, and routes public there from the nodes before it.
func (f *field) forward(public netip.Addr, at string, before ...string) {
	f.t.Helper()
	server := f.lab.Node("server").Addr(public.Is6())
	for _, name := range before {
		err := f.lab.Node(name).Do(func() error {
			routes, err := netlink.RouteGet(server.AsSlice())
			if err != nil {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{
				Dst: &net.IPNet{IP: public.AsSlice(), Mask: net.CIDRMask(public.BitLen(), public.BitLen())},
				Gw:  routes[0].Gw, LinkIndex: routes[0].LinkIndex,
			})
		})
		if err != nil {
			f.t.Fatal(err)
		}
	}
	family, nat, offset := nftables.TableFamilyIPv4, uint32(unix.NFPROTO_IPV4), uint32(16) // the header's destination
	if public.Is6() {
		family, nat, offset = nftables.TableFamilyIPv6, unix.NFPROTO_IPV6, 24
	}
	err := f.lab.Node(at).Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		t := c.AddTable(&nftables.Table{Family: family, Name: "forwarding"})
		chain := c.AddChain(&nftables.Chain{
			Name: "prerouting", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
		})
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(public.AsSlice()))},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: public.AsSlice()},
			&expr.Immediate{Register: 1, Data: server.AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: nat, RegAddrMin: 1},
		}})
		return c.Flush()
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// TestForwarded traces flows to an address that a router in the midst of the path
// exchanges for the server's. TestSimForwarded is its twin in memory.
func TestForwarded(t *testing.T) {
	t.Parallel()
	const box = 3 // the TTL of r1
	public := []netip.Addr{netip.MustParseAddr("203.0.113.80"), netip.MustParseAddr("2001:db8:ff::80")}
	n := ladder(2, scenario.ICMPLimit{})
	f := &field{t: t, lab: labtest.Start(t, n), nat: true}
	for _, node := range n.Nodes {
		var cfg observe.Config
		if node.Name == "r1" {
			cfg.Aliases = public
		}
		if err := observe.Start(t.Context(), f.lab.Node(node.Name), cfg); err != nil {
			t.Fatal(err)
		}
	}
	server, err := peer.ServeTCP(t.Context(), f.lab.Node("server"), peer.TCPConfig{Port: 443})
	if err != nil {
		t.Fatal(err)
	}
	f.tracer = f.open(servicetraceroute.Config{})
	var traces []*trace.Trace
	for _, public := range public {
		f.forward(public, "r1", "client", "r0", "m0a", "m0b", "m0c")
		stop := f.watch(servicetraceroute.Selection{Hosts: []string{public.String()}})
		flows, err := peer.Run(t.Context(), f.lab.Node("client"), peer.RunConfig{
			Workload: scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 200, Every: 200 * time.Millisecond, Duration: 6 * time.Second, IPv6: public.Is6()},
			Server:   netip.AddrPortFrom(public, server.Addr.Port()),
		})
		if err != nil || !flows[0].Intact {
			t.Fatalf("%v: %+v", err, flows)
		}
		all := stop()
		if len(all.traces) != 1 || all.traces[0].Flow.Dst.Addr() != public {
			t.Fatalf("%v: %d traces", public, len(all.traces))
		}
		traces = append(traces, all.traces...)
		want := spot{trace.NATDst, box - 1, box, "answer as " + public.String()}
		if mine := all.about(traces[len(traces)-1]); !agree(mine, []spot{want}) {
			t.Errorf("want %v, got %s", want, told(mine))
		}
	}
	truth := f.truth()
	for _, tr := range traces {
		f.forwarded(truth, tr, box)
	}
}

// forwarded holds a trace against the observers' logs. A router that exchanges the
// destination of flows translates the errors of those beyond it: they all, and its
// own, bear the public address, and are marked.
func (f *field) forwarded(truth *observe.Truth, tr *trace.Trace, box int) {
	f.t.Helper()
	flow := observed(tr.Flow.FlowKey)
	ways := truth.Path(flow, 40)
	if len(ways) != 1 || len(ways[0].Nodes) != 5 {
		f.t.Fatalf("the flow's packets went %v", ways)
	}
	way := ways[0].Nodes
	answered := truth.Hops(flow, 255)
	for ttl := 1; ttl <= len(way); ttl++ {
		i := slices.IndexFunc(tr.Hops, func(h trace.Hop) bool { return h.TTL == ttl })
		if i < 0 || len(tr.Hops[i].Replies) == 0 {
			f.t.Errorf("TTL %d is missing", ttl)
			continue
		}
		for _, r := range tr.Hops[i].Replies {
			by := slices.IndexFunc(answered[uint8(ttl)], func(is observe.Hop) bool {
				return is.Node == way[ttl-1] && (ttl > box || is.Addr == r.Addr) // beyond, the error left its router with that one's address
			})
			translated := r.Addr == tr.Flow.Dst.Addr()
			if by < 0 || translated != (ttl >= box) || slices.Contains(r.Changes, trace.NATDst) != translated {
				f.t.Errorf("TTL %d: %v, %v; truth %v", ttl, r.Addr, r.Changes, answered[uint8(ttl)])
			}
		}
	}
	// The destination is told at its distance, or not at all.
	unknown := tr.Stop == trace.StopUnknown || tr.Stop == trace.StopFlowClosed
	if tr.Reached != (tr.Stop == trace.StopDestination) || !tr.Reached && !unknown || tr.Reached && tr.Destination.TTL != len(way)+1 ||
		tr.Impact.RSTs+tr.Impact.Retransmits > 0 || tr.Impact.Aborted { // duplicate acknowledgements: see TestMiddlebox
		f.t.Errorf("want TTL %d, or unknown", len(way)+1)
	}
	f.t.Logf("%v by %v: %v, destination %+v", tr.Flow.Dst, way, tr.Stop, tr.Destination)
	if f.t.Failed() {
		f.t.Log(describe(tr))
	}
}
