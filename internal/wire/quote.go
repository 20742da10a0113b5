package wire

import "net/netip"

// Quote is the packet inside an ICMP error, as far as it was quoted: RFC 792
// promises the IP header and 8 bytes, no more.
type Quote struct {
	Version   uint8
	Src, Dst  netip.Addr
	Proto     uint8
	TTL, TOS  uint8
	FlowLabel uint32
	ID        uint16
	Len       int    // as the quoted header claims, IP header included
	Transport []byte // as far as quoted
	whole     int    // bytes of the transport as the header claims them; 0: not known

	HasPorts         bool
	SrcPort, DstPort uint16
	HasSeq           bool // TCP
	Seq              uint32
	HasTCPHeader     bool // all 20 bytes of it
	TCPAck           uint32
	TCPWindow        uint16
	HasTimestamp     bool
	TSVal, TSEcr     uint32
	HasUDP           bool
	UDPLen, Checksum uint16
	// UDPHead are the first bytes of the payload, as many as UDPHeadLen says.
	UDPHead    [udpHead]byte
	UDPHeadLen int
}

// udpHead is how much of a datagram's payload a quote keeps: a traceroute probe's all.
const udpHead = 20

// Decode reads a quoted packet.
func (q *Quote) Decode(data []byte) error {
	*q = Quote{}
	if len(data) == 0 {
		return ErrTruncated
	}
	var err error
	switch data[0] >> 4 {
	case 4:
		err = q.decode4(data)
	case 6:
		err = q.decode6(data)
	default:
		err = ErrVersion
	}
	if err == nil {
		q.transport()
	}
	return err
}

func (q *Quote) decode4(data []byte) error {
	if len(data) < 20 {
		return ErrTruncated
	}
	header := int(data[0]&0x0f) * 4
	if header < 20 {
		return ErrMalformed
	}
	q.Version, q.TOS, q.Len = 4, data[1], int(be.Uint16(data[2:]))
	q.ID, q.TTL, q.Proto = be.Uint16(data[4:]), data[8], data[9]
	q.Src, q.Dst = netip.AddrFrom4([4]byte(data[12:16])), netip.AddrFrom4([4]byte(data[16:20]))
	if be.Uint16(data[6:])&0x1fff == 0 && header <= len(data) {
		q.Transport, q.whole = data[header:], q.Len-header
	}
	return nil
}

func (q *Quote) decode6(data []byte) error {
	if len(data) < 40 {
		return ErrTruncated
	}
	q.Version, q.Len = 6, 40+int(be.Uint16(data[4:]))
	q.TOS = data[0]<<4 | data[1]>>4
	q.FlowLabel = be.Uint32(data) & 0xfffff
	q.TTL = data[7]
	q.Src, q.Dst = netip.AddrFrom16([16]byte(data[8:24])), netip.AddrFrom16([16]byte(data[24:40]))
	next, rest, left, fragment, err := skipExtensions(data[6], data[40:], q.Len-40)
	q.Proto = next
	if err == nil && fragment>>3 == 0 {
		q.Transport, q.whole = rest, left
	}
	return nil // the addresses are there, whatever follows
}

func (q *Quote) transport() {
	b := q.Transport
	if q.Proto != ProtoTCP && q.Proto != ProtoUDP || len(b) < 4 {
		return
	}
	q.HasPorts, q.SrcPort, q.DstPort = true, be.Uint16(b), be.Uint16(b[2:])
	if len(b) < 8 {
		return
	}
	if q.Proto == ProtoUDP {
		q.HasUDP, q.UDPLen, q.Checksum = true, be.Uint16(b[4:]), be.Uint16(b[6:])
		if int(q.UDPLen) > 8 { // what follows the datagram is padding
			q.UDPHeadLen = copy(q.UDPHead[:], b[8:min(len(b), int(q.UDPLen))])
		}
		return
	}
	q.HasSeq, q.Seq = true, be.Uint32(b[4:])
	if len(b) < 20 {
		return
	}
	q.HasTCPHeader, q.TCPAck, q.TCPWindow = true, be.Uint32(b[8:]), be.Uint16(b[14:])
	q.Checksum = be.Uint16(b[16:])
	if header := int(b[12]>>4) * 4; header > 20 {
		var o TCPOptions
		o.decode(b[20:min(header, len(b))])
		q.HasTimestamp, q.TSVal, q.TSEcr = o.HasTimestamp, o.TSVal, o.TSEcr
	}
}

// TCPChecksumFits reports whether the quoted checksum is that of the quoted segment; known is
// false when not all of it is quoted, or the checksum is 0: not filled in, most likely.
func (q *Quote) TCPChecksumFits() (fits, known bool) {
	if !q.HasTCPHeader || q.Checksum == 0 || q.whole < 20 || q.whole > len(q.Transport) {
		return false, false
	}
	src, dst := q.Src.As16(), q.Dst.As16()
	from := 0
	if q.Version == 4 {
		from = 12 // behind what As16 puts before
	}
	pseudo := sum(sum(0, src[from:]), dst[from:]) + uint32(ProtoTCP) + uint32(q.whole)
	return fold(sum(pseudo, q.Transport[:q.whole])) == 0xffff, true
}
