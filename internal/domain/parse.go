package domain

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"regexp/syntax"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

const (
	// maxExpr bounds a regular expression.
	maxExpr = 1000
	// Bounds of names: RFC 1035 section 2.3.4, as text without the last dot.
	maxHost  = 253
	maxLabel = 63
)

// parsed is one pattern: a suffix, or an expression.
type parsed struct {
	suffix string // on the wire, in lower case
	wild   bool   // all below it only
	re     *regexp.Regexp
}

// Parse checks one pattern. Its error is an *Error.
func Parse(pattern string) error {
	_, err := parse(pattern)
	return err
}

func parse(pattern string) (parsed, error) {
	if strings.HasPrefix(pattern, "/") {
		return parseExpr(pattern)
	}
	wrong := func(hint, format string, args ...any) (parsed, error) {
		return parsed{}, &Error{pattern, fmt.Sprintf(format, args...), hint}
	}
	if why, hint := notName(pattern); why != "" {
		return wrong(hint, "%s", why)
	}
	name, wild := strings.CutPrefix(pattern, "*.")
	name = strings.TrimSuffix(name, ".")
	if strings.HasPrefix(name, ".") {
		return wrong(fmt.Sprintf("%s is the name with all below it, *.%[1]s only those", strings.TrimLeft(name, ".")), "begins with a dot")
	}
	if i := strings.Index(name, "*"); name == "" || i >= 0 {
		if strings.Trim(pattern, "*.") == "" {
			return wrong("/./ matches every name", "no name is left without the wildcard")
		}
		return wrong("for more than *.example.com write a regular expression: /^cdn[0-9]+\\.example\\.com$/", "a wildcard can only be the whole first label")
	}
	name, err := onWire(name)
	if err != nil {
		return wrong("write the name as it is in DNS, with xn--, if it really exists", "not a name of this form: %v", err)
	}
	if why, hint := badName(name); why != "" {
		return wrong(hint, "%s", why)
	}
	return parsed{suffix: name, wild: wild}, nil
}

// notName tells what else people write where a name is expected.
func notName(text string) (why, hint string) {
	if text == "" {
		return "empty", "write a name such as example.com"
	}
	if strings.ContainsAny(text, " \t\r\n,;") {
		return "contains a space or a comma", "write each pattern by itself"
	}
	if _, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return "an address, not a name", "addresses and prefixes have a place of their own"
	}
	if _, err := netip.ParsePrefix(text); err == nil {
		return "a prefix, not a name", "addresses and prefixes have a place of their own"
	}
	host := text
	if u, err := url.Parse(text); err == nil && u.Host != "" {
		host = u.Hostname()
	}
	host, _, slash := strings.Cut(host, "/")
	if slash || strings.Contains(text, "://") {
		hint = "a regular expression begins and ends with a slash"
		if host != "" && !strings.ContainsAny(host, `\^$|()[]{}+?:/`) {
			hint = "write " + host
		}
		return "contains a slash: a URL?", hint
	}
	if host, port, ok := strings.Cut(text, ":"); ok {
		if host == "" || strings.Trim(port, "0123456789") != "" {
			return "contains a colon", "write a name such as example.com"
		}
		return "contains a port", "write " + host + ", and the port apart"
	}
	return "", ""
}

// onWire turns a name of another script into its form on the wire. An ASCII one is
// taken as it is: DNS has names that IDNA would not allow, with _ for one.
func onWire(name string) (string, error) {
	if !utf8.ValidString(name) { // idna lets it pass
		return "", errors.New("not UTF-8")
	}
	for i := range len(name) {
		if name[i] >= 0x80 {
			return idna.Lookup.ToASCII(name)
		}
	}
	return strings.ToLower(name), nil
}

// badName tells what is wrong with a name in the form on the wire.
func badName(name string) (why, hint string) {
	if len(name) > maxHost {
		return fmt.Sprintf("%d bytes long, names have at most %d", len(name), maxHost), ""
	}
	last := name
	for label := range strings.SplitSeq(name, ".") {
		if label == "" {
			return "two dots in a row", "labels between dots are not empty"
		}
		if len(label) > maxLabel {
			return fmt.Sprintf("a label of %d bytes, labels have at most %d", len(label), maxLabel), ""
		}
		if i := strings.IndexFunc(label, odd); i >= 0 {
			hint = "letters, digits, - and _ make a name"
			if strings.ContainsAny(name, `\^$|()[]{}+?`) {
				hint = "a regular expression stands between slashes: /" + short(name) + "/"
			}
			return fmt.Sprintf("%q does not occur in names", label[i:i+1]), hint
		}
		last = label
	}
	if strings.Trim(last, "0123456789") == "" {
		return "ends in a number, as addresses do and names do not", "addresses and prefixes have a place of their own"
	}
	return "", ""
}

func odd(r rune) bool {
	return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-' || r == '_')
}

func parseExpr(pattern string) (parsed, error) {
	wrong := func(hint, why string) (parsed, error) {
		return parsed{}, &Error{pattern, why, hint}
	}
	body := pattern[1:]
	end := strings.LastIndexByte(body, '/')
	switch {
	case end < 0:
		return wrong("a regular expression begins and ends with a slash", "the last slash is missing")
	case end < len(body)-1 && strings.Trim(body[end+1:], "gimsuxU") == "":
		return wrong("case never matters; other flags go in front: /(?s)…/", fmt.Sprintf("%q behind the last slash", body[end+1:]))
	case end < len(body)-1:
		return wrong("a regular expression begins and ends with a slash", "the last slash is not at the end")
	case end == 0:
		return wrong("/./ matches every name", "the regular expression is empty")
	case len(pattern) > maxExpr:
		return wrong("long lists are faster as names", fmt.Sprintf("%d bytes long, regular expressions may have %d", len(pattern), maxExpr))
	}
	body = body[:end]
	for i := range len(body) {
		if body[i] >= 0x80 {
			return wrong("names of other scripts go over the wire as xn--…: match that", "not ASCII, as all names on the wire are")
		}
	}
	_, err := regexp.Compile(body) // as written, for the message
	var bad *syntax.Error
	if errors.As(err, &bad) {
		hint := "the syntax is RE2's: https://golang.org/s/re2syntax"
		if bad.Code == syntax.ErrInvalidPerlOp {
			hint = "look-around does not exist in RE2: https://golang.org/s/re2syntax"
		}
		return wrong(hint, fmt.Sprintf("%s: %s", bad.Code, bad.Expr))
	}
	re, err := regexp.Compile("(?i)" + body)
	if err != nil {
		return wrong("", err.Error())
	}
	return parsed{re: re}, nil
}
