package capture_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/inject"
	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/internal/privilege"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// tapPair is two namespaces joined by a link, with a Tap in the first one and a TCP
// connection from there.
type tapPair struct {
	*testing.T
	a, b           *nstest.NS
	tap            *capture.Tap
	client, server net.Conn
}

func newTapPair(t *testing.T, cfg capture.Config) *tapPair {
	p := &tapPair{T: t, a: nstest.New(t), b: nstest.New(t)}
	nstest.Veth(t,
		nstest.End{NS: p.a, Name: "eth0", Addrs: []string{"10.9.0.1/24", "fd09::1/64"}},
		nstest.End{NS: p.b, Name: "eth0", Addrs: []string{"10.9.0.2/24", "fd09::2/64"}})
	p.tap = openTap(t, p.a, cfg)
	return p
}

// mayLoad reports whether this process may load programs: with CAP_BPF of the initial user
// namespace.
func mayLoad(t testing.TB) bool {
	t.Helper()
	const bpf = 39 // CAP_BPF
	held, err := privilege.Held()
	if err != nil {
		t.Fatal(err)
	}
	users, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	return held&(1<<bpf) != 0 && slices.Equal(strings.Fields(string(users)), []string{"0", "0", "4294967295"})
}

// openTap opens one in a namespace.
func openTap(t *testing.T, ns *nstest.NS, cfg capture.Config) (tap *capture.Tap) {
	t.Helper()
	if !mayLoad(t) {
		nstest.Skip(t, "needs CAP_BPF in the initial user namespace")
	}
	err := ns.Do(func() (err error) { tap, err = capture.OpenTap(cfg); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tap.Close(); _, _ = tap.ReadBatch() })
	return tap
}

func (p *tapPair) connect(network, addr string) {
	var l net.Listener
	p.b.Must(p.T, func() (err error) { l, err = net.Listen(network, addr); return err })
	defer l.Close()
	p.a.Must(p.T, func() (err error) { p.client, err = net.Dial(network, addr); return err })
	var err error
	if p.server, err = l.Accept(); err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { p.client.Close(); p.server.Close() })
}

// say sends so many bytes and waits for them, each way.
func (p *tapPair) say(n int) {
	p.Helper()
	for _, way := range [][2]net.Conn{{p.client, p.server}, {p.server, p.client}} {
		if _, err := way[0].Write(make([]byte, n)); err != nil {
			p.Fatal(err)
		}
		for got := 0; got < n; {
			m, err := way[1].Read(make([]byte, n))
			if err != nil {
				p.Fatal(err)
			}
			got += m
		}
	}
}

// flow counts the packets of the connection that are shown in a while, each way.
func (p *tapPair) flow() (out, in int) {
	p.Helper()
	local := p.client.LocalAddr().(*net.TCPAddr).AddrPort()
	for _, q := range seen(p.T, p.tap, 100*time.Millisecond) {
		var ip wire.Packet
		var tcp wire.TCP
		if ip.Decode(q.Data, q.Len) != nil || ip.Proto != wire.ProtoTCP {
			continue
		}
		if err := tcp.Decode(ip.Transport, ip.TransportLen); err != nil {
			p.Fatal(err)
		}
		if age := time.Since(q.Time); age < 0 || age > 5*time.Second || q.Interface != index || p.tap.InterfaceName(index) != "eth0" {
			p.Errorf("time or interface: %+v", q)
		}
		if q.Direction == capture.Outgoing && netip.AddrPortFrom(ip.Src, tcp.SrcPort) == local {
			if out++; !q.NextHopKnown || q.NextHop.Len != 6 || q.NextHop.Addr == [8]byte{} {
				p.Errorf("next hop %+v", q.NextHop)
			}
		} else if q.Direction == capture.Incoming && netip.AddrPortFrom(ip.Dst, tcp.DstPort) == local {
			in++
		}
	}
	return out, in
}

// A Tap shows the first packets of a flow, then those of flows that are followed, and each
// flow's end; and what is lost is counted.
func TestTap(t *testing.T) {
	for _, addr := range []string{"10.9.0.2:443", "[fd09::2]:443"} {
		p := newTapPair(t, capture.Config{})
		p.connect("tcp", addr)
		if out, in := p.flow(); out < 2 || in < 1 {
			t.Errorf("of the handshake %d packets out, %d in", out, in)
		}
		for range 20 {
			p.say(100)
		}
		if out, in := p.flow(); out+in < 8 || out+in > 16 {
			t.Errorf("of a flow that is not followed %d packets", out+in)
		}
		p.say(100)
		if out, in := p.flow(); out+in != 0 {
			t.Errorf("of a flow that is not followed %d packets more", out+in)
		}
		local, remote := p.client.LocalAddr().(*net.TCPAddr).AddrPort(), p.client.RemoteAddr().(*net.TCPAddr).AddrPort()
		key := trace.FlowKey{Proto: trace.TCP, Src: local, Dst: remote}
		if before := time.Now(); p.tap.Follow(key, false).Before(before) {
			t.Error("packets of the flow were not shown, and that is not known")
		}
		for range 5 {
			p.say(100)
		}
		if out, in := p.flow(); out < 5 || in < 5 {
			t.Errorf("of a flow that is followed %d packets out, %d in", out, in)
		}
		p.tap.Unfollow(key, false)
		p.say(100)
		if out, in := p.flow(); out+in != 0 {
			t.Errorf("of a flow that is no longer followed %d packets", out+in)
		}
		if err := p.tap.SetFilter(capture.Config{}); err != nil {
			t.Fatal(err)
		}
		anew := time.Now()
		p.say(100)
		said := time.Now()
		if out, in := p.flow(); out < 1 || in < 1 {
			t.Errorf("once more of the first %d packets out, %d in", out, in)
		}
		if since := p.tap.Follow(key, false); since.Before(anew) || since.After(said) {
			t.Errorf("all packets are shown again since %v after that was asked for", since.Sub(anew))
		}
		p.client.Close()
		p.server.Close()
		if out, in := p.flow(); out < 1 || in < 1 {
			t.Errorf("of the end %d packets out, %d in", out, in)
		}
		if s := p.tap.Stats(); s.Dropped != 0 || s.Seen == 0 {
			t.Errorf("%+v", s)
		}
		if all, err := p.tap.LocalAddrs(); err != nil || len(all) < 2 {
			t.Errorf("%v, %v", all, err)
		}
	}
}

// Flows of which nothing more is wanted are at hand to the programs; who follows one has it shown
// at once, as does who uses its addresses and ports anew, and one that only looks like them is
// hidden for some packets at most.
func TestTapHushed(t *testing.T) {
	for _, addr := range []string{"10.9.0.2:443", "[fd09::2]:443"} {
		p := newTapPair(t, capture.Config{UDP: true})
		p.connect("tcp", addr)
		local, remote := p.client.LocalAddr().(*net.TCPAddr).AddrPort(), p.client.RemoteAddr().(*net.TCPAddr).AddrPort()
		key := trace.FlowKey{Proto: trace.TCP, Src: local, Dst: remote}
		for range 20 {
			p.say(100)
		}
		p.flow()
		for i := range 5 {
			p.tap.Ignore(key, false)
			for range 5 {
				p.say(100)
			}
			if out, in := p.flow(); out+in != 0 || !p.tap.Hushed(key) {
				t.Fatalf("round %d: %d packets out, %d in, at hand: %t", i, out, in, p.tap.Hushed(key))
			}
			p.tap.Follow(key, false)
			for range 5 {
				p.say(100)
			}
			if out, in := p.flow(); out < 5 || in < 5 || p.tap.Hushed(key) {
				t.Fatalf("round %d, followed: %d packets out, %d in, at hand: %t", i, out, in, p.tap.Hushed(key))
			}
			p.tap.Unfollow(key, false)
		}
		for i := range 100 { // whatever the packets look like
			p.say(1 + i)
		}
		if out, in := p.flow(); out+in != 0 {
			t.Errorf("%d packets out, %d in", out, in)
		}
		p.abort()
		if out, in := p.flow(); out+in == 0 {
			t.Error("the end of the flow was not shown")
		}
		p.connectFrom("tcp", local, addr)
		p.say(100)
		if out, in := p.flow(); out < 3 || in < 2 || p.tap.Hushed(key) {
			t.Errorf("the next connection: %d packets out, %d in", out, in)
		}
	}
}

// The place at hand has 16 bits of each flow.
func TestTapHushedLookalike(t *testing.T) {
	p := newTapPair(t, capture.Config{UDP: true})
	p.connect("tcp", "10.9.0.2:443")
	p.flow()
	for _, addr := range []string{"10.9.0.2:9", "[fd09::2]:9"} {
		var c net.Conn
		p.a.Must(t, func() (err error) { c, err = net.Dial("udp", addr); return err })
		defer c.Close()
		key := trace.FlowKey{Proto: trace.UDP, Src: c.LocalAddr().(*net.UDPAddr).AddrPort(), Dst: c.RemoteAddr().(*net.UDPAddr).AddrPort()}
		p.tap.Hush(key)
		var shown, sent int
		for ; shown == 0 && sent < 2000; sent++ {
			if _, err := c.Write([]byte(fmt.Sprintf("a datagram of some length, %d", sent))); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				t.Fatal(err)
			}
			if sent%100 == 99 {
				for _, q := range seen(t, p.tap, 50*time.Millisecond) {
					var ip wire.Packet
					if ip.Decode(q.Data, q.Len) == nil && ip.Proto == wire.ProtoUDP {
						shown++
					}
				}
			}
		}
		if shown == 0 {
			t.Errorf("%s: of %d datagrams %d were shown", addr, sent, shown)
		}
	}
}

// abort has the client end the connection with a reset.
func (p *tapPair) abort() {
	p.Helper()
	if err := p.client.(*net.TCPConn).SetLinger(0); err != nil {
		p.Fatal(err)
	}
	p.client.Close()
	p.server.Close()
}

// connectFrom connects from a certain port.
func (p *tapPair) connectFrom(network string, local netip.AddrPort, addr string) {
	p.Helper()
	var l net.Listener
	p.b.Must(p.T, func() (err error) { l, err = net.Listen(network, addr); return err })
	defer l.Close()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(local)}
	p.a.Must(p.T, func() (err error) { p.client, err = d.Dial(network, addr); return err })
	var err error
	if p.server, err = l.Accept(); err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { p.client.Close(); p.server.Close() })
}

// What the kernel's table forgot of flows that are followed may not have been shown: that counts
// as lost, and they are shown again.
func TestTapForgets(t *testing.T) {
	p := newTapPair(t, capture.Config{})
	p.connect("tcp", "10.9.0.2:443")
	key := trace.FlowKey{Proto: trace.TCP, Src: p.client.LocalAddr().(*net.TCPAddr).AddrPort(), Dst: p.client.RemoteAddr().(*net.TCPAddr).AddrPort()}
	p.flow()
	p.tap.Follow(key, false)
	if p.tap.RenewNow(); p.tap.Stats().Dropped != 0 {
		t.Errorf("nothing was forgotten: %+v", p.tap.Stats())
	}
	if err := p.tap.Forget(key); err != nil {
		t.Fatal(err)
	}
	if p.tap.RenewNow(); p.tap.Stats().Dropped != 1 {
		t.Errorf("a flow was forgotten: %+v", p.tap.Stats())
	}
	p.flow()
	for range 30 { // more than any flow shows
		p.say(10)
	}
	if out, in := p.flow(); out < 30 || in < 30 {
		t.Errorf("%d packets out, %d in", out, in)
	}
}

// A Tap takes no place behind programs that may decide before it, except those of another Tap.
func TestTapBesideOthers(t *testing.T) {
	if !mayLoad(t) {
		nstest.Skip(t, "needs CAP_BPF in the initial user namespace")
	}
	p := newTapPair(t, capture.Config{})
	openTap(t, p.a, capture.Config{}) // a second one
	p.b.Must(t, func() error {
		other, err := capture.OpenNothingAt(ebpf.AttachTCXEgress)
		if err != nil {
			return err
		}
		defer other.Close()
		tap, err := capture.OpenTap(capture.Config{})
		if !errors.Is(err, capture.ErrOthers) {
			t.Errorf("%v", err)
		}
		if err == nil {
			tap.Close()
		}
		return nil
	})
	openTap(t, p.b, capture.Config{}) // the other one is gone
}

// What is addressed to another host is not shown, and takes no room.
func TestTapForeign(t *testing.T) {
	p := newTapPair(t, capture.Config{})
	p.b.Must(t, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		segment := wire.TCPSegment{TCPProbe: wire.TCPProbe{
			Src: netip.MustParseAddrPort("10.9.0.2:7"), Dst: netip.MustParseAddrPort("10.9.0.1:8"), TTL: 64, Flags: wire.SYN,
		}}
		frame := segment.AppendTo([]byte{2, 0, 0, 9, 9, 9, 2, 0, 0, 0, 9, 8, 8, 0})
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index})
	})
	for _, q := range seen(t, p.tap, 200*time.Millisecond) {
		if q.Direction == capture.Foreign {
			t.Errorf("%+v", q)
		}
	}
}

// Interfaces that appear later are found, those whose packets have no link header are read, and
// one that goes takes nothing along.
func TestTapFollowsInterfaces(t *testing.T) {
	ns := nstest.New(t)
	var tunnel *os.File
	var at int
	tap := openTap(t, ns, capture.Config{})
	err := ns.Do(func() (err error) {
		if tunnel, at, err = openTunnel("tun0"); err != nil {
			return err
		}
		return address("tun0", "10.7.0.1/24")
	})
	if errors.Is(err, os.ErrPermission) {
		nstest.Skip(t, "no access to /dev/net/tun: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer tunnel.Close()
	in, out := tcp("10.7.0.2:443", "10.7.0.1:1000", 5), tcp("10.7.0.1:1000", "10.7.0.2:443", 5)
	var sink *inject.Socket
	ns.Must(t, func() (err error) { sink, err = inject.Open(); return err })
	defer sink.Close()
	found := map[capture.Direction]bool{}
	for end := time.Now().Add(5 * time.Second); len(found) < 2 && time.Now().Before(end); {
		if _, err := tunnel.Write(in); err != nil {
			t.Fatal(err)
		}
		if err := sink.Send(out, at, capture.HardwareAddr{}); err != nil {
			t.Fatal(err)
		}
		for _, q := range seen(t, tap, 50*time.Millisecond) {
			if q.Interface == at && q.NextHopKnown && q.NextHop.Len == 0 && q.Len == len(in) && (string(q.Data) == string(in) || string(q.Data) == string(out)) {
				found[q.Direction] = true
			}
		}
	}
	if !found[capture.Incoming] || !found[capture.Outgoing] {
		t.Errorf("seen %v", found)
	}
	tunnel.Close()
	time.Sleep(1200 * time.Millisecond) // until somebody looks
	ns.Must(t, func() (err error) {
		if tunnel, at, err = openTunnel("tun0"); err != nil {
			return err
		}
		return address("tun0", "10.7.0.1/24")
	})
	defer tunnel.Close()
	again := false
	for end := time.Now().Add(5 * time.Second); !again && time.Now().Before(end); {
		if _, err := tunnel.Write(in); err != nil {
			t.Fatal(err)
		}
		for _, q := range seen(t, tap, 50*time.Millisecond) {
			again = again || q.Interface == at && string(q.Data) == string(in)
		}
	}
	if !again {
		t.Error("the interface that was made again is not seen")
	}
}

func address(link, addr string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(l, a)
}

// Of what a client says first so much is kept as a hello has, where names are wanted; of what
// servers send, the headers.
func TestTapWords(t *testing.T) {
	for _, names := range []bool{false, true} {
		p := newTapPair(t, capture.Config{Names: names})
		p.connect("tcp", "10.9.0.2:443")
		p.say(3000)
		longest := map[capture.Direction]int{}
		for _, q := range seen(t, p.tap, 100*time.Millisecond) {
			longest[q.Direction] = max(longest[q.Direction], len(q.Data))
			if len(q.Data) > q.Len {
				t.Errorf("%d bytes of %d", len(q.Data), q.Len)
			}
		}
		if out := longest[capture.Outgoing]; (out > 3000) != names || longest[capture.Incoming] > 160 {
			t.Errorf("names %v: at most %v bytes", names, longest)
		}
	}
}

// A flood of new flows, each of which the table has to take in, takes nothing from a flow that
// is followed, and what is left out is counted.
func TestTapFlood(t *testing.T) {
	p := newTapPair(t, capture.Config{})
	began := time.Now()
	p.connect("tcp", "10.9.0.2:443")
	connected := time.Now()
	key := trace.FlowKey{
		Proto: trace.TCP, Src: p.client.LocalAddr().(*net.TCPAddr).AddrPort(), Dst: p.client.RemoteAddr().(*net.TCPAddr).AddrPort(),
	}
	p.flow()
	if since := p.tap.Follow(key, false); since.Before(began) || since.After(connected) {
		t.Errorf("all packets are shown since %v after the flow began", since.Sub(began))
	}
	var peer *inject.Socket
	p.b.Must(t, func() (err error) { peer, err = inject.Open(); return err })
	defer peer.Close()
	drained := make(chan int)
	flooded := make(chan struct{})
	go func() {
		n := 0
		for {
			select {
			case <-flooded:
				drained <- n
				return
			default:
			}
			_ = p.tap.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			batch, _ := p.tap.ReadBatch()
			n += len(batch)
		}
	}()
	const flows = 200_000
	for i := range flows {
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 16), byte(i >> 8)}), uint16(i<<8)|uint16(1+i%200))
		if err := peer.Send(tcp(src.String(), "10.9.0.1:9", 0), index, broadcast); err != nil && !errors.Is(err, unix.ENOBUFS) {
			t.Fatal(err)
		}
	}
	close(flooded)
	shown := <-drained
	if p.tap.Withheld() == 0 || shown > flows*3/4 {
		t.Errorf("%d packets of %d flows were shown, %d flows withheld", shown, flows, p.tap.Withheld())
	}
	for range 20 {
		p.say(10)
	}
	if out, in := p.flow(); out < 20 || in < 20 {
		t.Errorf("of the flow that is followed %d packets out, %d in", out, in)
	}
}

// While very many flows begin a Tap shows of each its first words alone, and says so; of one
// that is followed all the same, everything.
func TestTapBrief(t *testing.T) {
	p := newTapPair(t, capture.Config{Names: true, NamesIn: true})
	var peer *inject.Socket
	p.b.Must(t, func() (err error) { peer, err = inject.Open(); return err })
	defer peer.Close()
	send := func(port uint16, seq uint32, flags wire.TCPFlags, payload int) {
		t.Helper()
		s := wire.TCPSegment{TCPProbe: wire.TCPProbe{
			Src: netip.AddrPortFrom(netip.MustParseAddr("10.9.0.2"), port), Dst: netip.MustParseAddrPort("10.9.0.1:9"),
			TTL: 64, ID: 7, Flags: flags, Window: 1, Seq: seq,
		}, Payload: make([]byte, payload)}
		if err := peer.Send(s.AppendTo(nil), index, broadcast); err != nil && !errors.Is(err, unix.ENOBUFS) {
			t.Fatal(err)
		}
	}
	const words, more = 1000, 50
	all := func(port uint16) {
		send(port, 41, wire.SYN, 0)
		send(port, 42, wire.ACK, 0)
		send(port, 42, wire.ACK, words)
		send(port, 42+words, wire.ACK, more)
		send(port, 42+words+more, wire.ACK, 0)
		send(port, 42+words+more, wire.ACK|wire.FIN, 0)
	}
	look := func(each func(q capture.Packet, tcp *wire.TCP)) (n int) {
		for _, q := range seen(t, p.tap, 100*time.Millisecond) {
			var ip wire.Packet
			var tcp wire.TCP
			if ip.Decode(q.Data, q.Len) != nil || ip.Proto != wire.ProtoTCP || tcp.Decode(ip.Transport, ip.TransportLen) != nil || tcp.DstPort != 9 {
				continue
			}
			n++
			each(q, &tcp)
		}
		return n
	}
	any := func(capture.Packet, *wire.TCP) {}
	next := time.Now()
	for port := range uint16(3000) {
		all(10_000 + port)
		for next = next.Add(70 * time.Microsecond); time.Now().Before(next); { // faster ones are withheld
		}
	}
	strict := p.tap.Withheld() == 0 // this was not held up, to catch up then
	shown := map[uint16]int{}
	look(func(q capture.Packet, tcp *wire.TCP) {
		switch _, brief := shown[tcp.SrcPort]; {
		case q.Brief && (brief || strict && (tcp.Seq != 42 || len(tcp.Payload) != words)):
			t.Errorf("first of %d: %d bytes at %d; one before: %v", tcp.SrcPort, len(tcp.Payload), tcp.Seq, brief)
		case !q.Brief && !brief:
			return // it began before there were very many
		case tcp.PayloadLen == 0:
			t.Errorf("of brief flow %d was shown: %v", tcp.SrcPort, tcp.Flags)
		}
		shown[tcp.SrcPort]++
	})
	if n := int(p.tap.Brief()); len(shown) < 100 || n < len(shown) {
		t.Fatalf("%d flows were shown briefly, %d counted", len(shown), n)
	}
	var one uint16
	for port, n := range shown {
		if one = port; n != 2 && (strict || n != 1) {
			t.Errorf("of brief flow %d were %d packets shown, want its words", port, n)
		}
	}
	key := trace.FlowKey{Proto: trace.TCP, Src: netip.MustParseAddrPort("10.9.0.1:9"), Dst: netip.AddrPortFrom(netip.MustParseAddr("10.9.0.2"), one)}
	if began := time.Now(); p.tap.Follow(key, false).Before(began) {
		t.Error("packets of the flow were not shown, and that is not known")
	}
	send(one, 2000, wire.ACK, 0)
	send(one, 2000, wire.ACK|wire.FIN, 0)
	if n := look(any); n != 2 {
		t.Errorf("of a brief flow that is followed %d packets", n)
	}
	before := p.tap.Brief()
	all(9999) // alone, a while later
	if n := look(any); n != 6 || p.tap.Brief() != before {
		t.Errorf("of a flow that begins alone %d packets", n)
	}
}

// Of many new flows at once a Tap shows how they begin and end, and what the client says; not
// all of the rest.
func TestTapCrowd(t *testing.T) {
	const flows = 60 // so few that none of them are brief ones
	p := newTapPair(t, capture.Config{Names: true})
	var l net.Listener
	p.b.Must(t, func() (err error) { l, err = net.Listen("tcp", "10.9.0.2:443"); return err })
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1000))
			_, _ = c.Write(make([]byte, 1000))
			c.Close()
		}
	}()
	began := time.Now()
	p.a.Must(t, func() error { // its thread stays in the namespace
		for range flows {
			c, err := net.Dial("tcp", "10.9.0.2:443")
			if err != nil {
				return err
			}
			_, err = c.Write(make([]byte, 100))
			for err == nil {
				_, err = c.Read(make([]byte, 2000))
			}
			c.Close()
		}
		return nil
	})
	crowded := time.Since(began) < flows*time.Second/8000 // eight a millisecond, on two processors or on one
	syns, fins, said, answers, bare := 0, 0, 0, 0, 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		_ = p.tap.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		batch, _ := p.tap.ReadBatch()
		for i := range batch {
			var ip wire.Packet
			var tcp wire.TCP
			if ip.Decode(batch[i].Data, batch[i].Len) != nil || ip.Proto != wire.ProtoTCP || tcp.Decode(ip.Transport, ip.TransportLen) != nil {
				continue
			}
			switch out := batch[i].Direction == capture.Outgoing; {
			case tcp.Flags&wire.SYN != 0:
				syns++
			case tcp.Flags&wire.FIN != 0:
				fins++
			case tcp.PayloadLen == 0:
				bare++
			case out:
				said++
			default:
				answers++
			}
		}
	}
	t.Logf("%d flows: %d SYN, %d FIN, %d questions, %d answers, %d bare acknowledgements", flows, syns, fins, said, answers, bare)
	if syns != 2*flows || fins != 2*flows || said != flows || bare < flows || crowded && bare > 3*flows {
		t.Errorf("%d flows: %d SYN, %d FIN, %d questions, %d answers, %d bare acknowledgements", flows, syns, fins, said, answers, bare)
	}
}
