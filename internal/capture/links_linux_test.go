package capture_test

import (
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/inject"
	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/internal/wire"
)

// A tunnel has no link-layer addresses, and its probes need none.
func TestTunnel(t *testing.T) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0) // its mode keeps users out, in their namespaces too
	if err != nil {
		nstest.Skip(t, "no tunnels: %v", err)
	}
	f.Close()
	p := newPair(t, capture.Config{})
	var tun *os.File
	var at int
	p.a.Must(t, func() (err error) {
		tun, at, err = openTunnel("tun0")
		return err
	})
	defer tun.Close()
	probes := [][]byte{tcp("10.9.0.1:1000", "10.8.0.2:443", 5), tcp("[fd09::1]:1000", "[fd08::2]:443", 5)}
	replies := [][]byte{tcp("10.8.0.2:443", "10.9.0.1:1000", 5), tcp("[fd08::2]:443", "[fd09::1]:1000", 5)}
	for i := range probes {
		if err := p.sink.Send(probes[i], at, capture.HardwareAddr{}); err != nil {
			t.Fatal(err)
		}
		if _, err := tun.Write(replies[i]); err != nil {
			t.Fatal(err)
		}
	}
	var out, in int
	for _, q := range p.seen(100 * time.Millisecond) {
		var ip wire.Packet
		if err := ip.Decode(q.Data, q.Len); err != nil {
			t.Errorf("%v: %+v", err, q)
		}
		if q.Interface != at || ip.Proto != wire.ProtoTCP {
			continue
		}
		if !q.NextHopKnown || q.NextHop != (capture.HardwareAddr{}) {
			t.Errorf("next hop %+v, known: %v", q.NextHop, q.NextHopKnown)
		}
		is := func(b []byte) bool { return string(b) == string(q.Data) }
		switch {
		case q.Direction == capture.Outgoing && slices.ContainsFunc(probes, is):
			out++
		case q.Direction == capture.Incoming && slices.ContainsFunc(replies, is):
			in++
		}
	}
	if out != len(probes) || in != len(replies) {
		t.Errorf("%d packets out, %d in, want %d and %d", out, in, len(probes), len(replies))
	}
	if name := p.ring.InterfaceName(at); name != "tun0" {
		t.Errorf("interface %d is %q", at, name)
	}
}

func openTunnel(name string) (*os.File, int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	f := os.NewFile(uintptr(fd), name)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return f, 0, err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return f, 0, err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return f, 0, err
	}
	return f, link.Attrs().Index, netlink.LinkSetUp(link)
}

// Whose MAC address a packet carries says whether it is for this host.
func TestForeignPackets(t *testing.T) {
	p := newPair(t, capture.Config{})
	p.a.Must(t, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.SetPromiscOn(link)
	})
	other := capture.HardwareAddr{Len: 6, Addr: [8]byte{2, 0, 0, 0, 0, 7}}
	b := tcp("10.9.0.2:443", "10.9.0.1:1000", 0)
	if err := p.peer.Send(b, index, other); err != nil {
		t.Fatal(err)
	}
	var got []capture.Direction
	for _, q := range p.seen(50 * time.Millisecond) {
		if string(q.Data) == string(b) {
			got = append(got, q.Direction)
		}
	}
	if !slices.Equal(got, []capture.Direction{capture.Foreign}) {
		t.Errorf("a packet for somebody else was seen as %v", got)
	}
}

// The captured copy of a probe carries the kernel's time of sending, and its
// reader has it soon: what a probe's schedule is built on.
func TestProbeIsSeenSoon(t *testing.T) {
	p := newPair(t, capture.Config{})
	p.seen(10 * time.Millisecond)
	b := tcp("10.9.0.1:1000", "10.9.0.2:443", 100)
	var late []time.Duration
	for range 50 {
		before := time.Now()
		if err := p.sink.Send(b, index, broadcast); err != nil {
			t.Fatal(err)
		}
		after := time.Now()
		for found := false; !found; {
			_ = p.ring.SetReadDeadline(time.Now().Add(time.Second))
			batch, err := p.ring.ReadBatch()
			if err != nil {
				t.Fatal(err)
			}
			for _, q := range batch {
				if q.Direction != capture.Outgoing || string(q.Data) != string(b[:len(q.Data)]) {
					continue
				}
				found = true
				late = append(late, time.Since(q.Time))
				const clocks = 100 * time.Microsecond // they are read at different moments
				if q.Time.Before(before.Add(-clocks)) || q.Time.After(after.Add(clocks)) {
					t.Errorf("sent between %v and %v, stamped %v", before, after, q.Time)
				}
			}
		}
	}
	slices.Sort(late)
	t.Logf("from the kernel to the reader: median %v, worst %v", late[len(late)/2], late[len(late)-1])
	// 2 ms where the kernel's timer is fine; a busy machine or an old kernel takes longer.
	if median := late[len(late)/2]; median > 20*time.Millisecond {
		t.Errorf("median delay %v", median)
	}
}

// One interface is bound to, several are filtered.
func TestChosenInterfaces(t *testing.T) {
	for _, test := range []struct {
		names []string
		want  int
	}{{nil, 2}, {[]string{"eth0"}, 1}, {[]string{"lo"}, 0}, {[]string{"lo", "eth0"}, 1}, {[]string{"eth1", "eth0"}, 2}} {
		a, b := nstest.New(t), nstest.New(t)
		for _, name := range []string{"eth0", "eth1"} {
			nstest.Veth(t, nstest.End{NS: a, Name: name}, nstest.End{NS: b, Name: name})
		}
		p := &pair{t: t, a: a, b: b}
		a.Must(t, func() (err error) {
			if p.ring, err = capture.Open(capture.Config{Interfaces: test.names}); err != nil {
				return err
			}
			p.sink, err = inject.Open()
			return err
		})
		probe := tcp("10.9.0.1:1000", "10.9.0.2:443", 0)
		for i := range 2 {
			if err := p.sink.Send(probe, index+i, broadcast); err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		for deadline := time.Now().Add(5 * time.Second); ; {
			for _, q := range p.seen(50 * time.Millisecond) {
				if string(q.Data) == string(probe) {
					n++
				}
			}
			if n >= test.want || time.Now().After(deadline) {
				break
			}
		}
		if n != test.want {
			t.Errorf("%v: %d packets, want %d", test.names, n, test.want)
		}
		p.ring.Close()
		p.sink.Close()
	}
}

// The kernel takes the longest programs that selections make.
func TestLongFilterIsAttached(t *testing.T) {
	p := newPair(t, capture.Config{})
	for _, n := range []int{1, 100, 500, 1000, 5000} {
		var cfg capture.Config
		for i := range n {
			cfg.Ports = append(cfg.Ports, capture.PortRange{First: uint16(i), Last: uint16(i)})
			cfg.Prefixes = append(cfg.Prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32))
		}
		for _, cfg := range []capture.Config{{Ports: cfg.Ports, UDP: true}, {Prefixes: cfg.Prefixes}, cfg} {
			if err := p.ring.SetFilter(cfg); err != nil {
				t.Errorf("%d: %v", n, err)
			}
		}
	}
}
