package main

import (
	"bytes"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/output"
	"servicetraceroute/trace"
)

// written is what the flags make of one trace.
func written(t *testing.T, f resultFlags, p servicetraceroute.Params) (text, log string) {
	t.Helper()
	var stderr bytes.Buffer
	f.file = filepath.Join(t.TempDir(), "records")
	cfg := servicetraceroute.Config{Defaults: p}
	if err := f.apply(&cfg, &stderr); err != nil {
		t.Fatal(err)
	}
	if cfg.Logger != nil {
		cfg.Logger.Warn("lost", "peer", "203.0.113.7")
	}
	w, done, err := f.open(t.Context(), os.Stdout, &stderr, f.verbose)
	if err != nil {
		t.Fatal(err)
	}
	err = w.Write(&trace.Trace{
		Label: f.label, Algorithm: trace.Adaptive, Stop: trace.StopMaxTTL,
		Service: &trace.Service{Name: "www.example.com", By: trace.BySNI, Value: "www.example.com"},
		Flow: trace.Tuple{FlowKey: trace.FlowKey{
			Proto: trace.TCP, Src: netip.MustParseAddrPort("10.0.0.1:40510"), Dst: netip.MustParseAddrPort("203.0.113.7:443"),
		}},
		Hops: []trace.Hop{{TTL: 1, Sent: 1, Replies: []trace.Reply{{Addr: netip.MustParseAddr("192.0.2.1"), Kind: trace.TimeExceeded}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := done(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(f.file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), stderr.String()
}

// --privacy masks every format, and the log. By chance a mask leaves an address as it is,
// or as the beginning of another one, some times in a thousand; four do not.
func TestPrivacyMasksAll(t *testing.T) {
	for _, format := range []string{"text", "json", "reference", "scamper"} {
		plain, _ := written(t, resultFlags{format: format}, servicetraceroute.Params{})
		var masked string
		shown := map[string]int{}
		const masks = 4
		for range masks {
			var log string
			masked, log = written(t, resultFlags{format: format, privacy: true, verbose: true}, servicetraceroute.Params{})
			for _, addr := range []string{"10.0.0.1", "203.0.113.7", "192.0.2.1"} {
				if !strings.Contains(plain, addr) {
					t.Errorf("%s: no %s in\n%s", format, addr, plain)
				}
				if strings.Contains(masked, addr) || strings.Contains(log, addr) {
					shown[addr]++
				}
				if shown[addr] == masks {
					t.Errorf("%s: %s in\n%s\nand in\n%s%s", format, addr, plain, masked, log)
				}
			}
		}
		if again, _ := written(t, resultFlags{format: format, privacy: true}, servicetraceroute.Params{}); again == masked {
			t.Errorf("%s: two runs mask alike:\n%s", format, again)
		}
	}
}

// The formats of other tools tell with what parameters the run was made, in the
// command line's terms.
func TestParametersAreReported(t *testing.T) {
	p := servicetraceroute.Params{
		FirstTTL: 2, MaxTTL: 20, Probes: 4, Timeout: 3 * time.Second, MaxSilent: -1, FlowTimeout: time.Minute, ProbeInterval: 1, TTLInterval: time.Second,
	}
	got, _ := written(t, resultFlags{format: "reference", label: "l"}, p)
	for _, want := range []string{
		`"Version":"` + version() + `"`, `"Conf":"l"`, `"MaxTtl":20,`, `"Iterations":4,`, `"MaxConsecutiveMissingHops":0,`, `"Timeout":3000,`,
		`"FlowTimeout":60000,`, `"InterProbeTime":0,`, `"InterIterationTime":1000000,`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
	if got, _ = written(t, resultFlags{format: "scamper"}, p); !strings.Contains(got, `"attempts":4,"hoplimit":20,"firsthop":2,"wait":3,"wait_probe":0,`) {
		t.Errorf("%s", got)
	}
}

// Those of a service are found by its name, also where --privacy masks that.
func TestParametersOfMaskedService(t *testing.T) {
	for _, privacy := range []bool{false, true} {
		f := resultFlags{format: "reference", privacy: privacy}
		f.reported.ServiceParams = map[string]output.Params{"www.example.com": {MaxTTL: 17}}
		if got, _ := written(t, f, servicetraceroute.Params{}); !strings.Contains(got, `"MaxTtl":17,`) || strings.Contains(got, "www.example.com") == privacy {
			t.Errorf("privacy %t: %s", privacy, got)
		}
	}
}

// Packets are not masked, so they do not go with --privacy.
func TestPrivacyRefusesPackets(t *testing.T) {
	for _, c := range []struct{ privacy, pcap, fails bool }{{true, true, true}, {true, false, false}, {false, true, false}} {
		f := resultFlags{format: "json", privacy: c.privacy}
		if c.pcap {
			f.pcap.file = "a.pcapng"
		}
		err := f.apply(new(servicetraceroute.Config), io.Discard)
		if (err != nil) != c.fails {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
