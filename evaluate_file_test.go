//go:build linux

package servicetraceroute_test

import (
	"os"
	"path/filepath"
	"testing"

	"servicetraceroute/internal/evaluate"
)

// The report is one file of several parts, each of which a test writes anew and leaves the
// others alone.
const evaluateHead = `# Evaluation

What the tool does to flows, and what it finds, measured: by "make eval" (SEED=1 is the default), which writes this file and the plots beside it. Each figure has its command; with another seed comes another Internet.
The first part is exact and depends on the seed alone. The second runs on real kernels, whose times differ from run to run: it states intervals.

`

var evaluateParts = []string{"memory", "namespaces"}

// keepPart writes one part into the report.
func keepPart(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("docs", "evaluation.md")
	old, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	text = evaluate.Put(string(old), evaluateHead, evaluateParts, name, text)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
