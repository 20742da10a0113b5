package quic

// Frame types that Initial packets may hold (RFC 9000 section 12.4, table 3).
const (
	framePadding = 0x00
	framePing    = 0x01
	frameACK     = 0x02
	frameACKECN  = 0x03
	frameCrypto  = 0x06
	frameClose   = 0x1c
)

// frame is one frame of an Initial. All but CRYPTO's are only skipped.
type frame struct {
	typ    byte
	offset uint64 // of data in the CRYPTO stream
	data   []byte
}

// next splits off the first frame, or a run of PADDING, of a payload that is not
// empty; ok is false when it is damaged or of a type that does not belong here.
func next(b []byte) (f frame, rest []byte, ok bool) {
	f.typ, rest = b[0], b[1:]
	switch f.typ {
	case framePadding:
		// Most of a packet may be padding: eight bytes at a time.
		for len(rest) >= 8 && be.Uint64(rest) == 0 {
			rest = rest[8:]
		}
		for len(rest) > 0 && rest[0] == framePadding {
			rest = rest[1:]
		}
		return f, rest, true
	case framePing:
		return f, rest, true
	case frameACK, frameACKECN:
		rest, ok = skipACK(rest, f.typ == frameACKECN)
		return f, rest, ok
	case frameCrypto:
		// Offset (i), Length (i), Crypto Data (..)    RFC 9000 section 19.6
		if f.offset, rest, ok = varint(rest); ok {
			f.data, rest, ok = vector(rest)
		}
		return f, rest, ok
	case frameClose:
		// Error Code (i), Frame Type (i), Reason Phrase Length (i), Reason Phrase (..)
		if rest, ok = skip(rest, 2); ok { //            RFC 9000 section 19.19
			_, rest, ok = vector(rest)
		}
		return f, rest, ok
	}
	return f, nil, false
}

// skipACK skips an ACK frame's fields.
//
//	Largest Acknowledged (i), ACK Delay (i),        RFC 9000 section 19.3
//	ACK Range Count (i), First ACK Range (i),
//	ACK Range { Gap (i), ACK Range Length (i) } ...,
//	[ECN Counts { ECT0 Count (i), ECT1 Count (i), ECN-CE Count (i) }]
func skipACK(b []byte, ecn bool) (rest []byte, ok bool) {
	if b, ok = skip(b, 2); !ok {
		return nil, false
	}
	ranges, b, ok := varint(b)
	if !ok || ranges > uint64(len(b)) {
		return nil, false
	}
	left := 1 + 2*int(ranges)
	if ecn {
		left += 3
	}
	return skip(b, left)
}

// skip skips n integers.
func skip(b []byte, n int) (rest []byte, ok bool) {
	for range n {
		if _, b, ok = varint(b); !ok {
			return nil, false
		}
	}
	return b, true
}

// vector splits off bytes with their number, an integer, before them.
func vector(b []byte) (v, rest []byte, ok bool) {
	size, b, ok := varint(b)
	if !ok || size > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:size], b[size:], true
}

// legal reports whether a payload is made of frames that belong in an Initial, at
// least one (RFC 9000 section 12.4).
func legal(payload []byte) bool {
	if len(payload) == 0 {
		return false
	}
	for len(payload) > 0 {
		_, rest, ok := next(payload)
		if !ok {
			return false
		}
		payload = rest
	}
	return true
}
