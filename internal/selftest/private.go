package selftest

import (
	"regexp"
	"strings"
)

// What must not stand in a record, though it stands in errors: addresses, with or
// without ports, and paths.
var (
	ipv4   = regexp.MustCompile(`\b\d{1,3}(\.\d{1,3}){3}(:\d+|/\d+)?\b`)
	colons = regexp.MustCompile(`\[?[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(%\w+)?(\]:\d+|/\d+)?`) // IPv6, hardware
	paths  = regexp.MustCompile(`(^|[\s"'(=:])/[^\s"':,;)]+`)
)

// public returns a text of the system's with the addresses, paths and given names left
// out, cut to 300 bytes.
func public(text string, names ...string) string {
	text = ipv4.ReplaceAllString(text, "ADDRESS")
	text = colons.ReplaceAllString(text, "ADDRESS")
	text = paths.ReplaceAllString(text, "${1}PATH")
	text = nameless(text, names...)
	const longest = 300
	if len(text) > longest { // not before: half a name is none that is known
		text = strings.ToValidUTF8(text[:longest], "")
	}
	return text
}

// nameless leaves names out, where they stand as words.
func nameless(text string, names ...string) string {
	for _, name := range names {
		if name == "" {
			continue
		}
		whole := regexp.MustCompile(`(?i)(^|[^\pL\pN])` + regexp.QuoteMeta(name) + `($|[^\pL\pN])`)
		for range 2 { // one that follows another at once has no start of its own the first time
			text = whole.ReplaceAllString(text, "${1}NAME${2}")
		}
	}
	return text
}
