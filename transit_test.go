//go:build linux

package servicetraceroute_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/observe"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/owner"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// home is a field whose tracer runs on the gateway between the client and the ladder.
type home struct {
	*field
	seen int // flows that have crossed it
}

// newHome makes the gateway translate as nat says, nil: not at all. The server answers
// TCP and UDP.
func newHome(t *testing.T, nat *scenario.NAT) *home {
	t.Helper()
	n := behind(scenario.NAT{})
	for i := range n.Nodes {
		n.Nodes[i].Firewall = nil
		if n.Nodes[i].NAT != nil && nat != nil {
			nat.Outside = n.Nodes[i].NAT.Outside
		}
		if n.Nodes[i].NAT != nil {
			n.Nodes[i].NAT = nat
		}
	}
	h := &home{field: &field{t: t, lab: labtest.Start(t, n), nat: nat != nil, at: "gw"}}
	for _, node := range n.Nodes {
		if err := observe.Start(t.Context(), h.lab.Node(node.Name), observe.Config{MaxPackets: 1 << 20, AllACKs: true}); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if h.server, err = peer.ServeTCP(t.Context(), h.lab.Node("server"), peer.TCPConfig{Port: 443}); err != nil {
		t.Fatal(err)
	}
	h.tracer = h.open(servicetraceroute.Config{})
	return h
}

// transit watches the flows to the server that only pass.
func (h *home) transit(sel servicetraceroute.Selection) (stop func() found) {
	h.t.Helper()
	if sel.Directions == nil {
		sel.Directions = []trace.Direction{trace.Transit}
	}
	return h.watch(sel)
}

// judge holds a trace of a forwarded flow against the truth: it names the client, its
// probes went where the client's own packets went, from the gateway on up to the fence,
// and none came to the server.
func (h *home) judge(truth *observe.Truth, tr *trace.Trace, translated bool) {
	h.t.Helper()
	fail := func(format string, args ...any) {
		h.t.Helper()
		h.t.Errorf("%s\n%s", fmt.Sprintf(format, args...), describe(tr))
	}
	client := h.lab.Node("client").Addr(tr.Flow.Src.Addr().Is6())
	if tr.Flow.Direction != trace.Transit || tr.Flow.Src.Addr() != client || (tr.Flow.NAT != nil) != translated || tr.Flow.Interface != "eth1" {
		fail("flow %v, on the wire %v at %s, want one of %v", tr.Flow, tr.Flow.NAT, tr.Flow.Interface, client)
		return
	}
	ways := during(tr, truth.Path(observed(tr.Flow.FlowKey), 40))
	if len(ways) != 1 || len(ways[0].Nodes) < 2 || ways[0].Nodes[0] != "gw" {
		fail("its own packets went %v", ways)
		return
	}
	way := ways[0].Nodes[1:]
	if fence := len(way) - 1; tr.Stop != trace.StopFence || len(tr.Hops) != fence || tr.Reached {
		fail("want a fence at %d", fence)
	}
	wire := observed(tr.Flow.Wire())
	hops := truth.Hops(wire, 32)
	for _, hop := range tr.Hops {
		if len(hop.Replies) == 0 {
			fail("TTL %d is silent", hop.TTL)
		}
		if hop.TTL > len(way) {
			continue
		}
		for _, r := range hop.Replies {
			if !slices.Contains(hops[uint8(hop.TTL)], observe.Hop{Addr: r.Addr, Node: way[hop.TTL-1]}) {
				fail("TTL %d: its packets went %v, the answers came from %v", hop.TTL, way, hops[uint8(hop.TTL)])
			}
		}
	}
	for _, s := range truth.Sent(wire, 32) {
		for _, at := range truth.Trail(observe.Probe{Flow: wire, Seq: s.Seq, ID: s.ID, TTL: s.TTL}) {
			if at.Node == "server" && at.TTL <= 32 {
				fail("a probe of TTL %d came to the server", s.TTL)
			}
		}
	}
}

// unheard checks that nothing came to the client that is not its flow's.
func (h *home) unheard(before peer.Counters) {
	h.t.Helper()
	after, err := peer.ReadCounters(h.t.Context(), h.lab.Node("client"))
	if err != nil {
		h.t.Fatal(err)
	}
	for name, n := range after.Delta(before) {
		if strings.HasPrefix(name, "Icmp") && strings.Contains(name, "In") || strings.HasPrefix(name, "Tcp") && slices.Contains(peer.Expected, name) {
			h.t.Errorf("the client: %s rose by %d", name, n)
		}
	}
}

func (h *home) counters() peer.Counters {
	h.t.Helper()
	c, err := peer.ReadCounters(h.t.Context(), h.lab.Node("client"))
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// TestTransit traces flows that a gateway forwards, translated and not. What is shown is
// where the client's packets went, every byte of the transfers is right, and nothing comes
// to the client that would not have come without: no error about a probe, and no
// acknowledgement of one, since none comes to the server.
func TestTransit(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		nat  *scenario.NAT
		nat6 bool
	}{
		{"masquerading", &scenario.NAT{IPv6: true}, true},
		{"masquerading of IPv4 alone, ports at random", &scenario.NAT{FullyRandom: true}, false},
		{"plain", nil, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			h := newHome(t, test.nat)
			for _, ipv6 := range []bool{false, true} {
				before := h.counters()
				stop := h.transit(servicetraceroute.Selection{})
				var wg sync.WaitGroup
				wg.Go(func() {
					h.run(scenario.Workload{IPv6: ipv6, Traffic: scenario.RequestResponse, Bytes: 200, Every: 100 * time.Millisecond, Duration: 4 * time.Second}, 5, 20*time.Millisecond)
				})
				wg.Go(func() { h.run(scenario.Workload{IPv6: ipv6, Traffic: scenario.Download, Bytes: 30 << 20}, 1, 0) })
				wg.Go(func() { h.run(scenario.Workload{IPv6: ipv6, Traffic: scenario.Upload, Bytes: 30 << 20}, 1, 0) })
				wg.Wait()
				got := stop()
				h.unheard(before)
				truth := h.truth()
				whole := 0
				for _, tr := range got.traces {
					if tr.Stop == trace.StopFlowClosed {
						continue // a transfer that was over too soon
					}
					whole++
					h.judge(truth, tr, test.nat != nil && (!ipv6 || test.nat6))
				}
				if len(got.traces) != 7 || whole < 5 {
					t.Errorf("IPv6 %v: %d traces of 7 flows, %d whole", ipv6, len(got.traces), whole)
				}
				if w := got.stats.Replies.Withheld; w == 0 {
					t.Error("no error was withheld")
				}
			}
		})
	}
}

// Datagrams, of clients that hear every error too.
func TestTransitUDP(t *testing.T) {
	t.Parallel()
	h := newHome(t, &scenario.NAT{})
	tcp := h.server
	var err error
	if h.server, err = peer.ServeUDP(t.Context(), h.lab.Node("server"), peer.UDPConfig{Port: 4433}); err != nil {
		t.Fatal(err)
	}
	for _, ipv6 := range []bool{false, true} {
		before := h.counters()
		server, err := peer.ReadCounters(t.Context(), h.lab.Node("server"))
		if err != nil {
			t.Fatal(err)
		}
		stop := h.transit(servicetraceroute.Selection{
			Protos: []trace.Proto{trace.UDP}, Params: servicetraceroute.Params{UDPProbe: servicetraceroute.UDPAlways},
		})
		all := h.ask(peer.ExchangeConfig{Count: 25, Size: 200, Every: 100 * time.Millisecond, Socket: peer.Socket{RecvErr: true}}, ipv6, 4)
		got := of(stop(), all)
		h.undisturbed(all, server)
		h.unheard(before)
		truth := h.truth()
		for _, tr := range got.traces {
			h.judge(truth, tr, !ipv6)
		}
		if len(got.traces) != len(all) {
			t.Errorf("IPv6 %v: %d traces of %d flows", ipv6, len(got.traces), len(all))
		}
	}
	h.server = tcp
}

// A flow that was there before is known by its client too, and what the gateway opens
// itself stays its own.
func TestTransitBesideOwn(t *testing.T) {
	t.Parallel()
	h := newHome(t, &scenario.NAT{})
	w := scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 200, Every: 100 * time.Millisecond, Duration: 5 * time.Second}
	client := h.lab.Node("client").Addr(false)
	var wg sync.WaitGroup
	for _, ipv6 := range []bool{false, true} {
		w := w
		w.IPv6 = ipv6
		wg.Go(func() { h.run(w, 1, 0) })
	}
	h.passed(2)
	stop := h.transit(servicetraceroute.Selection{Directions: []trace.Direction{trace.Out, trace.In, trace.Transit}})
	own, err := peer.Run(t.Context(), h.lab.Node("gw"), peer.RunConfig{Workload: w, Server: netip.AddrPortFrom(h.lab.Node("server").Addr(false), 443)})
	if err != nil || !own[0].Intact {
		t.Fatal(err, own)
	}
	wg.Wait()
	got := stop()
	truth := h.truth()
	seen := map[trace.Direction]int{}
	for _, tr := range got.traces {
		if seen[tr.Flow.Direction]++; tr.Flow.Direction == trace.Transit {
			h.judge(truth, tr, tr.Flow.Dst.Addr().Is4())
			continue
		}
		if tr.Flow.Src != own[0].Local || !tr.Reached || tr.Flow.Src.Addr() == client {
			t.Errorf("own: %s", describe(tr))
		}
	}
	if len(got.traces) != 3 || seen[trace.Out] != 1 || seen[trace.Transit] != 2 {
		t.Errorf("%v", seen)
	}
}

// A program may ask for the flow of a client behind this host, by what the client calls it.
func TestTransitOne(t *testing.T) {
	t.Parallel()
	h := newHome(t, &scenario.NAT{})
	for i, ipv6 := range []bool{false, true} {
		before := h.counters()
		key := trace.FlowKey{
			Proto: trace.TCP, Src: netip.AddrPortFrom(h.lab.Node("client").Addr(ipv6), uint16(42001+i)), Dst: netip.AddrPortFrom(h.lab.Node("server").Addr(ipv6), 443),
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			out, err := peer.Run(t.Context(), h.lab.Node("client"), peer.RunConfig{
				Workload: scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 200, Every: 100 * time.Millisecond, Duration: 3 * time.Second},
				Server:   key.Dst, Socket: peer.Socket{LocalPort: key.Src.Port()},
			})
			if err != nil || !out[0].Intact {
				t.Error(err, out)
			}
		})
		h.passed(1) // else nothing tells how it is translated
		if ipv6 {
			h.remembered(key)
		}
		tr, err := h.tracer.Trace(ctx, trace.Flow{Tuple: trace.Tuple{FlowKey: key}})
		if err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		h.unheard(before)
		h.judge(h.truth(), tr, !ipv6)
		if tr.Flow.FlowKey != key {
			t.Errorf("%v", tr.Flow)
		}
	}
}

// remembered checks what the gateway's kernel still knows of a connection's SYNs.
func (h *home) remembered(wire trace.FlowKey) {
	h.t.Helper()
	err := h.lab.Node("gw").Do(func() error {
		s, err := owner.OpenSockets()
		if err != nil {
			return err
		}
		c, err := s.Connection(wire)
		if c.First != wire || !c.KnowsHandshake || c.Handshake.LocalScale == 0 || c.Handshake.PeerScale == 0 || !c.Handshake.SACK {
			h.t.Errorf("%+v", c)
		}
		return errors.Join(err, s.Close())
	})
	if err != nil {
		h.t.Error(err)
	}
}

// passed waits until so many more flows have crossed the gateway.
func (h *home) passed(flows int) {
	h.t.Helper()
	h.seen += flows
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		log, err := observe.Fetch(h.t.Context(), h.lab.Node("server"), false)
		if err != nil {
			h.t.Fatal(err)
		}
		n := 0
		for _, c := range log.Counts {
			if !c.Outgoing && c.Proto == 6 && c.Packets > 5 {
				n++
			}
		}
		if n >= h.seen {
			return
		}
	}
	h.t.Fatalf("%d flows did not come to the server", flows)
}

// What a client says first, and what it was told by DNS, selects its flows; its own
// address does, too.
func TestTransitNames(t *testing.T) {
	t.Parallel()
	h := newHome(t, &scenario.NAT{IPv6: true})
	server, client := h.lab.Node("server"), h.lab.Node("client")
	if _, err := peer.ServeHTTPS(t.Context(), server, peer.HTTPSConfig{Port: 8443}); err != nil {
		t.Fatal(err)
	}
	zone := fmt.Sprintf("www.video.example. 60 IN A %v\nwww.video.example. 60 IN AAAA %v\n", server.Addr(false), server.Addr(true))
	dns, err := peer.ServeDNS(t.Context(), server, peer.DNSConfig{Port: 53, Zone: zone})
	if err != nil {
		t.Fatal(err)
	}
	resolver := netip.AddrPortFrom(server.Addr(false), dns.Addr.Port())
	talk := func(ipv6 bool) {
		h.run(scenario.Workload{IPv6: ipv6, Traffic: scenario.RequestResponse, Bytes: 200, Every: 50 * time.Millisecond, Duration: 2 * time.Second}, 1, 0)
	}
	for name, test := range map[string]struct {
		host string
		play func()
		by   trace.By
	}{
		"its first words": {"video.example", func() {
			all, err := peer.Get(t.Context(), client, peer.GetConfig{URL: "https://www.video.example:8443/slow/2000?for=2s", Hosts: map[string]netip.Addr{"www.video.example": server.Addr(false)}})
			if err != nil || len(all) != 1 || all[0].Error != "" {
				t.Error(err, all)
			}
		}, trace.BySNI},
		"DNS": {"*.video.example", func() {
			if _, err := peer.Resolve(t.Context(), client, peer.Question{Server: resolver, Name: "www.video.example.", Type: "AAAA"}); err != nil {
				t.Error(err)
			}
			talk(true)
		}, trace.ByDNS},
		"the client's address": {client.Addr(false).String(), func() { talk(false) }, trace.ByAddress},
	} {
		stop := h.transit(servicetraceroute.Selection{Hosts: []string{test.host}, Protos: []trace.Proto{trace.TCP}})
		test.play()
		got := stop()
		if len(got.traces) != 1 || got.traces[0].Service.By != test.by {
			t.Errorf("%s: %d traces", name, len(got.traces))
		}
		for _, tr := range got.traces {
			t.Log(name, tr.Service)
			h.judge(h.truth(), tr, true)
		}
	}
}
