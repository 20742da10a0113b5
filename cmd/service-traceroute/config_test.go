package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
	configurable(cmd)
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	file = configFile{name: name, set: map[string]setting{}}
	return f, file, file.read(cmd)
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
	for _, text := range []string{"", "host: a", "- a", "a: &a [*a]", "host: *x", "%YAML 1.1\n---\n", "? {a: b}\n: c", "host: {<<: [a]}", "4: !!binary aGk=", "\xff", "host: |\n a\n b", "--- !t\n"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		_, file, err := configured(t, text)
		if err != nil && !strings.Contains(err.Error(), filepath.Base(file.name)) {
			t.Errorf("%q: %v", text, err)
		}
	})
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
