//go:build linux

package whole

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/observe"
	"servicetraceroute/internal/lab/peer"
)

// buildOutside builds examples/paths as a module of its own that knows this one by a
// replace line, as anybody's program would.
func buildOutside(t *testing.T) string {
	t.Helper()
	labtest.Require(t)
	repo, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	source, err := os.ReadFile(filepath.Join(repo, "examples/paths/main.go"))
	if err != nil {
		t.Fatal(err)
	}
	if lines := bytes.Count(source, []byte("\n")); lines >= 30 {
		t.Errorf("the example has %d lines", lines)
	}
	sums, err := os.ReadFile(filepath.Join(repo, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	mod := fmt.Sprintf("module outside\n\ngo 1.26\n\nrequire servicetraceroute v0.0.0\n\nreplace servicetraceroute => %s\n", repo)
	for name, text := range map[string][]byte{"main.go": source, "go.sum": sums, "go.mod": []byte(mod)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bin := filepath.Join(dir, "outside")
	cmd := exec.Command("go", "build", "-mod=mod", "-buildvcs=false", "-o", bin, ".")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

// TestOutside runs a program from outside this repository, which traces its own
// connection and that of its HTTP client.
func TestOutside(t *testing.T) {
	t.Parallel()
	bin := buildOutside(t)
	f := newField(t)
	if _, err := peer.ServeHTTPS(t.Context(), f.Node("server"), peer.HTTPSConfig{Port: 80, Plain: true}); err != nil {
		t.Fatal(err)
	}
	nodes := []string{"client", "r1", "r2", "server"}
	for _, name := range nodes {
		if err := observe.Start(t.Context(), f.Node(name), observe.Config{}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out bytes.Buffer
	status, err := f.Node("client").Run(ctx, lab.Program{
		Argv: []string{bin, netip.AddrPortFrom(f.server, 443).String(), fmt.Sprintf("http://%v/bytes/1000", f.server)}, Stderr: &out,
	})
	if err != nil || status != 0 || !strings.Contains(out.String(), "errors: <nil> <nil> <nil>") {
		t.Fatalf("status %d, %v:\n%s", status, err, out.String())
	}
	logs := map[string]observe.Log{}
	for _, name := range nodes {
		if logs[name], err = observe.Fetch(t.Context(), f.Node(name), false); err != nil {
			t.Fatal(err)
		}
	}
	truth := observe.NewTruth(logs, false)
	line := regexp.MustCompile(`tcp (\S+) > (\S+): (.+) \(destination, complete\) <nil>\n`)
	ports := []uint16{443, 80}
	for i, m := range line.FindAllStringSubmatch(out.String(), -1) {
		flow := observe.Flow{Proto: 6, Src: netip.MustParseAddrPort(m[1]), Dst: netip.MustParseAddrPort(m[2])}
		if i >= len(ports) || flow.Dst.Port() != ports[i] {
			t.Fatalf("trace %d is of %v", i, flow)
		}
		ports[i] = 0
		hops := strings.Split(m[3], ", ")
		if len(hops) != 3 || hops[2] != "3 "+f.server.String() {
			t.Errorf("%v: %q", flow, hops)
			continue
		}
		for ttl, answers := range truth.Hops(flow, 2) {
			shown, ok := strings.CutPrefix(hops[ttl-1], strconv.Itoa(int(ttl))+" ")
			if !ok || !slices.ContainsFunc(answers, func(h observe.Hop) bool { return h.Addr.String() == shown }) {
				t.Errorf("%v: TTL %d shows %q, answers came from %v", flow, ttl, hops[ttl-1], answers)
			}
		}
		if len(truth.Hops(flow, 2)) != 2 {
			t.Errorf("the lab saw %v", truth.Hops(flow, 2))
		}
	}
	if ports[0] != 0 || ports[1] != 0 {
		t.Errorf("traces are missing:\n%s", out.String())
	}
	t.Log(out.String())
}
