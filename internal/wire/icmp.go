package wire

// ICMPKind is the meaning of an ICMP or ICMPv6 message. The zero value is any
// other message.
type ICMPKind uint8

// The kinds that matter to a traceroute.
const (
	OtherICMP ICMPKind = iota
	TimeExceeded
	NetUnreachable
	HostUnreachable
	PortUnreachable
	AdminProhibited
	OtherUnreachable
	PacketTooBig
	EchoRequest
	EchoReply
)

// ICMP is one decoded message of either version.
type ICMP struct {
	Type, Code uint8
	Kind       ICMPKind
	MTU        uint32 // of PacketTooBig
	ID, Seq    uint16 // of an echo
	Quote      []byte // the quoted packet, without extensions
	Extensions []byte // the RFC 4884 extension structure with its header; nil if none
}

// Decode reads a message of the given IP version.
//
//	|     Type      |     Code      |          Checksum             |   RFC 792, RFC 4443
//	|   depends on the type, length of the quote (RFC 4884)         |
//	|               the packet that caused the error …
func (m *ICMP) Decode(version uint8, transport []byte) error {
	*m = ICMP{}
	if len(transport) < 8 {
		return ErrTruncated
	}
	m.Type, m.Code = transport[0], transport[1]
	m.Kind = KindOf(version, m.Type, m.Code)
	length := 0 // of the quote in bytes, as RFC 4884 tells it
	if version == 6 {
		length = int(transport[4]) * 8
	} else {
		length = int(transport[5]) * 4
	}
	switch m.Kind {
	case OtherICMP:
		return nil
	case EchoRequest, EchoReply:
		m.ID, m.Seq = be.Uint16(transport[4:]), be.Uint16(transport[6:])
		return nil
	case PacketTooBig:
		m.MTU = be.Uint32(transport[4:])
		if version == 4 {
			m.MTU &= 0xffff
		} else {
			length = 0
		}
	}
	m.split(version, transport[8:], length)
	return nil
}

// split separates the quote from the extensions behind it (RFC 4884 section 4).
// Where the length is not given, old routers put extensions after 128 bytes of
// quote (section 5.5).
func (m *ICMP) split(version uint8, body []byte, length int) {
	m.Quote = body
	switch {
	case length == 0 && version == 4 && len(body) >= 128+4:
		if validExtensions(body[128:], true) {
			m.Quote, m.Extensions = body[:128], body[128:]
		}
	case length > 0 && length <= len(body):
		m.Quote = body[:length]
		if validExtensions(body[length:], false) {
			m.Extensions = body[length:]
		}
	}
}

func kind4(typ, code uint8) ICMPKind {
	switch typ {
	case 11:
		if code == 0 {
			return TimeExceeded
		}
	case 3:
		switch code {
		case 0, 6, 8, 11:
			return NetUnreachable
		case 1, 7, 12:
			return HostUnreachable
		case 3:
			return PortUnreachable
		case 4:
			return PacketTooBig
		case 9, 10, 13:
			return AdminProhibited
		}
		return OtherUnreachable
	case 8:
		return EchoRequest
	case 0:
		return EchoReply
	}
	return OtherICMP
}

func kind6(typ, code uint8) ICMPKind {
	switch typ {
	case 3:
		if code == 0 {
			return TimeExceeded
		}
	case 1:
		switch code {
		case 0:
			return NetUnreachable
		case 1, 5, 6:
			return AdminProhibited
		case 3:
			return HostUnreachable
		case 4:
			return PortUnreachable
		}
		return OtherUnreachable
	case 2:
		return PacketTooBig
	case 128:
		return EchoRequest
	case 129:
		return EchoReply
	}
	return OtherICMP
}

// KindOf is the meaning of a type and code of the given IP version.
func KindOf(version, typ, code uint8) ICMPKind {
	if version == 6 {
		return kind6(typ, code)
	}
	return kind4(typ, code)
}
