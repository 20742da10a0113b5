package socket

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/wire"
)

// pair is a socket to a UDP server of this test, over loopback.
func pair(t *testing.T, host string) (*Socket, *net.UDPConn) {
	t.Helper()
	server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(host), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	_ = server.SetReadDeadline(time.Now().Add(5 * time.Second))
	s, err := Open(server.LocalAddr().(*net.UDPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, server
}

// next is the next packet that the source shows, decoded.
func next(t *testing.T, all *[]capture.Packet, src *Source) (capture.Packet, wire.Packet) {
	t.Helper()
	for len(*all) == 0 {
		_ = src.SetReadDeadline(time.Now().Add(5 * time.Second))
		batch, err := src.ReadBatch()
		if err != nil {
			t.Fatal(err)
		}
		*all = append(*all, batch...)
	}
	p := (*all)[0]
	*all = (*all)[1:]
	var ip wire.Packet
	if err := ip.Decode(p.Data, p.Len); err != nil {
		t.Fatal(err)
	}
	return p, ip
}

// The source shows what the application sends and receives, and probes go to where the
// application's datagrams go, with their own TTL and as they are.
func TestSocketShows(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		s, server := pair(t, host)
		src, sink := s.Source(), s.Sink()
		if _, err := s.WriteTo([]byte("question"), nil); err != nil {
			t.Fatal(err)
		}
		var all []capture.Packet
		p, ip := next(t, &all, src)
		if p.Direction != capture.Outgoing || !p.NextHopKnown || p.Interface <= 0 || src.InterfaceName(p.Interface) != "lo" ||
			ip.Src != s.flow.local.Addr() || ip.Dst != s.flow.remote.Addr() || !bytes.HasSuffix(p.Data, []byte("question")) {
			t.Errorf("%+v, %+v", p, ip)
		}
		b := make([]byte, 100)
		n, from, err := server.ReadFrom(b)
		if err != nil || string(b[:n]) != "question" {
			t.Fatalf("%q, %v", b[:n], err)
		}
		if _, err := server.WriteTo([]byte("answer"), from); err != nil {
			t.Fatal(err)
		}
		if n, _, err := s.ReadFrom(b); err != nil || string(b[:n]) != "answer" {
			t.Errorf("%q, %v", b[:n], err)
		}
		p, ip = next(t, &all, src)
		if p.Direction != capture.Incoming || ip.TTL != 64 || time.Since(p.Time) > time.Minute || !bytes.HasSuffix(p.Data, []byte("answer")) {
			t.Errorf("%+v, %+v", p, ip)
		}
		u := wire.UDPProbe{Src: s.flow.local, Dst: s.flow.remote, TTL: 3, Payload: []byte("\x05probe")}
		if err := sink.Send(u.AppendTo(nil), p.Interface, capture.HardwareAddr{}); err != nil {
			t.Error(err)
		}
		if p, ip = next(t, &all, src); p.Direction != capture.Outgoing || ip.TTL != 3 {
			t.Errorf("%+v, %+v", p, ip)
		}
		if n, _, err := server.ReadFrom(b); err != nil || string(b[:n]) != "\x05probe" {
			t.Errorf("%q, %v", b[:n], err)
		}
	}
}

// A datagram without checksum is one that no host takes in, and the next one has one again.
func TestSocketDamages(t *testing.T) {
	s, server := pair(t, "::1")
	u := wire.UDPProbe{Src: s.flow.local, Dst: s.flow.remote, TTL: 9, Payload: []byte("\x05probe"), NoChecksum: true}
	if err := s.Sink().Send(u.AppendTo(nil), 1, capture.HardwareAddr{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("whole")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, _, err := server.ReadFrom(b); err != nil || string(b[:n]) != "whole" {
		t.Errorf("%q, %v", b[:n], err)
	}
	if s.Sink().Intact(netip.IPv6Loopback()) || !s.Sink().Intact(netip.MustParseAddr("192.0.2.1")) {
		t.Error("which ones can be damaged")
	}
}

// What is no datagram of this flow as the kernel would send it is not sent.
func TestSocketRefusesProbes(t *testing.T) {
	s, server := pair(t, "127.0.0.1")
	good := wire.UDPProbe{Src: s.flow.local, Dst: s.flow.remote, TTL: 3, Payload: []byte("x")}
	other, surplus := good, good
	other.Dst = netip.AddrPortFrom(good.Dst.Addr(), good.Dst.Port()^1)
	surplus.Surplus = 3
	tcp := wire.TCPProbe{Src: good.Src, Dst: good.Dst, TTL: 3}
	for name, b := range map[string][]byte{
		"another flow": other.AppendTo(nil), "longer than its datagram": surplus.AppendTo(nil), "a segment": tcp.AppendTo(nil), "nothing": nil,
	} {
		if err := s.Sink().Send(b, 1, capture.HardwareAddr{}); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_ = server.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, _, err := server.ReadFrom(make([]byte, 9)); err == nil {
		t.Errorf("%d bytes came", n)
	}
}

// A port where nobody listens refuses a connection in the making, not one that stands.
func TestSocketRefused(t *testing.T) {
	for _, stands := range []bool{false, true} {
		s, server := pair(t, "127.0.0.1")
		if stands {
			s.Stand()
		}
		_ = server.Close()
		for range 5 { // the error of one must not become the next one's
			if _, err := s.Write([]byte("question")); err != nil && stands {
				t.Errorf("write: %v", err)
			}
		}
		_ = s.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		_, err := s.Read(make([]byte, 9))
		if want := os.ErrDeadlineExceeded; stands && !errors.Is(err, want) || !stands && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("stands %v: %v", stands, err)
		}
	}
}

// Whoever waits is woken by a deadline, and by the end.
func TestSocketEnds(t *testing.T) {
	s, _ := pair(t, "127.0.0.1")
	src := s.Source()
	for name, wait := range map[string]func() error{
		"application": func() error { _, err := s.Read(make([]byte, 9)); return err },
		"source":      func() error { _, err := src.ReadBatch(); return err },
	} {
		time.AfterFunc(20*time.Millisecond, func() { _ = s.SetDeadline(time.Unix(1, 0)); _ = src.SetReadDeadline(time.Unix(1, 0)) })
		if err := wait(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		_ = s.SetDeadline(time.Time{})
		_ = src.SetReadDeadline(time.Now().Add(time.Hour))
	}
	time.AfterFunc(20*time.Millisecond, func() { _ = src.Close(); _ = s.Close() })
	if _, err := s.Read(make([]byte, 9)); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if _, err := src.ReadBatch(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if _, err := s.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
