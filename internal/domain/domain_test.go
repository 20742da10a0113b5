package domain

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/idna"
)

func mustNew(t testing.TB, patterns ...string) *Set {
	t.Helper()
	s, err := New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMatch(t *testing.T) {
	for _, test := range []struct {
		patterns string // parted by spaces
		name     string
		want     string // "" for no match
	}{
		{"example.com", "example.com", "example.com"},
		{"example.com", "www.example.com", "example.com"},
		{"example.com", "a.b.c.example.com", "example.com"},
		{"example.com", "notexample.com", ""},
		{"t.co", "www.microsoft.com", ""},
		{"t.co", "microsoft.co", ""},
		{"example.com", "example.com.evil.org", ""},
		{"example.com", "com", ""},
		{"example.com", "", ""},
		{"example.com", ".", ""},
		{"example.com", "WWW.eXample.COM", "example.com"},
		{"ExAmple.COM", "www.example.com", "ExAmple.COM"},
		{"example.com", "www.example.com.", "example.com"},
		{"example.com.", "www.example.com", "example.com."},
		{"com", "www.example.com", "com"},
		{"localhost", "localhost", "localhost"},
		{"_tcp.example.com", "_x._tcp.example.com", "_tcp.example.com"},
		{"r3---sn-x.example.com", "r3---sn-x.example.com", "r3---sn-x.example.com"},
		{"*.example.com", "www.example.com", "*.example.com"},
		{"*.example.com", "a.b.example.com", "*.example.com"},
		{"*.example.com", "example.com", ""},
		{"*.example.com", "notexample.com", ""},
		{"com example.com", "www.example.com", "example.com"},
		{"www.example.com example.com", "a.www.example.com", "www.example.com"},
		{"*.www.example.com example.com", "www.example.com", "example.com"},
		{"example.com *.example.com", "www.example.com", "*.example.com"},
		{"example.com *.example.com", "example.com", "example.com"},
		{"EXAMPLE.com example.com", "example.com", "EXAMPLE.com"},
		{"/example/ example.com", "example.com", "example.com"},
		{"/exam/ /example/", "example.com", "/exam/"},
		{"/netflix/", "notnetflix.com", "/netflix/"},
		{`/(^|\.)netflix\.(com|net)$/`, "notnetflix.com", ""},
		{`/(^|\.)netflix\.(com|net)$/`, "www.Netflix.NET.", `/(^|\.)netflix\.(com|net)$/`},
		{"/NETFLIX|hulu/", "www.HULU.com", "/NETFLIX|hulu/"},
		{"/a/b/", "a/b", "/a/b/"},
		{"/./", "anything", "/./"},
		{"/./", "", ""},
		{"bücher.example", "www.xn--bcher-kva.example", "bücher.example"},
		{"BÜCHER.example", "xn--BCHER-kva.example", "BÜCHER.example"},
		{"*.bücher.example", "www.xn--bcher-kva.example", "*.bücher.example"},
		{"bücher。example", "xn--bcher-kva.example", "bücher。example"},
		{"straße.example", "xn--strae-oqa.example", "straße.example"},
		{"xn--bcher-kva.example", "xn--bcher-kva.example", "xn--bcher-kva.example"},
		// In a name as text, a dot within a label parts nothing.
		{"example.com", `www\.example.com`, ""},
		{"example.com", `www\\.example.com`, "example.com"},
		{"example.com", `a\.b.example.com`, "example.com"},
		{"example.com", `example.com\.`, ""},
		{"com", `x\.com`, ""},
		{"example.com /x/", strings.Repeat("x", 244) + ".example.com", ""}, // no name
		{"example.com", strings.Repeat("x", 243) + ".example.com", "example.com"},
		{"", "example.com", ""},
	} {
		s := mustNew(t, strings.Fields(test.patterns)...)
		got, ok := s.Match(test.name)
		if got != test.want || ok != (test.want != "") {
			t.Errorf("%s: %q matches %q, want %q", test.patterns, test.name, got, test.want)
		}
		if n := s.Len(); n != len(strings.Fields(test.patterns)) && test.patterns != "EXAMPLE.com example.com" {
			t.Errorf("%s: %d patterns", test.patterns, n)
		}
	}
	for _, s := range []*Set{nil, {}} {
		if _, ok := s.Match("example.com"); ok || s.Len() != 0 {
			t.Error("nothing matches something")
		}
	}
}

func TestParse(t *testing.T) {
	for _, test := range []struct{ pattern, why, hint string }{
		{"", "empty", "such as example.com"},
		{"example.com www.example.com", "a space", "by itself"},
		{"example.com,example.org", "a comma", "by itself"},
		{"192.0.2.1", "an address", "a place of their own"},
		{"[2001:db8::1]", "an address", "a place of their own"},
		{"192.0.2.0/24", "a prefix", "a place of their own"},
		{"10.1", "ends in a number", "a place of their own"},
		{"https://www.example.com/watch", "a URL?", "write www.example.com"},
		{"https://www.example.com:8443", "a URL?", "write www.example.com"},
		{"example.com/", "a slash", "write example.com"},
		{"^example/", "a slash", "begins and ends with a slash"},
		{"example.com:443", "a port", "write example.com, and the port apart"},
		{"example.com:https", "a colon", "such as example.com"},
		{".example.com", "begins with a dot", "*.example.com only those"},
		{"*..example.com", "begins with a dot", "*.example.com only those"},
		{"*", "no name is left", "/./ matches every name"},
		{"*.", "no name is left", "/./"},
		{"**.*", "no name is left", "/./"},
		{".", "no name is left", "/./"},
		{"*example.com", "whole first label", "regular expression"},
		{"www.*.com", "whole first label", "regular expression"},
		{"*.*.com", "whole first label", "regular expression"},
		{"www.*", "whole first label", "regular expression"},
		{"a..b", "two dots in a row", "not empty"},
		{"example.com..", "two dots in a row", "not empty"},
		{strings.Repeat("x", 64) + ".com", "a label of 64 bytes", ""},
		{strings.Repeat("x.", 126) + "com", "255 bytes long", ""},
		{"exa~mple.com", `"~" does not occur`, "make a name"},
		{`(www|cdn)\.example\.com`, `"(" does not occur`, `/(www|cdn)\.example\.com/`},
		{"a\x00b.com", `"\x00" does not occur`, ""},
		{"ex\u202eample.com", "not a name of this form", "xn--"},
		{"\xff.com", "not a name of this form", "xn--"},
		{"/example", "the last slash is missing", "begins and ends"},
		{"/", "the last slash is missing", "begins and ends"},
		{"/example/i", `"i" behind the last slash`, "case never matters"},
		{"/example/com", "not at the end", "begins and ends"},
		{"//", "empty", "/./"},
		{"/[a/", "missing closing ]: [a", "re2syntax"},
		{"/(?=a)/", "invalid or unsupported Perl syntax", "look-around"},
		{`/(a)\1/`, `invalid escape sequence: \1`, "re2syntax"},
		{"/a)|(b/", "unexpected )", "re2syntax"},
		{"/a{1001}/", "invalid repeat count", "re2syntax"},
		{"/bücher/", "not ASCII", "xn--"},
		{"/" + strings.Repeat("x", 1000) + "/", "1002 bytes long", "faster as names"},
	} {
		err := Parse(test.pattern)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%q: no error", test.pattern)
			continue
		}
		if e.Pattern != test.pattern || !strings.Contains(e.Why, test.why) || !strings.Contains(e.Hint, test.hint) {
			t.Errorf("%q: %s; %s", test.pattern, e.Why, e.Hint)
		}
		if _, err2 := New([]string{"example.com", test.pattern}); err2 == nil || err2.Error() != err.Error() || len(err.Error()) > 500 {
			t.Errorf("%q: New says %v, Parse %v", test.pattern, err2, err)
		}
	}
}

// raced: with the race detector, which makes conversions allocate.
var raced bool

func TestMatchDoesNotAllocate(t *testing.T) {
	most := 0.0
	if raced {
		most = 2
	}
	s := mustNew(t, "example.com", "*.example.org", `/^cdn[0-9]+\./`, "/(x+x+)+y/")
	for _, name := range []string{"www.example.com", "www.microsoft.com", "WWW.Example.NET.", strings.Repeat("x.", 120) + "z", "cdn17.net"} {
		s.Match(name)
		if n := testing.AllocsPerRun(100, func() { s.Match(name) }); n > most {
			t.Errorf("%q: %v allocations", name, n)
		}
	}
}

// FuzzDomain holds Match against the definition: labels compared from the right.
func FuzzDomain(f *testing.F) {
	f.Add("example.com *.example.com com", "www.example.com")
	f.Add("*.b.c b.c a.b.c /a.b/", "x.A.b.C.")
	f.Add("t.co bücher.example", `a\.t.co`)
	f.Add("/^x|y$/ y", "\\..y")
	f.Fuzz(func(t *testing.T, patterns, name string) {
		var good []string
		for _, p := range strings.Fields(patterns) {
			err := Parse(p)
			if s, err2 := New([]string{p}); (err == nil) != (err2 == nil) || (err == nil) != (s != nil) {
				t.Fatalf("%q: Parse says %v, New %v", p, err, err2)
			}
			if err == nil && len(good) < 100 {
				good = append(good, p)
			}
		}
		s := mustNew(t, good...)
		got, ok := s.Match(name)
		if want := plain(good, name); got != want || ok != (want != "") {
			t.Fatalf("%q of %q, want %q", got, good, want)
		}
	})
}

// plain is the definition of Match.
func plain(patterns []string, name string) (best string) {
	have := labels(name)
	if len(have) == 0 || len(strings.Join(have, ".")) > maxName {
		return ""
	}
	length := 0 // of the best, counted twice; a wildcard's is odd
	for _, p := range patterns {
		if p[0] == '/' {
			continue
		}
		text, wild := strings.CutPrefix(p, "*.")
		if strings.IndexFunc(text, func(r rune) bool { return r >= 0x80 }) >= 0 {
			text, _ = idna.Lookup.ToASCII(strings.TrimSuffix(text, "."))
		}
		want := labels(text)
		n := len(have) - len(want)
		if n < 0 || wild && n == 0 || !slices.EqualFunc(have[n:], want, asciiFold) {
			continue
		}
		this := 2 * len(want)
		if wild {
			this++
		}
		if this > length {
			best, length = p, this
		}
	}
	if best != "" {
		return best
	}
	for _, p := range patterns {
		if p[0] != '/' {
			continue
		}
		if x, _ := parse(p); x.re.MatchString(strings.Join(have, ".")) {
			return p
		}
	}
	return ""
}

// labels takes a name apart, as text.
func labels(name string) []string {
	var all []string
	begin := 0
	for i := 0; i < len(name); i++ {
		switch name[i] {
		case '\\':
			i++
		case '.':
			all = append(all, name[begin:i])
			begin = i + 1
		}
	}
	if begin < len(name) {
		all = append(all, name[begin:])
	} else if len(all) == 1 && all[0] == "" {
		return nil // the root
	}
	return all
}

func asciiFold(a, b string) bool {
	lower := func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}
	return a == b || strings.Map(lower, strings.ToValidUTF8(a, "?")) == strings.Map(lower, b)
}

func BenchmarkMatch(b *testing.B) {
	var patterns []string
	for i := range 10000 {
		patterns = append(patterns, fmt.Sprintf("service%d.example%d.com", i, i%100))
	}
	names := mustNew(b, patterns...)
	exprs := mustNew(b, `/(^|\.)netflix\.(com|net)$/`, `/^rr?[0-9]+---sn-[a-z0-9]+\.googlevideo\.com$/`)
	for _, bench := range []struct {
		what string
		set  *Set
		name string
	}{
		{"10000 names, hit", names, "www.service77.example77.com"},
		{"10000 names, miss", names, "www.static.microsoft.com"},
		{"10000 names, most labels", names, strings.Repeat("x.", 125) + "com"},
		{"2 expressions, miss", exprs, "www.static.microsoft.com"},
	} {
		b.Run(bench.what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				bench.set.Match(bench.name)
			}
		})
	}
}
