package main

import (
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"servicetraceroute"
	"servicetraceroute/trace"
)

// Every flag of trace reaches the library; those that do not concern it have tests of
// their own.
func TestFlags(t *testing.T) {
	list := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(list, []byte("# none of these\n198.51.100.0/24\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(t.TempDir(), "mine.yaml")
	if err := os.WriteFile(mine, []byte("services: [{name: ours, domains: ours.example}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	type (
		cfg = *servicetraceroute.Config
		sel = *servicetraceroute.Selection
	)
	one := []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	elsewhere := map[string]bool{ // what is done with records, and other commands' parts
		"config": true, "duration": true, "output": true, "out": true, "privacy": true, "pcap": true, "pcap-payload": true, "verbose": true, "backend": true,
	}
	same := reflect.DeepEqual
	for args, ok := range map[string]func(c cfg, s sel) bool{
		"service=netflix":                     func(_ cfg, s sel) bool { return len(s.Services) == 1 && s.Services[0].Name == "netflix" },
		"catalogue=" + mine + " service=ours": func(_ cfg, s sel) bool { return len(s.Services) == 1 && s.Services[0].Hosts[0] == "ours.example" },
		"host=a.example host=b.example":       func(_ cfg, s sel) bool { return same(s.Hosts[1:], []string{"a.example", "b.example"}) },
		"match=ipv6 match=pid==1":             func(c cfg, s sel) bool { return same(s.Match, []string{"ipv6", "pid==1"}) && c.Processes },
		"match=ipv6":                          func(c cfg, s sel) bool { return !c.Processes },
		"port=443 port=1-2":                   func(_ cfg, s sel) bool { return same(s.Ports, []string{"443", "1-2"}) },
		"proto=udp":                           func(_ cfg, s sel) bool { return same(s.Protos, []trace.Proto{trace.UDP}) },
		"process=curl":                        func(c cfg, s sel) bool { return same(s.Processes, []string{"curl"}) && c.Processes },
		"pid=1":                               func(c cfg, s sel) bool { return same(s.PIDs, []int{1}) && c.Processes },
		"cgroup=/a":                           func(c cfg, s sel) bool { return same(s.Cgroups, []string{"/a"}) && c.Processes },
		"direction=in":                        func(_ cfg, s sel) bool { return same(s.Directions, []trace.Direction{trace.In}) },
		"direction=any": func(_ cfg, s sel) bool {
			return same(s.Directions, []trace.Direction{trace.Out, trace.In, trace.Transit})
		},
		"interface=eth0":                 func(c cfg, _ sel) bool { return same(c.Interfaces, []string{"eth0"}) },
		"ipv4":                           func(_ cfg, s sel) bool { return s.IPv4Only && !s.IPv6Only },
		"ipv6":                           func(_ cfg, s sel) bool { return s.IPv6Only && !s.IPv4Only },
		"netns=x":                        func(c cfg, _ sel) bool { return c.NetNS == "x" },
		"algorithm=hop-by-hop":           func(_ cfg, s sel) bool { return s.Params.Algorithm == trace.HopByHop },
		"first-ttl=2":                    func(_ cfg, s sel) bool { return s.Params.FirstTTL == 2 },
		"max-ttl=9":                      func(_ cfg, s sel) bool { return s.Params.MaxTTL == 9 },
		"probes=7":                       func(_ cfg, s sel) bool { return s.Params.Probes == 7 },
		"timeout=7s":                     func(_ cfg, s sel) bool { return s.Params.Timeout == 7*time.Second },
		"probe-interval=7ms":             func(_ cfg, s sel) bool { return s.Params.ProbeInterval == 7*time.Millisecond },
		"ttl-interval=7ms":               func(_ cfg, s sel) bool { return s.Params.TTLInterval == 7*time.Millisecond },
		"ttl-interval=0":                 func(_ cfg, s sel) bool { return s.Params.TTLInterval == 1 },
		"max-silent=7":                   func(_ cfg, s sel) bool { return s.Params.MaxSilent == 7 },
		"max-silent=0":                   func(_ cfg, s sel) bool { return s.Params.MaxSilent == -1 },
		"border=198.51.100.7/24":         func(_ cfg, s sel) bool { return same(s.Params.Borders, one) },
		"border-file=" + list:            func(_ cfg, s sel) bool { return same(s.Params.Borders, one) },
		"flow-timeout=7s":                func(_ cfg, s sel) bool { return s.Params.FlowTimeout == 7*time.Second },
		"after-close":                    func(_ cfg, s sel) bool { return s.Params.AfterClose },
		"udp-probe=always":               func(_ cfg, s sel) bool { return s.Params.UDPProbe == servicetraceroute.UDPAlways },
		"per=port":                       func(_ cfg, s sel) bool { return s.Per == servicetraceroute.PerPort },
		"every=7s":                       func(_ cfg, s sel) bool { return s.Every == 7*time.Second },
		"every=once":                     func(_ cfg, s sel) bool { return s.Every == -1 },
		"retrace=7s":                     func(_ cfg, s sel) bool { return s.Retrace == 7*time.Second },
		"when=stalled_ms>7":              func(_ cfg, s sel) bool { return s.When == "stalled_ms>7" },
		"when=stalled_ms>7 cool-down=7s": func(_ cfg, s sel) bool { return s.CoolDown == 7*time.Second },
		"share":                          func(_ cfg, s sel) bool { return s.Params.Share },
		"start-on=payload":               func(_ cfg, s sel) bool { return s.OnPayload },
		"idle=7s":                        func(_ cfg, s sel) bool { return s.Idle == 7*time.Second },
		"stop-new-after=7s":              func(_ cfg, s sel) bool { return s.StopNewAfter == 7*time.Second },
		"rate=7":                         func(c cfg, _ sel) bool { return c.Rate == 7 },
		"hop-rate=7":                     func(c cfg, _ sel) bool { return c.HopRate == 7 },
		"no-probe":                       func(c cfg, _ sel) bool { return c.NoProbe },
		"no-dns":                         func(c cfg, _ sel) bool { return c.NoDNS },
		"exclude=198.51.100.7/24":        func(c cfg, _ sel) bool { return same(c.Exclude, one) },
		"exclude-file=" + list:           func(c cfg, _ sel) bool { return same(c.Exclude, one) },
		"loopback":                       func(c cfg, _ sel) bool { return c.Loopback },
		"label=x":                        func(c cfg, _ sel) bool { return c.Label == "x" },
	} {
		var f traceFlags
		cmd := newTraceCommand()
		cmd.ResetFlags()
		f.declare(cmd)
		words := []string{"--host", "192.0.2.1"}
		for word := range strings.FieldsSeq(args) {
			words = append(words, "--"+word)
			name, _, _ := strings.Cut(word, "=")
			elsewhere[name] = true
		}
		if err := cmd.ParseFlags(words); err != nil {
			t.Fatal(err)
		}
		c, s, err := f.config(io.Discard)
		if err != nil || !ok(&c, &s) {
			t.Errorf("%s: %v\n%+v\n%+v", args, err, c, s)
		}
	}
	newTraceCommand().Flags().VisitAll(func(flag *pflag.Flag) {
		if !elsewhere[flag.Name] && flag.Name != "host" {
			t.Errorf("--%s is not tried", flag.Name)
		}
	})
}
