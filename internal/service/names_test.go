package service

import (
	"net/netip"
	"strings"
	"testing"

	"servicetraceroute/internal/names"
	"servicetraceroute/trace"
)

// suffixes are domains, each with all below.
type suffixes []string

func (s suffixes) Match(name string) (string, bool) {
	for _, d := range s {
		if name == d || strings.HasSuffix(name, "."+d) {
			return d, true
		}
	}
	return "", false
}

func TestMatchNames(t *testing.T) {
	flow := tuple("192.0.2.1:40000", "203.0.113.7:443")
	chain := func(names_ ...string) names.Name { return names.Name{Chain: names_} }
	words := func(name string) Words { return Words{Name: name, By: trace.BySNI} }
	video := Selector{Domains: suffixes{"video.example"}}
	start := Rule{rule("203.0.113.7/32", "").Prefix, trace.Service{Name: "video.example", By: trace.ByNameAtStart, Value: "video.example"}}
	resolved := Selector{Domains: suffixes{"video.example"}, Rules: []Rule{start}}
	two := Selector{Offers: []Offer{{Name: "video", Domains: suffixes{"video.example"}}, {Name: "music", Domains: suffixes{"music.example"}}}}
	net := Offer{Name: "net", Rules: []Rule{rule("203.0.113.0/24", "net")}, Except: suffixes{"bank.example"}}
	web := Offer{Name: "web", Ports: []PortRange{{443, 443}}, ExceptPrefixes: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/28")}}
	cdn := chain("www.video.example", "edge.cdn.example")
	for _, test := range []struct {
		name string
		s    Selector
		k    Known
		want Verdict
		who  string // name/by/value
	}{
		{"nothing is known", video, Known{}, No, ""},
		{"words are awaited", video, Known{Words: Words{Awaited: true}, Names: []names.Name{cdn}}, Listen, ""},
		{"its words", video, Known{Words: words("a.video.example")}, Yes, "video.example/sni/a.video.example"},
		{"other words", video, Known{Words: words("bank.example"), Names: []names.Name{cdn}}, No, ""},
		{"words over its names", video, Known{Words: words("video.example"), Names: []names.Name{chain("bank.example")}}, Yes, "video.example/sni/video.example"},
		{"words over the name at the start", resolved, Known{Words: words("bank.example")}, No, ""},
		{"by DNS", video, Known{Names: []names.Name{cdn}}, Yes, "video.example/dns/www.video.example"},
		{"a name that it leads to", Selector{Domains: suffixes{"cdn.example"}}, Known{Names: []names.Name{cdn}}, Yes, "cdn.example/dns/www.video.example"},
		{"somebody else's address", video, Known{Names: []names.Name{chain("bank.example")}}, No, ""},
		{"and somebody else's", video, Known{Names: []names.Name{cdn, chain("bank.example")}}, Unclear, ""},
		{"two of its own", video, Known{Names: []names.Name{cdn, chain("img.video.example")}}, Yes, "video.example/dns/www.video.example"},
		{"asked for what it led to", video, Known{Names: []names.Name{cdn, chain("edge.cdn.example")}}, Yes, "video.example/dns/www.video.example"},
		{"two services, both wanted", two, Known{Names: []names.Name{cdn, chain("music.example")}}, Unclear, ""},
		{"a service's name", two, Known{Words: words("x.music.example")}, Yes, "music/sni/x.music.example"},
		{"resolved at the start", resolved, Known{}, Yes, "video.example/name-at-start/video.example"},
		{"resolved, and another name", resolved, Known{Names: []names.Name{chain("bank.example")}}, Unclear, ""},
		{"resolved, and heard", resolved, Known{Names: []names.Name{cdn}}, Yes, "video.example/dns/www.video.example"},
		{"an address needs no words", Selector{Domains: suffixes{"x.example"}, Rules: []Rule{rule("203.0.113.0/24", "net")}},
			Known{Words: words("bank.example")}, Yes, "net/prefix/203.0.113.0/24"},
		{"a service's prefix", Selector{Offers: []Offer{net}}, Known{}, Yes, "net/prefix/203.0.113.0/24"},
		{"but for an excepted name", Selector{Offers: []Offer{net, {Name: "x", Domains: suffixes{"x.example"}}}}, Known{Words: words("bank.example")}, No, ""},
		{"a name says more than a prefix", Selector{Offers: []Offer{net, {Name: "x", Domains: suffixes{"x.example"}}}},
			Known{Words: words("x.example")}, Yes, "x/sni/x.example"},
		{"a service's port", Selector{Offers: []Offer{{Name: "web", Ports: web.Ports}}}, Known{}, Yes, "web/port/443"},
		{"but for an excepted prefix", Selector{Offers: []Offer{web}}, Known{}, No, ""},
		{"the longer pattern", Selector{Offers: []Offer{{Name: "all", Domains: suffixes{"example"}}, {Name: "x", Domains: suffixes{"x.example"}}}},
			Known{Words: words("a.x.example")}, Yes, "x/sni/a.x.example"},
		{"a name at another port", Selector{Offers: []Offer{{Name: "x", Domains: suffixes{"x.example"}, Ports: []PortRange{{80, 80}}}}},
			Known{Words: words("x.example")}, No, ""},
		{"a name over another protocol", Selector{Offers: []Offer{{Name: "x", Domains: suffixes{"x.example"}, Protos: []trace.Proto{trace.UDP}}}},
			Known{Words: words("x.example")}, No, ""},
		{"anything: its words", Selector{All: true}, Known{Words: words("a.example"), Names: []names.Name{cdn}}, Yes, "a.example/sni/a.example"},
		{"anything: words are awaited", Selector{All: true}, Known{Words: Words{Awaited: true}}, Listen, ""},
		{"anything: its name", Selector{All: true}, Known{Names: []names.Name{cdn}}, Yes, "www.video.example/dns/www.video.example"},
		{"anything: two names", Selector{All: true}, Known{Names: []names.Name{cdn, chain("bank.example")}}, Yes, "203.0.113.7/address/203.0.113.7"},
		{"anything, of a service", Selector{All: true, Offers: two.Offers}, Known{Words: words("x.music.example")}, Yes, "music/sni/x.music.example"},
		{"anything, unclear", Selector{All: true, Offers: two.Offers}, Known{Names: []names.Name{cdn, chain("music.example")}}, Yes, "203.0.113.7/address/203.0.113.7"},
		{"anything, narrowed", Selector{All: true, IPv6Only: true}, Known{}, No, ""},
		{"its words, not its owner", Selector{Domains: suffixes{"video.example"}, PIDs: []int{1}}, Known{Words: words("video.example")}, Wait, ""},
	} {
		got, v := test.s.Match(flow, &test.k)
		who := ""
		if v == Yes {
			who = got.Name + "/" + got.By.String() + "/" + got.Value
		}
		if v != test.want || who != test.who {
			t.Errorf("%s: verdict %d %q, want %d %q", test.name, v, who, test.want, test.who)
		}
	}
	if len(resolved.Prefixes()) != 0 {
		t.Error("a name may have any address")
	}
}

// The words of an accepted flow name this host; that does not speak against the names of
// the peer's address.
func TestMatchNamesOfAccepted(t *testing.T) {
	flow := tuple("192.0.2.1:443", "203.0.113.7:50000", func(t *trace.Tuple) { t.Direction = trace.In })
	words := Words{Name: "www.video.example", By: trace.BySNI}
	peer := []names.Name{{Chain: []string{"cam.home.example"}}}
	for name, test := range map[string]struct {
		s    Selector
		k    Known
		want Verdict
		by   trace.By
	}{
		"its words":                 {Selector{Domains: suffixes{"video.example"}}, Known{Words: words, Names: peer}, Yes, trace.BySNI},
		"the peer's name":           {Selector{Domains: suffixes{"home.example"}}, Known{Words: words, Names: peer}, Yes, trace.ByDNS},
		"neither":                   {Selector{Domains: suffixes{"bank.example"}}, Known{Words: words, Names: peer}, No, 0},
		"may yet be heard":          {Selector{Domains: suffixes{"home.example"}}, Known{Words: Words{Awaited: true}, Names: peer}, Listen, 0},
		"a service at its own port": {Selector{Offers: []Offer{{Name: "v", Domains: suffixes{"video.example"}, Ports: []PortRange{{443, 443}}}}}, Known{Words: words}, Yes, trace.BySNI},
		"and at another":            {Selector{Offers: []Offer{{Name: "v", Domains: suffixes{"video.example"}, Ports: []PortRange{{80, 80}}}}}, Known{Words: words}, No, 0},
	} {
		if why, v := test.s.Match(flow, &test.k); v != test.want || v == Yes && why.By != test.by {
			t.Errorf("%s: verdict %d, %+v", name, v, why)
		}
	}
}
