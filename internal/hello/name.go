package hello

const (
	maxName  = 253 // bytes of a name without the root's dot (RFC 1035 section 2.3.4)
	maxLabel = 63
)

// hostName returns the name in lower case and without a dot at its end; ok is false
// when no host can have that name, and for an IPv4 address.
//
// The rule is RFC 1123 section 2.1 with what is in use beyond it: underscores, and
// hyphens at a label's ends. Names in other scripts come as A-labels (RFC 6066
// section 3), so that bytes above 127 have no place here.
func hostName(b []byte) (name string, ok bool) {
	if n := len(b); n > 0 && b[n-1] == '.' {
		b = b[:n-1]
	}
	if len(b) == 0 || len(b) > maxName {
		return "", false
	}
	var lower [maxName]byte
	label, digits := 0, 0 // of the label that is being read
	for i, c := range b {
		switch {
		case c == '.':
			if label == 0 {
				return "", false
			}
			label, digits = -1, 0
		case c >= 'A' && c <= 'Z':
			c += 'a' - 'A'
		case c >= '0' && c <= '9':
			digits++
		case c >= 'a' && c <= 'z', c == '-', c == '_':
		default:
			return "", false
		}
		if label++; label > maxLabel {
			return "", false
		}
		lower[i] = c
	}
	// A name whose last label is a number would be taken for an IPv4 address.
	if label == 0 || digits == label {
		return "", false
	}
	return string(lower[:len(b)]), true
}

// isIPv4 reports whether b is an address in dotted decimal (RFC 3986 section 3.2.2).
func isIPv4(b []byte) bool {
	parts, value, digits := 1, 0, 0
	for _, c := range b {
		switch {
		case c == '.' && digits > 0:
			parts, value, digits = parts+1, 0, 0
		case c >= '0' && c <= '9' && (digits == 0 || value > 0):
			value = value*10 + int(c-'0')
			digits++
		default:
			return false
		}
		if value > 255 || parts > 4 {
			return false
		}
	}
	return parts == 4 && digits > 0
}

// isIPLiteral reports whether b, the inside of square brackets, looks like an IPv6
// address, maybe with a zone (RFC 6874), or one of a later version.
func isIPLiteral(b []byte) bool {
	colons := 0
	for _, c := range b {
		switch {
		case c == ':':
			colons++
		case c <= ' ', c >= 127, c == '[', c == ']', c == '/', c == '@':
			return false
		}
	}
	return colons >= 2 || len(b) > 2 && b[0]|0x20 == 'v'
}
