package servicetraceroute_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"servicetraceroute"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/trace"
)

// house is a host that a container lives on, behind a router and before a server:
//
//	container 10.88.0.2 -- veth -- [br0 10.88.0.1  host  192.0.2.1] -- router -- server 198.51.100.1
type house struct {
	container, host, router, server *nstest.NS
}

var serverAddr = netip.MustParseAddrPort("198.51.100.1:443")

func newHouse(t *testing.T) *house {
	t.Helper()
	labtest.Require(t)
	h := &house{nstest.New(t), nstest.New(t), nstest.New(t), nstest.New(t)}
	nstest.Veth(t, nstest.End{NS: h.container, Name: "eth0", Addrs: []string{"10.88.0.2/24"}}, nstest.End{NS: h.host, Name: "vethc"})
	nstest.Veth(t, nstest.End{NS: h.host, Name: "eth0", Addrs: []string{"192.0.2.1/24"}},
		nstest.End{NS: h.router, Name: "eth0", Addrs: []string{"192.0.2.254/24"}})
	nstest.Veth(t, nstest.End{NS: h.router, Name: "eth1", Addrs: []string{"198.51.100.254/24"}},
		nstest.End{NS: h.server, Name: "eth0", Addrs: []string{"198.51.100.1/24"}})
	h.host.Must(t, func() error { return bridge("br0", "10.88.0.1/24", "vethc") })
	h.container.Route(t, "0.0.0.0/0", "10.88.0.1")
	h.host.Route(t, "0.0.0.0/0", "192.0.2.254")
	h.router.Route(t, "10.88.0.0/24", "192.0.2.1")
	h.server.Route(t, "0.0.0.0/0", "198.51.100.254")
	for _, n := range []*nstest.NS{h.host, h.router} {
		n.Sysctl(t, "net/ipv4/ip_forward", "1")
	}
	echoes(t, h.server, serverAddr)
	return h
}

// bridge makes a bridge of the calling thread's namespace out of ports.
func bridge(name, addr string, ports ...string) error {
	return enslave(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}, addr, ports...)
}

func enslave(master netlink.Link, addr string, ports ...string) error {
	if err := netlink.LinkAdd(master); err != nil {
		return fmt.Errorf("%s %s: %w", master.Type(), master.Attrs().Name, err)
	}
	for _, name := range ports {
		port, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if master.Type() == "bond" { // takes only what is down
			if err := netlink.LinkSetDown(port); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetMaster(port, master); err != nil {
			return fmt.Errorf("%s into %s: %w", name, master.Attrs().Name, err)
		}
		if err := netlink.LinkSetUp(port); err != nil {
			return err
		}
	}
	if err := nstest.OffloadsOff(master.Attrs().Name); err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(master, a); err != nil {
		return err
	}
	return netlink.LinkSetUp(master)
}

// echoes serves until the test ends.
func echoes(t *testing.T, n *nstest.NS, at netip.AddrPort) {
	t.Helper()
	var l net.Listener
	n.Must(t, func() (err error) { l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); return err })
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
}

// talk opens a connection in a namespace and keeps asking until the test ends. It
// returns the connection's own address.
func talk(t *testing.T, n *nstest.NS, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	var c net.Conn
	n.Must(t, func() (err error) { c, err = net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to)); return err })
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 100)
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			time.Sleep(200 * time.Millisecond)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr().(*net.TCPAddr).AddrPort()
}

// seen is what a watch yielded.
type seen struct {
	flows  []*trace.Flow
	traces []*trace.Trace
	stats  *trace.Stats
}

// watchFor watches flows to an address in a namespace for so long.
func watchFor(t *testing.T, cfg servicetraceroute.Config, n *nstest.NS, to netip.Addr, d time.Duration, meanwhile func()) seen {
	t.Helper()
	return selectFor(t, cfg, n, servicetraceroute.Selection{Hosts: []string{to.String()}}, d, meanwhile)
}

// selectFor watches what is selected in a namespace for so long. meanwhile runs once
// the watch is in force.
func selectFor(t *testing.T, cfg servicetraceroute.Config, n *nstest.NS, sel servicetraceroute.Selection, d time.Duration, meanwhile func()) (s seen) {
	t.Helper()
	if n != nil {
		cfg.NetNS = fmt.Sprintf("/proc/self/fd/%d", n.FD())
	}
	cfg.Defaults.Timeout = time.Second
	tracer, err := servicetraceroute.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tracer.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if meanwhile != nil {
		sel.Ready = func() { go meanwhile() }
	}
	for ev, err := range tracer.Watch(ctx, sel) {
		if err != nil {
			t.Fatal(err)
		}
		switch ev := ev.(type) {
		case *trace.Flow:
			s.flows = append(s.flows, ev)
		case *trace.Trace:
			s.traces = append(s.traces, ev)
		case *trace.Stats:
			s.stats = ev
		}
	}
	return s
}

// path is the answering addresses in order.
func path(tr *trace.Trace) string {
	var hops []string
	for _, h := range tr.Hops {
		addr := "*"
		if len(h.Replies) > 0 {
			addr = h.Replies[0].Addr.String()
		}
		hops = append(hops, addr)
	}
	return strings.Join(hops, " ")
}

// one wants exactly one trace of exactly one flow, which reached its destination
// and found neither loss nor harm in it.
func (s seen) one(t *testing.T, wantPath, wantInterface string) *trace.Trace {
	t.Helper()
	if len(s.flows) != 1 || len(s.traces) != 1 {
		t.Fatalf("%d flows, %d traces: %+v %+v", len(s.flows), len(s.traces), s.flows, s.traces)
	}
	tr := s.traces[0]
	if got := path(tr); got != wantPath || !tr.Reached || tr.Stop != trace.StopDestination {
		t.Errorf("path %q, stop %v, want %q: %+v", got, tr.Stop, wantPath, tr)
	}
	if tr.Flow.Interface != wantInterface {
		t.Errorf("followed at %q, want %q", tr.Flow.Interface, wantInterface)
	}
	if tr.Observed.Retransmits != 0 || tr.Impact != (trace.Impact{}) {
		t.Errorf("observed %+v, impact %+v", tr.Observed, tr.Impact)
	}
	return tr
}

// A flow of a container is traced from the host, inside the container's namespace;
// outside it is somebody else's.
func TestNetNS(t *testing.T) {
	h := newHouse(t)
	src := talk(t, h.container, serverAddr)
	s := watchFor(t, servicetraceroute.Config{}, h.container, serverAddr.Addr(), 4*time.Second, nil)
	tr := s.one(t, "10.88.0.1 192.0.2.254 198.51.100.1", "eth0")
	if tr.Flow.Src != src || tr.Flow.NetNS == "" || tr.Flow.Direction != trace.Out {
		t.Errorf("%+v, want source %v", tr.Flow, src)
	}
	// The host forwards it, over a bridge and out: not its own flow, not probed.
	s = watchFor(t, servicetraceroute.Config{}, h.host, serverAddr.Addr(), 2*time.Second, nil)
	if len(s.flows)+len(s.traces) > 0 || s.stats.Probes.Sent > 0 || s.stats.Packets.Seen == 0 {
		t.Errorf("at the host: %+v %+v %+v", s.flows, s.traces, s.stats)
	}
}

func TestNetNSErrors(t *testing.T) {
	labtest.Require(t)
	for _, name := range []string{"no-such-namespace", "/nonexistent", "/etc/passwd"} {
		tracer, err := servicetraceroute.New(servicetraceroute.Config{NetNS: name})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v %v", name, tracer, err)
		}
	}
}

// Translated on the host itself, the flow is traced with the tuple on the wire.
func TestLocalNAT(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	// Another port for what leaves; 203.0.113.9:80 is the server.
	h.host.Must(t, func() error { return translate("eth0", netip.MustParseAddrPort("203.0.113.9:80"), serverAddr) })
	src := talk(t, h.host, netip.MustParseAddrPort("203.0.113.9:80"))
	for name, test := range map[string]struct {
		to   netip.Addr
		want int
	}{"after": {serverAddr.Addr(), 1}, "before": {netip.MustParseAddr("203.0.113.9"), 0}} {
		t.Run(name, func(t *testing.T) {
			s := watchFor(t, servicetraceroute.Config{}, h.host, test.to, 4*time.Second, nil)
			if test.want == 0 {
				if len(s.flows)+len(s.traces) > 0 {
					t.Errorf("a tuple that is on no wire: %+v", s.flows)
				}
				return
			}
			tr := s.one(t, "192.0.2.254 198.51.100.1", "eth0")
			if tr.Flow.Dst != serverAddr || tr.Flow.Src.Port() == src.Port() {
				t.Errorf("tuple %v, the socket's is %v", tr.Flow, src)
			}
			for _, hop := range tr.Hops {
				for _, r := range hop.Replies {
					if len(r.Changes) > 0 {
						t.Errorf("TTL %d: %v", hop.TTL, r.Changes)
					}
				}
			}
		})
	}
	// Asked for by what its socket calls it, the kernel tells how it looks on the wire.
	t.Run("a connection of the program", func(t *testing.T) {
		var conn net.Conn
		h.host.Must(t, func() (err error) { conn, err = net.Dial("tcp", "203.0.113.9:80"); return err })
		defer conn.Close()
		tracer, err := servicetraceroute.New(servicetraceroute.Config{NetNS: fmt.Sprintf("/proc/self/fd/%d", h.host.FD())})
		if err != nil {
			t.Fatal(err)
		}
		defer tracer.Close()
		tr, err := tracer.TraceConn(t.Context(), conn)
		if err != nil {
			t.Fatal(err)
		}
		h.translated(t, tr, addrPortOf(conn.LocalAddr()), addrPortOf(conn.RemoteAddr()), serverAddr)
		if last, ok := tracer.Last(tr.Flow.FlowKey); !ok || last != tr {
			t.Errorf("the last trace of %v: %v", tr.Flow.FlowKey, last)
		}
	})
	byProcess := func(t *testing.T, sel servicetraceroute.Selection) {
		sel.PIDs = []int{os.Getpid()}
		to := netip.MustParseAddrPort("203.0.113.9:80")
		cfg := servicetraceroute.Config{Processes: true}
		before := talk(t, h.host, to)
		var after netip.AddrPort
		opened := make(chan struct{})
		s := selectFor(t, cfg, h.host, sel, 4*time.Second, func() {
			defer close(opened)
			after = talk(t, h.host, to)
		})
		<-opened
		left := map[netip.AddrPort]bool{before: true, after: true}
		if len(sel.Hosts) > 0 { // then a flow that was there before is not asked about
			delete(left, before)
		}
		for _, tr := range s.traces {
			if left[tr.Flow.Src] {
				delete(left, tr.Flow.Src)
				h.translated(t, tr, tr.Flow.Src, to, serverAddr)
			}
		}
		if len(left) > 0 {
			t.Errorf("of %v and %v not traced: %v", before, after, left)
		}
	}
	t.Run("by process", func(t *testing.T) { byProcess(t, servicetraceroute.Selection{}) })
	// The address is the one that the process asked for, which is on no wire.
	t.Run("by process and address", func(t *testing.T) { byProcess(t, servicetraceroute.Selection{Hosts: []string{"203.0.113.9"}}) })
	// A container's flow, masqueraded, looks like the host's own where it leaves, and is
	// none.
	t.Run("container", func(t *testing.T) {
		second := netip.AddrPortFrom(serverAddr.Addr(), 444)
		echoes(t, h.server, second)
		talk(t, h.container, second)
		s := watchFor(t, servicetraceroute.Config{}, h.container, serverAddr.Addr(), 4*time.Second, nil)
		s.one(t, "10.88.0.1 192.0.2.254 198.51.100.1", "eth0")
		s = watchFor(t, servicetraceroute.Config{}, h.host, serverAddr.Addr(), 4*time.Second, nil)
		for _, tr := range s.traces {
			if tr.Flow.Src.Addr().String() != "192.0.2.1" || path(tr) != "192.0.2.254 198.51.100.1" || tr.Flow.Interface != "eth0" {
				t.Errorf("at the host: %v, path %q", tr, path(tr))
			}
		}
		if len(s.traces) != 1 {
			t.Errorf("at the host: %d traces, want its own flow's", len(s.traces))
		}
		s = selectFor(t, servicetraceroute.Config{}, h.host, servicetraceroute.Selection{
			Hosts: []string{serverAddr.Addr().String()}, Directions: []trace.Direction{trace.Transit},
		}, 3*time.Second, nil)
		if len(s.traces) != 1 {
			t.Fatalf("at the host: %d traces, want the container's flow's", len(s.traces))
		}
		// The server is too near for a probe that certainly does not come there.
		tr := s.traces[0]
		if tr.Flow.Src.Addr().String() != "10.88.0.2" || tr.Flow.Wire().Src.Addr().String() != "192.0.2.1" || tr.Flow.Interface != "eth0" || tr.Stop != trace.StopFence || len(tr.Hops) > 0 {
			t.Errorf("at the host: %v, path %q", tr, path(tr))
		}
	})
}

// translated checks the trace of a flow that its socket calls src to dst, and that
// leaves for wire.
func (h *house) translated(t *testing.T, tr *trace.Trace, src, dst, wire netip.AddrPort) {
	t.Helper()
	f := tr.Flow
	if f.Src != src || f.Dst != dst || f.NAT == nil || f.NAT.Dst != wire || f.NAT.Src.Port() == src.Port() {
		t.Errorf("%v, on the wire %v; want %v to %v, on the wire to %v", f.FlowKey, f.NAT, src, dst, wire)
	}
	if path(tr) != "192.0.2.254 198.51.100.1" || !tr.Reached || tr.Service == nil {
		t.Errorf("path %q, stop %v, service %v", path(tr), tr.Stop, tr.Service)
	}
}

func addrPortOf(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

// translate sets up source and destination translation of what this host sends, in
// the calling thread's namespace:
//
//	chain output { type nat hook output; ip daddr FROM dnat to TO }
//	chain postrouting { type nat hook postrouting; oifname OUT masquerade fully-random }
func translate(out string, from, to netip.AddrPort) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Name: "guest", Family: nftables.TableFamilyIPv4})
	output := conn.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput,
		Priority: nftables.ChainPriorityNATDest,
	})
	dst := from.Addr().As4()
	conn.AddRule(&nftables.Rule{Table: table, Chain: output, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: dst[:]},
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: []byte{byte(to.Port() >> 8), byte(to.Port())}},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(nftables.TableFamilyIPv4), RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	}})
	post := conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityNATSource,
	})
	name := make([]byte, 16)
	copy(name, out)
	conn.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		&expr.Masq{FullyRandom: true},
	}})
	return conn.Flush()
}
