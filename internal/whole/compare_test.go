//go:build linux

package whole

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"servicetraceroute/trace"
)

// TestCompare runs the built command: the record of a comparison follows its trace, where
// nothing balances or blocks no sibling differs, and the end says what all came to. What it
// wrote is what join reads.
func TestCompare(t *testing.T) {
	t.Parallel()
	f := newField(t)
	file := filepath.Join(t.TempDir(), "paths.ndjson")
	p := start(t, f.Node("client").Do, nil, f.bin, "compare", "--host", f.server.String(), "--output", "json", "-o", file)
	p.stderr.await(t, "watching")
	f.download(t, 3*time.Second)
	eventually(t, "a comparison", func() bool { b, _ := os.ReadFile(file); return strings.Contains(string(b), `"type":"compare"`) })
	if status, _ := p.signal(t, syscall.SIGINT, false); status != 0 {
		t.Errorf("status %d: %s", status, p.stderr.String())
	}
	traces, compares := parsed(t, file), recorded[*trace.Compare](t, file)
	if len(traces) != 1 || len(compares) != 1 {
		t.Fatalf("%d traces, %d comparisons", len(traces), len(compares))
	}
	// 6 of each protocol rule out a second way at 95 %.
	if c := compares[0]; c.Trace != traces[0].ID || c.Divergent || len(c.Blocked)+len(c.Alternatives) > 0 || len(c.Siblings) != 18 {
		t.Errorf("%+v", c)
	}
	if want := "compared 1 traces: 0 with siblings that took another way (divergence over all 0 %)"; !strings.Contains(p.stderr.String(), want) {
		t.Errorf("want %q in:\n%s", want, p.stderr.String())
	}
	out, stderr, status, err := f.Node("client").Exec(t.Context(), []string{f.bin, "join", file, file}, nil, nil)
	if err != nil || status != 3 || len(out) > 0 || !strings.Contains(string(stderr), "hint: ") {
		t.Errorf("join: status %d, %v\n%s%s", status, err, out, stderr)
	}
}
