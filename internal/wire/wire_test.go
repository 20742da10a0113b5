package wire

import (
	"bytes"
	"net/netip"
	"testing"
	"unsafe"
)

var (
	a4 = netip.MustParseAddrPort("192.0.2.1:40510")
	b4 = netip.MustParseAddrPort("203.0.113.7:443")
	a6 = netip.MustParseAddrPort("[2001:db8::1]:40510")
	b6 = netip.MustParseAddrPort("[2001:db8:1::7]:443")
)

func probe(src, dst netip.AddrPort) TCPProbe {
	return TCPProbe{
		Src: src, Dst: dst, TTL: 5, TOS: 0x28, FlowLabel: 0xa5001, ID: 0x1234, Seq: 0xfffffffe, Ack: 77, Flags: ACK,
		Window: 501, Timestamp: true, TSVal: 9, TSEcr: 8,
	}
}

func TestProbeRoundTrip(t *testing.T) {
	for _, p := range []TCPProbe{probe(a4, b4), probe(a6, b6)} {
		b := p.AppendTo(nil)
		var ip Packet
		var s TCP
		if err := ip.Decode(b, len(b)); err != nil {
			t.Fatal(err)
		}
		if err := s.Decode(ip.Transport, ip.TransportLen); err != nil {
			t.Fatal(err)
		}
		got := TCPProbe{
			Src: netip.AddrPortFrom(ip.Src, s.SrcPort), Dst: netip.AddrPortFrom(ip.Dst, s.DstPort), TTL: ip.TTL, TOS: ip.TOS,
			FlowLabel: ip.FlowLabel, ID: ip.ID, Seq: s.Seq, Ack: s.Ack, Flags: s.Flags, Window: s.Window,
			Timestamp: s.Options.HasTimestamp, TSVal: s.Options.TSVal, TSEcr: s.Options.TSEcr,
		}
		want := p
		if ip.Version == 4 {
			want.FlowLabel = 0
			if !ip.DF {
				t.Error("a probe may be fragmented")
			}
		} else {
			want.ID = 0
		}
		if got != want || s.PayloadLen != 0 || ip.Len != len(b) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		if sum := checksum(b, ip); sum != 0xffff {
			t.Errorf("transport checksum sums up to %#x", sum)
		}
	}
}

// checksum adds a transport with its pseudo header the slow way.
func checksum(b []byte, ip Packet) uint32 {
	pseudo := append(ip.Src.AsSlice(), ip.Dst.AsSlice()...)
	pseudo = append(pseudo, 0, ip.Proto, byte(len(ip.Transport)>>8), byte(len(ip.Transport)))
	pseudo = append(pseudo, ip.Transport...)
	if len(pseudo)%2 == 1 {
		pseudo = append(pseudo, 0)
	}
	var s uint32
	for i := 0; i < len(pseudo); i += 2 {
		s += uint32(pseudo[i])<<8 + uint32(pseudo[i+1])
		if s > 0xffff {
			s -= 0xffff
		}
	}
	return s
}

func TestQuoteOfAnError(t *testing.T) {
	for _, test := range []struct {
		name     string
		src, dst netip.AddrPort
		max      int
		whole    bool
	}{
		{"IPv4, whole", a4, b4, 0, true}, {"IPv4, 28 bytes", a4, b4, 28, false}, {"IPv6, whole", a6, b6, 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := probe(test.src, test.dst)
			typ := uint8(11)
			if test.dst.Addr().Is6() {
				typ = 3
			}
			e := ICMPError{Src: test.dst.Addr(), Dst: test.src.Addr(), TTL: 64, Type: typ, Quote: p.AppendTo(nil), MaxQuote: test.max}
			b := e.AppendTo(nil)
			var ip Packet
			var m ICMP
			var q Quote
			if err := ip.Decode(b, len(b)); err != nil {
				t.Fatal(err)
			}
			if err := m.Decode(ip.Version, ip.Transport); err != nil || m.Kind != TimeExceeded {
				t.Fatalf("%v, kind %v", err, m.Kind)
			}
			if err := q.Decode(m.Quote); err != nil {
				t.Fatal(err)
			}
			if !q.HasSeq || q.Seq != p.Seq || q.DstPort != 443 || q.Src != test.src.Addr() || q.HasTCPHeader != test.whole {
				t.Errorf("quote %+v", q)
			}
			if test.whole && (q.TCPAck != p.Ack || q.TSVal != p.TSVal) {
				t.Errorf("quote %+v", q)
			}
		})
	}
}

func TestMPLSExtension(t *testing.T) {
	for _, dst := range []netip.Addr{a4.Addr(), a6.Addr()} {
		p := probe(a4, b4)
		typ := uint8(11)
		if dst.Is6() {
			p, typ = probe(a6, b6), 3
		}
		e := ICMPError{Src: dst, Dst: dst, TTL: 64, Type: typ, Quote: p.AppendTo(nil), Extensions: mpls}
		var ip Packet
		var m ICMP
		b := e.AppendTo(nil)
		if err := ip.Decode(b, len(b)); err != nil {
			t.Fatal(err)
		}
		if err := m.Decode(ip.Version, ip.Transport); err != nil {
			t.Fatal(err)
		}
		got := AppendMPLS(nil, m.Extensions)
		if len(got) != 1 || got[0] != (MPLSLabel{Label: 16001, S: true, TTL: 1}) || len(m.Quote) != 128 {
			t.Errorf("labels %+v, quote of %d bytes", got, len(m.Quote))
		}
	}
}

func TestSuperPackets(t *testing.T) {
	p := probe(a4, b4)
	b := p.AppendTo(nil)
	b[2], b[3] = 0, 0 // BIG TCP leaves the total length zero
	var ip Packet
	var s TCP
	if err := ip.Decode(b, 90_000); err != nil || ip.Len != 90_000 {
		t.Fatalf("length %d, %v", ip.Len, err)
	}
	if err := s.Decode(ip.Transport, ip.TransportLen); err != nil || s.PayloadLen != 90_000-len(b) {
		t.Errorf("payload %d, %v", s.PayloadLen, err)
	}
}

func TestNothingAllocates(t *testing.T) {
	p := probe(a6, b6)
	buf := make([]byte, 0, 128)
	var ip Packet
	var s TCP
	var q Quote
	if n := testing.AllocsPerRun(100, func() {
		b := p.AppendTo(buf)
		_ = ip.Decode(b, len(b))
		_ = s.Decode(ip.Transport, ip.TransportLen)
		_ = q.Decode(b)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// mpls is an extension structure: label 16001, bottom of the stack, TTL 1.
var mpls = []byte{0x20, 0, 0, 0, 0, 8, 1, 1, 0x03, 0xe8, 0x11, 0x01}

func seeds(f *testing.F) {
	for _, p := range []TCPProbe{probe(a4, b4), probe(a6, b6)} {
		b := p.AppendTo(nil)
		f.Add(b)
		f.Add(b[:28])
		typ := uint8(11)
		if p.Dst.Addr().Is6() {
			typ = 3
		}
		e := ICMPError{Src: p.Dst.Addr(), Dst: p.Src.Addr(), TTL: 9, Type: typ, Quote: b, Extensions: mpls}
		f.Add(e.AppendTo(nil))
	}
	f.Add([]byte{0x60, 0, 0, 0, 0, 16, 0, 9, 1, 2, 3})
}

// within reports whether sub is a part of b itself, not a copy.
func within(b, sub []byte) bool {
	if len(sub) == 0 {
		return true
	}
	if len(b) == 0 {
		return false
	}
	from := uintptr(unsafe.Pointer(&b[0]))
	at := uintptr(unsafe.Pointer(&sub[0]))
	return at >= from && at+uintptr(len(sub)) <= from+uintptr(len(b))
}

func FuzzPacket(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Packet
		if p.Decode(b, len(b)) != nil {
			return
		}
		if p.TransportLen < 0 || p.Len < p.TransportLen || !within(b, p.Transport) || p.Src.BitLen() != map[uint8]int{4: 32, 6: 128}[p.Version] ||
			p.Src.BitLen() != p.Dst.BitLen() || len(p.Transport) > max(p.TransportLen, 0) {
			t.Errorf("%+v", p)
		}
		var longer Packet // one more byte of padding changes nothing that is told
		if longer.Decode(append(b[:len(b):len(b)], 0), len(b)) == nil && longer.Len == p.Len && !bytes.Equal(longer.Transport, p.Transport) &&
			len(longer.Transport) > p.TransportLen {
			t.Errorf("padding became transport: %+v", longer)
		}
	})
}

func FuzzTCP(f *testing.F) {
	seeds(f)
	for _, p := range []TCPProbe{probe(a4, b4), probe(a6, b6)} {
		var ip Packet
		b := p.AppendTo(nil)
		_ = ip.Decode(b, len(b))
		f.Add(ip.Transport)
	}
	f.Add([]byte{0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0x12, 0, 9, 0, 0, 0, 0, 2, 4, 5, 0xb4, 4, 2, 3, 3, 7, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, wireLen := range []int{0, len(b), len(b) + 1000} {
			var s TCP
			if s.Decode(b, wireLen) == nil && (s.PayloadLen < 0 || len(s.Payload) > s.PayloadLen || !within(b, s.Payload)) {
				t.Errorf("%d bytes on the wire: %+v", wireLen, s)
			}
		}
	})
}

func FuzzICMP(f *testing.F) {
	seeds(f)
	for _, p := range []TCPProbe{probe(a4, b4), probe(a6, b6)} {
		e := ICMPError{Src: p.Dst.Addr(), Dst: p.Src.Addr(), TTL: 9, Type: 3, Quote: p.AppendTo(nil), Extensions: mpls}
		var ip Packet
		b := e.AppendTo(nil)
		_ = ip.Decode(b, len(b))
		f.Add(ip.Transport)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, version := range []uint8{4, 6} {
			var m ICMP
			if m.Decode(version, b) == nil &&
				(len(m.Quote)+len(m.Extensions) > len(b) || !within(b, m.Quote) || !within(b, m.Extensions) || m.Kind == OtherICMP && m.Quote != nil) {
				t.Errorf("%+v", m)
			}
		}
	})
}

func FuzzQuote(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		var q Quote
		if q.Decode(b) == nil && (q.Len < 0 || !within(b, q.Transport) || q.HasTCPHeader && !q.HasSeq || q.HasSeq && !q.HasPorts ||
			q.HasTimestamp && !q.HasTCPHeader || q.HasUDP && q.HasSeq || !q.Src.IsValid() || !q.Dst.IsValid()) {
			t.Errorf("%+v", q)
		}
	})
}

func FuzzExtensions(f *testing.F) {
	f.Add([]byte{0x20, 0, 0, 0, 0, 8, 1, 1, 3, 0xe8, 0x11, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if n := len(AppendMPLS(nil, b)); n > len(b)/4 {
			t.Errorf("%d labels in %d bytes", n, len(b))
		}
		if n := len(AppendInterfaceInfo(nil, b)); n > maxInfo {
			t.Errorf("%d interfaces", n)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	p := probe(a4, b4)
	packet := p.AppendTo(nil)
	var ip Packet
	var s TCP
	b.ReportAllocs()
	for b.Loop() {
		_ = ip.Decode(packet, len(packet))
		_ = s.Decode(ip.Transport, ip.TransportLen)
	}
}
