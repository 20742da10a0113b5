//go:build linux

package servicetraceroute_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"servicetraceroute/internal/evaluate"
)

// envEvaluate is the seed of the whole evaluation, which "make eval" runs. Without it the same
// is tried with few routers and flows, and nothing is written.
const envEvaluate = "SERVICE_TRACEROUTE_EVALUATE"

// evaluation is how large everything is.
type evaluation struct {
	seed  uint64
	small bool
}

// evaluating is the evaluation that is wanted.
func evaluating(t *testing.T) evaluation {
	t.Helper()
	word := os.Getenv(envEvaluate)
	if word == "" {
		return evaluation{seed: 1, small: true}
	}
	seed, err := strconv.ParseUint(word, 10, 64)
	if err != nil {
		t.Fatalf("%s: %q is no seed: a number is wanted, such as 1", envEvaluate, word)
	}
	return evaluation{seed: seed}
}

// shares are those of the Internet in memory.
func (e evaluation) shares() evaluate.Shares {
	s := evaluate.Shares{Seed: e.seed, Routers: 120, Clients: 3, Servers: 40, Balanced: 0.2, Width: 3, Asymmetric: 0.3,
		Silent: 0.1, Limited: 0.25, Firewalls: 0.3, NATs: 0.34, Lossy: 0.06, Loss: 0.01}
	if e.small {
		s.Routers, s.Clients, s.Servers = 24, 2, 5
	}
	return s
}

// effectRounds is how many flows there are in part (a) for each client and server.
func (e evaluation) effectRounds() int {
	if e.small {
		return 2
	}
	return 4
}

// command is how a figure comes about.
func (e evaluation) command(part string) string {
	return fmt.Sprintf("    %s=%d go test -count=1 -timeout 30m -v -run 'TestEvaluate$/%s$' .\n\nSeed %d. ", envEvaluate, e.seed, part, e.seed)
}

// parts are those of the evaluation in memory, in the order of the report.
var parts = []struct {
	name string
	run  func(evaluation, *testing.T) *evaluate.Report
}{
	{"effect", evaluation.effect}, {"found", evaluation.found}, {"wrong", evaluation.wrong}, {"short", evaluation.short},
}

// TestEvaluate is the evaluation in memory. It depends on the seed alone: a small one that
// runs twice comes out as the same bytes.
func TestEvaluate(t *testing.T) {
	e := evaluating(t)
	var reports []*evaluate.Report
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) {
			r := p.run(e, t)
			t.Log("\n" + r.Text.String())
			if e.small {
				if again := p.run(e, t); again.Bytes() != r.Bytes() {
					t.Errorf("the same seed gave another report:\n%s", again.Text.String())
				}
			}
			if !t.Failed() {
				reports = append(reports, r)
			}
		})
	}
	if e.small || len(reports) != len(parts) {
		return
	}
	var text strings.Builder
	text.WriteString(e.intro(t))
	for _, r := range reports {
		text.WriteString(r.Text.String())
		keepPlots(t, r)
	}
	keepPart(t, "memory", text.String())
}

// intro says what was drawn.
func (e evaluation) intro(t *testing.T) string {
	s := e.shares()
	w, err := evaluate.Generate(s)
	if err != nil {
		t.Fatal(err)
	}
	mean := analytic(t, s)
	c := w.Count
	return fmt.Sprintf("## In memory\n\nA random Internet in memory and virtual time (`internal/simnet`): exact, and the same bytes for the same seed. Drawn with seed %d: %d routers, of which %d are a random graph of %d links, the others stand within balanced links and before hosts. "+
		"%d links are balanced over %d routers each, %d cost differently each way, so that flows come back another way than they go. %d routers are silent; %d limit their ICMP errors as Linux does (IPv4 one a second to each target after a burst of six, IPv6 ten, 1000 in all). "+
		"%d of %d servers are behind a stateful firewall that lets new connections to port 443 in and nothing else, %d of %d clients behind address translation. A flow meets %.1f routers on average, %.2f of them balancers that have several ways for it.\n\n",
		s.Seed, c.Routers, s.Routers, c.Links, c.Balanced, s.Width, c.Asymmetric, c.Silent, c.Limited, c.Firewalls, len(w.Servers), c.NATs, len(w.Clients), mean.hops, mean.balancers)
}

var evaluateDir = filepath.Join("docs", "evaluation")

// keepPlots writes a report's pictures.
func keepPlots(t *testing.T, r *evaluate.Report) {
	t.Helper()
	if err := os.MkdirAll(evaluateDir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Plots {
		if err := os.WriteFile(filepath.Join(evaluateDir, p.Name+".svg"), []byte(p.SVG), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
