package service

import (
	"net/netip"
	"slices"
	"testing"

	"servicetraceroute/trace"
)

func tuple(src, dst string, change ...func(*trace.Tuple)) trace.Tuple {
	t := trace.Tuple{
		FlowKey:   trace.FlowKey{Proto: trace.TCP, Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)},
		Direction: trace.Out, Interface: "eth0",
	}
	for _, f := range change {
		f(&t)
	}
	return t
}

func rule(prefix, name string) Rule {
	return Rule{netip.MustParsePrefix(prefix), trace.Service{Name: name, By: trace.ByPrefix, Value: prefix}}
}

func TestMatch(t *testing.T) {
	in := func(t *trace.Tuple) { t.Direction = trace.In }
	passes := func(t *trace.Tuple) {
		wire := t.FlowKey
		wire.Src = netip.MustParseAddrPort("198.51.100.1:60000")
		t.Direction, t.NAT = trace.Transit, &wire
	}
	transit := []trace.Direction{trace.Transit}
	out := tuple("192.0.2.1:40000", "203.0.113.7:443")
	rules := []Rule{rule("203.0.113.0/24", "wide"), rule("203.0.113.7/32", "narrow"), rule("2001:db8::/32", "six")}
	for _, test := range []struct {
		name string
		s    Selector
		t    trace.Tuple
		want string // "" for no match
	}{
		{"the longest prefix says why", Selector{Rules: rules}, out, "narrow"},
		{"a prefix", Selector{Rules: rules}, tuple("192.0.2.1:1", "203.0.113.8:443"), "wide"},
		{"IPv6", Selector{Rules: rules}, tuple("[fd00::1]:1", "[2001:db8::7]:443"), "six"},
		{"elsewhere", Selector{Rules: rules}, tuple("192.0.2.1:1", "203.0.114.7:443"), ""},
		{"it is the peer that is selected", Selector{Rules: rules}, tuple("203.0.113.7:443", "192.0.2.1:1"), ""},
		{"nothing selects nothing", Selector{}, out, ""},
		{"the peer's port", Selector{Rules: rules, Ports: []PortRange{{1, 80}, {443, 443}}}, out, "narrow"},
		{"another port", Selector{Rules: rules, Ports: []PortRange{{1, 80}}}, out, ""},
		{"our own port does not count", Selector{Rules: rules, Ports: []PortRange{{40000, 40000}}}, out, ""},
		{"but does on accepted flows", Selector{Rules: rules, Ports: []PortRange{{22, 22}}}, tuple("192.0.2.1:22", "203.0.113.7:5000", in), "narrow"},
		{"interface", Selector{Rules: rules, Interfaces: []string{"eth1", "eth0"}}, out, "narrow"},
		{"another interface", Selector{Rules: rules, Interfaces: []string{"eth1"}}, out, ""},
		{"direction", Selector{Rules: rules, Directions: []trace.Direction{trace.In}}, out, ""},
		{"forwarded flows are not selected by themselves", Selector{Rules: rules}, tuple("192.168.1.5:1", "203.0.113.7:443", passes), ""},
		{"but when they are wanted", Selector{Rules: rules, Directions: transit}, tuple("192.168.1.5:1", "203.0.113.7:443", passes), "narrow"},
		{"then alone", Selector{Rules: rules, Directions: transit}, out, ""},
		{"then by their client, too", Selector{Rules: rules, Directions: transit}, tuple("203.0.113.8:1", "192.0.2.1:443", passes), "wide"},
		{"not by who translates it", Selector{Rules: []Rule{rule("198.51.100.0/24", "us")}, Directions: transit}, tuple("192.168.1.5:1", "203.0.113.7:443", passes), ""},
		{"protocol", Selector{Rules: rules, Protos: []trace.Proto{trace.UDP}}, out, ""},
		{"IPv4 only", Selector{Rules: rules, IPv4Only: true}, out, "narrow"},
		{"IPv6 only", Selector{Rules: rules, IPv6Only: true}, out, ""},
	} {
		got, v := test.s.Match(test.t, &Known{})
		if ok := v == Yes; ok != (test.want != "") || got.Name != test.want {
			t.Errorf("%s: %+v, %v", test.name, got, v)
		}
	}
}

func TestOneFlow(t *testing.T) {
	out := tuple("192.0.2.1:40000", "203.0.113.7:443")
	for _, test := range []struct {
		src, dst string
		want     bool
	}{
		{"192.0.2.1:40000", "203.0.113.7:443", true},
		{"192.0.2.1:0", "203.0.113.7:443", true},
		{"0.0.0.0:0", "203.0.113.7:443", true},
		{"192.0.2.1:40001", "203.0.113.7:443", false},
		{"192.0.2.2:0", "203.0.113.7:443", false},
		{"192.0.2.1:40000", "203.0.113.7:80", false},
	} {
		f := tuple(test.src, test.dst)
		s := Selector{Flow: &f}
		if _, v := s.Match(out, &Known{}); (v == Yes) != test.want {
			t.Errorf("%s -> %s: %v", test.src, test.dst, v)
		}
	}
}

func TestPrefixes(t *testing.T) {
	s := Selector{Rules: []Rule{rule("203.0.113.7/32", "b"), rule("2001:db8::/32", "c"), rule("192.0.2.0/24", "a"), rule("203.0.113.7/32", "again")}}
	want := []netip.Prefix{
		netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("203.0.113.7/32"), netip.MustParsePrefix("2001:db8::/32"),
	}
	if got := s.Prefixes(); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	s.Directions = []trace.Direction{trace.Out, trace.Transit}
	if got := s.Prefixes(); got != nil {
		t.Errorf("a client's packets leave with another address than the one that selects them: %v", got)
	}
}

func TestParsePorts(t *testing.T) {
	for text, want := range map[string]PortRange{"443": {443, 443}, "8000-8999": {8000, 8999}, "1-65535": {1, 65535}, "7-7": {7, 7}} {
		if got, err := ParsePorts(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "0-5", "65536", "9-8", "-5", "5-", "http", "1-2-3", "+5", "5 "} {
		if got, err := ParsePorts(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// A flow that this host translates is selected by either of its names.
func TestMatchTranslated(t *testing.T) {
	wire := tuple("192.0.2.1:61000", "203.0.113.7:8080").FlowKey
	flow := tuple("10.0.0.2:40000", "10.96.0.1:80", func(t *trace.Tuple) { t.NAT = &wire })
	asked := flow // as TraceConn does
	for name, test := range map[string]struct {
		s    Selector
		want Verdict
	}{
		"the socket's address": {Selector{Rules: []Rule{rule("10.96.0.0/16", "x")}}, Yes},
		"the wire's address":   {Selector{Rules: []Rule{rule("203.0.113.7/32", "x")}}, Yes},
		"another address":      {Selector{Rules: []Rule{rule("203.0.113.8/32", "x")}}, No},
		"the socket's port":    {Selector{Flow: &asked, Ports: []PortRange{{80, 80}}}, Yes},
		"the wire's port":      {Selector{Flow: &asked, Ports: []PortRange{{8080, 8080}}}, Yes},
		"another port":         {Selector{Flow: &asked, Ports: []PortRange{{443, 443}}}, No},
	} {
		if why, v := test.s.Match(flow, &Known{}); v != test.want {
			t.Errorf("%s: %+v, verdict %d, want %d", name, why, v, test.want)
		}
	}
	// Before it is known that they are the same.
	seen := tuple("192.0.2.1:61000", "203.0.113.7:8080")
	if why, v := (&Selector{Flow: &asked}).Match(seen, &Known{}); v != Yes || why.Name != "10.96.0.1:80" {
		t.Errorf("%+v, verdict %d", why, v)
	}
	if p := (&Selector{Flow: &asked}).Prefixes(); len(p) != 1 || p[0].String() != "203.0.113.7/32" {
		t.Errorf("the capture passes %v", p)
	}
}
