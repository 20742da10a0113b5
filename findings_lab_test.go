//go:build linux

package servicetraceroute_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"servicetraceroute"
	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// spot is where a finding has to be.
type spot struct {
	kind      trace.FindingKind
	from, ttl int
	value     string // contained in the finding's
}

// looks is how often a kind is looked for in each family: some flows at once, several times.
type looks struct {
	rounds, flows int
	pause         time.Duration // between two rounds
	sel           servicetraceroute.Selection
	bytes         int    // of each message
	families      []bool // whether IPv6
	during        func() // what happens when the flows of a round are open
	// missed reports whether that happened at a time when the trace could not see it.
	missed func(*trace.Trace) bool
}

// usual is twice, or fifty times where all is wanted.
func usual() looks {
	l := looks{rounds: 1, flows: 2, bytes: 200, families: []bool{false, true}}
	if full() {
		l.rounds, l.flows = 25, 2
	}
	return l
}

// oneByOne is the same with one flow at a time.
func oneByOne() looks {
	l := usual()
	l.rounds, l.flows = l.rounds*l.flows, 1
	return l
}

// boxField is a lab without offloads, so that rules which rewrite find whole checksums.
func boxField(t *testing.T, n scenario.Network) *field {
	t.Helper()
	f := &field{t: t, lab: labtest.StartWith(t, n, lab.Options{NoOffload: true})}
	f.tracer = f.open(servicetraceroute.Config{})
	return f
}

// look traces flows of each family and holds what is found against what is there: that, and
// nothing else. The flows live until they are traced.
func (f *field) look(t *testing.T, l looks, want ...spot) {
	t.Helper()
	missed := 0
	for round := 0; round < l.rounds; round++ {
		if round > 0 {
			time.Sleep(l.pause)
		}
		got := f.traced(t, l)
		if l.missed != nil && slices.ContainsFunc(got.traces, l.missed) {
			if missed++; missed > l.rounds/5+3 {
				t.Fatalf("round %d: missed %d times", round, missed)
			}
			round--
			continue
		}
		if flows := len(l.families) * l.flows; len(got.traces) != flows {
			t.Errorf("round %d: %d traces of %d flows", round, len(got.traces), flows)
		}
		for _, tr := range got.traces {
			if mine := got.about(tr); !agree(mine, want) {
				t.Errorf("round %d: want %v, got %s\n%s", round, want, told(mine), describe(tr))
			}
		}
	}
}

// traced opens one round of flows and returns what was found in them.
func (f *field) traced(t *testing.T, l looks) found {
	t.Helper()
	talk, end := context.WithTimeout(t.Context(), 15*time.Second)
	defer end()
	past, traces := f.past, 0
	// What the tracer has still to read may be the last packets of the round before.
	old := func(tr *trace.Trace) bool { return slices.Contains(past, tr.Flow.Src) }
	stop := f.watchEach(l.sel, func(ev trace.Event) {
		if tr, ok := ev.(*trace.Trace); ok && !old(tr) {
			if traces++; traces == len(l.families)*l.flows {
				end()
			}
		}
	})
	f.past = nil
	var wg sync.WaitGroup
	for range l.flows {
		for _, ipv6 := range l.families {
			p := f.connect(ipv6, nil)
			f.past = append(f.past, p.client.LocalAddr().(*net.TCPAddr).AddrPort())
			wg.Go(func() { p.say(talk, l.bytes) })
		}
	}
	if l.during != nil {
		l.during()
	}
	wg.Wait()
	got := stop()
	got.traces = slices.DeleteFunc(got.traces, old)
	return got
}

// watchEach is watch with a function for each record as it comes.
func (f *field) watchEach(sel servicetraceroute.Selection, each func(trace.Event)) (stop func() found) {
	sel.Hosts = []string{f.known(false).String(), f.known(true).String()}
	return collectEach(f.t, f.tracer, sel, each)
}

// say exchanges messages of a size until the context ends.
func (p pipe) say(ctx context.Context, size int) {
	defer func() { _, _ = p.client.Close(), p.server.Close() }()
	go func() { _, _ = io.Copy(p.server, p.server) }()
	message := make([]byte, size)
	for ctx.Err() == nil {
		_ = p.client.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := p.client.Write(message); err != nil {
			return
		}
		if _, err := io.ReadFull(p.client, message); err != nil {
			return
		}
		time.Sleep(30 * time.Millisecond)
	}
}

// about returns the findings of a trace.
func (f found) about(tr *trace.Trace) []*trace.Finding {
	return slices.DeleteFunc(slices.Clone(f.findings), func(x *trace.Finding) bool { return x.Trace != tr.ID })
}

func agree(got []*trace.Finding, want []spot) bool {
	return len(got) == len(want) && !slices.ContainsFunc(want, func(w spot) bool {
		return !slices.ContainsFunc(got, func(f *trace.Finding) bool {
			return f.Kind == w.kind && f.TTLFrom == w.from && f.TTL == w.ttl && strings.Contains(f.Value, w.value) && f.Confidence > 0.5
		})
	})
}

func told(all []*trace.Finding) string {
	var s strings.Builder
	for _, f := range all {
		fmt.Fprintf(&s, "\n  %v between %d and %d: %s %q (%.2f)", f.Kind, f.TTLFrom, f.TTL, f.Value, f.Evidence, f.Confidence)
	}
	return s.String()
}

// TestFindings makes a box of each kind of a router in the midst of a path and looks whether
// what it does is found, at its place, and nothing where it does nothing. The box is r2: what it
// changes on the way out the router at TTL 3 sees first, what it changes on the way in it
// sees itself.
func TestFindings(t *testing.T) {
	t.Parallel()
	f := boxField(t, chain(6))
	both := func(t *testing.T, rules func(b box) map[hook][][]expr.Any) {
		for _, ipv6 := range []bool{false, true} {
			b := box{f, "r2", ipv6}
			t.Cleanup(b.rules(t, rules(b)))
		}
	}
	t.Run("clean", func(t *testing.T) { f.look(t, usual()) })
	t.Run("nat-src", func(t *testing.T) {
		both(t, translating)
		f.look(t, usual(), spot{trace.NATSrc, 2, 3, " became "})
	})
	t.Run("nat-port", func(t *testing.T) {
		both(t, func(box) map[hook][][]expr.Any {
			keep, flip := []byte{0xff, 0xff}, []byte{0x01, 0x00}
			return map[hook][][]expr.Any{
				leaving:  {toServer(port(true).change(keep, flip)...)},
				arriving: {toClient(port(false).change(keep, flip)...)},
			}
		})
		f.look(t, usual(), spot{trace.NATPort, 2, 3, "source "})
	})
	t.Run("dscp-changed", func(t *testing.T) {
		both(t, func(b box) map[hook][][]expr.Any {
			return map[hook][][]expr.Any{leaving: {toServer(b.setTOS(3, 46<<2)...)}}
		})
		f.look(t, usual(), spot{trace.DSCPChanged, 2, 3, "0 became 46"})
	})
	t.Run("dscp-changed on the way in", func(t *testing.T) {
		both(t, func(b box) map[hook][][]expr.Any {
			return map[hook][][]expr.Any{arriving: {toServer(b.setTOS(3, 10<<2)...)}}
		})
		f.look(t, usual(), spot{trace.DSCPChanged, 1, 2, "0 became 10"})
	})
	t.Run("ecn-set", func(t *testing.T) {
		both(t, func(b box) map[hook][][]expr.Any {
			return map[hook][][]expr.Any{leaving: {toServer(b.setTOS(0xfc, 3)...)}}
		})
		f.look(t, usual(), spot{trace.ECNSet, 2, 3, "CE"})
	})
	t.Run("ttl-mangled", func(t *testing.T) {
		both(t, func(b box) map[hook][][]expr.Any { return map[hook][][]expr.Any{leaving: {toServer(b.raise(3)...)}} })
		f.look(t, usual(), spot{trace.TTLMangled, 2, 3, "answers at TTL 3 to 5"})
	})
	t.Run("mpls, interface", func(t *testing.T) {
		both(t, func(b box) map[hook][][]expr.Any {
			return map[hook][][]expr.Any{own: {append(b.exceeded(), &expr.Verdict{Kind: expr.VerdictDrop})}}
		})
		for _, ipv6 := range []bool{false, true} {
			newAnswerer(t, box{f, "r2", ipv6})
		}
		f.look(t, usual(), spot{trace.MPLS, 1, 2, "label 16001 TC 0 TTL 1"}, spot{trace.InterfaceInfo, 1, 2, "in, index 7, name ge-0/0/1, MTU 9000"})
	})
}

// translating gives flows the address of r2 towards r3, and takes it back, in headers alone.
func translating(b box) map[hook][][]expr.Any {
	outside, client := b.addr("r2", "r3").AsSlice(), b.f.lab.Node("client").Addr(b.ipv6).AsSlice()
	at, icmp, sum := uint32(16), byte(unix.IPPROTO_ICMP), uint32(2)
	if b.ipv6 {
		at, icmp = 24, unix.IPPROTO_ICMPV6
	}
	back := func(match []expr.Any, checksum uint32) []expr.Any {
		return slices.Concat(match, is(network, at, outside), b.address(false, checksum).set(client))
	}
	return map[hook][][]expr.Any{
		leaving:  {toServer(b.address(true, 16).set(outside)...)},
		arriving: {back(toClient(), 16), back(protocol(icmp), sum)},
	}
}

// answerer answers in a router's place, with what routers may say of themselves: a label stack
// (RFC 4950), and the interface by which the packet came (RFC 5837).
type answerer struct {
	box
	ring *capture.Ring
	fd   int
	to   unix.SockaddrLinklayer
}

func newAnswerer(t *testing.T, b box) {
	t.Helper()
	a := &answerer{box: b}
	proto := uint16(unix.ETH_P_IP)
	if b.ipv6 {
		proto = unix.ETH_P_IPV6
	}
	a.to.Protocol = proto<<8 | proto>>8
	err := b.f.lab.Node(b.node).Do(func() (err error) {
		if a.ring, err = capture.Open(capture.Config{}); err != nil {
			return err
		}
		a.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); a.answer() }()
	t.Cleanup(func() {
		_ = a.ring.Close()
		<-done
		_ = unix.Close(a.fd)
	})
}

var extensions = []byte{
	0x20, 0, 0, 0,
	0, 8, 1, 1, 0x03, 0xe8, 0x11, 1, // label 16001, bottom, TTL 1
	0, 24, 2, 0x0b, 0, 0, 0, 7, 12, 'g', 'e', '-', '0', '/', '0', '/', '1', 0, 0, 0, 0, 0, 0x23, 0x28,
}

// answer runs until the ring is closed.
func (a *answerer) answer() {
	client := a.f.lab.Node("client").Addr(a.ipv6)
	from, typ := a.addr(a.node, "r1"), uint8(11)
	if a.ipv6 {
		typ = 3
	}
	var ip wire.Packet
	for {
		batch, err := a.ring.ReadBatch()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return
		}
		for i := range batch {
			p := &batch[i]
			switch {
			case ip.Decode(p.Data, p.Len) != nil || ip.Proto != unix.IPPROTO_TCP:
			case p.Direction == capture.Outgoing && ip.Dst == client && p.NextHopKnown:
				a.to.Ifindex, a.to.Halen, a.to.Addr = p.Interface, p.NextHop.Len, p.NextHop.Addr
			case p.Direction == capture.Incoming && ip.Src == client && ip.TTL == 1 && a.to.Ifindex != 0:
				e := wire.ICMPError{Src: from, Dst: client, TTL: 64, Type: typ, Quote: p.Data, Extensions: extensions}
				_ = unix.Sendto(a.fd, e.AppendTo(nil), 0, &a.to)
			}
		}
	}
}

// TestFindingsMTU: a link of less room. Routers tell the client, who learns and goes on; for
// the next flow it has forgotten.
func TestFindingsMTU(t *testing.T) {
	t.Parallel()
	n := chain(4)
	n.Links[3].MTU = 1300 // behind r3
	f := boxField(t, n)
	l := oneByOne()
	l.bytes, l.pause = 5000, 1500*time.Millisecond
	// The kernel shows IPv6's only where the network belongs to the initial user namespace.
	names := []string{"net.ipv4.route.mtu_expires", "net.ipv6.route.mtu_expires"}
	if _, err := os.Stat("/proc/sys/net/ipv6/route/mtu_expires"); err != nil {
		names, l.families = names[:1], []bool{false}
	}
	for _, name := range names {
		for _, end := range []string{"client", "server"} { // which learns, too, and says so in its SYN
			if err := f.lab.Node(end).Sysctl(t.Context(), name, "1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	f.look(t, l, spot{trace.MTU, 2, 3, "1300"})
	if len(l.families) < 2 {
		nstest.Skip(t, "IPv6, whose MTUs are not forgotten here: needs root")
	}
}

// TestFindingsWays: ways that are not one line.
func TestFindingsWays(t *testing.T) {
	t.Parallel()
	t.Run("per-packet-lb", func(t *testing.T) {
		t.Parallel()
		f := boxField(t, diamond(2))
		for _, ipv6 := range []bool{false, true} {
			b := box{f, "r1", ipv6}
			b.detour(t, "mb", func(r *netlink.Rule) { r.Mark = 1 })
			t.Cleanup(b.rules(t, map[hook][][]expr.Any{arriving: {toServer(mark()...)}}))
		}
		l := oneByOne()
		// The default algorithm asks once where it is answered. That of sixteen packets that draw lots
		// all those of one way come first happens in 5 of 10,000 runs, of ten packets in 2 of 100.
		l.sel.Params = servicetraceroute.Params{Algorithm: trace.Concurrent, Probes: 16}
		f.look(t, l, spot{trace.PerPacketLB, 1, 2, ", "})
	})
	t.Run("asymmetric-return", func(t *testing.T) {
		t.Parallel()
		n := chain(4)
		n.Links[2].CostBA = 10 // r3 to r2
		for _, name := range []string{"x", "y"} {
			n.Nodes = append(n.Nodes, scenario.Node{Name: name, Kind: scenario.Router})
		}
		n.Links = append(n.Links, scenario.Link{A: "r3", B: "x", CostBA: 10, CostAB: 1}, scenario.Link{A: "x", B: "y", CostAB: 1, CostBA: 10}, scenario.Link{A: "y", B: "r2", CostAB: 1, CostBA: 10})
		f := boxField(t, n)
		f.look(t, usual(), spot{trace.AsymmetricReturn, 2, 3, "longer: TTL 3 there, 5 back"})
	})
	t.Run("loop", func(t *testing.T) {
		t.Parallel()
		n := chain(3)
		n.Nodes = append(n.Nodes, scenario.Node{Name: "a", Kind: scenario.Router})
		n.Links = append(n.Links, scenario.Link{A: "r1", B: "a"})
		f := boxField(t, n)
		if err := f.lab.Node("r1").Sysctl(t.Context(), "net.ipv4.icmp_errors_use_inbound_ifaddr", "0"); err != nil {
			t.Fatal(err)
		}
		b := box{f, "r1", false}
		b.detour(t, "a", func(r *netlink.Rule) { r.IifName = b.iface("r1", "client") })
		l := usual()
		l.families = []bool{false} // over IPv6 Linux answers with the address of the way in, each time another
		// By there twice, and back once: the way back is shorter from there on.
		f.look(t, l, spot{trace.Loop, 2, 3, ""}, spot{trace.AsymmetricReturn, 2, 3, "shorter"})
	})
}

// diamond is client, r1, two routers side by side of which one is preferred, r2, server.
func diamond(cost int) scenario.Network {
	n := scenario.Network{Name: "diamond", Nodes: []scenario.Node{{Name: "client", Kind: scenario.Host}}}
	for _, name := range []string{"r1", "ma", "mb", "r2"} {
		n.Nodes = append(n.Nodes, scenario.Node{Name: name, Kind: scenario.Router})
	}
	n.Nodes = append(n.Nodes, scenario.Node{Name: "server", Kind: scenario.Host})
	n.Links = []scenario.Link{
		{A: "client", B: "r1"}, {A: "r1", B: "ma"}, {A: "r1", B: "mb", CostAB: cost, CostBA: cost}, {A: "ma", B: "r2"},
		{A: "mb", B: "r2", CostAB: 1, CostBA: cost}, {A: "r2", B: "server"},
	}
	return n
}
