package hello

import "encoding/binary"

var be = binary.BigEndian

const (
	recordHandshake  = 22      // content type (RFC 8446 section 5.1)
	recordHeader     = 5       // bytes
	maxRecord        = 1 << 14 // bytes of a plaintext record
	typeClientHello  = 1       // handshake type (RFC 8446 section 4)
	handshakeHeader  = 4       // bytes
	legacyMajor      = 3       // of the version of every SSL 3.0 to TLS 1.3 hello
	maxHandshakeBody = MaxStream - recordHeader - handshakeHeader
)

// TLS reads the ClientHello at the beginning of a TCP stream, which may be spread
// over several records. SSL 2.0 hellos are Not one.
func TLS(stream []byte) (Hello, Status) {
	cut := len(stream) >= MaxStream
	h, s := records(stream[:min(len(stream), MaxStream)])
	if s == More && cut {
		s = Not
	}
	return h, s
}

// records reads a hello from the records that hold it.
func records(stream []byte) (Hello, Status) {
	fragment, rest, s := record(stream)
	if s == Not {
		return Hello{}, Not
	}
	if h, hs := handshake(fragment, KindTLS); hs != More || s == More || len(rest) == 0 {
		return h, hs
	}
	return scattered(stream)
}

// scattered is for a hello in more than one record, which is rare: its pieces are
// put together first.
func scattered(stream []byte) (Hello, Status) {
	var whole [MaxStream]byte
	n := 0
	for len(stream) > 0 {
		fragment, rest, s := record(stream)
		if s == Not {
			return Hello{}, Not
		}
		n += copy(whole[n:], fragment)
		if h, hs := handshake(whole[:n], KindTLS); hs != More {
			return h, hs
		}
		stream = rest
	}
	return Hello{}, More
}

// record splits the first record off a stream. The fragment is what there is of it,
// and s is More when that is not all. It is Not for any record that cannot carry
// handshake messages, which other records must not interrupt.
//
//	struct {                                        RFC 8446 section 5.1
//	    ContentType type;                  22: handshake
//	    ProtocolVersion legacy_record_version;      3, any
//	    uint16 length;                     1 to 2^14: never empty
//	    opaque fragment[TLSPlaintext.length];
//	} TLSPlaintext;
func record(stream []byte) (fragment, rest []byte, s Status) {
	switch {
	case len(stream) > 0 && stream[0] != recordHandshake,
		len(stream) > 1 && stream[1] != legacyMajor:
		return nil, nil, Not
	case len(stream) < recordHeader:
		return nil, nil, More
	}
	size := int(be.Uint16(stream[3:]))
	if size == 0 || size > maxRecord {
		return nil, nil, Not
	}
	body := stream[recordHeader:]
	if len(body) < size {
		return body, nil, More
	}
	return body[:size], body[size:], Done
}
