//go:build linux

package servicetraceroute_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"servicetraceroute"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/observe"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// open is the ladder without its firewall, which lets no UDP in.
func openLadder(stages int) scenario.Network {
	n := ladder(stages, scenario.ICMPLimit{})
	for i := range n.Nodes {
		n.Nodes[i].Firewall = nil
	}
	return n
}

// newUDPField is a field whose server echoes datagrams.
func newUDPField(t *testing.T, n scenario.Network) *field {
	f := newBareField(t, n, servicetraceroute.Config{})
	var err error
	if f.server, err = peer.ServeUDP(t.Context(), f.lab.Node("server"), peer.UDPConfig{Port: 4433}); err != nil {
		t.Fatal(err)
	}
	return f
}

// ask plays UDP clients, one after another begun, and returns what each saw.
func (f *field) ask(cfg peer.ExchangeConfig, ipv6 bool, clients int) []peer.Exchange {
	f.t.Helper()
	cfg.Server = netip.AddrPortFrom(f.lab.Node("server").Addr(ipv6), f.server.Addr.Port())
	out := make([]peer.Exchange, clients)
	var wg sync.WaitGroup
	for i := range out {
		time.Sleep(50 * time.Millisecond)
		wg.Go(func() {
			var err error
			if out[i], err = peer.RunExchange(f.t.Context(), f.lab.Node("client"), cfg); err != nil {
				f.t.Error(err)
			}
		})
	}
	wg.Wait()
	return out
}

// converse traces the flows of so many clients, whatever they look like. It returns what was
// found of them, what they saw, and the server's counters of before.
func (f *field) converse(cfg peer.ExchangeConfig, ipv6 bool, clients int) (got found, all []peer.Exchange, before peer.Counters) {
	f.t.Helper()
	before, err := peer.ReadCounters(f.t.Context(), f.lab.Node("server"))
	if err != nil {
		f.t.Fatal(err)
	}
	stop := f.watch(servicetraceroute.Selection{
		Protos: []trace.Proto{trace.UDP}, Params: servicetraceroute.Params{UDPProbe: servicetraceroute.UDPAlways},
	})
	all = f.ask(cfg, ipv6, clients)
	return of(stop(), all), all, before
}

// of leaves only the traces of these clients' flows: those of the round before are not
// forgotten at once.
func of(got found, clients []peer.Exchange) found {
	got.traces = slices.DeleteFunc(got.traces, func(tr *trace.Trace) bool {
		return !slices.ContainsFunc(clients, func(x peer.Exchange) bool { return x.Local.Port() == tr.Flow.Src.Port() })
	})
	return got
}

// undisturbed checks that UDP clients saw their answers and nothing else, and that
// nothing came to the server but what they sent.
func (f *field) undisturbed(all []peer.Exchange, before peer.Counters) {
	f.t.Helper()
	if n := f.undelivered(all, before); n != 0 {
		f.t.Errorf("%d damaged datagrams came to the server", n)
	}
}

// undelivered checks that UDP clients saw their answers and nothing else, and that
// nothing came to the server's application but what they sent. It returns how many
// damaged datagrams its kernel dropped.
func (f *field) undelivered(all []peer.Exchange, before peer.Counters) (damaged int64) {
	f.t.Helper()
	sent := 0
	for _, x := range all {
		sent += x.Sent
		if x.Answered != x.Sent || x.Wrong+x.TimedOut+x.SendErrorCount+x.RecvErrorCount > 0 {
			f.t.Errorf("%v: %d of %d answered, %d wrong, errors %v %v", x.Local, x.Answered, x.Sent, x.Wrong, x.SendErrors, x.RecvErrors)
		}
	}
	after, err := peer.ReadCounters(f.t.Context(), f.lab.Node("server"))
	if err != nil {
		f.t.Fatal(err)
	}
	d := after.Delta(before)
	came := d["Udp.InDatagrams"] + d["Udp6.InDatagrams"]
	damaged = d["Udp.InCsumErrors"] + d["Udp6.InCsumErrors"]
	stray := d["Udp.NoPorts"] + d["Udp.InErrors"] + d["Udp6.NoPorts"] + d["Udp6.InErrors"] - damaged // which InErrors counts, too
	if int(came) != sent || stray != 0 {
		f.t.Errorf("%d datagrams came to the server, %d were sent: %v", came, sent, d)
	}
	return damaged
}

// TestUDPPaths traces UDP flows across load balancers. What is shown is what the routers
// did, up to the fence two hops before the server, and nobody gets a datagram that no
// application sent.
func TestUDPPaths(t *testing.T) {
	t.Parallel()
	const stages, clients = 3, 8 // seven routers, the server is the eighth hop
	f := newUDPField(t, openLadder(stages))
	for _, test := range []struct {
		name        string
		ipv6        bool
		unconnected bool
	}{{"IPv4", false, false}, {"IPv6", true, false}, {"IPv4, not connected", false, true}, {"IPv6, not connected", true, true}} {
		t.Run(test.name, func(t *testing.T) {
			got, all, before := f.converse(peer.ExchangeConfig{Count: 40, Size: 200, Every: 100 * time.Millisecond, Unconnected: test.unconnected}, test.ipv6, clients)
			v := f.judge(f.truth(), got.traces)
			t.Log(v)
			f.undisturbed(all, before)
			for _, tr := range got.traces {
				if tr.Stop != trace.StopFence || len(tr.Hops) != 2*stages+1-1 || tr.Reached || tr.Observed.RTT <= 0 {
					t.Errorf("%s", describe(tr))
				}
				for _, h := range tr.Hops {
					if len(h.Replies) == 0 {
						t.Errorf("TTL %d is silent: %s", h.TTL, describe(tr))
					}
				}
			}
			if len(got.traces) != clients {
				t.Errorf("%d traces of %d flows", len(got.traces), clients)
			}
		})
	}
}

// TestUDPLongerWayBack: what comes back takes two routers more, so the server's TTL tells of
// a distance at which a probe would come to it. None does, and its routers' path is shown.
func TestUDPLongerWayBack(t *testing.T) {
	t.Parallel()
	n := scenario.Network{Name: "detour", Nodes: []scenario.Node{{Name: "client", Kind: scenario.Host}, {Name: "server", Kind: scenario.Host}}}
	for _, name := range []string{"r1", "r2", "r3", "r4", "x1", "x2"} {
		n.Nodes = append(n.Nodes, scenario.Node{Name: name, Kind: scenario.Router})
	}
	n.Links = []scenario.Link{
		{A: "client", B: "r1"}, {A: "r1", B: "r2"}, {A: "r2", B: "r3", CostBA: 10}, {A: "r3", B: "r4"}, {A: "r4", B: "server"},
		{A: "r2", B: "x1", CostAB: 10, CostBA: 1}, {A: "x1", B: "x2", CostAB: 10, CostBA: 1}, {A: "x2", B: "r3", CostAB: 10, CostBA: 1},
	}
	f := newUDPField(t, n)
	for _, ipv6 := range []bool{false, true} {
		got, all, before := f.converse(peer.ExchangeConfig{Count: 40, Size: 200, Every: 100 * time.Millisecond}, ipv6, 2)
		t.Log(f.judge(f.truth(), got.traces))
		f.undisturbed(all, before)
		for _, tr := range got.traces {
			if ttl := replyTTL(tr, 3); tr.Stop != trace.StopFence || len(tr.Hops) < 3 || len(tr.Hops) > 4 || 64-ttl+1 != 3+2 {
				t.Errorf("the third router's answer came with TTL %d: %s", ttl, describe(tr))
			}
		}
		if len(got.traces) != 2 {
			t.Errorf("%d traces of 2 flows", len(got.traces))
		}
	}
}

// TestUDPMisled: nothing on the path tells that the server is nearer than its TTL says.
// Probes come to it, and its kernel drops them, whether or not firewalls on the way or its
// own look at their checksums before: the application gets what was sent to it and nothing
// else.
func TestUDPMisled(t *testing.T) {
	t.Parallel()
	t.Run("initial TTL", func(t *testing.T) {
		n := chain(5)
		n.Nodes[3].Firewall = &scenario.Firewall{Inside: "r2-r3"}
		f := newUDPField(t, n)
		dropInvalid(t, f.lab.Node("server"))
		for name, value := range map[string]string{"net.ipv4.ip_default_ttl": "60", "net.ipv6.conf.eth0.hop_limit": "60"} {
			if err := f.lab.Node("server").Sysctl(t.Context(), name, value); err != nil {
				t.Fatal(err)
			}
		}
		f.misled(5)
	})
	t.Run("server's way back", func(t *testing.T) {
		n := chain(4)
		n.Links[4].CostBA = 20
		for i := range n.Nodes {
			if n.Nodes[i].Kind == scenario.Host {
				n.Nodes[i].Addrs = []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, byte(1 + i)}), netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(1 + i)})}
			}
		}
		last := "r1"
		for _, name := range []string{"x1", "x2", "x3", "x4", "x5"} {
			n.Nodes = append(n.Nodes, scenario.Node{Name: name, Kind: scenario.Router})
			n.Links = append(n.Links, scenario.Link{A: last, B: name, CostAB: 10})
			last = name
		}
		n.Links = append(n.Links, scenario.Link{A: last, B: "server", CostAB: 10})
		newUDPField(t, n).misled(4)
	})
}

// misled traces flows to a server behind so many routers, whose TTL misleads.
func (f *field) misled(routers int) {
	f.t.Helper()
	for _, ipv6 := range []bool{false, true} {
		got, all, before := f.converse(peer.ExchangeConfig{Count: 60, Size: 200, Every: 50 * time.Millisecond}, ipv6, 2)
		f.t.Log(f.judge(f.truth(), got.traces))
		if damaged := f.undelivered(all, before); damaged == 0 {
			f.t.Error("no probe came to the server: its TTL did not mislead")
		}
		for _, tr := range got.traces {
			for ttl := 1; ttl <= routers; ttl++ {
				if replyTTL(tr, ttl) == 0 {
					f.t.Errorf("TTL %d is silent: %s", ttl, describe(tr))
				}
			}
		}
		if len(got.traces) != 2 {
			f.t.Errorf("%d traces of 2 flows", len(got.traces))
		}
	}
}

// TestUDPThroughFirewall: gateways that follow connections, translate them and drop what
// they call invalid let all probes pass, the first ones as well.
func TestUDPThroughFirewall(t *testing.T) {
	t.Parallel()
	n := chain(6)
	n.Nodes[2].NAT = &scenario.NAT{Outside: "r2-r3", IPv6: true}
	n.Nodes[3].Firewall = &scenario.Firewall{Inside: "r2-r3"}
	f := newUDPField(t, n)
	for _, ipv6 := range []bool{false, true} {
		got, all, before := f.converse(peer.ExchangeConfig{Count: 40, Size: 200, Every: 50 * time.Millisecond}, ipv6, 2)
		f.undisturbed(all, before)
		for _, tr := range got.traces {
			if tr.Stop != trace.StopFence || len(tr.Hops) != 5 {
				t.Errorf("%s", describe(tr))
			}
			for _, h := range tr.Hops {
				if len(h.Replies) == 0 || h.Replies[0].Exchange.Attempt != 1 {
					t.Errorf("TTL %d: %+v", h.TTL, h.Replies)
				}
			}
		}
		if len(got.traces) != 2 {
			t.Errorf("%d traces of 2 flows", len(got.traces))
		}
	}
}

// replyTTL is with which TTL the first answer at that TTL came; 0: none did.
func replyTTL(tr *trace.Trace, ttl int) int {
	for _, h := range tr.Hops {
		if h.TTL == ttl && len(h.Replies) > 0 {
			return h.Replies[0].ReplyTTL
		}
	}
	return 0
}

// A socket that hears of ICMP errors, also one that is not connected, hears of none about
// a probe. What its flow's path is is found like that of others.
func TestUDPRecvErr(t *testing.T) {
	t.Parallel()
	const stages, clients = 2, 2 // five routers, the server is the sixth hop
	f := newUDPField(t, openLadder(stages))
	for _, unconnected := range []bool{false, true} {
		for _, ipv6 := range []bool{false, true} {
			withheld := f.tracer.Stats().Replies.Withheld
			got, all, before := f.converse(peer.ExchangeConfig{
				Count: 25, Size: 200, Every: 50 * time.Millisecond, Unconnected: unconnected, Socket: peer.Socket{RecvErr: true},
			}, ipv6, clients)
			v := f.judge(f.truth(), got.traces)
			t.Log(v)
			f.undisturbed(all, before)
			for _, tr := range got.traces {
				if tr.Stop != trace.StopFence || len(tr.Hops) != 2*stages {
					t.Errorf("%v %v", tr.Reason, describe(tr))
				}
				for _, h := range tr.Hops {
					if len(h.Replies) == 0 {
						t.Errorf("TTL %d is silent: %s", h.TTL, describe(tr))
					}
				}
			}
			if n := got.stats.Replies.Withheld - withheld; len(got.traces) != clients || n < uint64(v.hops) {
				t.Errorf("%d traces, %d errors withheld, %d hops answered", len(got.traces), n, v.hops)
			}
		}
	}
	if n := dropRules(t, f.lab.Node("client")); n != 1 {
		t.Errorf("%d rules of one tracer", n)
	}
	if err := f.tracer.Close(); err != nil {
		t.Error(err)
	}
	if n := dropRules(t, f.lab.Node("client")); n != 0 {
		t.Errorf("%d rules are left after Close", n)
	}
}

// dropRules counts the tables that hold our rules.
func dropRules(t *testing.T, n *lab.Node) (rules int) {
	t.Helper()
	err := n.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := c.ListTables()
		for _, table := range tables {
			if strings.HasPrefix(table.Name, "service_traceroute_") {
				rules++
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

// hearing makes a connected socket hear of ICMP errors.
func hearing(t *testing.T, conn *net.UDPConn, ipv6 bool) {
	t.Helper()
	if err := socketOption(conn, ipv6, unix.IP_RECVERR, unix.IPV6_RECVERR, 1); err != nil {
		t.Fatal(err)
	}
}

// socketOption sets an option of a socket, of IPv4 or of IPv6.
func socketOption(conn *net.UDPConn, ipv6 bool, v4, v6, value int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	set := error(nil)
	err = raw.Control(func(fd uintptr) {
		if ipv6 {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, v6, value)
		} else {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, v4, value)
		}
	})
	return errors.Join(err, set)
}

// A connected socket that asked for no errors hears yet that a firewall refused a datagram;
// of none about a probe, though.
func TestUDPRefusedProbes(t *testing.T) {
	t.Parallel()
	f := newUDPField(t, chain(6))
	refuseLowTTL(t, f.lab.Node("r3"))
	for _, ipv6 := range []bool{false, true} {
		got, all, before := f.converse(peer.ExchangeConfig{Count: 40, Size: 200, Every: 50 * time.Millisecond}, ipv6, 2)
		f.undisturbed(all, before)
		for _, tr := range got.traces {
			if tr.Stop != trace.StopUnreachable || len(tr.Hops) != 4 {
				t.Errorf("%s", describe(tr))
			}
		}
		if len(got.traces) != 2 {
			t.Errorf("%d traces of 2 flows", len(got.traces))
		}
	}
}

// refuseLowTTL lets a router refuse datagrams that will not come far.
func refuseLowTTL(t *testing.T, router *lab.Node) {
	t.Helper()
	err := router.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "low"})
		chain := c.AddChain(&nftables.Chain{
			Name: "low", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
		})
		for family, offset := range map[byte]uint32{unix.NFPROTO_IPV4: 8, unix.NFPROTO_IPV6: 7} {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 1},
				&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: []byte{20}},
				&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED},
			}})
		}
		return c.Flush()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// While its flow is traced, an application hears of errors about its own datagrams, also
// when these are as long as probes, and of no other.
func TestUDPRecvErrGenuine(t *testing.T) {
	t.Parallel()
	f := newUDPField(t, openLadder(2))
	for _, ipv6 := range []bool{false, true} {
		server := net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.lab.Node("server").Addr(ipv6), 4433))
		var conn *net.UDPConn
		if err := f.lab.Node("client").Do(func() (err error) { conn, err = net.DialUDP("udp", nil, server); return err }); err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		hearing(t, conn, ipv6)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		traced := make(chan *trace.Trace, 1)
		go func() {
			tr, err := f.tracer.TraceConn(ctx, conn)
			if err != nil {
				t.Error(err)
			}
			traced <- tr
		}()
		heard := 0
		exchange := func(ttl int) {
			if err := socketOption(conn, ipv6, unix.IP_TTL, unix.IPV6_UNICAST_HOPS, ttl); err != nil {
				t.Error(err)
			}
			b := make([]byte, 9)
			_, sent := conn.Write(b)
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			_, err := conn.Read(b)
			for _, err := range []error{sent, err} {
				if errors.Is(err, unix.EHOSTUNREACH) {
					heard++
				} else if err != nil && ttl == 64 {
					t.Errorf("the application got %v", err)
				}
			}
		}
		var tr *trace.Trace
		for tr == nil {
			exchange(64)
			select {
			case tr = <-traced:
			case <-time.After(20 * time.Millisecond):
			}
		}
		exchange(64)
		if tr.Stop != trace.StopFence || len(tr.Hops) != 4 || heard > 0 {
			t.Errorf("heard of %d errors: %s", heard, describe(tr))
		}
		for range 2 { // the second time while the trace is long over
			exchange(2)
		}
		if heard != 2 {
			t.Errorf("the application heard of %d errors about 2 datagrams of its own", heard)
		}
	}
}

// A probe that the rule does not know does not leave.
func TestUDPRecvErrRuleFull(t *testing.T) {
	t.Parallel()
	f := newUDPField(t, openLadder(2))
	if err := f.tracer.FillRule(); err != nil {
		t.Fatal(err)
	}
	before, err := peer.ReadCounters(t.Context(), f.lab.Node("server"))
	if err != nil {
		t.Fatal(err)
	}
	stop := f.watch(servicetraceroute.Selection{
		Protos: []trace.Proto{trace.UDP}, Params: servicetraceroute.Params{UDPProbe: servicetraceroute.UDPAlways},
	})
	all := f.ask(peer.ExchangeConfig{Count: 20, Size: 200, Every: 50 * time.Millisecond, Socket: peer.Socket{RecvErr: true}}, false, 1)
	got := stop()
	f.undisturbed(all, before)
	if s := got.stats.Probes; s.Sent != 0 || s.Failed == 0 || len(got.traces) != 1 || len(f.truth().Sent(observe.Flow{Proto: 17, Src: all[0].Local, Dst: all[0].Remote}, 40)) > 0 {
		t.Errorf("%+v, %v", s, got.traces)
	}
}

// Answers that are under way when a tracer is closed do not reach the application either.
func TestUDPRecvErrClose(t *testing.T) {
	t.Parallel()
	n := scenario.Network{Name: "far", Nodes: []scenario.Node{
		{Name: "client", Kind: scenario.Host}, {Name: "r1", Kind: scenario.Router}, {Name: "r2", Kind: scenario.Router},
		{Name: "r3", Kind: scenario.Router}, {Name: "server", Kind: scenario.Host},
	}}
	for i := range len(n.Nodes) - 1 {
		n.Links = append(n.Links, scenario.Link{A: n.Nodes[i].Name, B: n.Nodes[i+1].Name})
	}
	n.Links[0].Delay = 100 * time.Millisecond
	f := newUDPField(t, n)
	server := net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.lab.Node("server").Addr(false), 4433))
	var conn *net.UDPConn
	if err := f.lab.Node("client").Do(func() (err error) { conn, err = net.DialUDP("udp", nil, server); return err }); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	hearing(t, conn, false)
	traced := make(chan struct{})
	go func() {
		defer close(traced)
		if _, err := f.tracer.TraceConn(t.Context(), conn); err != nil {
			t.Error(err)
		}
	}()
	exchange := func() {
		b := make([]byte, 100)
		_, sent := conn.Write(b)
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Read(b); err != nil || sent != nil {
			t.Errorf("the application got %v, %v", sent, err)
		}
	}
	for sent := uint64(0); sent == 0; sent = f.tracer.Stats().Probes.Sent {
		exchange()
		time.Sleep(20 * time.Millisecond) // a probe follows an answer at once
	}
	if err := f.tracer.Close(); err != nil {
		t.Error(err)
	}
	<-traced
	for range 3 {
		exchange()
	}
	if n := dropRules(t, f.lab.Node("client")); n != 0 {
		t.Errorf("%d rules are left", n)
	}
}

// A gateway's tracer hides the errors about its probes from the hosts behind it: they are
// dropped before they could be translated and forwarded.
func TestUDPBehindGateway(t *testing.T) {
	t.Parallel()
	n := scenario.Network{Name: "gateway", Nodes: []scenario.Node{
		{Name: "lan", Kind: scenario.Host}, {Name: "client", Kind: scenario.Router, NAT: &scenario.NAT{Outside: "client-r1", IPv6: true}},
		{Name: "r1", Kind: scenario.Router}, {Name: "r2", Kind: scenario.Router}, {Name: "r3", Kind: scenario.Router},
		{Name: "server", Kind: scenario.Host},
	}}
	for i := range len(n.Nodes) - 1 {
		n.Links = append(n.Links, scenario.Link{A: n.Nodes[i].Name, B: n.Nodes[i+1].Name})
	}
	f := newUDPField(t, n)
	for _, ipv6 := range []bool{false, true} {
		withheld := f.tracer.Stats().Replies.Withheld
		stop := f.watch(servicetraceroute.Selection{
			Protos: []trace.Proto{trace.UDP}, Params: servicetraceroute.Params{UDPProbe: servicetraceroute.UDPAlways},
			Directions: []trace.Direction{trace.Transit},
		})
		x, err := peer.RunExchange(t.Context(), f.lab.Node("lan"), peer.ExchangeConfig{
			Server: netip.AddrPortFrom(f.lab.Node("server").Addr(ipv6), 4433), Count: 30, Size: 200, Every: 50 * time.Millisecond,
			Socket: peer.Socket{RecvErr: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		if x.Answered != x.Sent || x.RecvErrorCount+x.SendErrorCount > 0 {
			t.Errorf("%d of %d answered, errors %v %v", x.Answered, x.Sent, x.SendErrors, x.RecvErrors)
		}
		got := stop()
		got.traces = slices.DeleteFunc(got.traces, func(tr *trace.Trace) bool { return tr.Flow.Dst.Addr().Is6() != ipv6 })
		if len(got.traces) != 1 || got.traces[0].Stop != trace.StopFence || len(got.traces[0].Hops) != 2 {
			t.Fatal(got.traces)
		}
		if n := got.stats.Replies.Withheld - withheld; n == 0 {
			t.Error("no error was withheld")
		}
		wire := *got.traces[0]
		wire.Flow.FlowKey = wire.Flow.Wire()
		t.Log(f.judge(f.truth(), []*trace.Trace{&wire}))
		for _, h := range got.traces[0].Hops {
			if len(h.Replies) == 0 {
				t.Errorf("TTL %d is silent: %s", h.TTL, describe(got.traces[0]))
			}
		}
	}
}

// Questions and answers are probed only where that was asked for: a policy, or
// TraceConn, which names the very flow.
func TestUDPAsked(t *testing.T) {
	t.Parallel()
	f := newUDPField(t, openLadder(2))
	stop := f.watch(servicetraceroute.Selection{Protos: []trace.Proto{trace.UDP}})
	f.ask(peer.ExchangeConfig{Count: 10, Size: 60, Every: 50 * time.Millisecond}, false, 1)
	got := stop()
	if len(got.traces) != 1 || got.traces[0].Reason != trace.ReasonProtocol || got.stats.Probes.Sent != 0 {
		t.Errorf("%+v, %d probes", got.traces, got.stats.Probes.Sent)
	}
	server := net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.lab.Node("server").Addr(false), 4433))
	var conn *net.UDPConn
	if err := f.lab.Node("client").Do(func() (err error) { conn, err = net.DialUDP("udp", nil, server); return err }); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	chatting := make(chan struct{})
	go func() {
		defer close(chatting)
		b := make([]byte, 100)
		for ctx.Err() == nil {
			_, _ = conn.Write(b)
			_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if _, err := conn.Read(b); err != nil && ctx.Err() == nil {
				t.Errorf("the application got %v", err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	tr, err := f.tracer.TraceConn(ctx, conn)
	cancel()
	<-chatting
	if err != nil || tr.Stop != trace.StopFence || len(tr.Hops) != 4 {
		t.Fatalf("%v %v", err, tr)
	}
	f.judge(f.truth(), []*trace.Trace{tr})
}
