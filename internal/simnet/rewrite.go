package simnet

import (
	"net/netip"

	"servicetraceroute/internal/wire"
)

// patch corrects a checksum for a change of an even number of bytes at an even
// place (RFC 1624): HC' = ~(~HC + ~m + m').
func patch(check, before, after []byte) {
	s := uint32(^be.Uint16(check))
	for i := 0; i+1 < len(before); i += 2 {
		s += uint32(^be.Uint16(before[i:])) + uint32(be.Uint16(after[i:]))
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	be.PutUint16(check, ^uint16(s))
}

// editor changes fields of a packet, or of a quoted one that may be cut short,
// and keeps the checksums that are there correct.
type editor struct {
	b         []byte
	transport int // where it begins
	check     int // where the transport's checksum stands, 0: there is none
	icmp      int // in a quote: where the ICMPv4 or v6 checksum of outer stands
	outer     []byte
}

// edit returns an editor of an IP packet without extension headers.
func edit(b []byte) editor {
	e := editor{b: b}
	if len(b) < 20 {
		return e
	}
	proto := b[9]
	e.transport = int(b[0]&0xf) * 4
	if b[0]>>4 == 6 {
		if len(b) < 40 {
			return editor{b: b}
		}
		proto, e.transport = b[6], 40
	}
	switch proto {
	case wire.ProtoTCP:
		e.check = e.transport + 16
	case wire.ProtoUDP:
		e.check = e.transport + 6
	case wire.ProtoICMPv6:
		e.check = e.transport + 2
	}
	if e.check+2 > len(b) || proto == wire.ProtoUDP && be.Uint16(b[e.check:]) == 0 {
		e.check = 0 // cut off, or never computed (RFC 768)
	}
	return e
}

// quote returns an editor of the packet quoted in the ICMP error b. All that it
// changes counts in the error's own checksum as well, the corrected inner
// checksums included.
func quote(b []byte) editor {
	outer := edit(b)
	at := outer.transport + 8
	if at > len(b) {
		return editor{}
	}
	e := edit(b[at:])
	e.outer, e.icmp = b, outer.transport+2
	return e
}

// put writes bytes at an even place. pseudo says that they are in the transport's
// pseudo header.
func (e *editor) put(at int, v []byte, pseudo bool) {
	if at+len(v) > len(e.b) {
		return
	}
	old := append([]byte(nil), e.b[at:at+len(v)]...)
	e.write(at, v)
	if e.b[0]>>4 == 4 && at < 20 {
		e.fix(10, old, v)
	}
	if e.check != 0 && (pseudo || at >= e.transport) {
		e.fix(e.check, old, v)
	}
}

func (e *editor) fix(check int, before, after []byte) {
	sum := append([]byte(nil), e.b[check:check+2]...)
	patch(sum, before, after)
	e.write(check, sum)
}

func (e *editor) write(at int, v []byte) {
	if e.outer != nil {
		patch(e.outer[e.icmp:], e.b[at:at+len(v)], v)
	}
	copy(e.b[at:], v)
}

// src and dst set an address and, when the transport is there, its port.
func (e *editor) src(a netip.AddrPort, ports bool) { e.end(a, 0, ports) }
func (e *editor) dst(a netip.AddrPort, ports bool) { e.end(a, 1, ports) }

func (e *editor) end(a netip.AddrPort, which int, ports bool) {
	if len(e.b) < 20 {
		return
	}
	v := a.Addr().AsSlice()
	at := 12 + 4*which
	if e.b[0]>>4 == 6 {
		at = 8 + 16*which
	}
	e.put(at, v, true)
	if ports {
		e.put(e.transport+2*which, be.AppendUint16(nil, a.Port()), false)
	}
}

// shift adds to a 32-bit field of the transport.
func (e *editor) shift(field int, delta uint32) {
	at := e.transport + field
	if at+4 <= len(e.b) {
		e.put(at, be.AppendUint32(nil, be.Uint32(e.b[at:])+delta), false)
	}
}

// shiftSACK adds to the edges of all SACK blocks.
func (e *editor) shiftSACK(delta uint32) {
	eachBlock(e.b[e.transport:], func(block []byte) {
		for i := 0; i < 8; i += 4 {
			old := [4]byte(block[i:])
			be.PutUint32(block[i:], be.Uint32(block[i:])+delta)
			// Blocks stand at odd places when a sender packs options tightly;
			// nobody in here does.
			patch(e.b[e.check:], old[:], block[i:i+4])
		}
	})
}

// validChecksum verifies the checksum of a TCP segment or a datagram.
func validChecksum(ip *wire.Packet) bool {
	if ip.Proto == wire.ProtoUDP && ip.Version == 4 && len(ip.Transport) >= 8 && be.Uint16(ip.Transport[6:]) == 0 {
		return true // RFC 768: none
	}
	s := uint32(ip.Proto) + uint32(len(ip.Transport))
	add := func(b []byte) {
		for ; len(b) >= 2; b = b[2:] {
			s += uint32(be.Uint16(b))
			s = s&0xffff + s>>16
		}
		if len(b) == 1 {
			s += uint32(b[0]) << 8
		}
	}
	add(ip.Src.AsSlice())
	add(ip.Dst.AsSlice())
	add(ip.Transport)
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return s == 0xffff
}
