package capture_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/inject"
	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/internal/wire"
)

// pair is two namespaces joined by a link, with a ring in the first one.
type pair struct {
	t    *testing.T
	a, b *nstest.NS
	ring *capture.Ring
	sink *inject.Socket
	peer *inject.Socket
}

func newPair(t *testing.T, cfg capture.Config) *pair {
	p := &pair{t: t, a: nstest.New(t), b: nstest.New(t)}
	nstest.Veth(t,
		nstest.End{NS: p.a, Name: "eth0", Addrs: []string{"10.9.0.1/24", "fd09::1/64"}},
		nstest.End{NS: p.b, Name: "eth0", Addrs: []string{"10.9.0.2/24", "fd09::2/64"}})
	p.a.Must(t, func() (err error) {
		if p.ring, err = capture.Open(cfg); err != nil {
			return err
		}
		p.sink, err = inject.Open()
		return err
	})
	p.b.Must(t, func() (err error) { p.peer, err = inject.Open(); return err })
	t.Cleanup(func() { p.ring.Close(); _, _ = p.ring.ReadBatch(); p.sink.Close(); p.peer.Close() })
	return p
}

// seen collects packets for a while. The data is copied.
func (p *pair) seen(d time.Duration) (out []capture.Packet) {
	p.t.Helper()
	return seen(p.t, p.ring, d)
}

// seen is what a source shows in a while, copied.
func seen(t *testing.T, source capture.Source, d time.Duration) (out []capture.Packet) {
	t.Helper()
	end := time.Now().Add(d)
	for {
		if err := source.SetReadDeadline(end); err != nil {
			t.Fatal(err)
		}
		batch, err := source.ReadBatch()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range batch {
			q.Data = append([]byte(nil), q.Data...)
			out = append(out, q)
		}
	}
}

const index = 2 // of eth0, behind lo

func tcp(src, dst string, payload int) []byte {
	s := wire.TCPSegment{TCPProbe: wire.TCPProbe{
		Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst), TTL: 64, ID: 7, Flags: wire.ACK, Window: 1, Seq: 42,
	}, Payload: make([]byte, payload)}
	return s.AppendTo(nil)
}

func icmp(dst string, typ uint8) []byte {
	a := netip.MustParseAddr(dst)
	e := wire.ICMPError{Src: a, Dst: a, TTL: 9, Type: typ, Quote: tcp("10.9.0.1:1", "10.9.0.2:2", 0)}
	return e.AppendTo(nil)
}

var broadcast = capture.HardwareAddr{Len: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}}

func TestRingSeesBothWays(t *testing.T) {
	p := newPair(t, capture.Config{})
	mac := capture.HardwareAddr{Len: 6, Addr: [8]byte{2, 0, 0, 0, 0, 9}}
	for _, b := range [][]byte{tcp("10.9.0.1:1000", "10.9.0.2:443", 5), tcp("[fd09::1]:1000", "[fd09::2]:443", 5)} {
		if err := p.sink.Send(b, index, mac); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.peer.Send(tcp("10.9.0.2:443", "10.9.0.1:1000", 900), index, broadcast); err != nil {
		t.Fatal(err)
	}
	var out, in int
	for _, q := range p.seen(200 * time.Millisecond) {
		var ip wire.Packet
		if err := ip.Decode(q.Data, q.Len); err != nil {
			t.Errorf("%v: %+v", err, q)
		}
		if ip.Proto != wire.ProtoTCP {
			continue // the kernel's own multicast reports
		}
		if age := time.Since(q.Time); age < 0 || age > 5*time.Second || q.Interface != index || p.ring.InterfaceName(index) != "eth0" {
			t.Errorf("time or interface: %+v", q)
		}
		switch q.Direction {
		case capture.Outgoing:
			out++
			if !q.NextHopKnown || q.NextHop != mac {
				t.Errorf("next hop %+v, want %+v", q.NextHop, mac)
			}
		case capture.Incoming:
			in++
			if q.Len != 20+20+900 || len(q.Data) >= q.Len {
				t.Errorf("length %d, kept %d: only headers are wanted", q.Len, len(q.Data))
			}
		}
	}
	if out != 2 || in != 1 {
		t.Errorf("%d packets out, %d in, want 2 and 1", out, in)
	}
}

func TestFilter(t *testing.T) {
	all := map[string][]byte{
		"v4 443": tcp("10.9.0.2:443", "10.9.0.1:1000", 0), "v4 80": tcp("10.9.0.2:80", "10.9.0.1:1000", 0),
		"v4 other": tcp("10.7.0.9:443", "10.9.0.1:1000", 0),
		"v6 443":   tcp("[fd09::2]:443", "[fd09::1]:1000", 0), "v6 other": tcp("[fd07::2]:443", "[fd09::1]:1000", 0),
		"te": icmp("10.9.0.1", 11), "unreachable": icmp("10.9.0.1", 3), "te6": icmp("fd09::1", 3), "echo": icmp("10.9.0.1", 8),
		"nd": icmp("fd09::1", 136), "big6": icmp("fd09::1", 2),
	}
	udp := wire.UDPProbe{Src: netip.MustParseAddrPort("10.9.0.2:53"), Dst: netip.MustParseAddrPort("10.9.0.1:1000"), TTL: 9}
	all["udp"] = udp.AppendTo(nil)
	errs := []string{"te", "unreachable", "te6", "big6"}
	prefix := netip.MustParsePrefix
	for name, test := range map[string]struct {
		cfg  capture.Config
		want []string
	}{
		"everything": {capture.Config{}, []string{"v4 443", "v4 80", "v4 other", "v6 443", "v6 other"}},
		"UDP too":    {capture.Config{UDP: true}, []string{"v4 443", "v4 80", "v4 other", "v6 443", "v6 other", "udp"}},
		"a port":     {capture.Config{Ports: []capture.PortRange{{First: 440, Last: 450}}}, []string{"v4 443", "v4 other", "v6 443", "v6 other"}},
		"two ports":  {capture.Config{Ports: []capture.PortRange{{First: 1, Last: 2}, {First: 80, Last: 80}}}, []string{"v4 80"}},
		"a prefix":   {capture.Config{Prefixes: []netip.Prefix{prefix("10.7.0.0/16")}}, []string{"v4 other"}},
		"prefixes": {capture.Config{Prefixes: []netip.Prefix{prefix("10.9.0.2/32"), prefix("fd07::/17"), prefix("10.6.0.0/30")}},
			[]string{"v4 443", "v4 80", "v6 other"}},
		"odd length": {capture.Config{Prefixes: []netip.Prefix{prefix("fd09::/33")}}, []string{"v6 443", "v6 other"}},
		"both": {capture.Config{Prefixes: []netip.Prefix{prefix("10.9.0.2/32")}, Ports: []capture.PortRange{{First: 80, Last: 80}}},
			[]string{"v4 80"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, capture.Config{})
			if err := p.ring.SetFilter(test.cfg); err != nil {
				t.Fatal(err)
			}
			for _, b := range all {
				if err := p.peer.Send(b, index, broadcast); err != nil {
					t.Fatal(err)
				}
			}
			got := map[string]bool{}
			for _, q := range p.seen(100 * time.Millisecond) {
				for name, b := range all {
					if q.Direction == capture.Incoming && string(b[:min(len(b), len(q.Data))]) == string(q.Data) {
						got[name] = true
					}
				}
			}
			want := map[string]bool{}
			for _, n := range append(test.want, errs...) {
				want[n] = true
			}
			for n := range all {
				if got[n] != want[n] {
					t.Errorf("%s: seen %v, want %v", n, got[n], want[n])
				}
			}
		})
	}
}

func TestLoopbackIsSeenOnce(t *testing.T) {
	p := newPair(t, capture.Config{})
	p.a.Must(t, func() error {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(fd)
		_ = syscall.Connect(fd, &syscall.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}) // refused
		return nil
	})
	n := 0
	for _, q := range p.seen(100 * time.Millisecond) {
		if q.Interface == 1 {
			n++
		}
	}
	if n != 2 {
		t.Errorf("a SYN and its RST were seen as %d packets", n)
	}
}

func TestLocalAddrs(t *testing.T) {
	p := newPair(t, capture.Config{})
	addrs, err := p.ring.LocalAddrs()
	if err != nil {
		t.Fatal(err)
	}
	has := map[netip.Addr]bool{}
	for _, a := range addrs {
		has[a] = true
	}
	if !has[netip.MustParseAddr("10.9.0.1")] || !has[netip.MustParseAddr("fd09::1")] || has[netip.MustParseAddr("10.9.0.2")] {
		t.Errorf("%v", addrs)
	}
}

// untilError reads past what the kernel itself sends now and then (reports of
// multicast listeners).
func (p *pair) untilError() error {
	for {
		if _, err := p.ring.ReadBatch(); err != nil {
			return err
		}
	}
}

func TestDeadlineAndClose(t *testing.T) {
	p := newPair(t, capture.Config{})
	_ = p.ring.SetReadDeadline(time.Time{})
	go func() {
		time.Sleep(20 * time.Millisecond)
		_ = p.ring.SetReadDeadline(time.Unix(1, 0))
	}()
	if err := p.untilError(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a deadline in the past: %v", err)
	}
	_ = p.ring.SetReadDeadline(time.Time{})
	go func() {
		time.Sleep(20 * time.Millisecond)
		p.ring.Close()
	}()
	if err := p.untilError(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed while waiting: %v", err)
	}
	if _, err := p.ring.ReadBatch(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// What a filter keeps of a packet: headers of TCP, ICMP errors whole.
func TestKeptLength(t *testing.T) {
	p := newPair(t, capture.Config{})
	quote := tcp("10.9.0.1:1", "10.9.0.2:2", 400)
	e := wire.ICMPError{
		Src: netip.MustParseAddr("10.9.0.9"), Dst: netip.MustParseAddr("10.9.0.1"), TTL: 9, Type: 11, Quote: quote,
	}
	whole := e.AppendTo(nil)
	for _, b := range [][]byte{whole, tcp("[fd09::2]:443", "[fd09::1]:1", 1200)} {
		if err := p.peer.Send(b, index, broadcast); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for _, q := range p.seen(100 * time.Millisecond) {
		var ip wire.Packet
		if err := ip.Decode(q.Data, q.Len); err != nil {
			t.Fatal(err)
		}
		switch ip.Proto {
		case wire.ProtoICMP:
			n++
			if string(q.Data) != string(whole) {
				t.Errorf("%d bytes of an ICMP error of %d", len(q.Data), len(whole))
			}
		case wire.ProtoTCP:
			n++
			var s wire.TCP
			if err := s.Decode(ip.Transport, ip.TransportLen); err != nil || s.PayloadLen != 1200 || len(q.Data) < 40+60 || len(q.Data) > 300 {
				t.Errorf("kept %d bytes, payload %d, %v", len(q.Data), s.PayloadLen, err)
			}
		}
	}
	if n != 2 {
		t.Errorf("%d packets", n)
	}
}

// With payload a packet is there to its last byte.
func TestKeptPayload(t *testing.T) {
	p := newPair(t, capture.Config{Payload: true})
	whole := tcp("[fd09::2]:443", "[fd09::1]:1", 1200)
	if err := p.peer.Send(whole, index, broadcast); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, q := range p.seen(100 * time.Millisecond) {
		if string(q.Data) == string(whole) {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d times", n)
	}
}

// A batch stays readable when another goroutine closes; nothing else is left.
func TestCloseWhileABatchIsUsed(t *testing.T) {
	p := newPair(t, capture.Config{})
	b := tcp("10.9.0.1:1000", "10.9.0.2:443", 0)
	for range 3 {
		if err := p.sink.Send(b, index, broadcast); err != nil {
			t.Fatal(err)
		}
	}
	batch, err := p.ring.ReadBatch()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- p.ring.Close() }()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, q := range batch {
		if len(q.Data) == 0 || q.Data[0]>>4 != 4 && q.Data[0]>>4 != 6 {
			t.Errorf("%+v", q)
		}
	}
	if s := p.ring.Stats(); s.Seen == 0 {
		t.Errorf("%+v", s)
	}
	if name := p.ring.InterfaceName(1); name != "" {
		t.Errorf("a closed ring knows %q", name)
	}
	_, errRead := p.ring.ReadBatch()
	_, errAddrs := p.ring.LocalAddrs()
	for what, err := range map[string]error{
		"ReadBatch": errRead, "LocalAddrs": errAddrs, "SetReadDeadline": p.ring.SetReadDeadline(time.Time{}),
		"SetFilter": p.ring.SetFilter(capture.Config{}),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
	if err := p.ring.Close(); err != nil {
		t.Error(err)
	}
}

func TestInterfaces(t *testing.T) {
	ns := nstest.New(t)
	err := ns.Do(func() error {
		_, err := capture.Open(capture.Config{Interfaces: []string{"eth9"}})
		return err
	})
	if !errors.Is(err, capture.ErrNoInterface) || err.Error() != `capture: interface "eth9": no such interface` {
		t.Errorf("%v", err)
	}
	ns.Must(t, func() error {
		r, err := capture.Open(capture.Config{Interfaces: []string{"lo"}})
		if err == nil {
			r.Close()
		}
		return err
	})
}

func TestStalledReaderIsCounted(t *testing.T) {
	p := newPair(t, capture.Config{RingBytes: 1})
	b := tcp("10.9.0.1:1000", "10.9.0.2:443", 100)
	for range 20000 {
		if err := p.sink.Send(b, index, broadcast); err != nil && !errors.Is(err, syscall.ENOBUFS) {
			t.Fatal(err)
		}
	}
	p.seen(50 * time.Millisecond)
	if s := p.ring.Stats(); s.Dropped == 0 || s.Seen < s.Dropped {
		t.Errorf("%+v", s)
	}
}

func TestReadingAllocatesNothing(t *testing.T) {
	p := newPair(t, capture.Config{})
	b := tcp("10.9.0.1:1000", "10.9.0.2:443", 100)
	read := func() {
		if err := p.sink.Send(b, index, broadcast); err != nil {
			t.Fatal(err)
		}
		if err := p.ring.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := p.ring.ReadBatch(); err != nil {
			t.Fatal(err)
		}
	}
	read()
	if n := testing.AllocsPerRun(50, read); n > 0 {
		t.Errorf("%v allocations for a packet sent and read", n)
	}
}
