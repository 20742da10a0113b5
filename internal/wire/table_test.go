package wire

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// unhex reads hexadecimal digits; spaces part them.
func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic("wire: " + err.Error())
	}
	return b
}

const (
	header4 = "45b8 0028 1234 4000 4006 0000 c0000201 cb007107" // 20 bytes of TCP follow
	from6   = "20010db8000000000000000000000001 20010db8000100000000000000000007"
	segment = "9e3e 01bb 00000001 00000002 5010 01f5 0000 0000"
)

func TestPackets(t *testing.T) {
	for _, test := range []struct {
		name  string
		bytes string
		wire  int // length on the wire, 0: that of the bytes
		err   error
		want  func(p *Packet) bool
	}{
		{"IPv4", header4 + segment, 0, nil, func(p *Packet) bool {
			return p.Version == 4 && p.TOS == 0xb8 && p.TTL == 64 && p.ID == 0x1234 && p.DF && !p.Fragment && p.Proto == ProtoTCP &&
				p.Src == a4.Addr() && p.Dst == b4.Addr() && p.Len == 40 && p.TransportLen == 20 && len(p.Transport) == 20
		}},
		{"padded to Ethernet's least", header4 + segment + "000000000000", 0, nil, func(p *Packet) bool {
			return p.Len == 40 && len(p.Transport) == 20
		}},
		{"cut short", header4 + "9e3e 01bb", 40, nil, func(p *Packet) bool {
			return p.Len == 40 && p.TransportLen == 20 && len(p.Transport) == 4
		}},
		{"IPv4 options", "46b8 002c 1234 4000 4006 0000 c0000201 cb007107 01010101" + segment, 0, nil, func(p *Packet) bool {
			return p.TransportLen == 20 && len(p.Transport) == 20
		}},
		{"first fragment", "4500 0028 1234 2000 4006 0000 c0000201 cb007107" + segment, 0, nil, func(p *Packet) bool {
			return p.Fragment && len(p.Transport) == 20
		}},
		{"later fragment", "4500 0028 1234 0064 4006 0000 c0000201 cb007107" + segment, 0, nil, func(p *Packet) bool {
			return p.Fragment && p.Transport == nil
		}},
		{"IPv6", "6b8a5001 0014 06 39" + from6 + segment, 0, nil, func(p *Packet) bool {
			return p.Version == 6 && p.TOS == 0xb8 && p.FlowLabel == 0xa5001 && p.TTL == 57 && p.Proto == ProtoTCP && p.Src == a6.Addr() &&
				p.Dst == b6.Addr() && p.Len == 60 && p.TransportLen == 20 && len(p.Transport) == 20
		}},
		{"hop-by-hop and destination options", "60000000 0024 00 39" + from6 + "3c00 0104 0000 0000 0600 0104 0000 0000" + segment, 0, nil, func(p *Packet) bool {
			return p.Proto == ProtoTCP && p.TransportLen == 20 && len(p.Transport) == 20
		}},
		{"IPv6 first fragment", "60000000 001c 2c 39" + from6 + "0600 0001 00000009" + segment, 0, nil, func(p *Packet) bool {
			return p.Fragment && p.Proto == ProtoTCP && len(p.Transport) == 20
		}},
		{"IPv6 atomic fragment", "60000000 001c 2c 39" + from6 + "0600 0000 00000009" + segment, 0, nil, func(p *Packet) bool {
			return !p.Fragment && len(p.Transport) == 20
		}},
		{"IPv6 later fragment", "60000000 001c 2c 39" + from6 + "0600 0321 00000009" + segment, 0, nil, func(p *Packet) bool {
			return p.Fragment && p.Transport == nil && p.Proto == ProtoTCP
		}},
		{"authentication header", "60000000 0020 33 39" + from6 + "0601 0000 00000001 00000002" + segment, 0, nil, func(p *Packet) bool {
			return p.Proto == ProtoTCP && p.TransportLen == 20
		}},
		{"IPv6 BIG TCP", "60000000 0000 06 39" + from6 + segment, 90_000, nil, func(p *Packet) bool {
			return p.Len == 90_000 && p.TransportLen == 90_000-40 && len(p.Transport) == 20
		}},
		{"nothing", "", 0, ErrTruncated, nil},
		{"version 5", "55", 0, ErrVersion, nil},
		{"half an IPv4 header", "45b8 0028 1234 4000 4006", 0, ErrTruncated, nil},
		{"IPv4 header of 16 bytes", "44b8 0028 1234 4000 4006 0000 c0000201 cb007107", 0, ErrMalformed, nil},
		{"IPv4 shorter than its header", "45b8 0013 1234 4000 4006 0000 c0000201 cb007107", 0, ErrMalformed, nil},
		{"half an IPv6 header", "60000000 0014 06 39 20010db8", 0, ErrTruncated, nil},
		{"an extension beyond the end", "60000000 0008 00 39" + from6 + "0609 0104 0000 0000", 0, ErrTruncated, nil},
		{"endless extensions", "60000000 0050 3c 39" + from6 + strings.Repeat("3c00 0104 0000 0000", 10), 0, ErrMalformed, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := unhex(test.bytes)
			var p Packet
			if err := p.Decode(b, max(test.wire, len(b))); !errors.Is(err, test.err) {
				t.Fatalf("error %v, want %v", err, test.err)
			}
			if test.want != nil && !test.want(&p) {
				t.Errorf("%+v", p)
			}
		})
	}
}

func TestTCPOptions(t *testing.T) {
	for _, test := range []struct {
		name, options string
		want          TCPOptions
	}{
		{"none", "", TCPOptions{}},
		{"a SYN's", "020405b4 0402 080a 00000009 00000008 01 030307", TCPOptions{
			MSS: 1460, HasMSS: true, SACKPermitted: true, HasTimestamp: true, TSVal: 9, TSEcr: 8, WindowScale: 7, HasWindowScale: true,
		}},
		{"two SACK blocks", "0101 0512 00000001 00000002 00000003 00000004", TCPOptions{SACKBlocks: 2}},
		{"MD5", "1312 00000000 00000000 00000000 00000000 0101", TCPOptions{MD5: true}},
		{"AO", "1d04 0000", TCPOptions{AO: true}},
		{"MPTCP and Fast Open", "1e04 0001 2202 0101", TCPOptions{MPTCP: true, FastOpen: true}},
		{"an unknown one", "fd04 abcd 020405b4", TCPOptions{MSS: 1460, HasMSS: true}},
		{"nothing behind the end", "00 080a 00000009 00000008 00", TCPOptions{}},
		{"wrong length of a known one", "0203 05 01", TCPOptions{}},
		{"length zero", "0800 0101", TCPOptions{Malformed: true}},
		{"beyond the header", "080a 0000", TCPOptions{Malformed: true}},
		{"a kind without a length", "010101 08", TCPOptions{Malformed: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			options := unhex(test.options)
			for len(options)%4 != 0 {
				options = append(options, optNop)
			}
			b := append(unhex(segment), options...)
			b[12] = byte(len(b)/4) << 4
			b = append(b, "payload"...)
			var s TCP
			if err := s.Decode(b, len(b)); err != nil {
				t.Fatal(err)
			}
			if s.Options != test.want || string(s.Payload) != "payload" || s.PayloadLen != 7 {
				t.Errorf("got  %+v\nwant %+v", s.Options, test.want)
			}
		})
	}
}

func TestSegments(t *testing.T) {
	whole := unhex(segment)
	for _, test := range []struct {
		name    string
		bytes   []byte
		wire    int
		err     error
		payload int
	}{
		{"no payload", whole, 20, nil, 0},
		{"payload not captured", whole, 1480, nil, 1460},
		{"19 bytes", whole[:19], 1480, ErrTruncated, 0},
		{"a header of 16 bytes", slices.Replace(slices.Clone(whole), 12, 13, 0x40), 20, ErrMalformed, 0},
		{"a header longer than the packet", slices.Replace(slices.Clone(whole), 12, 13, 0x60), 20, ErrMalformed, 0},
		{"options not captured", slices.Replace(slices.Clone(whole), 12, 13, 0x80), 132, nil, 100},
	} {
		var s TCP
		err := s.Decode(test.bytes, test.wire)
		if !errors.Is(err, test.err) || err == nil && s.PayloadLen != test.payload {
			t.Errorf("%s: %v, %+v", test.name, err, s)
		}
		if cut := test.name == "options not captured"; err == nil && s.Options.Malformed != cut {
			t.Errorf("%s: malformed %v", test.name, s.Options.Malformed)
		}
	}
}

func TestICMPKinds(t *testing.T) {
	for _, test := range []struct {
		version, typ, code uint8
		want               ICMPKind
	}{
		{4, 11, 0, TimeExceeded}, {4, 11, 1, OtherICMP}, {4, 3, 0, NetUnreachable}, {4, 3, 1, HostUnreachable}, {4, 3, 2, OtherUnreachable},
		{4, 3, 3, PortUnreachable}, {4, 3, 4, PacketTooBig}, {4, 3, 9, AdminProhibited}, {4, 3, 10, AdminProhibited}, {4, 3, 13, AdminProhibited},
		{4, 8, 0, EchoRequest}, {4, 0, 0, EchoReply}, {4, 5, 0, OtherICMP}, {6, 3, 0, TimeExceeded}, {6, 3, 1, OtherICMP}, {6, 1, 0, NetUnreachable},
		{6, 1, 1, AdminProhibited}, {6, 1, 3, HostUnreachable}, {6, 1, 4, PortUnreachable}, {6, 1, 5, AdminProhibited}, {6, 2, 0, PacketTooBig},
		{6, 128, 0, EchoRequest}, {6, 129, 0, EchoReply}, {6, 135, 0, OtherICMP}, {6, 11, 0, OtherICMP},
	} {
		var m ICMP
		if err := m.Decode(test.version, []byte{test.typ, test.code, 0, 0, 0, 0, 5, 0xdc}); err != nil || m.Kind != test.want {
			t.Errorf("IPv%d type %d code %d: kind %d, want %d, %v", test.version, test.typ, test.code, m.Kind, test.want, err)
		}
		if m.Kind == PacketTooBig && m.MTU != 1500 {
			t.Errorf("IPv%d: MTU %d", test.version, m.MTU)
		}
	}
	var m ICMP
	if err := m.Decode(4, make([]byte, 7)); !errors.Is(err, ErrTruncated) {
		t.Errorf("7 bytes: %v", err)
	}
}

// Where the quote ends and extensions begin (RFC 4884).
func TestExtensions(t *testing.T) {
	summed := slices.Clone(mpls)
	be.PutUint16(summed[2:], ^fold(sum(0, mpls)))
	wrong := slices.Clone(summed)
	wrong[2] ^= 1
	message := func(version uint8, words byte, quote int, extensions []byte) []byte {
		b := make([]byte, 8+quote)
		b[0] = 11
		b[5] = words
		if version == 6 {
			b[0], b[4], b[5] = 3, words, 0
		}
		return append(b, extensions...)
	}
	for _, test := range []struct {
		name    string
		version uint8
		bytes   []byte
		quote   int
		labels  int
	}{
		{"length told", 4, message(4, 32, 128, mpls), 128, 1},
		{"length told, IPv6", 6, message(6, 16, 128, mpls), 128, 1},
		{"length told, checksum right", 4, message(4, 32, 128, summed), 128, 1},
		{"length told, checksum wrong", 4, message(4, 32, 128, wrong), 128, 0},
		{"length told, no extension", 4, message(4, 32, 128, nil), 128, 0},
		{"length beyond the end", 4, message(4, 255, 128, mpls), 128 + len(mpls), 0},
		{"an old router's", 4, message(4, 0, 128, summed), 128, 1},
		{"an old router's without checksum is a guess too far", 4, message(4, 0, 128, mpls), 128 + len(mpls), 0},
		{"a long quote", 4, message(4, 0, 500, nil), 500, 0},
	} {
		var m ICMP
		if err := m.Decode(test.version, test.bytes); err != nil {
			t.Fatal(err)
		}
		if got := AppendMPLS(nil, m.Extensions); len(m.Quote) != test.quote || len(got) != test.labels {
			t.Errorf("%s: quote of %d bytes, labels %+v", test.name, len(m.Quote), got)
		}
	}
	stack := unhex("2000 0000 000c 0101 00064001 03e81102 0008 0201 00000000")
	got := AppendMPLS(nil, stack)
	if len(got) != 2 || got[0] != (MPLSLabel{Label: 100, TTL: 1}) || got[1] != (MPLSLabel{Label: 16001, S: true, TTL: 2}) || len(AppendInterfaceInfo(nil, stack)) != 1 {
		t.Errorf("%+v, interface information %v", got, AppendInterfaceInfo(nil, stack))
	}
	if AppendInterfaceInfo(nil, mpls) != nil || AppendInterfaceInfo(nil, nil) != nil || AppendMPLS(nil, unhex("20000000 0003 0101")) != nil {
		t.Error("something out of nothing")
	}
}

func TestQuotes(t *testing.T) {
	header6 := "60000000 0020 06 01" + from6
	for _, test := range []struct {
		name, bytes string
		err         error
		want        func(q *Quote) bool
	}{
		{"IPv4 and 8 bytes", header4 + segment[:19], nil, func(q *Quote) bool {
			return q.HasPorts && q.SrcPort == 40510 && q.DstPort == 443 && q.HasSeq && q.Seq == 1 && !q.HasTCPHeader && q.ID == 0x1234 && q.Len == 40
		}},
		{"IPv4 and 4 bytes", header4 + segment[:9], nil, func(q *Quote) bool { return q.HasPorts && !q.HasSeq }},
		{"an IPv4 header alone", header4, nil, func(q *Quote) bool { return !q.HasPorts && q.Dst == b4.Addr() }},
		{"later fragment", "4500 0028 1234 0064 4006 0000 c0000201 cb007107" + segment, nil, func(q *Quote) bool { return !q.HasPorts }},
		{"UDP", "4500 001c 0001 0000 0111 0000 c0000201 cb007107 9e3e 829b 0008 beef", nil, func(q *Quote) bool {
			return q.HasUDP && q.DstPort == 33435 && q.UDPLen == 8 && q.Checksum == 0xbeef && !q.HasSeq
		}},
		{"timestamps", header6 + "9e3e 01bb 00000001 00000002 8010 01f5 0000 0000 0101080a 00000009 00000008", nil, func(q *Quote) bool {
			return q.HasTCPHeader && q.TCPAck == 2 && q.TCPWindow == 501 && q.HasTimestamp && q.TSVal == 9 && q.TSEcr == 8 && q.Len == 72
		}},
		{"behind an extension header", "60000000 001c 3c 01" + from6 + "0600 0104 0000 0000" + segment, nil, func(q *Quote) bool {
			return q.Proto == ProtoTCP && q.HasTCPHeader && q.Seq == 1
		}},
		{"an extension cut short", "60000000 001c 3c 01" + from6 + "0600", nil, func(q *Quote) bool { return !q.HasPorts && q.Dst == b6.Addr() }},
		{"nothing", "", ErrTruncated, nil},
		{"half an IPv6 header", "60000000 001c 3c 01 2001", ErrTruncated, nil},
		{"no IP", "00000000", ErrVersion, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var q Quote
			if err := q.Decode(unhex(test.bytes)); !errors.Is(err, test.err) {
				t.Fatalf("error %v, want %v", err, test.err)
			}
			if test.want != nil && !test.want(&q) {
				t.Errorf("%+v", q)
			}
		})
	}
}

func TestSegmentRoundTrip(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		want := TCPSegment{TCPProbe: probe(a4, b4), Options: []byte{2, 4, 5, 0xb4, 4, 2}, Payload: []byte("odd")}
		if v6 {
			want.TCPProbe = probe(a6, b6)
		}
		b := want.AppendTo([]byte("before"))[len("before"):]
		var ip Packet
		var s TCP
		if err := errors.Join(ip.Decode(b, len(b)), s.Decode(ip.Transport, ip.TransportLen)); err != nil {
			t.Fatal(err)
		}
		if s.Options.MSS != 1460 || !s.Options.SACKPermitted || s.Options.TSVal != 9 || s.Options.Malformed || string(s.Payload) != "odd" {
			t.Errorf("%+v", s)
		}
		if got := checksum(b, ip); got != 0xffff {
			t.Errorf("checksum sums up to %#x", got)
		}
	}
}

func TestDatagramRoundTrip(t *testing.T) {
	for _, ends := range [][2]netip.AddrPort{{a4, b4}, {a6, b6}} {
		for n := range 300 { // one of them has a checksum of zero, which means none
			u := UDPProbe{Src: ends[0], Dst: ends[1], TTL: 3, TOS: 0x20, ID: 7, Payload: []byte{5, byte(n), byte(n >> 8)}}
			b := u.AppendTo(nil)
			var ip Packet
			if err := ip.Decode(b, len(b)); err != nil {
				t.Fatal(err)
			}
			if ip.Proto != ProtoUDP || ip.TransportLen != 11 || be.Uint16(ip.Transport[4:]) != 11 || ip.TTL != 3 || ip.TOS != 0x20 {
				t.Fatalf("%+v", ip)
			}
			if be.Uint16(ip.Transport[6:]) == 0 || checksum(b, ip) != 0xffff {
				t.Fatalf("checksum %#x sums up to %#x", be.Uint16(ip.Transport[6:]), checksum(b, ip))
			}
		}
	}
}

// A datagram with zeros behind it has a checksum that is right for the length of its packet
// and wrong for its own; one without a checksum has zero.
func TestDatagramSurplus(t *testing.T) {
	for _, ends := range [][2]netip.AddrPort{{a4, b4}, {a6, b6}} {
		for n := range 300 {
			u := UDPProbe{Src: ends[0], Dst: ends[1], TTL: 3, ID: 7, Payload: []byte{5, byte(n), byte(n >> 8)}, Surplus: 3}
			b := u.AppendTo(nil)
			var ip Packet
			var d UDP
			if err := errors.Join(ip.Decode(b, len(b)), d.Decode(ip.Transport, ip.TransportLen)); err != nil {
				t.Fatal(err)
			}
			if ip.TransportLen != 14 || d.Len != 11 || len(d.Payload) != 3 || d.Checksum != u.ChecksumBetween(u.Src, u.Dst) {
				t.Fatalf("%+v %+v", ip, d)
			}
			if got := checksum(b, ip); got != 0xffff {
				t.Fatalf("by the packet's length: %#x", got)
			}
			ip.Transport, ip.TransportLen = ip.Transport[:11], 11
			if got := checksum(b, ip); got == 0xffff {
				t.Fatalf("by its own length: %#x", got)
			}
			u.Surplus, u.NoChecksum = 0, true
			if b = u.AppendTo(nil); ip.Decode(b, len(b)) != nil || be.Uint16(ip.Transport[6:]) != 0 {
				t.Fatalf("% x", b)
			}
		}
	}
}

func TestEchoRoundTrip(t *testing.T) {
	for _, ends := range [][2]netip.Addr{{a4.Addr(), b4.Addr()}, {a6.Addr(), b6.Addr()}} {
		for _, reply := range []bool{false, true} {
			e := ICMPEcho{Src: ends[0], Dst: ends[1], TTL: 3, Reply: reply, ID: 77, Seq: 88, Payload: []byte("x")}
			b := e.AppendTo(nil)
			var ip Packet
			var m ICMP
			if err := errors.Join(ip.Decode(b, len(b)), m.Decode(ip.Version, ip.Transport)); err != nil {
				t.Fatal(err)
			}
			if (m.Kind == EchoReply) != reply || (m.Kind == EchoRequest) == reply || m.ID != 77 || m.Seq != 88 {
				t.Errorf("%+v", m)
			}
			if ip.Version == 6 && checksum(b, ip) != 0xffff || ip.Version == 4 && fold(sum(0, ip.Transport)) != 0xffff {
				t.Error("the checksum is wrong")
			}
		}
	}
}

func TestSequenceNumbers(t *testing.T) {
	for _, test := range []struct {
		a, b uint32
		diff int32
	}{{1, 2, -1}, {2, 1, 1}, {5, 5, 0}, {0xffffffff, 0, -1}, {3, 0xfffffffe, 5}, {0x7fffffff, 0, 0x7fffffff}} {
		if SeqDiff(test.a, test.b) != test.diff || SeqLess(test.a, test.b) != (test.diff < 0) {
			t.Errorf("%#x and %#x: %d, %v", test.a, test.b, SeqDiff(test.a, test.b), SeqLess(test.a, test.b))
		}
		if want := map[bool]uint32{true: test.b, false: test.a}[test.diff < 0]; SeqMax(test.a, test.b) != want {
			t.Errorf("the later of %#x and %#x is not %#x", test.a, test.b, SeqMax(test.a, test.b))
		}
	}
}
