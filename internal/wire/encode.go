package wire

import "net/netip"

// TCPProbe is an empty segment of an existing flow.
type TCPProbe struct {
	Src, Dst     netip.AddrPort
	FlowLabel    uint32 // IPv6
	Seq, Ack     uint32
	TSVal, TSEcr uint32
	ID           uint16 // IPv4
	Window       uint16
	TTL, TOS     uint8
	Flags        TCPFlags
	Timestamp    bool
}

// AppendTo appends the whole IP packet: don't fragment, correct checksums. It
// allocates nothing when b has room.
func (p *TCPProbe) AppendTo(b []byte) []byte {
	s := TCPSegment{TCPProbe: *p}
	return s.AppendTo(b)
}

// TCPSegment is a segment with options and payload.
type TCPSegment struct {
	TCPProbe
	Options []byte // beside the timestamp, padded to a multiple of 4 with no-operations
	Payload []byte
}

// AppendTo appends the whole IP packet.
func (s *TCPSegment) AppendTo(b []byte) []byte {
	options := (len(s.Options) + 3) &^ 3
	if s.Timestamp {
		options += 12
	}
	transport := 20 + options + len(s.Payload)
	start := len(b)
	b = appendIP(b, s.Src.Addr(), s.Dst.Addr(), s.TTL, s.TOS, s.FlowLabel, s.ID, ProtoTCP, transport)
	at := len(b)
	b = be.AppendUint16(b, s.Src.Port())
	b = be.AppendUint16(b, s.Dst.Port())
	b = be.AppendUint32(b, s.Seq)
	b = be.AppendUint32(b, s.Ack)
	b = append(b, uint8((20+options)/4)<<4, uint8(s.Flags))
	b = be.AppendUint16(b, s.Window)
	b = append(b, 0, 0, 0, 0) // checksum, urgent pointer
	if s.Timestamp {
		// The layout that RFC 7323 appendix A recommends, and everybody sends.
		b = append(b, optNop, optNop, optTimestamp, 10)
		b = be.AppendUint32(b, s.TSVal)
		b = be.AppendUint32(b, s.TSEcr)
	}
	b = append(b, s.Options...)
	for range (4 - len(s.Options)%4) % 4 {
		b = append(b, optNop)
	}
	b = append(b, s.Payload...)
	putChecksum(b[start:], at-start, 16, ProtoTCP)
	return b
}

// UDPProbe is a datagram.
type UDPProbe struct {
	Src, Dst  netip.AddrPort
	TTL, TOS  uint8
	FlowLabel uint32
	ID        uint16
	Payload   []byte

	// Surplus is how many zeros follow the datagram in its packet: the checksum, as whoever
	// goes by the packet's length computes it, covers them, and its pseudo header counts them.
	Surplus int
	// NoChecksum leaves the checksum zero.
	NoChecksum bool
}

// AppendTo appends the whole IP packet.
func (p *UDPProbe) AppendTo(b []byte) []byte {
	start := len(b)
	b = appendIP(b, p.Src.Addr(), p.Dst.Addr(), p.TTL, p.TOS, p.FlowLabel, p.ID, ProtoUDP, 8+len(p.Payload)+p.Surplus)
	at := len(b)
	b = be.AppendUint16(b, p.Src.Port())
	b = be.AppendUint16(b, p.Dst.Port())
	b = be.AppendUint16(b, uint16(8+len(p.Payload)))
	b = append(b, 0, 0)
	b = append(b, p.Payload...)
	for range p.Surplus {
		b = append(b, 0)
	}
	if !p.NoChecksum {
		putChecksum(b[start:], at-start, 6, ProtoUDP)
	}
	return b
}

// ChecksumBetween returns the checksum that the datagram has between two other ends:
// what a quote shows when one of them was translated.
func (p *UDPProbe) ChecksumBetween(src, dst netip.AddrPort) uint16 {
	other := *p
	other.Src, other.Dst = src, dst
	var room [128]byte
	b := other.AppendTo(room[:0])
	return be.Uint16(b[len(b)-p.Surplus-len(p.Payload)-2:])
}

// ICMPEcho is an echo request or reply.
type ICMPEcho struct {
	Src, Dst  netip.Addr
	TTL, TOS  uint8
	FlowLabel uint32
	IPID      uint16
	Reply     bool
	ID, Seq   uint16
	Payload   []byte
}

// AppendTo appends the whole IP packet.
func (e *ICMPEcho) AppendTo(b []byte) []byte {
	typ, proto := uint8(8), uint8(ProtoICMP)
	if e.Reply {
		typ = 0
	}
	if e.Dst.Is6() {
		typ, proto = 128, ProtoICMPv6
		if e.Reply {
			typ = 129
		}
	}
	start := len(b)
	b = appendIP(b, e.Src, e.Dst, e.TTL, e.TOS, e.FlowLabel, e.IPID, proto, 8+len(e.Payload))
	at := len(b)
	b = append(b, typ, 0, 0, 0)
	b = be.AppendUint16(b, e.ID)
	b = be.AppendUint16(b, e.Seq)
	b = append(b, e.Payload...)
	putChecksum(b[start:], at-start, 2, proto)
	return b
}

// ICMPError is an ICMP error with a quote.
type ICMPError struct {
	Src, Dst   netip.Addr
	TTL        uint8
	Type, Code uint8
	MTU        uint32
	Quote      []byte
	MaxQuote   int    // 0: as much as the RFCs allow
	Extensions []byte // RFC 4884 structure with its header
}

// What a message with IP header may be long: RFC 1812 section 4.3.2.3 (576
// bytes), RFC 4443 section 2.4 (1280).
const (
	maxQuote4 = 576 - 20 - 8
	maxQuote6 = 1280 - 40 - 8
)

// AppendTo appends the whole IP packet.
func (e *ICMPError) AppendTo(b []byte) []byte {
	proto, limit, unit := uint8(ProtoICMP), maxQuote4, 4
	if e.Dst.Is6() {
		proto, limit, unit = ProtoICMPv6, maxQuote6, 8
	}
	if e.MaxQuote > 0 {
		limit = min(limit, e.MaxQuote)
	}
	quote := e.Quote[:min(len(e.Quote), limit)]
	pad := 0
	if len(e.Extensions) > 0 { // RFC 4884 section 4: at least 128 bytes, padded
		quote = quote[:min(len(quote), 128)]
		pad = 128 - len(quote)
	}
	start := len(b)
	b = appendIP(b, e.Src, e.Dst, e.TTL, 0, 0, 0, proto, 8+len(quote)+pad+len(e.Extensions))
	at := len(b)
	b = append(b, e.Type, e.Code, 0, 0)
	b = be.AppendUint32(b, e.MTU)
	if len(e.Extensions) > 0 {
		b[at+4+(8-unit)/4] = uint8(128 / unit) // byte 5 of ICMP, byte 4 of ICMPv6
	}
	b = append(b, quote...)
	for range pad {
		b = append(b, 0)
	}
	b = append(b, e.Extensions...)
	putChecksum(b[start:], at-start, 2, proto)
	return b
}

// appendIP appends an IP header without options for a transport of size bytes.
func appendIP(b []byte, src, dst netip.Addr, ttl, tos uint8, label uint32, id uint16, proto uint8, size int) []byte {
	if dst.Is6() {
		s, d := src.As16(), dst.As16()
		b = be.AppendUint32(b, 6<<28|uint32(tos)<<20|label&0xfffff)
		b = be.AppendUint16(b, uint16(size))
		b = append(b, proto, ttl)
		b = append(b, s[:]...)
		return append(b, d[:]...)
	}
	s, d := src.As4(), dst.As4()
	at := len(b)
	b = append(b, 0x45, tos)
	b = be.AppendUint16(b, uint16(20+size))
	b = be.AppendUint16(b, id)
	b = append(b, 0x40, 0, ttl, proto, 0, 0) // don't fragment
	b = append(b, s[:]...)
	b = append(b, d[:]...)
	be.PutUint16(b[at+10:], ^fold(sum(0, b[at:])))
	return b
}

// putChecksum writes the transport's checksum: over the transport alone for
// ICMP, with the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1) else.
func putChecksum(packet []byte, transport, field int, proto uint8) {
	var s uint32
	body := packet[transport:]
	if proto != ProtoICMP {
		if packet[0]>>4 == 6 {
			s = sum(0, packet[8:40])
		} else {
			s = sum(0, packet[12:20])
		}
		s += uint32(proto) + uint32(len(body))
	}
	c := ^fold(sum(s, body))
	if c == 0 && proto == ProtoUDP {
		c = 0xffff // RFC 768: zero means none
	}
	be.PutUint16(body[field:], c)
}

// sum adds the 16-bit words of b to s (RFC 1071).
func sum(s uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
		s = s&0xffff + s>>16
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}
