package catalogue

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp/syntax"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"servicetraceroute/internal/domain"
	"servicetraceroute/internal/service"
	"servicetraceroute/trace"
)

// Bounds of what one file may hold, and its entries.
const (
	MaxBytes    = 1 << 20
	MaxServices = 10000

	maxName      = 64   // bytes
	maxText      = 1000 // bytes of a title, a source or a regular expression
	maxDomain    = 253  // bytes: RFC 1035 section 3.1 as text, without the final dot
	maxLabel     = 63   // bytes: RFC 1035 section 2.3.4
	maxRegex     = 10000
	maxRegexFile = 1000000 // of all regular expressions together; about 40 bytes each when compiled
)

// quote shows a text in a message, of a long one only the beginning.
func quote(text string) string {
	const most = 80
	if len(text) > most {
		return strconv.Quote(text[:most]) + "…"
	}
	return strconv.Quote(text)
}

// checkName wants a word that needs no quotes on a command line.
func checkName(text string) error {
	ok := text != "" && len(text) <= maxName && text[0] != '-' && text[len(text)-1] != '-' && !strings.Contains(text, "--")
	for _, c := range []byte(text) {
		ok = ok && (c == '-' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9')
	}
	if !ok {
		return fmt.Errorf("%s: want lower case letters, digits and single dashes, at most %d", quote(text), maxName)
	}
	return nil
}

// checkText wants something that may be shown as it is: titles and patterns can be
// somebody else's, from a file that was passed on.
func checkText(text string) error {
	switch {
	case strings.TrimSpace(text) == "":
		return errors.New("an empty text")
	case len(text) > maxText:
		return fmt.Errorf("%s is longer than %d bytes", quote(text), maxText)
	}
	for _, r := range text {
		// What changes the direction of writing is not printable to package unicode either.
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return fmt.Errorf("%s has a character that cannot be shown (%U)", quote(text), r)
		}
	}
	return nil
}

// parseDomain returns a domain in lower case and without the final dot. Labels are of
// letters, digits, dashes and underscores, as names of hosts and of services are
// (RFC 1123 section 2.1, RFC 8552).
func parseDomain(text string) (string, error) {
	wrong := func(why string) (string, error) { return "", fmt.Errorf("%s is not a domain: %s", quote(text), why) }
	name := strings.ToLower(strings.TrimSuffix(text, "."))
	rest := strings.TrimPrefix(name, "*.")
	switch {
	case strings.Contains(text, "://"), strings.ContainsAny(text, "/?#@"):
		return wrong("give only the name, not a URL or prefix")
	case strings.Contains(rest, "*"):
		return wrong(`"*." may only stand at the beginning; patterns are regexes`)
	case len(rest) > maxDomain:
		return wrong(fmt.Sprintf("longer than %d bytes", maxDomain))
	}
	if _, err := netip.ParseAddr(strings.Trim(rest, "[]")); err == nil {
		return wrong("an address belongs to prefixes")
	}
	labels := strings.Split(rest, ".")
	for _, label := range labels {
		switch {
		case label == "":
			return wrong("a part between dots is empty")
		case len(label) > maxLabel:
			return wrong(fmt.Sprintf("a part between dots is longer than %d bytes", maxLabel))
		case label[0] == '-' || label[len(label)-1] == '-':
			return wrong("a part begins or ends with a dash")
		}
		for _, r := range label {
			if r >= utf8.RuneSelf {
				return wrong("write it as it is in DNS (xn--…)")
			}
			if r != '-' && r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9') {
				return wrong(fmt.Sprintf("%q is not in names", r))
			}
		}
	}
	if strings.Trim(labels[len(labels)-1], "0123456789") == "" {
		return wrong("no top-level domain is a number") // RFC 3696 section 2
	}
	return name, nil
}

// parsePrefix reads a prefix or an address; bits of the host do not matter.
func parsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if a, addrErr := netip.ParseAddr(text); addrErr == nil && a.Zone() == "" {
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	switch {
	case err != nil:
		return p, fmt.Errorf("%s is neither an address nor a prefix", quote(text))
	case p.Addr().Is4In6():
		return p, fmt.Errorf("%s: write it as IPv4", quote(text))
	}
	return p.Masked(), nil
}

// checkRegex compiles a regular expression and returns how large it is, in about the
// instructions of the compiled one.
func checkRegex(text string) (weight int, err error) {
	if err := checkText(text); err != nil {
		return 0, err
	}
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return 0, fmt.Errorf("%s is not a regular expression: %s", quote(text), strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	// Before it is compiled: x{1000} is eight bytes here and 40 KB then.
	if weight = weigh(tree); weight > maxRegex {
		return 0, fmt.Errorf("%s repeats too much: %d steps, more than %d", quote(text), weight, maxRegex)
	}
	if err := domain.Parse("/" + text + "/"); err != nil { // as it will be used
		return 0, fmt.Errorf("%s: %w", quote(text), err)
	}
	return weight, nil
}

// weigh estimates the instructions that an expression compiles to. Package syntax
// bounds depth (1000) and repetitions (1000 in all, nested), so this cannot overflow.
func weigh(tree *syntax.Regexp) int {
	sum := 1 + len(tree.Rune)
	if tree.Op == syntax.OpCharClass {
		sum = 1 + len(tree.Rune)/16 // a single instruction with a table
	}
	for _, sub := range tree.Sub {
		sum += weigh(sub)
	}
	if tree.Op == syntax.OpRepeat {
		sum *= max(1, tree.Min, tree.Max)
	}
	return sum
}

// parsePorts is service.ParsePorts in this package's words.
func parsePorts(text string) (service.PortRange, error) {
	r, err := service.ParsePorts(text)
	if err != nil {
		return r, fmt.Errorf("%s: want N or A-B between 1 and 65535", quote(text))
	}
	return r, nil
}

func parseProto(text string) (trace.Proto, error) {
	var p trace.Proto
	if err := p.UnmarshalText([]byte(text)); err != nil {
		return p, fmt.Errorf("%s: want tcp or udp", quote(text))
	}
	return p, nil
}
