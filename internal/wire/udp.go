package wire

// UDP is one decoded datagram.
type UDP struct {
	SrcPort, DstPort uint16
	Len              int // of the datagram, header included, as its header claims
	Checksum         uint16
	PayloadLen       int    // on the wire
	Payload          []byte // the captured part
}

// Decode reads a datagram. wireLen is its whole length, as Packet.TransportLen.
//
//	 0                   1                   2                   3
//	|          Source Port          |       Destination Port        |   RFC 768
//	|            Length             |           Checksum            |
//
// A length that is zero is that of the packet: segmentation offload leaves it to the
// device (and RFC 2675 to jumbograms).
func (u *UDP) Decode(transport []byte, wireLen int) error {
	*u = UDP{}
	if len(transport) < 8 {
		return ErrTruncated
	}
	whole := max(wireLen, len(transport))
	u.SrcPort, u.DstPort = be.Uint16(transport), be.Uint16(transport[2:])
	u.Len, u.Checksum = int(be.Uint16(transport[4:])), be.Uint16(transport[6:])
	switch {
	case u.Len == 0:
		u.Len = whole
	case u.Len < 8 || u.Len > whole:
		return ErrMalformed
	}
	u.PayloadLen = u.Len - 8
	u.Payload = transport[8:min(len(transport), u.Len)]
	return nil
}
