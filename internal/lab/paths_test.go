//go:build linux

package lab_test

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/node"
	"servicetraceroute/internal/scenario"
)

// hop returns the node that answers a flow's probe of a TTL, "" if none does.
func hop(t *testing.T, l *lab.Lab, ipv6 bool, from uint16, ttl int) string {
	t.Helper()
	answers, err := node.Call[[]netip.Addr](t.Context(), l.Node("client"), "test/probe", probes{
		To: netip.AddrPortFrom(l.Node("server").Addr(ipv6), 33434), From: from, TTL: ttl, Count: 1, Wait: 300 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(answers) == 0 {
		return ""
	}
	return nodeOf(l.Layout(), answers[0])
}

func TestPath(t *testing.T) {
	l := labtest.Start(t, line(3))
	serve(t, l, "server", 80)
	families(t, func(t *testing.T, ipv6 bool) {
		d := mustConnect(t, l, "client", "server", 80, ipv6)
		if d.Local != d.Seen {
			t.Errorf("%v was seen as %v", d.Local, d.Seen)
		}
		for ttl, want := range []string{"r1", "r2", "r3"} {
			if got := hop(t, l, ipv6, 1000, ttl+1); got != want {
				t.Errorf("hop %d: %q, want %q", ttl+1, got, want)
			}
		}
	})
}

// diamonds is two load balancers in a row: r1 to a or b, and a to c or d.
func diamonds(h scenario.Hash) scenario.Network {
	n := scenario.Network{
		Name:  "diamonds",
		Nodes: append(hosts("client", "server"), routers("r1", "a", "b", "b2", "c", "d", "r2")...),
		Links: links("client-r1", "r1-a", "r1-b", "a-c", "a-d", "b-b2", "c-r2", "d-r2", "b2-r2", "r2-server"),
	}
	for i := range n.Nodes {
		n.Nodes[i].Hash = h
	}
	return n
}

func TestBalancing(t *testing.T) {
	for _, hash := range []scenario.Hash{scenario.HashL4, scenario.HashFlowLabel, scenario.HashL3} {
		l := labtest.Start(t, diamonds(hash))
		families(t, func(t *testing.T, ipv6 bool) {
			// Every probe is sent by a socket of its own, which picks a flow label
			// of its own; all else of a flow stays.
			labels := ipv6 && hash == scenario.HashFlowLabel
			first, second := map[string]int{}, map[string]int{}
			for flow := range uint16(40) {
				at := hop(t, l, ipv6, 2000+flow, 2)
				if !labels && hop(t, l, ipv6, 2000+flow, 2) != at {
					t.Errorf("flow %d changed its path", flow)
				}
				next := hop(t, l, ipv6, 2000+flow, 3)
				if !labels && (at == "b") != (next == "b2") {
					t.Errorf("flow %d goes from %s to %s", flow, at, next)
				}
				first[at]++
				second[next]++
			}
			t.Logf("hash %d: first stage %v, second %v", hash, first, second)
			switch ways := len(second); {
			case hash == scenario.HashL3 && ways != 1:
				t.Error("ports count")
			case hash != scenario.HashL3 && ways != 3:
				t.Error("some path is never taken")
			}
		})
	}
}

func TestBalancedTCP(t *testing.T) {
	l := labtest.Start(t, diamonds(scenario.HashL4))
	serve(t, l, "server", 80)
	families(t, func(t *testing.T, ipv6 bool) {
		a, b := sent(t, l, "r1", "r1-a"), sent(t, l, "r1", "r1-b")
		for range 20 {
			mustConnect(t, l, "client", "server", 80, ipv6)
		}
		a, b = sent(t, l, "r1", "r1-a")-a, sent(t, l, "r1", "r1-b")-b
		t.Logf("packets by a %d, by b %d", a, b)
		if a < 4 || b < 4 {
			t.Error("the flows did not spread")
		}
	})
}

func TestAsymmetric(t *testing.T) {
	n := scenario.Network{
		Name:  "asymmetric",
		Nodes: append(hosts("client", "server"), routers("r1", "there", "back", "r2")...),
		Links: links("client-r1", "r1-there", "there-r2", "r1-back", "back-r2", "r2-server"),
	}
	n.Links[3].CostAB = 10 // r1 to back
	n.Links[2].CostBA = 10 // r2 to there
	l := labtest.Start(t, n)
	serve(t, l, "server", 80)
	families(t, func(t *testing.T, ipv6 bool) {
		there, back := sent(t, l, "there", "there-r2"), sent(t, l, "back", "r1-back")
		mustConnect(t, l, "client", "server", 80, ipv6)
		there, back = sent(t, l, "there", "there-r2")-there, sent(t, l, "back", "r1-back")-back
		if there < 3 || back < 3 {
			t.Errorf("%d packets by there, %d by back", there, back)
		}
		if got := sent(t, l, "back", "back-r2"); got > 5 {
			t.Errorf("%d packets took the way back forwards", got)
		}
	})
}

func TestPortRoute(t *testing.T) {
	n := scenario.Network{
		Name:  "two uplinks",
		Nodes: append(hosts("client", "server"), routers("r1", "r2", "r3")...),
		Links: links("client-r1", "client-r2", "r1-r3", "r2-r3", "r3-server"),
	}
	n.Nodes[0].Addrs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	n.Nodes[0].PortRoutes = []scenario.PortRoute{{DstPort: 443, Via: "client-r2"}}
	n.Links[1].CostAB = 5
	l := labtest.Start(t, n)
	serve(t, l, "server", 80)
	serve(t, l, "server", 443)
	families(t, func(t *testing.T, ipv6 bool) {
		for port, by := range map[uint16]string{80: "client-r1", 443: "client-r2"} {
			before := sent(t, l, "client", by)
			d := mustConnect(t, l, "client", "server", port, ipv6)
			if got := sent(t, l, "client", by) - before; got < 3 {
				t.Errorf("port %d: %d packets by %s", port, got, by)
			}
			if d.Seen.Addr() != l.Node("client").Addr(ipv6) {
				t.Errorf("port %d: came from %v", port, d.Seen)
			}
		}
	})
}

func TestSetLink(t *testing.T) {
	l := labtest.Start(t, diamonds(scenario.HashL4))
	serve(t, l, "server", 80)
	check := func(state string, wantA, wantB bool) {
		t.Helper()
		for _, ipv6 := range []bool{false, true} {
			a, b := sent(t, l, "r1", "r1-a"), sent(t, l, "r1", "r1-b")
			for range 12 {
				mustConnect(t, l, "client", "server", 80, ipv6)
			}
			a, b = sent(t, l, "r1", "r1-a")-a, sent(t, l, "r1", "r1-b")-b
			// A connection sends four packets this way; stragglers of the
			// connections before may count as well.
			if a > 3 != wantA || b > 3 != wantB {
				t.Errorf("%s, IPv6 %v: %d packets by a, %d by b", state, ipv6, a, b)
			}
		}
	}
	set := func(name string, change func(*scenario.Link)) {
		t.Helper()
		begin := time.Now()
		if err := l.SetLink(t.Context(), name, change); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s changed within %v", name, time.Since(begin))
	}
	check("balanced", true, true)
	set("r1-a", func(k *scenario.Link) { k.Down = true })
	check("a down", false, true)
	set("r1-a", func(k *scenario.Link) { k.Down = false })
	check("a up again", true, true)
	set("r1-b", func(k *scenario.Link) { k.CostAB = 7 })
	check("b costly", true, false)
	if err := l.SetLink(t.Context(), "r1-b", func(k *scenario.Link) { k.Delay = time.Second }); err == nil {
		t.Error("a plain wire became slow")
	}
}

func TestImpairedLink(t *testing.T) {
	n := line(1)
	n.Links[1].Delay = 10 * time.Millisecond
	l := labtest.Start(t, n)
	serve(t, l, "server", 80)
	families(t, func(t *testing.T, ipv6 bool) {
		if d := mustConnect(t, l, "client", "server", 80, ipv6); d.Took < 20*time.Millisecond || d.Took > 40*time.Millisecond {
			t.Errorf("the handshake took %v", d.Took)
		}
		if got := hop(t, l, ipv6, 1000, 1); got != "r1" {
			t.Errorf("hop 1: %q", got)
		}
	})
	if err := l.SetLink(t.Context(), "r1-server", func(k *scenario.Link) { k.Delay = 30 * time.Millisecond }); err != nil {
		t.Fatal(err)
	}
	if d := mustConnect(t, l, "client", "server", 80, false); d.Took < 60*time.Millisecond {
		t.Errorf("with more delay the handshake took %v", d.Took)
	}
}

func TestSilentRouter(t *testing.T) {
	n := line(3)
	for i := range n.Nodes {
		n.Nodes[i].Silent = n.Nodes[i].Name == "r2"
	}
	l := labtest.Start(t, n)
	families(t, func(t *testing.T, ipv6 bool) {
		for ttl, want := range []string{"r1", "", "r3"} {
			if got := hop(t, l, ipv6, 1000, ttl+1); got != want {
				t.Errorf("hop %d: %q, want %q", ttl+1, got, want)
			}
		}
	})
	c, err := l.Node("r2").Counters(t.Context())
	if err != nil || c[lab.RuleSilenced].Packets != 2 {
		t.Errorf("silenced: %v, %v", c, err)
	}
}

// TestICMPLimit sends a probe every 10 ms for 610 ms. Linux limits by a token
// bucket that holds six intervals, so six answers come at once and then one per
// interval, in both families. (Older kernels divide the interval by four for IPv6
// targets whose route is a /64, see icmpv6_xrlim_allow in net/ipv6/icmp.c.)
func TestICMPLimit(t *testing.T) {
	for _, test := range []struct {
		limit    scenario.ICMPLimit
		min, max int
	}{
		{scenario.ICMPLimit{}, 61, 61},
		{scenario.ICMPLimit{Interval: 100 * time.Millisecond}, 11, 13},
		{scenario.ICMPLimit{Interval: 2 * time.Second}, 6, 6},
	} {
		n := line(1)
		n.Nodes[2].ICMP = test.limit
		l := labtest.Start(t, n)
		families(t, func(t *testing.T, ipv6 bool) {
			if got := answered(t, l, ipv6, 61); got < test.min || got > test.max {
				t.Errorf("%+v: %d answers, want %d to %d", test.limit, got, test.min, test.max)
			}
		})
	}
}

func TestICMPKernelDefaults(t *testing.T) {
	n := line(1)
	n.Nodes[2].ICMP.KernelDefaults = true
	l := labtest.Start(t, n)
	if got := answered(t, l, false, 50); got != 6 {
		t.Errorf("IPv4: %d answers, want the burst of 6", got)
	}
	if got := answered(t, l, true, 50); got < 9 || got > 13 {
		t.Errorf("IPv6: %d answers, want 6 and 10/s", got)
	}
}

// answered sends probes 10 ms apart that expire at r1 and returns how many
// answers come.
func answered(t *testing.T, l *lab.Lab, ipv6 bool, probesSent int) int {
	t.Helper()
	answers, err := node.Call[[]netip.Addr](t.Context(), l.Node("client"), "test/probe", probes{
		To: netip.AddrPortFrom(l.Node("server").Addr(ipv6), 33434), From: 1000, TTL: 1,
		Count: probesSent, Every: 10 * time.Millisecond, Wait: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	return len(answers)
}
