package packetfile

import (
	"encoding/binary"

	"servicetraceroute/internal/capture"
)

// Link types (tcpdump.org/linktypes.html) that hold IP packets.
const (
	linkNull     = 0
	linkEthernet = 1
	linkRawBSD   = 12 // what DLT_RAW was on most systems, in old files
	linkRawOpen  = 14 // and on OpenBSD
	linkRaw      = 101
	linkLoop     = 108
	linkSLL      = 113 // Linux "cooked"
	linkIPv4     = 228
	linkIPv6     = 229
	linkSLL2     = 276
)

const (
	typeIPv4 = 0x0800
	typeIPv6 = 0x86dd
	notIP    = 0xffff // reserved, RFC 1701
	maxTags  = 4
)

var be = binary.BigEndian

// frame fills in what the link layer tells, and Data and Len from the IP header on. It
// returns false, and counts, where there is no IP packet.
func (f *Reader) frame(p *capture.Packet, b []byte, original uint32, link uint32) bool {
	var ip int      // where the IP header begins
	var kind uint16 // EtherType; 0: the version decides
	cut := false
	switch link {
	case linkEthernet:
		ip, kind, cut = ethernet(p, b)
	case linkSLL:
		ip, kind, cut = cooked(p, b)
	case linkSLL2:
		ip, kind, cut = cooked2(p, b)
	case linkNull, linkLoop:
		ip, cut = 4, len(b) < 4
		p.NextHopKnown = true // such links have no addresses
		if !cut && !family(b) {
			kind = notIP
		}
	case linkRaw, linkRawBSD, linkRawOpen:
	case linkIPv4:
		kind = typeIPv4
	case linkIPv6:
		kind = typeIPv6
	default:
		f.counts.LinkType++
		return false
	}
	switch {
	case !cut && kind != 0 && kind != typeIPv4 && kind != typeIPv6:
		f.counts.NotIP++
		return false
	case cut || ip >= len(b):
		f.counts.Cut++
		return false
	case kind == 0 && b[ip]>>4 != 4 && b[ip]>>4 != 6:
		f.counts.NotIP++
		return false
	}
	p.Data = b[ip:len(b):len(b)]
	p.Len = max(int(min(original, 1<<30))-ip, len(p.Data))
	return true
}

// ethernet reads an Ethernet II header with VLAN tags.
//
//	| destination, 6 bytes | source, 6 bytes | tags, 4 bytes each | type |
func ethernet(p *capture.Packet, b []byte) (ip int, kind uint16, cut bool) {
	if len(b) < 14 {
		return 0, 0, true
	}
	p.NextHop.Len = 6
	copy(p.NextHop.Addr[:], b[:6])
	p.NextHopKnown = true
	return tags(p, b, 14, be.Uint16(b[12:]))
}

// tags passes over IEEE 802.1Q, 802.1ad and older double tags from at on.
func tags(p *capture.Packet, b []byte, at int, kind uint16) (int, uint16, bool) {
	for range maxTags {
		if kind != 0x8100 && kind != 0x88a8 && kind != 0x9100 {
			break
		}
		p.Tagged = true
		if len(b) < at+4 {
			return 0, 0, true
		}
		kind = be.Uint16(b[at+2:])
		at += 4
	}
	if kind == 0 { // no EtherType, and not "the version decides"
		kind = notIP
	}
	return at, kind, false
}

// cooked reads the pseudo header of Linux's "any" interface. Its address is the
// sender's, so whom a packet was for is not known.
//
//	| packet type | ARPHRD_ | address length | address, 8 bytes | protocol |
func cooked(p *capture.Packet, b []byte) (ip int, kind uint16, cut bool) {
	if len(b) < 16 {
		return 0, 0, true
	}
	p.Direction = told(p.Direction, be.Uint16(b))
	return tags(p, b, 16, be.Uint16(b[14:]))
}

// cooked2 reads the second version, which has the capturing host's interface index;
// interfaces are told by the file's descriptions all the same.
//
//	| protocol | 0 | interface, 4 bytes | ARPHRD_ | packet type, 1 byte | address length, 1 byte | address, 8 bytes |
func cooked2(p *capture.Packet, b []byte) (ip int, kind uint16, cut bool) {
	if len(b) < 20 {
		return 0, 0, true
	}
	p.Direction = told(p.Direction, uint16(b[10]))
	return tags(p, b, 20, be.Uint16(b))
}

// told is the direction by the packet type of packet(7), which says more than what the
// file told already.
func told(already capture.Direction, packetType uint16) capture.Direction {
	switch {
	case packetType <= 2: // to us, broadcast, multicast
		return capture.Incoming
	case packetType == 3:
		return capture.Foreign
	case packetType == 4:
		return capture.Outgoing
	}
	return already
}

// family reports whether the address family of a BSD loopback header, in either byte
// order, is one of IP: AF_INET, or AF_INET6 of Linux, NetBSD, FreeBSD and Darwin.
func family(b []byte) bool {
	n := be.Uint32(b)
	if n > 0xffff {
		n = binary.LittleEndian.Uint32(b)
	}
	return n == 2 || n == 10 || n == 24 || n == 28 || n == 30
}
