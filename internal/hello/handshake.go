package hello

import "slices"

// Extension types (IANA TLS ExtensionType Values) that are read.
const (
	extServerName = 0
	extALPN       = 16
	extECH        = 0xfe0d
)

// maxExtensions bounds the search for repeated ones: about seventy types exist, and
// a hello has about twenty.
const maxExtensions = 128

// Handshake reads a ClientHello without records around it: the beginning of QUIC's
// first CRYPTO stream (RFC 9001 section 4.1.3).
func Handshake(msg []byte) (Hello, Status) {
	h, s := handshake(msg[:min(len(msg), MaxStream)], KindQUIC)
	if s == More && len(msg) >= MaxStream {
		s = Not
	}
	return h, s
}

// handshake reads the message at the start of b; what follows it is not looked at.
//
//	struct {                                        RFC 8446 section 4
//	    HandshakeType msg_type;            1: client_hello
//	    uint24 length;
//	    ClientHello;
//	} Handshake;
func handshake(b []byte, kind Kind) (Hello, Status) {
	if len(b) > 0 && b[0] != typeClientHello || len(b) > 1 && b[1] != 0 {
		return Hello{}, Not
	}
	if len(b) < handshakeHeader {
		return Hello{}, More
	}
	size := int(be.Uint16(b[2:]))
	if size > maxHandshakeBody {
		return Hello{}, Not
	}
	if len(b) < handshakeHeader+size {
		return Hello{}, More
	}
	c, ok := decode(b[handshakeHeader : handshakeHeader+size])
	if !ok {
		return Hello{}, Not
	}
	h := Hello{Kind: kind, ECH: c.ech, ALPN: protocols(c.alpn)}
	if c.name != nil {
		name, ok := hostName(c.name)
		h.Name, h.BadName = name, !ok
	}
	return h, Done
}

// clientHello holds what a hello says, as slices of it. nil: it does not say.
type clientHello struct {
	name []byte // of its server_name
	alpn []byte // its ProtocolNameList, well formed
	ech  bool
}

// decode reads the message's body; ok is false when it is not legal.
//
//	struct {                                        RFC 8446 section 4.1.2
//	    ProtocolVersion legacy_version;    3, any
//	    Random random;                     32 bytes
//	    opaque legacy_session_id<0..32>;
//	    CipherSuite cipher_suites<2..2^16-2>;
//	    opaque legacy_compression_methods<1..2^8-1>;
//	    Extension extensions<8..2^16-1>;   may be missing (RFC 5246 section 7.4.1.2)
//	} ClientHello;
func decode(b []byte) (c clientHello, ok bool) {
	const fixed = 2 + 32
	if len(b) < fixed || b[0] != legacyMajor {
		return c, false
	}
	session, b, ok := vector8(b[fixed:])
	if !ok || len(session) > 32 {
		return c, false
	}
	suites, b, ok := vector16(b)
	if !ok || len(suites) == 0 || len(suites)%2 != 0 {
		return c, false
	}
	compression, b, ok := vector8(b)
	if !ok || len(compression) == 0 {
		return c, false
	}
	if len(b) == 0 {
		return c, true
	}
	list, b, ok := vector16(b)
	if !ok || len(b) > 0 {
		return c, false
	}
	return extensions(list)
}

// extensions reads those that matter here, and sees that none comes twice.
//
//	struct {                                        RFC 8446 section 4.2
//	    ExtensionType extension_type;      uint16
//	    opaque extension_data<0..2^16-1>;
//	} Extension;
func extensions(b []byte) (c clientHello, ok bool) {
	var seen types
	for len(b) > 0 {
		if len(b) < 2 {
			return c, false
		}
		typ := be.Uint16(b)
		data, rest, ok := vector16(b[2:])
		if !ok || !seen.add(typ) {
			return c, false
		}
		switch typ {
		case extServerName:
			c.name, ok = serverName(data)
		case extALPN:
			c.alpn, ok = protocolNames(data)
		case extECH:
			const outer = 0 // ECHClientHelloType (RFC 9849 section 5)
			ok = len(data) > 0
			c.ech = ok && data[0] == outer
		}
		if !ok {
			return c, false
		}
		b = rest
	}
	return c, true
}

// types are those of the extensions so far.
type types struct {
	list [maxExtensions]uint16
	n    int
}

// add reports whether the type was not there before. Values that clients make up to
// keep servers tolerant (GREASE, RFC 8701) obey that as well.
func (s *types) add(typ uint16) bool {
	if s.n == maxExtensions || slices.Contains(s.list[:s.n], typ) {
		return false
	}
	s.list[s.n] = typ
	s.n++
	return true
}

// serverName returns the one host name that there may be; nil: none of that type.
//
//	struct {                                        RFC 6066 section 3
//	    NameType name_type;                0: host_name; its only one
//	    opaque HostName<1..2^16-1>;
//	} ServerName;
//	struct {
//	    ServerName server_name_list<1..2^16-1>
//	} ServerNameList;
func serverName(data []byte) (name []byte, ok bool) {
	list, rest, ok := vector16(data)
	if !ok || len(rest) > 0 || len(list) == 0 {
		return nil, false
	}
	for len(list) > 0 {
		typ := list[0]
		v, rest, ok := vector16(list[1:])
		if !ok || len(v) == 0 {
			return nil, false
		}
		if typ == 0 {
			if name != nil {
				return nil, false
			}
			name = v
		}
		list = rest
	}
	return name, true
}

// protocolNames returns the list of names after it was found to be well formed.
//
//	opaque ProtocolName<1..2^8-1>;                  RFC 7301 section 3.1
//	struct {
//	    ProtocolName protocol_name_list<2..2^16-1>
//	} ProtocolNameList;
func protocolNames(data []byte) (list []byte, ok bool) {
	list, rest, ok := vector16(data)
	if !ok || len(rest) > 0 || len(list) == 0 {
		return nil, false
	}
	for left := list; len(left) > 0; {
		id, rest, ok := vector8(left)
		if !ok || len(id) == 0 {
			return nil, false
		}
		left = rest
	}
	return list, true
}

// protocols copies the names of a well-formed list, without those made up (RFC 8701).
func protocols(list []byte) []string {
	var ids [MaxALPN]string
	n := 0
	for len(list) > 0 && n < MaxALPN {
		id, rest, ok := vector8(list)
		if !ok {
			break
		}
		if len(id) <= MaxALPNID && !grease(id) {
			ids[n] = protocol(id)
			n++
		}
		list = rest
	}
	if n == 0 {
		return nil
	}
	return append([]string(nil), ids[:n]...)
}

// protocol makes a string, without allocating the usual ones.
func protocol(id []byte) string {
	switch string(id) {
	case "h2":
		return "h2"
	case "h3":
		return "h3"
	case "http/1.1":
		return "http/1.1"
	}
	return string(id)
}

func grease(id []byte) bool { return len(id) == 2 && id[0] == id[1] && id[0]&0x0f == 0x0a }

// vector8 splits off a vector whose length is in one byte before it.
func vector8(b []byte) (v, rest []byte, ok bool) {
	if len(b) < 1 || len(b)-1 < int(b[0]) {
		return nil, nil, false
	}
	end := 1 + int(b[0])
	return b[1:end], b[end:], true
}

// vector16 splits off a vector whose length is in two bytes before it.
func vector16(b []byte) (v, rest []byte, ok bool) {
	if len(b) < 2 || len(b)-2 < int(be.Uint16(b)) {
		return nil, nil, false
	}
	end := 2 + int(be.Uint16(b))
	return b[2:end], b[end:], true
}
