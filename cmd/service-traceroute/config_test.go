package main

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"servicetraceroute"
	"servicetraceroute/trace"
)

// configured reads a configuration file for a trace and returns its flags.
func configured(t testing.TB, text string, args ...string) (f *traceFlags, file configFile, err error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "conf.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f = &traceFlags{}
	cmd := newTraceCommand()
	cmd.ResetFlags()
	f.declare(cmd)
	configurable(cmd, &f.configuration)
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	file = configFile{name: name, set: map[string]setting{}}
	return f, file, file.read(&f.configuration)
}

func TestConfigSetsFlags(t *testing.T) {
	text := "host: [192.0.2.1, &b www.example.com]\nlabel: 1.10\nduration: 1m30s\nprobes: 0x5\n4: true\nborder: *b\nrate: 7\nexclude: []\n"
	f, file, err := configured(t, text, "--rate", "9", "--host", "192.0.2.2")
	if err != nil {
		t.Fatal(err)
	}
	if len(f.hosts) != 1 || f.hosts[0] != "192.0.2.2" || f.rate != 9 {
		t.Errorf("flags must win: %v, %d", f.hosts, f.rate)
	}
	if f.label != "1.10" || f.duration != 90*time.Second || f.params.Probes != 5 || !f.v4 || len(f.borders) != 1 || f.borders[0] != "www.example.com" {
		t.Errorf("%+v", f)
	}
	if want := "sets: border, duration, exclude, ipv4, label, probes; overridden by flags: host, rate"; !strings.HasSuffix(file.summary(), want) {
		t.Errorf("%s, want %s", file.summary(), want)
	}
}

// Whatever a file holds, it is read or told in one line with its name.
func FuzzConfig(f *testing.F) {
	for _, text := range []string{"", "host: a", "- a", "a: &a [*a]", "host: *x", "%YAML 1.1\n---\n", "? {a: b}\n: c", "host: {<<: [a]}", "4: !!binary aGk=", "services: {a: {every: 1m}}", "services: &s {a: *s}", "services: {a: {border: [x], probes: 1}}", "\xff", "host: |\n a\n b", "--- !t\n"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		_, file, err := configured(t, text)
		if err != nil && !strings.Contains(err.Error(), filepath.Base(file.name)) {
			t.Errorf("%q: %v", text, err)
		}
	})
}

// What a service has of its own begins with what holds for all, whichever comes first.
func TestConfigServices(t *testing.T) {
	f, _, err := configured(t, `
services:
  netflix: {every: 1m, max-ttl: 20, per: destination, border: [192.0.2.1], udp-probe: auto, flow-timeout: 0s, max-silent: 0, after-close: false, share: true}
  192.0.2.1: {start-on: payload}
  Zoom: {}
host: 192.0.2.1
max-ttl: 30
probes: 2
udp-probe: "off"
after-close: true
flow-timeout: 1m
every: once
border: 198.51.100.1
retrace: 1h
`, "--probes", "5", "--timeout", "3s")
	if err != nil {
		t.Fatal(err)
	}
	sel, err := f.selection()
	if err != nil {
		t.Fatal(err)
	}
	all := servicetraceroute.Policy{
		Params: servicetraceroute.Params{
			Algorithm: trace.Adaptive, FirstTTL: 1, MaxTTL: 30, Probes: 5, Timeout: 3 * time.Second, ProbeInterval: 20 * time.Millisecond,
			TTLInterval: time.Millisecond, MaxSilent: 5, Borders: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/32")},
			FlowTimeout: time.Minute, UDPProbe: servicetraceroute.UDPOff, AfterClose: true,
		},
		Every: -1, Retrace: time.Hour,
	}
	netflix, host := all, all
	netflix.Every, netflix.Per, netflix.Params.MaxTTL, netflix.Params.MaxSilent = time.Minute, servicetraceroute.PerDestination, 20, -1
	netflix.Params.Borders, netflix.Params.FlowTimeout, netflix.Params.UDPProbe = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}, 0, servicetraceroute.UDPAuto
	netflix.Params.AfterClose, netflix.Params.Share = false, true
	host.OnPayload = true
	got := servicetraceroute.Policy{Params: sel.Params, Every: sel.Every, Retrace: sel.Retrace, Per: sel.Per, OnPayload: sel.OnPayload}
	if !reflect.DeepEqual(got, all) {
		t.Errorf("%+v, want %+v", got, all)
	}
	if want := map[string]servicetraceroute.Policy{"netflix": netflix, "192.0.2.1": host, "zoom": all}; !reflect.DeepEqual(sel.Policies, want) {
		t.Errorf("%+v, want %+v", sel.Policies, want)
	}
	f.report(sel)
	if p := f.reported.ServiceParams; p["netflix"].MaxTTL != 20 || !p["192.0.2.1"].PayloadOnly || f.reported.Params.MaxTTL != 30 {
		t.Errorf("%+v", f.reported)
	}
}

// A service can do without the expression that holds for all, and then without its pause.
func TestConfigWithoutWhen(t *testing.T) {
	f, _, err := configured(t, "service: netflix\nwhen: stalled_ms > 7\ncool-down: 7s\nservices: {netflix: {when: ''}}\n")
	if err != nil {
		t.Fatal(err)
	}
	sel, err := f.selection()
	if err != nil {
		t.Fatal(err)
	}
	if p := sel.Policies["netflix"]; p.When != "" || p.CoolDown != 0 || sel.When != "stalled_ms > 7" || sel.CoolDown != 7*time.Second {
		t.Errorf("%+v, %q, %v", p, sel.When, sel.CoolDown)
	}
}

// Files that are read again take the place of what they said before; flags stay, and after
// an error everything does.
func TestReread(t *testing.T) {
	f, file, err := configured(t, "host: 192.0.2.1\nmax-ttl: 9\nborder: 192.0.2.9\nlabel: a\nservices: {netflix: {every: 1m}}\n", "--probes", "5", "--output", "json")
	if err != nil {
		t.Fatal(err)
	}
	f.from, f.given = file.name, []string{"probes", "config", "output"}
	write := func(text string) {
		if err := os.WriteFile(file.name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := &switching{}
	renew := func() ([]string, error) { return f.renew(t.Context(), refusing{}, w) }
	for _, text := range []string{"hsot: 1\n", "probes: 3\n", "host: 192.0.2.2\nmax-ttl: 300\n", "host: 192.0.2.2\nservices: {netflx: {}}\n", "match: dprot == 1\n", "host: refused\n"} {
		write(text)
		if _, err := renew(); err == nil {
			t.Errorf("%q was taken", text)
		} else if text != "probes: 3\n" && text != "host: refused\n" && !strings.Contains(err.Error(), "conf.yaml:") {
			t.Errorf("%q: %v", text, err)
		}
		if len(f.hosts) != 1 || f.hosts[0] != "192.0.2.1" || f.params.MaxTTL != 9 || len(f.borders) != 1 || len(f.own) != 1 || len(f.match) != 0 || f.params.Probes != 5 {
			t.Fatalf("%q: %+v", text, f)
		}
	}
	write("host: 192.0.2.2\nprobes: 1\nlabel: b\n")
	f.out = io.Discard
	held, err := renew()
	if err != nil || len(held) != 1 || held[0] != "label" || w.Writer == nil {
		t.Errorf("%v, %v", held, err)
	}
	if f.hosts[0] != "192.0.2.2" || f.params.MaxTTL != 32 || len(f.borders) != 0 || len(f.own) != 0 || f.params.Probes != 5 || f.label != "a" || f.reported.Params.MaxTTL != 32 {
		t.Errorf("%+v", f)
	}
}

// refusing is a watcher that refuses one selection.
type refusing struct{ watcher }

func (refusing) SetSelection(_ context.Context, sel servicetraceroute.Selection) error {
	if sel.Hosts[0] == "refused" {
		return errors.New("servicetraceroute: Selection.Hosts: refused")
	}
	return nil
}

// Every flag either can change while a trace goes on, or is known to stay.
func TestSelecting(t *testing.T) {
	staying := []string{
		"backend", "config", "duration", "netns", "interface", "no-dns", "no-probe", "rate", "hop-rate", "exclude", "exclude-file", "loopback",
		"label", "output", "out", "privacy", "pcap", "pcap-payload", "verbose",
	}
	var names []string
	newTraceCommand().Flags().VisitAll(func(flag *pflag.Flag) { names = append(names, flag.Name) })
	for _, name := range names {
		if slices.Contains(selecting, name) == slices.Contains(staying, name) {
			t.Errorf("--%s: can it change?", name)
		}
	}
	if len(names) != len(selecting)+len(staying) {
		t.Errorf("%d flags, %d and %d are known", len(names), len(selecting), len(staying))
	}
}

// FuzzAddressFile: of any file either all lines are prefixes, or one is named.
func FuzzAddressFile(f *testing.F) {
	f.Add("192.0.2.0/24 # a comment\n\n2001:db8::1\r\n")
	f.Add("::ffff:192.0.2.1/120\nfe80::1%eth0\n1.2.3.4/33")
	name := filepath.Join(f.TempDir(), "list")
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var list []netip.Prefix
		err := prefixes("--exclude", nil, []string{name}, &list)
		for _, p := range list {
			if !p.IsValid() || p.Masked() != p {
				t.Errorf("%v, %v", p, err)
			}
		}
	})
}
