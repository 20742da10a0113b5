package wire

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// Errors of decoding. They are values, so that a bad packet costs nothing.
var (
	ErrTruncated = errors.New("wire: truncated packet")
	ErrVersion   = errors.New("wire: not an IPv4 or IPv6 packet")
	ErrMalformed = errors.New("wire: malformed packet")
)

// Transport protocol numbers.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

var be = binary.BigEndian

// Packet is one decoded IP packet.
type Packet struct {
	Version      uint8      // 4 or 6
	Src, Dst     netip.Addr // never IPv4 in IPv6, no zone
	Proto        uint8      // of the transport, after IPv6 extension headers
	TTL          uint8      // or hop limit
	TOS          uint8      // DSCP<<2 | ECN, or traffic class
	FlowLabel    uint32     // IPv6 only
	ID           uint16     // IPv4 only
	DF           bool       // IPv4 only
	Fragment     bool       // part of a packet; one that is not the first has no Transport
	Len          int        // on the wire, from the IP header on
	Transport    []byte     // captured transport bytes, padding removed
	TransportLen int        // of the transport on the wire
}

// Decode reads the packet at the start of data, which may be cut short. wireLen
// is its length on the wire as the capture tells it; it counts only where the
// header has none: segmentation offload and BIG TCP leave 0 there.
func (p *Packet) Decode(data []byte, wireLen int) error {
	*p = Packet{}
	if len(data) == 0 {
		return ErrTruncated
	}
	wireLen = max(wireLen, len(data))
	switch data[0] >> 4 {
	case 4:
		return p.decode4(data, wireLen)
	case 6:
		return p.decode6(data, wireLen)
	}
	return ErrVersion
}

//	0                   1                   2                   3      RFC 791
//
// |Version|  IHL  |Type of Service|          Total Length         |   section 3.1
// |         Identification        |Flags|      Fragment Offset    |
// |  Time to Live |    Protocol   |         Header Checksum       |
// |                       Source Address                          |
// |                    Destination Address                        |
func (p *Packet) decode4(data []byte, wireLen int) error {
	if len(data) < 20 {
		return ErrTruncated
	}
	header := int(data[0]&0x0f) * 4
	if header < 20 {
		return ErrMalformed
	}
	if len(data) < header {
		return ErrTruncated
	}
	total := int(be.Uint16(data[2:]))
	if total == 0 {
		total = wireLen
	}
	if total < header {
		return ErrMalformed
	}
	fragment := be.Uint16(data[6:])
	p.Version, p.TOS, p.Len = 4, data[1], total
	p.ID, p.DF = be.Uint16(data[4:]), fragment&0x4000 != 0
	p.TTL, p.Proto = data[8], data[9]
	p.Src, p.Dst = netip.AddrFrom4([4]byte(data[12:16])), netip.AddrFrom4([4]byte(data[16:20]))
	p.Fragment = fragment&0x3fff != 0
	p.TransportLen = total - header
	if fragment&0x1fff == 0 {
		p.Transport = data[header:min(total, len(data))]
	}
	return nil
}

//	0                   1                   2                   3      RFC 8200
//
// |Version| Traffic Class |           Flow Label                  |   section 3
// |         Payload Length        |  Next Header  |   Hop Limit   |
// |                Source Address (128 bits)                      |
// |              Destination Address (128 bits)                   |
func (p *Packet) decode6(data []byte, wireLen int) error {
	if len(data) < 40 {
		return ErrTruncated
	}
	total := 40 + int(be.Uint16(data[4:]))
	if total == 40 && wireLen > 40 {
		total = wireLen // jumbo, BIG TCP
	}
	p.Version, p.Len = 6, total
	p.TOS = data[0]<<4 | data[1]>>4
	p.FlowLabel = be.Uint32(data) & 0xfffff
	p.TTL = data[7]
	p.Src, p.Dst = netip.AddrFrom16([16]byte(data[8:24])), netip.AddrFrom16([16]byte(data[24:40]))
	rest := data[40:min(total, len(data))]
	next, rest, wire, fragment, err := skipExtensions(data[6], rest, total-40)
	p.Proto, p.Fragment = next, fragment&0xfff9 != 0
	if err != nil {
		return err
	}
	p.TransportLen = wire
	if fragment>>3 == 0 {
		p.Transport = rest
	}
	return nil
}

// maxExtensions bounds the walk: no honest packet has more.
const maxExtensions = 8

// skipExtensions walks IPv6 extension headers (RFC 8200 section 4) to the
// transport header. fragment is the fragment header's offset and flags.
func skipExtensions(next uint8, rest []byte, wire int) (proto uint8, transport []byte, left int, fragment uint16, err error) {
	for range maxExtensions {
		size := 0
		switch next {
		case 0, 43, 60, 135: // hop-by-hop, routing, destination, mobility
			if len(rest) < 8 {
				return next, nil, 0, fragment, ErrTruncated
			}
			size = 8 + int(rest[1])*8
		case 44: // fragment
			if len(rest) < 8 {
				return next, nil, 0, fragment, ErrTruncated
			}
			size = 8
			fragment = be.Uint16(rest[2:])
		case 51: // authentication, in units of 4 bytes
			if len(rest) < 8 {
				return next, nil, 0, fragment, ErrTruncated
			}
			size = 8 + int(rest[1])*4
		default:
			return next, rest, wire, fragment, nil
		}
		if size > len(rest) || size > wire {
			return next, nil, 0, fragment, ErrTruncated
		}
		next, rest, wire = rest[0], rest[size:], wire-size
		if fragment>>3 != 0 {
			return next, nil, wire, fragment, nil
		}
	}
	return next, nil, 0, fragment, ErrMalformed
}
