package catalogue

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// Everything that is wrong is told at once, each thing with its line.
func TestParseErrors(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"many things": {`services:
  - name: One
    domains: [example.com, "https://example.com/"]
    prefixes:
      - 192.0.2.0/24
      - 192.0.2.0/99
    ports: [443, 0, 9-8, http]
    proto: sctp
  - name: two
    regexes:
      - 'a('
    exclude: [192.0.2.0/33, a..b]
    colour: red
  - name: two
    domains: a.example
  - name: two
    domains: b.example
  - title: no name
  - just words
`, []string{
			`2: name: "One": want lower case letters, digits and single dashes, at most 64`,
			`3: domains: "https://example.com/" is not a domain: give only the name, not a URL or prefix`,
			`6: prefixes: "192.0.2.0/99" is neither an address nor a prefix`,
			`7: ports: "0": want N or A-B between 1 and 65535`,
			`7: ports: "9-8": want N or A-B between 1 and 65535`,
			`7: ports: "http": want N or A-B between 1 and 65535`,
			`8: proto: "sctp": want tcp or udp`,
			"11: regexes: \"a(\" is not a regular expression: missing closing ): `a(`",
			`12: exclude: "192.0.2.0/33" is neither an address nor a prefix`,
			`12: exclude: "a..b" is not a domain: a part between dots is empty`,
			`13: unknown key "colour": one of name, title, domains, regexes, prefixes, ports, proto, exclude, source, replace`,
			`14: service two is there twice, first in line 9`,
			`16: service two is there twice, first in line 9`,
			`18: a service without a name`,
			`19: a service is expected, as "- name: example"`,
		}},
		"a key twice":            {"services:\n  - name: a\n    ports: 1\n    ports: 2\n", []string{`4: "ports" is given twice, first in line 3`}},
		"no value":               {"services:\n  - name:\n    domains: [a.example, ~]\n", []string{"2: name: a value is missing", "3: domains: a value is missing"}},
		"lists for one value":    {"services:\n  - name: [a]\n    title: {}\n", []string{"2: name: a single value is expected", "3: title: a single value is expected"}},
		"a list in a list":       {"services:\n  - name: a\n    domains:\n      - [b]\n", []string{"4: domains: a single value is expected"}},
		"aliases":                {"services:\n  - name: a\n    domains: [&x a.example, *x]\n", []string{"3: domains: aliases (*x) are not read here: write it out"}},
		"merge keys":             {"services:\n  - &a {name: a, ports: 1}\n  - {<<: *a, name: b}\n", []string{`3: unknown key "<<": one of ` + strings.Join(keys, ", ")}},
		"a key that is a list":   {"services:\n  - name: a\n    ? [b]\n    : c\n", []string{"3: a key has to be a word"}},
		"replace":                {"services:\n  - name: a\n    replace: maybe\n    ports: 1\n", []string{"3: replace: want true or false"}},
		"replaces by nothing":    {"services:\n  - name: a\n    replace: true\n", []string{"2: service a replaces another with nothing: no domains, regexes, prefixes or ports"}},
		"title":                  {"services:\n  - name: a\n    title: \"a\\u202eb\"\n    source: ''\n", []string{`3: title: "a\u202eb" has a character that cannot be shown (U+202E)`, "4: source: an empty text"}},
		"no services":            {"netflix: 1\n", []string{`1: unknown key "netflix": "services" is the only one here`}},
		"services as words":      {"\nservices: all\n", []string{`2: services: a list is expected, each service begins with "- name: "`}},
		"a list alone":           {"- name: a\n", []string{`1: "services:" with a list below it is expected`}},
		"two documents":          {"services: []\n---\nservices: []\n", []string{"2: a second document begins here"}},
		"no YAML":                {"services:\n  - name: a\n    ports: [1\n", []string{"3: YAML: did not find expected ',' or ']'"}},
		"badly indented":         {"services:\n  - name: a\n    title: b\n   ports: 1\n", []string{"4: YAML: did not find expected '-' indicator"}},
		"half a key":             {"services:\n  - name: a\n    title\n    ports: 1\n", []string{"3: YAML: could not find expected ':'"}},
		"a colon":                {"services:\n  - name: a\n    title: b: c\n", []string{"3: YAML: mapping values are not allowed in this context"}},
		"an open quote":          {"services:\n  - name: a\n    title: 'b\n", []string{"3: YAML: found unexpected end of stream"}},
		"tabs":                   {"services:\n\t- name: a\n", []string{"2: YAML: found character that cannot start any token"}},
		"bytes that are no text": {"services: \xff\n", []string{"1: YAML: invalid leading UTF-8 octet"}},
	} {
		_, err := Parse("my.yaml", strings.NewReader(test.text))
		for i := range test.want {
			test.want[i] = "my.yaml:" + test.want[i]
		}
		if got := lines(err); !slices.Equal(got, test.want) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(test.want, "\n"))
		}
		if one := new(Error); !errors.As(err, &one) || one.File != "my.yaml" {
			t.Errorf("%s: %v is no *Error", name, err)
		}
	}
}

func TestParseNothing(t *testing.T) {
	for _, text := range []string{"", "# a comment\n", "---\n", "services:\n", "services: []\n", "services: ~\n", "null\n"} {
		if c := parse(t, text); len(c.All()) != 0 {
			t.Errorf("%q: %v", text, c.All())
		}
	}
}

// A file, its services and its messages are bounded.
func TestBounds(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want string // how the last message ends; empty: none
		told int
	}{
		"the largest file":         {"#" + strings.Repeat("x", MaxBytes-1), "", 0},
		"a larger one":             {"#" + strings.Repeat("x", MaxBytes), "my.yaml: larger than 1048576 bytes", 1},
		"most services":            {"services:\n" + repeat(MaxServices, "- {name: a%d, ports: 1}\n"), "", 0},
		"one too many":             {"services:\n" + repeat(MaxServices+1, "- {name: a%d, ports: 1}\n"), "10001 services, more than 10000", 1},
		"many mistakes":            {"services:\n" + repeat(500, "- {name: A%d}\n"), "my.yaml: and 400 more errors", 101},
		"a long word in a message": {"services:\n- {name: " + strings.Repeat("A", 1e5) + "}\n", "at most 64", 1},
		"a regex that repeats":     {"services:\n- {name: a, regexes: '(abcdefghij){1000}'}\n", `repeats too much: 13000 steps, more than 10000`, 1},
		"regexes in a row":         {"services:\n- name: a\n  regexes:\n" + repeat(200, "  - '(%04d){1000}'\n"), "all regexes of this file together are too large", 58},
		"a long regex":             {"services:\n- {name: a, regexes: '" + strings.Repeat("a", 1001) + "'}\n", "is longer than 1000 bytes", 1},
		"a regex not in ASCII":     {"services:\n- {name: a, regexes: 'bücher'}\n", "not ASCII, as all names on the wire are", 1},
		"a deep regex":             {"services:\n- {name: a, regexes: '" + strings.Repeat("(", 499) + strings.Repeat(")", 499) + "'}\n", "", 0},
		"deep YAML":                {"services: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000), `a service is expected, as "- name: example"`, 1},
	} {
		_, err := Parse("my.yaml", strings.NewReader(test.text))
		told := lines(err)
		if len(told) != test.told || len(told) > 0 && !strings.HasSuffix(told[len(told)-1], test.want) {
			t.Errorf("%s: %d messages, want %d: %.300q", name, len(told), test.told, told)
		}
		if len(told) > 0 && len(told[0]) > 300 {
			t.Errorf("%s: a message of %d bytes", name, len(told[0]))
		}
	}
}

func repeat(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// What cannot be read is told as such.
func TestUnreadable(t *testing.T) {
	for _, read := range []func(io.Reader) error{
		func(r io.Reader) error { _, err := Parse("f", r); return err },
		func(r io.Reader) error { _, _, err := Import("f", r); return err },
	} {
		if err := read(iotest.ErrReader(io.ErrClosedPipe)); !errors.Is(err, io.ErrClosedPipe) || err.Error() != "f: io: read/write on closed pipe" {
			t.Errorf("%v", err)
		}
	}
}

func TestParseDomain(t *testing.T) {
	label := strings.Repeat("a", 63)
	long := label + "." + label + "." + label + "." + strings.Repeat("a", 61)
	for text, want := range map[string]string{
		"example.com": "example.com", "EXAMPLE.Com.": "example.com", "*.example.com": "*.example.com", "_dns.example": "_dns.example",
		"xn--bcher-kva.example": "xn--bcher-kva.example", "lan": "lan", "1.1.example": "1.1.example", "a--b.c": "a--b.c", long: long,
	} {
		if got, err := parseDomain(text); err != nil || got != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for why, texts := range map[string][]string{
		"a part between dots is empty": {"", ".", "..", "*..", ".example.com", "example..com"},
		`"*." may only stand`:          {"*", "*.", "a.*.com", "*a.com", "a*.com", "*.*.com"},
		"begins or ends with a dash":   {"-a.com", "a-.com", "a.-"},
		"is not in names":              {"a b.com", "a.com:443", "a\x00.com", "a,b.com"},
		"give only the name":           {"https://a.com", "a.com/x", "a@b.com", "192.0.2.0/24"},
		"write it as it is in DNS":     {"bücher.example"},
		"an address belongs":           {"192.0.2.1", "*.192.0.2.1", "::1", "[::1]"},
		"no top-level domain":          {"192.0.2", "a.1", "*.1"},
		"longer than 63 bytes":         {label + "a.com"},
		"longer than 253 bytes":        {long + "a"},
	} {
		for _, text := range texts {
			if got, err := parseDomain(text); err == nil || !strings.Contains(err.Error(), why) {
				t.Errorf("%q: %q, %v, want %s", text, got, err, why)
			}
		}
	}
}

func TestParsePrefix(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.0/24": "192.0.2.0/24", "192.0.2.7/24": "192.0.2.0/24", "192.0.2.7": "192.0.2.7/32", "0.0.0.0/0": "0.0.0.0/0",
		"2001:DB8::/32": "2001:db8::/32", "2001:db8::1": "2001:db8::1/128",
	} {
		if got, err := parsePrefix(text); err != nil || got.String() != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "192.0.2", "192.0.2.0/33", "192.0.2.0/", "192.0.2.0/24/", "::ffff:192.0.2.0/120", "::ffff:192.0.2.1", "fe80::1%eth0", "fe80::%eth0/64", "a"} {
		if got, err := parsePrefix(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestCheckName(t *testing.T) {
	for text, ok := range map[string]bool{
		"a": true, "a-b-1": true, "7": true, strings.Repeat("a", 64): true,
		"": false, "-a": false, "a-": false, "a--b": false, "A": false, "a b": false, "a_b": false, "é": false, strings.Repeat("a", 65): false,
	} {
		if err := checkName(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(builtin[300:700])
	f.Add([]byte("services:\n- {name: a, title: 'x: y', domains: ['*.a.b'], regexes: ['^a|b$'], prefixes: [::/0], ports: [1-2], proto: [udp], exclude: [a, ::], source: '#', replace: true}\n"))
	f.Add([]byte("services: [{name: &x a, domains: *x, <<: *x}]\n---\n"))
	f.Add([]byte(`{"services": [{"name": "null", "ports": 443}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse("fuzz", strings.NewReader(string(text)))
		survives(t, c, err)
	})
}

// survives wants of whatever was read: an error, or a catalogue in order that is the
// same after it was written and read again.
func survives(t *testing.T, c *Catalogue, err error) {
	if err != nil {
		if c != nil || err.Error() == "" {
			t.Fatalf("an error %q, and a catalogue %v", err, c)
		}
		return
	}
	for i, s := range c.services {
		if i > 0 && c.services[i-1].Name >= s.Name {
			t.Fatalf("%q before %q", c.services[i-1].Name, s.Name)
		}
		for _, r := range s.Regexes {
			regexp.MustCompile("(?i)" + r)
		}
	}
	out := written(t, c)
	if len(out) > MaxBytes {
		return // one line for each domain is more than it was
	}
	again, err := Parse("again", strings.NewReader(out))
	if err != nil {
		t.Fatalf("%v of\n%s", err, out)
	}
	if second := written(t, again); second != out {
		t.Fatalf("first\n%sthen\n%s", out, second)
	}
}
