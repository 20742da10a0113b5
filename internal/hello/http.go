package hello

import "bytes"

const (
	maxMethod     = 32 // bytes; the longest registered method has 17
	maxEmptyLines = 2  // before the request line, which clients are known to send
)

// HTTP reads the head of an HTTP/1 request (RFC 9112). The name is the request
// target's when that has one (CONNECT, or a scheme and a host), else that of the
// Host field. HTTP/2 with prior knowledge is Not one: its first line says HTTP/2.0.
func HTTP(stream []byte) (Hello, Status) {
	cut := len(stream) >= MaxStream
	h, s := head(stream[:min(len(stream), MaxStream)])
	if s == More && cut {
		s = Not
	}
	return h, s
}

// head reads a request up to its empty line.
//
//	HTTP-message = start-line CRLF *( field-line CRLF ) CRLF [ message-body ]
//	                                                RFC 9112 section 2.1
func head(b []byte) (Hello, Status) {
	for range maxEmptyLines {
		if line, rest, ok := cutLine(b); ok && len(line) == 0 {
			b = rest
		}
	}
	line, b, whole := cutLine(b)
	if !whole && bytes.Equal(line, carriageReturn) {
		return Hello{}, More // half of an empty line
	}
	r, legal := decodeRequest(line, whole)
	switch {
	case !legal:
		return Hello{}, Not
	case !whole:
		return Hello{}, More
	}
	var host []byte // of the Host field
	hosts, last := 0, fieldNone
	for {
		line, rest, whole := cutLine(b)
		switch {
		case !whole:
			return Hello{}, More
		case len(line) == 0:
			return request(r, host, hosts), Done
		}
		value, f := decodeField(line, last)
		switch f {
		case fieldBad:
			return Hello{}, Not
		case fieldHost:
			// More than one is an error (RFC 9112 section 3.2): two servers could take
			// two of them.
			if hosts++; hosts > 1 {
				return Hello{}, Not
			}
			host = value
		}
		b, last = rest, f
	}
}

func request(r requestLine, host []byte, hosts int) Hello {
	h := Hello{Kind: KindHTTP}
	switch {
	case r.authority != nil: // is what counts, also against Host (RFC 9112 section 3.2.2)
		h.Name, h.BadName = authority(r.authority)
		h.Proxy = true
	case hosts > 0:
		h.Name, h.BadName = authority(host)
	}
	return h
}

// cutLine splits the first line off. The line's end is CR LF, or LF alone (RFC 9112
// section 2.2); without one the line is not whole and all there is.
func cutLine(b []byte) (line, rest []byte, whole bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return b, nil, false
	}
	line, rest = b[:i], b[i+1:]
	if i > 0 && line[i-1] == '\r' {
		line = line[:i-1]
	}
	return line, rest, true
}

// requestLine is what a request line says.
type requestLine struct {
	authority []byte // of the target; nil: it has none
}

// decodeRequest reads a request line, or judges what there is of one.
//
//	request-line   = method SP request-target SP HTTP-version
//	request-target = origin-form    "/where?q=now"  RFC 9112 section 3.2
//	               / absolute-form  "http://www.example.org/pub"
//	               / authority-form "www.example.com:80", with CONNECT
//	               / asterisk-form  "*"
func decodeRequest(line []byte, whole bool) (r requestLine, legal bool) {
	method, rest, found := bytes.Cut(line, space)
	if len(method) > maxMethod || !isTokens(method) || found && len(method) == 0 {
		return r, false
	}
	if !found {
		return r, !whole
	}
	target, version, found := bytes.Cut(rest, space)
	for _, c := range target {
		if c < ' ' || c == 127 {
			return r, false
		}
	}
	if !found {
		return r, !whole
	}
	if !whole {
		version = bytes.TrimSuffix(version, carriageReturn)
	}
	if !isVersion1(version, whole) {
		return r, false
	}
	switch {
	case len(target) == 0:
		return r, false
	case bytes.Equal(method, connect):
		r.authority = target
	case target[0] == '/', len(target) == 1 && target[0] == '*':
	default:
		r.authority = afterScheme(target)
		return r, r.authority != nil
	}
	return r, true
}

var (
	space          = []byte(" ")
	carriageReturn = []byte("\r")
	connect        = []byte("CONNECT")
	schemeEnd      = []byte("://")
	version1       = []byte("HTTP/1.")
	hostField      = []byte("host")
)

// isVersion1 reports whether v is HTTP/1 and any minor version, or may become it.
func isVersion1(v []byte, whole bool) bool {
	n := len(version1)
	if len(v) == n+1 {
		return bytes.Equal(v[:n], version1) && v[n] >= '0' && v[n] <= '9'
	}
	return !whole && len(v) <= n && bytes.Equal(v, version1[:len(v)])
}

// afterScheme returns the authority of an absolute URI, not nil, or nil when target
// is none (RFC 3986 section 3).
func afterScheme(target []byte) []byte {
	i := bytes.Index(target, schemeEnd)
	if i <= 0 {
		return nil
	}
	for _, c := range target[:i] {
		if c|0x20 < 'a' || c|0x20 > 'z' {
			if c != '+' && c != '-' && c != '.' && (c < '0' || c > '9') {
				return nil
			}
		}
	}
	rest := target[i+len(schemeEnd):]
	if end := bytes.IndexAny(rest, "/?#"); end >= 0 {
		rest = rest[:end]
	}
	return rest
}

// field is what a field line is.
type field uint8

const (
	fieldNone field = iota // none yet: the request line was before
	fieldBad
	fieldHost
	fieldOther
)

// decodeField reads a field line that follows one of the kind last.
//
//	field-line = field-name ":" OWS field-value OWS RFC 9112 section 5
//
// Nothing may be between name and colon. A line that begins with a blank continues
// the one before, which is not allowed any more but harmless unless that is Host.
func decodeField(line []byte, last field) (value []byte, f field) {
	if line[0] == ' ' || line[0] == '\t' {
		if last == fieldOther {
			return nil, fieldOther
		}
		return nil, fieldBad
	}
	name, value, found := bytes.Cut(line, []byte(":"))
	if !found || len(name) == 0 || !isTokens(name) {
		return nil, fieldBad
	}
	if !bytes.EqualFold(name, hostField) {
		return nil, fieldOther
	}
	return bytes.Trim(value, " \t"), fieldHost
}

// authority reads the host out of one; the name is empty for an address, and bad
// when it is neither.
//
//	authority = [ userinfo "@" ] host [ ":" port ]  RFC 3986 section 3.2
//
// Who puts a user in front of it wants to mislead (RFC 9110 section 4.2.4).
func authority(b []byte) (name string, bad bool) {
	if len(b) == 0 {
		return "", false
	}
	if b[0] == '[' {
		end := bytes.IndexByte(b, ']')
		return "", end < 0 || !isIPLiteral(b[1:end]) || !isPort(b[end+1:])
	}
	host := b
	if i := bytes.IndexByte(b, ':'); i >= 0 {
		host = b[:i]
		if !isPort(b[i:]) {
			return "", true
		}
	}
	name, ok := hostName(host)
	return name, !ok && !isIPv4(host)
}

// isPort reports whether b is nothing, or a colon and maybe digits.
func isPort(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	for _, c := range b[1:] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return b[0] == ':'
}

func isTokens(b []byte) bool {
	for _, c := range b {
		if !isToken(c) {
			return false
		}
	}
	return true
}

// isToken reports whether c may be in a method or a field's name (tchar, RFC 9110
// section 5.6.2).
func isToken(c byte) bool {
	switch {
	case c >= '0' && c <= '9', c|0x20 >= 'a' && c|0x20 <= 'z':
		return true
	}
	return c < 128 && c > ' ' && bytes.IndexByte(tokenMarks, c) >= 0
}

var tokenMarks = []byte("!#$%&'*+-.^_`|~")
