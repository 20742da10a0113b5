//go:build linux

package servicetraceroute_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"servicetraceroute"
	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/observe"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/selftest"
	"servicetraceroute/trace"
)

// pipe is a TCP connection whose two ends, in different namespaces, both belong to
// the test.
type pipe struct{ client, server *net.TCPConn }

// connect opens one to the server's port 443. control may set the client's socket
// up before it connects.
func (f *field) connect(ipv6 bool, control func(fd int) error) pipe {
	f.t.Helper()
	return f.connectTo(nil, ipv6, control)
}

// connectTo is connect with a hand in the server's socket before it listens.
func (f *field) connectTo(listening func(fd int) error, ipv6 bool, dialling func(fd int) error) pipe {
	f.t.Helper()
	server := f.lab.Node("server")
	at := netip.AddrPortFrom(server.Addr(ipv6), 443).String()
	var ln net.Listener
	err := server.Do(func() (err error) {
		l := net.ListenConfig{Control: onSocket(listening)}
		ln, err = l.Listen(f.t.Context(), "tcp", at)
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	defer unlisten(ln)
	d := net.Dialer{Timeout: 5 * time.Second, Control: onSocket(dialling)}
	var p pipe
	err = f.lab.Node("client").Do(func() error {
		c, err := d.Dial("tcp", netip.AddrPortFrom(f.known(ipv6), 443).String())
		if err == nil {
			p.client = c.(*net.TCPConn)
		}
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		f.t.Fatal(err)
	}
	p.server = c.(*net.TCPConn)
	f.t.Cleanup(func() { _, _ = p.client.Close(), p.server.Close() })
	return p
}

// unlisten closes a listener so that its port is free when it returns. Close alone leaves it
// listening as long as a child has the descriptor too, from fork to exec: when labs start beside
// this one, for as long as their namespaces take to make.
func unlisten(ln net.Listener) {
	if raw, err := ln.(*net.TCPListener).SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RD) })
	}
	_ = ln.Close()
}

// onSocket makes of a function on a descriptor what package net wants.
func onSocket(do func(fd int) error) func(_, _ string, raw syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			if do != nil {
				failed = do(int(fd))
			}
		})
		return errors.Join(err, failed)
	}
}

// talk exchanges messages until the context ends or an end does.
func (p pipe) talk(ctx context.Context) {
	go func() { _, _ = io.Copy(p.server, p.server) }()
	message := make([]byte, 1000)
	for ctx.Err() == nil {
		_ = p.client.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := p.client.Write(message); err != nil {
			return
		}
		if _, err := io.ReadFull(p.client, message); err != nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// badDay is something that happens to a flow on a lab of its kind.
type badDay struct {
	name   string
	life   func(f *field, t *testing.T, ipv6 bool) // of the flow
	stops  []trace.Stop
	hops   int // routers that answer, at least
	within time.Duration
	// tries is how often it may be tried again while the machine stalls: of a flow that
	// lives some milliseconds a trace then sees too little.
	tries int
	// twin lets the same happen without probes, too. A transfer that stops probes for
	// loss and for its window by itself, which in a record looks like harm of ours.
	twin  bool
	moves []string // counters of the server that show that the day was bad
	wraps bool     // the sequence numbers do while probes are sent
}

// TestAdversity runs bad days on one network of real kernels, over both families. One
// of its routers is silent, so that a trace takes some seconds.
func TestAdversity(t *testing.T) {
	t.Parallel()
	none := scenario.ICMPLimit{}
	f := newBareField(t, changed(ladder(2, none), silence, "r1"), servicetraceroute.Config{})
	dropInvalid(t, f.lab.Node("client"))
	maybe := []trace.Stop{trace.StopDestination, trace.StopUnknown, trace.StopFlowClosed}
	for _, d := range []badDay{
		{
			name: "a local firewall drops what is invalid", stops: []trace.Stop{trace.StopDestination}, hops: 4, within: 6 * time.Second,
			life: func(f *field, t *testing.T, ipv6 bool) { f.connect(ipv6, nil).talkFor(t, 5*time.Second) },
		},
		{
			// After five messages, a quarter of a second: probes lie up to 4096 below what is
			// acknowledged, and a silent hop is asked again after half a second.
			name: "sequence numbers wrap", stops: []trace.Stop{trace.StopDestination}, hops: 4, within: 6 * time.Second, wraps: true,
			life: func(f *field, t *testing.T, ipv6 bool) {
				f.connect(ipv6, startAt(0xffffffff-5_000)).talkFor(t, 5*time.Second)
			},
		},
		{
			name: "sequence numbers wrap in a transfer", stops: maybe, hops: 4, within: 10 * time.Second, twin: true,
			life: func(f *field, t *testing.T, ipv6 bool) {
				f.connectTo(smallBuffer, ipv6, startAt(0xffffffff-100_000)).transfer(t, 2_000_000, 3*time.Second)
			},
		},
		{
			name: "a reader that stops", stops: maybe, hops: 4, within: 12 * time.Second, twin: true,
			moves: []string{"TcpExt.TCPToZeroWindowAdv", "TcpExt.TCPFromZeroWindowAdv"},
			life: func(f *field, t *testing.T, ipv6 bool) {
				f.connectTo(smallBuffer, ipv6, nil).transfer(t, 8_000_000, 4*time.Second)
			},
		},
		{
			name: "half-close", stops: []trace.Stop{trace.StopFlowClosed}, hops: 4, within: 3 * time.Second,
			life: func(f *field, t *testing.T, ipv6 bool) {
				p := f.connect(ipv6, nil)
				p.exchange(t)
				time.Sleep(100 * time.Millisecond)
				if err := p.client.CloseWrite(); err != nil {
					t.Error(err)
				}
				for range 20 { // the server goes on
					if _, err := p.server.Write(make([]byte, 1000)); err != nil {
						t.Error(err)
					}
					time.Sleep(50 * time.Millisecond)
				}
				p.server.Close()
				if n, err := io.Copy(io.Discard, p.client); n != 20_000 || err != nil {
					t.Errorf("%d bytes, %v", n, err)
				}
			},
		},
		{
			name: "a reset", stops: []trace.Stop{trace.StopFlowClosed}, hops: 4, within: 3 * time.Second,
			life: func(f *field, t *testing.T, ipv6 bool) {
				p := f.connect(ipv6, nil)
				p.exchange(t)
				time.Sleep(200 * time.Millisecond)
				_ = p.server.SetLinger(0)
				p.server.Close()
				time.Sleep(200 * time.Millisecond)
			},
		},
		{
			name: "a flow of 20 ms", stops: []trace.Stop{trace.StopFlowClosed}, hops: 4, within: time.Second, tries: 5,
			life: func(f *field, t *testing.T, ipv6 bool) {
				p := f.connect(ipv6, nil)
				p.exchange(t)
				time.Sleep(20 * time.Millisecond)
				p.client.Close()
				time.Sleep(200 * time.Millisecond)
			},
		},
	} {
		for _, ipv6 := range []bool{false, true} {
			t.Run(d.name+map[bool]string{false: "/IPv4", true: "/IPv6"}[ipv6], func(t *testing.T) { d.run(f, t, ipv6) })
		}
	}
	t.Run("what the local firewall dropped", func(t *testing.T) {
		if n := invalidDropped(t, f.lab.Node("client")); n != 0 {
			t.Errorf("%d packets", n)
		}
		for _, ipv6 := range []bool{false, true} {
			f.firewallDrops(t, ipv6)
		}
	})
}

func (d badDay) run(f *field, t *testing.T, ipv6 bool) {
	f.t = t
	o := d.live(f, ipv6, true)
	for range d.tries {
		if answering(o.traces[0]) >= d.hops || o.stall < shortStall {
			break
		}
		o = d.live(f, ipv6, true)
	}
	tr := o.traces[0]
	if !slices.Contains(d.stops, tr.Stop) || answering(tr) < d.hops || tr.End.Sub(tr.Start) > d.within {
		t.Errorf("want %v, %d routers, within %v: %v", d.stops, d.hops, d.within, describe(tr))
	}
	const server = 1
	for _, name := range d.moves {
		if o.moved[server][name] <= 0 {
			t.Errorf("%s did not move at the server", name)
		}
	}
	below, above, late := f.probes(tr)
	if d.wraps && (below == 0 || above == 0) {
		t.Errorf("%d probes below the wrap, %d above", below, above)
	}
	if late > 0 {
		t.Errorf("%d probes after the end", late)
	}
	if d.twin {
		d.compare(f, ipv6, o)
	}
	switch i := tr.Impact; {
	case o.sum(peer.Jitter)["TcpExt.TCPLossProbes"] > 0: // looks like harm
	case i.DupAcks+i.Retransmits > 0 || i.Aborted && d.name != "a reset":
		t.Errorf("impact %+v", i)
	}
	if n := o.moved[server]["Tcp.OutRsts"]; n > 0 && d.name != "a reset" {
		t.Errorf("the server sent %d resets", n)
	}
	t.Logf("%v after %v, %d routers answered, destination %+v, impact %+v", tr.Stop, tr.End.Sub(tr.Start).Round(time.Millisecond), answering(tr), tr.Destination, tr.Impact)
}

// probes counts those of a trace that were sent with numbers below the wrap, above it,
// and after the trace's end. What ends it comes to the tracer a moment later.
func (f *field) probes(tr *trace.Trace) (below, above, late int) {
	for _, s := range f.truth().Sent(observed(tr.Flow.FlowKey), 32) {
		if s.Seq>>31 == 1 {
			below++
		} else {
			above++
		}
		if s.Time.Sub(tr.End) > longestStall {
			late++
		}
	}
	return below, above, late
}

// shortStall is more than a flow of some milliseconds can lose.
const shortStall = 4 * time.Millisecond

// live lets the day happen, with a tracer that watches or without one.
func (d badDay) live(f *field, ipv6, traced bool) (o outcome) {
	f.t.Helper()
	t := f.t.(*testing.T)
	before := f.counters()
	ctx, cancel := context.WithCancel(t.Context())
	var beside sync.WaitGroup
	beside.Go(func() { o.stall = selftest.Stalls(ctx) })
	stop := func() found { return found{} }
	if traced {
		stop = f.watch(servicetraceroute.Selection{})
	}
	d.life(f, t, ipv6)
	deadline := time.Now().Add(d.within)
	for traced && f.tracer.Stats().Traces.Done < f.tracer.Stats().Traces.Started && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	o.traces = stop().traces
	cancel()
	beside.Wait()
	for i, now := range f.counters() {
		o.moved[i] = now.Delta(before[i])
	}
	if traced {
		if v := f.judge(f.truth(), o.traces); len(o.traces) != 1 {
			t.Fatalf("%d traces: %v", len(o.traces), v)
		}
	}
	return o
}

// compare lets the day happen without probes: nothing may have moved more with them. On a
// busy machine anything may, once: what probes do they do again. While the machine stalls,
// which looks like loss, nothing counts.
func (d badDay) compare(f *field, ipv6 bool, with outcome) {
	f.t.Helper()
	var before []string
	for try := 1; ; try++ {
		without := d.live(f, ipv6, false)
		more := beyond(with, without)
		f.t.Logf("harm: %v with probes, %v without; stalls %v and %v", with.counted(), without.counted(), with.stall, without.stall)
		stalled := max(with.stall, without.stall) >= longestStall
		again := slices.ContainsFunc(more, func(name string) bool { return slices.Contains(before, name) })
		switch {
		case len(more) == 0:
			return
		case again && !stalled || try == 4:
			f.t.Errorf("more with probes: %v", more)
			return
		case !stalled:
			before = append(before, more...)
		}
		with = d.live(f, ipv6, true)
	}
}

// beyond are the counters of harm that moved more in the one outcome, each tail-loss
// probe taken off what it moves.
func beyond(one, other outcome) []string {
	return selftest.Excess(one.counted(), other.counted())
}

// answering is how many routers of a trace answered.
func answering(tr *trace.Trace) (n int) {
	for _, h := range tr.Hops {
		if len(h.Replies) > 0 && h.Replies[0].Kind == trace.TimeExceeded {
			n++
		}
	}
	return n
}

// counters are those of both ends.
func (f *field) counters() (c [2]peer.Counters) {
	f.t.Helper()
	for i, name := range []string{"client", "server"} {
		var err error
		if c[i], err = peer.ReadCounters(f.t.Context(), f.lab.Node(name)); err != nil {
			f.t.Fatal(err)
		}
	}
	return c
}

func (p pipe) exchange(t *testing.T) {
	t.Helper()
	for _, c := range [][2]*net.TCPConn{{p.client, p.server}, {p.server, p.client}} {
		if _, err := c[0].Write([]byte("hello")); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(c[1], make([]byte, 5)); err != nil {
			t.Error(err)
		}
	}
}

func (p pipe) talkFor(t *testing.T, d time.Duration) {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	p.talk(ctx)
}

// transfer sends bytes to the server, which reads a little, rests so long, and then
// reads the rest.
func (p pipe) transfer(t *testing.T, size int, rest time.Duration) {
	t.Helper()
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i >> 3)
	}
	go func() {
		_, _ = p.client.Write(data)
		_ = p.client.CloseWrite()
	}()
	h := sha256.New()
	if _, err := io.CopyN(h, p.server, int64(size/10)); err != nil {
		t.Error(err)
	}
	if _, err := p.server.Write([]byte("go on")); err != nil {
		t.Error(err)
	}
	time.Sleep(rest)
	if _, err := io.Copy(h, p.server); err != nil {
		t.Error(err)
	}
	if want := sha256.Sum256(data); string(h.Sum(nil)) != string(want[:]) {
		t.Error("the bytes did not arrive as sent")
	}
	// What is left unread would be answered with a reset.
	if _, err := io.ReadFull(p.client, make([]byte, 5)); err != nil {
		t.Error(err)
	}
	_, _ = p.server.Close(), p.client.Close()
}

// smallBuffer is of a listener, whose connections have it from the handshake on: a
// buffer that shrinks under a window that was told drops what was allowed.
func smallBuffer(fd int) error {
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10)
}

// startAt chooses the initial sequence number: tcp(7) has it that TCP_REPAIR sets
// the queues of a closed socket.
func startAt(seq uint32) func(fd int) error {
	const queueSeq, offNoProbe = 21, -1 // TCP_QUEUE_SEQ, TCP_REPAIR_OFF_NO_WP
	return func(fd int) error {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, 2), // TCP_SEND_QUEUE
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, queueSeq, int(int32(seq))),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, offNoProbe),
		)
	}
}

// hardWay is a network that makes it hard, and what goes through it.
type hardWay struct {
	name  string
	net   scenario.Network
	opts  lab.Options
	loads []scenario.Workload
	setup func(t *testing.T, f *field) (met func(last bool) bool)
	flows int // each time
	ways  int // routers on the way
	whole int // traces in which all of them answered, of ten
	tries int // how often flows of some milliseconds may end before they are traced, where the machine stands still; 0: never
}

// traced runs flows until what the network is to show was met.
func (c hardWay) traced(f *field, met func(last bool) bool) (all found, flows int) {
	f.t.Helper()
	stop := f.watch(servicetraceroute.Selection{})
	const most = 5
	for flows == 0 || !met(flows == most*c.flows) && flows < most*c.flows {
		for _, ipv6 := range []bool{false, true} {
			for _, w := range c.loads {
				w.IPv6 = ipv6
				f.run(w, c.flows/2/len(c.loads), 100*time.Millisecond)
			}
		}
		flows += c.flows
	}
	return stop(), flows
}

// TestAdverseNetworks runs flows through networks that make it hard.
func TestAdverseNetworks(t *testing.T) {
	t.Parallel()
	none := scenario.ICMPLimit{}
	narrow := ladder(1, none)
	for i := range narrow.Links {
		if l := &narrow.Links[i]; l.A == "r1" {
			l.MTU = 1280
		}
	}
	lossy := losing(wires(ladder(1, none), 0), 0.05)
	lossy.Links[0].Delay = time.Millisecond
	near := scenario.Network{Name: "near", Nodes: []scenario.Node{
		{Name: "client", Kind: scenario.Host}, {Name: "server", Kind: scenario.Host},
	}, Links: []scenario.Link{{A: "client", B: "server"}}}
	upload := []scenario.Workload{{Traffic: scenario.Upload, Bytes: 60_000_000}}
	both := []scenario.Workload{{Traffic: scenario.Upload, Duration: 2 * time.Second}, {Traffic: scenario.Download, Duration: 2 * time.Second}}
	talk := func(life time.Duration) []scenario.Workload {
		return []scenario.Workload{{Traffic: scenario.RequestResponse, Bytes: 200, Every: 200 * time.Millisecond, Duration: life}}
	}
	brief := talk(5 * time.Second)
	patient := talk(9 * time.Second) // holds three probes of a TTL, each of which is waited for two
	for _, c := range []hardWay{
		{name: "MTU 1280", net: narrow, loads: upload, flows: 2, ways: 3, whole: 10, tries: 2},
		{name: "5 % loss both ways", net: lossy, opts: lab.Options{LoseAll: true}, loads: patient, flows: 10, ways: 3, whole: 9},
		{name: "the way back is longer", net: way(1, 3), loads: brief, flows: 2, ways: 3, whole: 10},
		{name: "ICMP limited to 1/s", net: ladder(1, scenario.ICMPLimit{Interval: time.Second}), loads: brief, flows: 2, ways: 3, whole: 10},
		{name: "one hop away", net: near, loads: brief, flows: 2, whole: 10},
		// Over IPv6 a router of Linux 6.18 cuts what it forwards to 64 KiB, at a price that
		// on a busy machine leaves the sender no room for more: proven where there is none.
		{name: "BIG TCP", net: ladder(1, none), loads: both, setup: bigTCP(4), flows: 4, ways: 3, whole: 10},
		{name: "BIG TCP, one hop away", net: near, loads: both, setup: bigTCP(4, 6), flows: 4, whole: 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := &field{t: t, lab: labtest.StartWith(t, c.net, c.opts)}
			for _, n := range c.net.Nodes {
				if err := observe.Start(t.Context(), f.lab.Node(n.Name), observe.Config{}); err != nil {
					t.Fatal(err)
				}
			}
			var err error
			if f.server, err = peer.ServeTCP(t.Context(), f.lab.Node("server"), peer.TCPConfig{Port: 443}); err != nil {
				t.Fatal(err)
			}
			met := func(bool) bool { return true }
			if c.setup != nil {
				met = c.setup(t, f)
			}
			f.tracer = f.open(servicetraceroute.Config{})
			for tries := c.tries; ; tries-- {
				all, flows := c.traced(f, met)
				whole := 0
				for _, tr := range all.traces {
					if answering(tr) == c.ways {
						whole++
					}
				}
				t.Logf("%v; %d of %d with every router; %+v", f.judge(f.truth(), all.traces), whole, flows, all.stats.Packets)
				if len(all.traces) == flows && whole*10 >= c.whole*flows && all.stats.Packets.Malformed == 0 {
					break
				}
				if tries <= 0 || all.stats.Packets.Malformed > 0 {
					t.Errorf("%d flows\n%v", flows, describeAll(all.traces))
					break
				}
			}
		})
	}
}

// bigTCP lets all interfaces carry super-packets beyond 64 KiB, over either family
// (ip-link(8): gso_max_size, gro_max_size and their ipv4 twins). It is met when the
// client has sent and received some over those versions of IP: a sender makes them when
// it has more to send than it may, which is for the machine to say.
func bigTCP(versions ...byte) func(t *testing.T, f *field) (met func(last bool) bool) {
	return func(t *testing.T, f *field) func(last bool) bool {
		t.Helper()
		for _, n := range f.lab.Layout().Network.Nodes {
			if err := f.lab.Node(n.Name).Do(bigPackets); err != nil {
				t.Fatal(err)
			}
		}
		longest := f.longest(t)
		return func(last bool) bool {
			t.Helper()
			met := true
			for _, version := range versions {
				sent, received := longest(packetKind{version, capture.Outgoing}), longest(packetKind{version, capture.Incoming})
				t.Logf("IPv%d: the longest packets have %d bytes sent, %d received", version, sent, received)
				met = met && min(sent, received) > 1<<16
			}
			if last && !met {
				t.Error("no packets beyond 64 KiB")
			}
			return met
		}
	}
}

// bigPackets sets the present namespace's interfaces.
func bigPackets() error {
	const size = 180_000
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		if err := errors.Join(netlink.LinkSetGSOMaxSize(l, size), netlink.LinkSetGROMaxSize(l, size),
			netlink.LinkSetGSOIPv4MaxSize(l, size), netlink.LinkSetGROIPv4MaxSize(l, size)); err != nil {
			return err
		}
	}
	return nil
}

// packetKind is a version of IP and a way past the client.
type packetKind struct {
	version   byte
	direction capture.Direction
}

// longest looks at what passes the client until the test ends; what it returns tells how
// long the longest packet of a kind was so far.
func (f *field) longest(t *testing.T) func(packetKind) int {
	t.Helper()
	var ring *capture.Ring
	err := f.lab.Node("client").Do(func() (err error) {
		ring, err = capture.Open(capture.Config{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	n := map[packetKind]int{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			batch, err := ring.ReadBatch()
			if err != nil {
				return
			}
			mu.Lock()
			for _, p := range batch {
				k := packetKind{p.Data[0] >> 4, p.Direction}
				n[k] = max(n[k], p.Len)
			}
			mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = ring.Close()
		<-done
	})
	return func(k packetKind) int {
		mu.Lock()
		defer mu.Unlock()
		return n[k]
	}
}
