package wire

import "net/netip"

// InterfaceInfo is what an RFC 5837 object says of one interface of the router. What it does
// not say is zero.
type InterfaceInfo struct {
	Role  uint8 // 0 to 3, see there
	Index uint32
	Addr  netip.Addr
	Name  string // as it came, at most 63 bytes
	MTU   uint32
}

// The bits of the C-Type that say which parts follow, in this order (RFC 5837 section 4.1):
//
//	  0       1       2       3       4       5       6       7
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| Interface Role| Rsvd1 | Rsvd2 |ifIndex| IPAddr|  name |  MTU  |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
const (
	infoIndex = 1 << 3
	infoAddr  = 1 << 2
	infoName  = 1 << 1
	infoMTU   = 1 << 0
)

// maxInfo bounds the objects of one message: there are four roles.
const maxInfo = 4

// AppendInterfaceInfo appends what the extensions say of interfaces. An object that is cut
// short or malformed says nothing.
func AppendInterfaceInfo(dst []InterfaceInfo, extensions []byte) []InterfaceInfo {
	if len(extensions) < 4 {
		return dst
	}
	class, kind, payload, rest, ok := object(extensions[4:])
	for ; ok; class, kind, payload, rest, ok = object(rest) {
		if class != classInterface || len(dst) >= maxInfo {
			continue
		}
		info := InterfaceInfo{Role: kind >> 6}
		if info.decode(kind, payload) {
			dst = append(dst, info)
		}
	}
	return dst
}

func (i *InterfaceInfo) decode(kind uint8, b []byte) (ok bool) {
	if kind&infoIndex != 0 {
		if i.Index, b, ok = word(b); !ok {
			return false
		}
	}
	if kind&infoAddr != 0 {
		if i.Addr, b, ok = infoAddress(b); !ok {
			return false
		}
	}
	if kind&infoName != 0 {
		if i.Name, b, ok = infoText(b); !ok {
			return false
		}
	}
	if kind&infoMTU != 0 {
		if i.MTU, _, ok = word(b); !ok {
			return false
		}
	}
	return kind&(infoIndex|infoAddr|infoName|infoMTU) != 0
}

func word(b []byte) (v uint32, rest []byte, ok bool) {
	if len(b) < 4 {
		return 0, nil, false
	}
	return be.Uint32(b), b[4:], true
}

// infoAddress reads the address (section 4.2): family, two reserved bytes, address.
func infoAddress(b []byte) (a netip.Addr, rest []byte, ok bool) {
	if len(b) < 4 {
		return a, nil, false
	}
	size := map[uint16]int{1: 4, 2: 16}[be.Uint16(b)]
	if b = b[4:]; size == 0 || len(b) < size {
		return a, nil, false
	}
	a, ok = netip.AddrFromSlice(b[:size])
	return a, b[size:], ok
}

// infoText reads the name (section 4.3): its length with this byte, the text, and zeros up to
// a multiple of four.
func infoText(b []byte) (name string, rest []byte, ok bool) {
	if len(b) == 0 || b[0] < 1 || b[0] > 64 || int(b[0]) > len(b) {
		return "", nil, false
	}
	text := b[1:b[0]]
	for len(text) > 0 && text[len(text)-1] == 0 {
		text = text[:len(text)-1]
	}
	return string(text), b[b[0]:], true
}
