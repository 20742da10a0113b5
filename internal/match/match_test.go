package match

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"servicetraceroute/internal/names"
	"servicetraceroute/internal/owner"
	"servicetraceroute/internal/service"
	"servicetraceroute/trace"
)

func tuple(change ...func(*trace.Tuple)) trace.Tuple {
	t := trace.Tuple{
		FlowKey: trace.FlowKey{
			Proto: trace.TCP, Src: netip.MustParseAddrPort("192.0.2.1:40000"), Dst: netip.MustParseAddrPort("203.0.113.7:443"),
		},
		Direction: trace.Out, Interface: "eth0",
	}
	for _, f := range change {
		f(&t)
	}
	return t
}

func in(t *trace.Tuple) {
	t.Direction, t.Src, t.Dst = trace.In, netip.MustParseAddrPort("192.0.2.1:22"), netip.MustParseAddrPort("203.0.113.7:5000")
}

func six(t *trace.Tuple) {
	t.Src, t.Dst = netip.MustParseAddrPort("[2001:db8::1]:40000"), netip.MustParseAddrPort("[2001:db8::7]:443")
}

func words(name string) service.Known {
	return service.Known{Words: service.Words{Name: name, By: trace.BySNI}}
}

func asked(chains ...string) service.Known {
	var k service.Known
	for _, c := range chains {
		k.Names = append(k.Names, names.Name{Chain: strings.Fields(c)})
	}
	return k
}

var (
	awaited = service.Known{Words: service.Words{Awaited: true}, Names: []names.Name{{Chain: []string{"a.example"}}}}
	curl    = service.Known{Owner: &owner.Owner{
		Process: trace.Process{PID: 42, Name: "curl", Cgroup: "/user.slice/a"}, Exe: "curl-8", UID: 1000, Final: true,
	}}
	group = service.Known{Owner: &owner.Owner{Process: trace.Process{Cgroup: "/user.slice/a"}, UID: 1000}}
	lost  = service.Known{Owner: &owner.Owner{UID: 1000, Final: true}}
)

func TestMatch(t *testing.T) {
	const yes, no, listen, wait, unclear = service.Yes, service.No, service.Listen, service.Wait, service.Unclear
	for _, test := range []struct {
		expr string
		t    trace.Tuple
		k    service.Known
		want service.Verdict
	}{
		{`true`, tuple(), service.Known{}, yes},
		{`proto == "tcp"`, tuple(), service.Known{}, yes},
		{`proto == "UDP"`, tuple(), service.Known{}, no},
		{`src == "192.0.2.1" and sport == 40000`, tuple(), service.Known{}, yes},
		{`dst == "2001:DB8:0::7" && ipv6 && family == 6`, tuple(six), service.Known{}, yes},
		{`dst == "::ffff:203.0.113.7" && !ipv6 && family == 4`, tuple(), service.Known{}, yes},
		{`dst in ["203.0.113.8", "203.0.113.7"]`, tuple(), service.Known{}, yes},
		{`dst not in ["203.0.113.8", "203.0.113.7"]`, tuple(), service.Known{}, no},
		{`cidr(dst, "10.0.0.0/8", "203.0.113.0/24")`, tuple(), service.Known{}, yes},
		{`cidr(dst, "203.0.113.7")`, tuple(), service.Known{}, yes},
		{`cidr(dst, "::ffff:203.0.113.0/120")`, tuple(), service.Known{}, yes},
		{`cidr(src, "203.0.113.0/24")`, tuple(), service.Known{}, no},
		{`dport == 443 && port == 443`, tuple(), service.Known{}, yes},
		{`port == 22 && direction == "in"`, tuple(in), service.Known{}, yes},
		{`dport in 400..443`, tuple(), service.Known{}, yes},
		{`dport in 0..65535`, tuple(), service.Known{}, yes},
		{`dport not in 400..443`, tuple(), service.Known{}, no},
		{`interface == "eth0"`, tuple(), service.Known{}, yes},
		{`interface startsWith "eth"`, tuple(), service.Known{}, yes},
		// names
		{`name == "A.Example"`, tuple(), words("a.example"), yes},
		{`name == "a.example."`, tuple(), words("a.example"), yes},
		{`name endsWith ".EXAMPLE"`, tuple(), words("a.example"), yes},
		{`name matches "^a\\."`, tuple(), words("a.example"), yes},
		{`domain(name, "*.example")`, tuple(), words("a.example"), yes},
		{`domain(name, "*.example")`, tuple(), words("aexample"), no},
		{`domain(name, "/^[ab]\\./", "c.example")`, tuple(), words("c.example"), yes},
		{`domain(names, "edge.example")`, tuple(), asked("a.example edge.example"), yes},
		{`any(names, # contains "edge")`, tuple(), asked("a.example edge.example", "b.example"), yes},
		{`all(names, # endsWith ".example") && len(names) == 3`, tuple(), asked("a.example edge.example", "b.example"), yes},
		{`"b.example" in names`, tuple(), asked("a.example edge.example", "b.example"), yes},
		{`name == ""`, tuple(), service.Known{}, yes},
		{`name != "a.example"`, tuple(), service.Known{}, yes},
		{`domain(name, "a.example")`, tuple(), awaited, listen},
		{`"a.example" in names`, tuple(), awaited, listen},
		{`name == "a.example" && dport == 80`, tuple(), awaited, no},
		{`dport == 443 || name == "a.example"`, tuple(), awaited, yes},
		{`not (name == "a.example" && dport == 443)`, tuple(), awaited, listen},
		{`dport == 443`, tuple(), awaited, yes},
		// the names of an address have to agree
		{`domain(name, "a.example")`, tuple(), asked("a.example", "b.example"), unclear},
		{`domain(name, "example")`, tuple(), asked("a.example", "b.example"), yes},
		{`domain(name, "c.example")`, tuple(), asked("a.example", "b.example"), no},
		{`domain(name, "a.example")`, tuple(), asked("a.example b.example", "b.example"), yes},
		{`name != "a.example"`, tuple(), asked("a.example", "b.example"), unclear},
		// owners
		{`process == "curl" && exe == "curl-8" && pid == 42 && uid == 1000`, tuple(), curl, yes},
		{`below(cgroup, "/user.slice")`, tuple(), curl, yes},
		{`below(cgroup, "/user.slice/")`, tuple(), curl, yes},
		{`below(cgroup, "/user")`, tuple(), curl, no},
		{`below(cgroup, "/")`, tuple(), curl, yes},
		{`process == "curl"`, tuple(), service.Known{}, wait},
		{`uid == 1000`, tuple(), service.Known{}, wait},
		{`uid == 1000 && below(cgroup, "/user.slice")`, tuple(), group, yes},
		{`process == "curl"`, tuple(), group, wait},
		{`process != "curl"`, tuple(), lost, no},
		{`pid != 42`, tuple(), lost, no},
		{`!below(cgroup, "/user.slice")`, tuple(), lost, no},
		{`uid == 1000 || process == "curl"`, tuple(), lost, yes},
		{`process == "curl" && dport == 80`, tuple(), service.Known{}, no},
		{`process == "curl" && name == "a.example"`, tuple(), awaited, wait},
		{`name == "a.example" || process == "curl"`, tuple(), awaited, wait},
	} {
		e, err := Compile(test.expr)
		if err != nil {
			t.Errorf("%s: %v", test.expr, err)
			continue
		}
		if got := e.Match(test.t, &test.k); got != test.want {
			t.Errorf("%s: verdict %d, want %d", test.expr, got, test.want)
		}
		if e.String() != test.expr {
			t.Errorf("%s: String is %s", test.expr, e)
		}
	}
}

func TestUses(t *testing.T) {
	for text, want := range map[string]service.Fields{
		`dport == 443`: 0, `name == "a" || dport == 1`: service.NameFields, `any(names, # == "a")`: service.NameFields,
		`!(uid == 0)`: service.OwnerFields, `(exe == "x") == (name == "y")`: service.OwnerFields | service.NameFields,
		`interface == "eth0"`: service.InterfaceField, `domain(names, "a.example")`: service.NameFields, `below(cgroup, "/a")`: service.OwnerFields,
	} {
		e, err := Compile(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		for _, f := range []service.Fields{service.NameFields, service.OwnerFields, service.InterfaceField} {
			if e.Uses(f) != (want&f != 0) {
				t.Errorf("%s: uses %d: %v", text, f, e.Uses(f))
			}
		}
	}
}

// What is wrong is told at the start, where, and with what would be right.
func TestWrong(t *testing.T) {
	for _, test := range []struct {
		expr, why string
		at        int
		hint      string
	}{
		{"", "empty", 0, "for example"},
		{"  ", "empty", 0, "for example"},
		{"dprot == 443", "unknown field dprot", 1, "did you mean dport?"},
		{"dport == 443 && nmae == \"x\"", "unknown field nmae", 17, "did you mean name?"},
		{"quux == 1", "unknown field quux", 1, "fields: cgroup, direction"},
		{`cird(dst, "10.0.0.0/8")`, "unknown function cird", 1, "did you mean cidr?"},
		{`dport == "443"`, "mismatched types", 7, "for example"},
		{`dport in ["443"]`, "", 0, ""},
		{`dport`, "bool", 0, "for example"},
		{`dport == `, "unexpected token", 0, "for example"},
		{`dport == 443)`, "unexpected token", 0, "for example"},
		{`dst == "here"`, `"here" is no address`, 8, "cidr(dst"},
		{`dst == "10.0.0.0/8"`, "is no address", 8, "cidr(dst"},
		{`proto == "icmp"`, "none of tcp, udp", 10, ""},
		{`direction in ["out", "inn"]`, "none of out, in, transit", 22, ""},
		{`cidr(dst, "10.0.0.0/33")`, "neither an address nor a prefix", 11, "cidr(dst"},
		{`cidr(dst)`, "held against", 1, "cidr(dst"},
		{`cidr(dst, src)`, "written out", 11, "cidr(dst"},
		{`cidr(dport, "10.0.0.0/8")`, "", 0, ""},
		{`domain(name, "*")`, "wildcard", 14, ""},
		{`domain(name, "10.0.0.1")`, "an address", 14, ""},
		{`domain(name, "/(/")`, "missing closing", 14, "RE2"},
		{`below(cgroup, "user")`, "does not begin with a slash", 15, "/user.slice"},
		{`name matches "("`, "missing closing", 14, "RE2"},
		{`name matches name`, "written out", 14, "for example"},
		{`sport + dport == 1`, "operator +", 0, "operators"},
		{`dport in 1..99999999`, "not a range", 0, "8000..8999"},
		{`len(1..9) > 1`, "operator ..", 0, "operators"},
		{`repeat(name, 1000) == name`, "repeat is not available", 1, "functions"},
		{`let x = name; x == name`, "not available", 0, ""},
		{`names[0] == "x"`, "not available", 0, ""},
		{`{"a": 1} == {"a": 1}`, "not available", 0, ""},
		{`$env == $env`, "unknown field", 0, ""},
		{`any(names, any(names, # == name))`, "within another", 0, ""},
		{`any(["a"], # == name)`, "takes the names", 0, "any(names"},
		{`ipv6 ? dport == 1 : true`, "not available", 0, ""},
		{`name == nil`, "not available", 0, ""},
		{`now() == now()`, "not available", 0, ""},
		{strings.Repeat("!", 999) + "ipv6", "bytes long", 0, "alternatives"},
		{strings.Repeat("(", 900), "unexpected token", 0, ""},
		{"name == \"\xff\"", "not UTF-8", 0, ""},
	} {
		e, err := Compile(test.expr)
		var wrong *Error
		if !errors.As(err, &wrong) {
			t.Errorf("%s: %v, %v", test.expr, e, err)
			continue
		}
		if !strings.Contains(wrong.Error(), test.why) || test.at != 0 && wrong.At != test.at || !strings.Contains(wrong.Hint, test.hint) {
			t.Errorf("%s:\n%v\nhint: %s\nwant %q at %d, hint %q", test.expr, wrong, wrong.Hint, test.why, test.at, test.hint)
		}
		if strings.ContainsAny(wrong.Error()+wrong.Hint, "\n") {
			t.Errorf("%s: more than a line: %q", test.expr, wrong)
		}
	}
}

// The page describes every field and function.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/match.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range append(Fields(), known()...) {
		if !strings.Contains(string(page), "`"+word+"`") && !strings.Contains(string(page), "`"+word+"(") {
			t.Errorf("%s is not on the page", word)
		}
	}
	for line := range strings.Lines(string(page)) {
		text, ok := strings.CutPrefix(line, "    --match '")
		if !ok {
			continue
		}
		if _, err := Compile(strings.TrimSuffix(strings.TrimSpace(text), "'")); err != nil {
			t.Errorf("the page's example: %v", err)
		}
	}
}

// Whatever is written, it is refused, or it gives a verdict: nothing panics, and nothing
// that was taken fails later.
func FuzzMatch(f *testing.F) {
	for _, text := range []string{
		`dport == 443 && domain(name, "*.example.com")`, `any(names, # contains "x") || !ipv6`, `cidr(dst, "10.0.0.0/8") and uid in [0, 1000]`,
		`below(cgroup, "/a") ? pid > 3 : exe matches "^a"`, `dport not in 1..3`, `len(names) == -1`, `none(names, # == "a")`, `name in ["a"] == true`,
		`names == names`, `1 < dport < 4`, `-sport < 3`, `name < "x"`, `any(names, .x)`, `"a" in "b"`, `name | len() == 1`, `dport in [1, "a"]`,
	} {
		f.Add(text)
	}
	moments := []service.Known{{}, awaited, curl, group, lost, words("a.example"), asked("a.example", "b.example c.example")}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := Compile(text)
		if err != nil {
			if wrong := new(Error); !errors.As(err, &wrong) || wrong.Why == "" {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		for _, change := range []func(*trace.Tuple){func(*trace.Tuple) {}, in, six} {
			for i := range moments {
				if v := e.Match(tuple(change), &moments[i]); v < service.No || v > service.Yes {
					t.Errorf("%q: verdict %d", text, v)
				}
				sound(t, e.root, see(tuple(change), &moments[i]))
			}
		}
	})
}

// sound evaluates every leaf.
func sound(t *testing.T, n *node, m *moment) {
	if n.op != leaf {
		sound(t, n.left, m)
		if n.right != nil {
			sound(t, n.right, m)
		}
		return
	}
	if _, err := n.run(m); err != nil {
		t.Errorf("a leaf fails: %v", err)
	}
}
