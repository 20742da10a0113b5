//go:build linux

package tap

import (
	"encoding/binary"
	"net/netip"
)

// Protocol numbers and TCP flags.
const (
	ICMP   = 1
	TCP    = 6
	UDP    = 17
	ICMPv6 = 58

	FIN = 0x01
	SYN = 0x02
	RST = 0x04
	ACK = 0x10
)

// Header is what the lab reads of a packet: the fields that tell packets apart.
type Header struct {
	Src, Dst     netip.Addr
	Sport, Dport uint16 // TCP and UDP
	Proto        uint8
	TTL          uint8
	ID           uint16 // IPv4
	Fragment     bool   // not the first: without a transport header
	Len          int    // of the packet, as its IP header says
	Payload      int    // bytes after the TCP or UDP header
	Seq, Ack     uint32 // TCP
	Flags        uint8  // TCP
	TSval        uint32 // TCP timestamp option, 0 without
	Whole        bool   // TCP and UDP: the transport header is not cut
	Transport    []byte // from the transport header on, maybe cut short
}

// Parse reads a packet from its IP header on. ok is false when it is none, or is
// cut before the end of its ports.
func Parse(b []byte) (h Header, ok bool) {
	if len(b) < 20 {
		return h, false
	}
	switch b[0] >> 4 {
	case 4:
		ok = h.parseIPv4(b)
	case 6:
		ok = len(b) >= 40 && h.parseIPv6(b)
	}
	if !ok || h.Fragment {
		return h, ok
	}
	return h, h.parseTransport()
}

func (h *Header) parseIPv4(b []byte) bool {
	ihl := int(b[0]&0xf) * 4
	h.Len = int(binary.BigEndian.Uint16(b[2:]))
	if ihl < 20 || len(b) < ihl || h.Len < ihl {
		return false
	}
	h.ID = binary.BigEndian.Uint16(b[4:])
	h.Fragment = binary.BigEndian.Uint16(b[6:])&0x1fff != 0
	h.TTL, h.Proto = b[8], b[9]
	h.Src = netip.AddrFrom4([4]byte(b[12:]))
	h.Dst = netip.AddrFrom4([4]byte(b[16:]))
	h.Payload = h.Len - ihl
	h.Transport = b[ihl:min(len(b), h.Len)]
	return true
}

func (h *Header) parseIPv6(b []byte) bool {
	h.Len = 40 + int(binary.BigEndian.Uint16(b[4:]))
	h.Proto, h.TTL = b[6], b[7]
	h.Src = netip.AddrFrom16([16]byte(b[8:]))
	h.Dst = netip.AddrFrom16([16]byte(b[24:]))
	at := 40
	for range 8 { // more extension headers than anybody sends
		if len(b) < at+8 {
			break
		}
		switch h.Proto {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			h.Proto, at = b[at], at+8+int(b[at+1])*8
			continue
		case 44: // fragment
			h.Fragment = binary.BigEndian.Uint16(b[at+2:])&^7 != 0
			h.Proto, at = b[at], at+8
			continue
		}
		break
	}
	if at > len(b) || at > h.Len {
		return false
	}
	h.Payload = h.Len - at
	h.Transport = b[at:min(len(b), h.Len)]
	return true
}

func (h *Header) parseTransport() bool {
	t := h.Transport
	switch h.Proto {
	case TCP, UDP:
	default:
		return true
	}
	if len(t) < 8 {
		return false
	}
	h.Sport, h.Dport = binary.BigEndian.Uint16(t), binary.BigEndian.Uint16(t[2:])
	if h.Proto == UDP {
		h.Payload -= 8
		h.Whole = true
		return h.Payload >= 0
	}
	h.Seq = binary.BigEndian.Uint32(t[4:])
	if len(t) < 20 { // the quote of an ICMP error may end here
		h.Payload = 0
		return true
	}
	h.Ack, h.Flags = binary.BigEndian.Uint32(t[8:]), t[13]
	size := int(t[12]>>4) * 4
	h.Payload -= size
	if size < 20 || h.Payload < 0 {
		return false
	}
	h.Whole = len(t) >= size
	h.TSval = timestamp(t[20:min(size, len(t))])
	return true
}

// timestamp finds the TSval in TCP options (RFC 7323, kind 8, length 10).
func timestamp(o []byte) uint32 {
	for len(o) > 0 {
		switch {
		case o[0] == 0:
			return 0
		case o[0] == 1:
			o = o[1:]
			continue
		case len(o) < 2 || o[1] < 2 || int(o[1]) > len(o):
			return 0
		case o[0] == 8 && o[1] == 10:
			return binary.BigEndian.Uint32(o[2:])
		}
		o = o[o[1]:]
	}
	return 0
}

// Quote returns the headers that an ICMP or ICMPv6 error quotes. ok is false for
// other messages and for quotes without ports.
func (h *Header) Quote() (q Header, typ, code uint8, ok bool) {
	t := h.Transport
	if h.Fragment || len(t) < 8 {
		return q, 0, 0, false
	}
	typ, code = t[0], t[1]
	switch {
	case h.Proto == ICMP && (typ == 3 || typ == 11 || typ == 12):
	case h.Proto == ICMPv6 && typ >= 1 && typ <= 4:
	default:
		return q, typ, code, false
	}
	q, ok = Parse(t[8:])
	return q, typ, code, ok
}

// FinishChecksum computes the TCP or UDP checksum of a whole, unfragmented
// packet whose sender left that to its interface.
func FinishChecksum(ip []byte) {
	h, ok := Parse(ip)
	if !ok || h.Fragment || len(ip) < h.Len {
		return
	}
	at := map[uint8]int{TCP: 16, UDP: 6}[h.Proto]
	if at == 0 || len(h.Transport) < at+2 {
		return
	}
	binary.BigEndian.PutUint16(h.Transport[at:], 0)
	sum := uint64(h.Proto) + uint64(len(h.Transport))
	sum = addWords(sum, h.Src.AsSlice())
	sum = addWords(sum, h.Dst.AsSlice())
	sum = addWords(sum, h.Transport)
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	c := ^uint16(sum)
	if c == 0 && h.Proto == UDP {
		c = 0xffff // 0 means "no checksum"
	}
	binary.BigEndian.PutUint16(h.Transport[at:], c)
}

func addWords(sum uint64, b []byte) uint64 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	return sum
}
