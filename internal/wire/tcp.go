package wire

// TCPFlags are the control bits of a segment.
type TCPFlags uint8

// The control bits (RFC 9293 section 3.1, RFC 3168).
const (
	FIN TCPFlags = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// TCP is one decoded segment.
type TCP struct {
	SrcPort, DstPort uint16
	Seq, Ack         uint32
	Flags            TCPFlags
	Window           uint16
	PayloadLen       int    // on the wire
	Payload          []byte // the captured part
	Options          TCPOptions
}

// TCPOptions are the options of a segment.
type TCPOptions struct {
	MSS                      uint16
	HasMSS                   bool
	WindowScale              uint8
	HasWindowScale           bool
	SACKPermitted            bool
	SACKBlocks               int
	HasTimestamp             bool
	TSVal, TSEcr             uint32
	MD5, AO, MPTCP, FastOpen bool
	Malformed                bool // could not be walked to their end
}

// Decode reads a segment. wireLen is its whole length, as Packet.TransportLen.
//
//	 0                   1                   2                   3      RFC 9293
//	|          Source Port          |       Destination Port        |   section 3.1
//	|                        Sequence Number                        |
//	|                    Acknowledgment Number                      |
//	| Data  |Rsr|   control bits    |            Window             |
//	|           Checksum            |         Urgent Pointer        |
//	|                       [Options] and data                      |
func (t *TCP) Decode(transport []byte, wireLen int) error {
	*t = TCP{}
	if len(transport) < 20 {
		return ErrTruncated
	}
	header := int(transport[12]>>4) * 4
	if header < 20 || header > max(wireLen, len(transport)) {
		return ErrMalformed
	}
	t.SrcPort, t.DstPort = be.Uint16(transport), be.Uint16(transport[2:])
	t.Seq, t.Ack = be.Uint32(transport[4:]), be.Uint32(transport[8:])
	t.Flags, t.Window = TCPFlags(transport[13]), be.Uint16(transport[14:])
	t.PayloadLen = max(wireLen, len(transport)) - header
	if header > len(transport) {
		t.Options.decode(transport[20:])
		t.Options.Malformed = true
		return nil
	}
	t.Options.decode(transport[20:header])
	t.Payload = transport[header:]
	return nil
}

// TCP option kinds (IANA TCP parameters).
const (
	optEnd       = 0
	optNop       = 1
	optMSS       = 2
	optScale     = 3
	optSACKOK    = 4
	optSACK      = 5
	optTimestamp = 8
	optMD5       = 19
	optAO        = 29
	optMPTCP     = 30
	optFastOpen  = 34
)

func (o *TCPOptions) decode(b []byte) {
	for len(b) > 0 {
		kind := b[0]
		if kind == optEnd {
			return
		}
		if kind == optNop {
			b = b[1:]
			continue
		}
		if len(b) < 2 || int(b[1]) < 2 || int(b[1]) > len(b) {
			o.Malformed = true
			return
		}
		size := int(b[1])
		o.take(kind, b[2:size])
		b = b[size:]
	}
}

func (o *TCPOptions) take(kind uint8, v []byte) {
	switch {
	case kind == optMSS && len(v) == 2:
		o.MSS, o.HasMSS = be.Uint16(v), true
	case kind == optScale && len(v) == 1:
		o.WindowScale, o.HasWindowScale = v[0], true
	case kind == optSACKOK && len(v) == 0:
		o.SACKPermitted = true
	case kind == optSACK:
		o.SACKBlocks = len(v) / 8
	case kind == optTimestamp && len(v) == 8:
		o.HasTimestamp, o.TSVal, o.TSEcr = true, be.Uint32(v), be.Uint32(v[4:])
	case kind == optMD5:
		o.MD5 = true
	case kind == optAO:
		o.AO = true
	case kind == optMPTCP:
		o.MPTCP = true
	case kind == optFastOpen:
		o.FastOpen = true
	}
}
