package wire

// MPLSLabel is one entry of a label stack.
type MPLSLabel struct {
	Label uint32
	TC    uint8
	S     bool
	TTL   uint8
}

// Extension object classes.
const (
	classMPLS      = 1 // RFC 4950
	classInterface = 2 // RFC 5837
)

// validExtensions checks an extension structure's header (RFC 4884 section 7).
// A checksum of zero means none was computed; strict asks for one, where the
// structure was only guessed to be there.
func validExtensions(b []byte, strict bool) bool {
	if len(b) < 4 || b[0]>>4 != 2 {
		return false
	}
	if be.Uint16(b[2:]) == 0 {
		return !strict
	}
	return fold(sum(0, b)) == 0xffff
}

// object returns the first object of an extension structure's body and the rest.
//
//	|             Length            |   Class-Num   |   C-Type      |   RFC 4884
//	|                   object payload …                            |   section 7.1
func object(b []byte) (class, kind uint8, payload, rest []byte, ok bool) {
	if len(b) < 4 {
		return 0, 0, nil, nil, false
	}
	size := int(be.Uint16(b))
	if size < 4 || size > len(b) {
		return 0, 0, nil, nil, false
	}
	return b[2], b[3], b[4:size], b[size:], true
}

// AppendMPLS appends the label stack that the extensions hold.
func AppendMPLS(dst []MPLSLabel, extensions []byte) []MPLSLabel {
	if len(extensions) < 4 {
		return dst
	}
	class, _, payload, rest, ok := object(extensions[4:])
	for ; ok; class, _, payload, rest, ok = object(rest) {
		if class != classMPLS {
			continue
		}
		for ; len(payload) >= 4; payload = payload[4:] {
			v := be.Uint32(payload)
			dst = append(dst, MPLSLabel{Label: v >> 12, TC: uint8(v>>9) & 7, S: v&0x100 != 0, TTL: uint8(v)})
		}
	}
	return dst
}
