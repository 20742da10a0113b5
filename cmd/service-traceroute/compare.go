package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/spf13/cobra"

	"servicetraceroute"
	"servicetraceroute/trace"
)

const compareHelp = `The same as trace, and beside each trace its siblings: what a traceroute with
flows of its own (TCP, UDP, ICMP) would have told of the path.
Usage:  service-traceroute compare --host HOST [flags]

All flags of trace, and:
  --siblings 96       of one protocol for one trace, at most
  --confidence 0.95   at which the ways of load balancers are enumerated
  --timeout, --max-silent  where given siblings heed them, too; else 1s and 3

After a trace, siblings go out: Paris-style, each with a flow identifier of its
own that stays the same, until the stopping rule of the multipath detection
algorithm has enough for what was seen. A compare record (--output text, json)
says which hops differ, which alternatives exist, where siblings are blocked
and the flow is not, and which share of them took another way.
At most 3 of each reach a destination of known distance, no application.
Not with --netns all, --no-probe or --output reference|scamper.

Examples:
  sudo service-traceroute compare --host www.example.com --duration 2m
  sudo service-traceroute compare --service netflix --output json -o paths.json

Ctrl-C prints what was found. Exit: 0 done, 1 failed, 2 usage, 3 none matched.
`

// compareFlags are the flags of compare as the user wrote them.
type compareFlags struct {
	traceFlags
	siblings int
	share    float64
	given    func(flag string) bool // whether somebody set it
}

func newCompareCommand() *cobra.Command { return new(compareFlags).command() }

func (f *compareFlags) command() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "compare --host HOST",
		Short:      "trace beside siblings over TCP, UDP and ICMP, with the differences",
		SuggestFor: []string{"paris", "mda", "tracelb", "siblings"},
		Args:       onlyFlags,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f.declare(cmd)
	fl := cmd.Flags()
	f.given = fl.Changed
	fl.IntVar(&f.siblings, "siblings", 96, "siblings of one protocol beside one trace, at most")
	fl.Float64Var(&f.share, "confidence", 0.95, "at which all ways of load balancers are found, below 1")
	helpText(cmd, compareHelp)
	return configurable(cmd, &f.configuration)
}

// run is that of trace, with siblings.
func (f *compareFlags) run(ctx context.Context, stdout, stderr io.Writer) error {
	switch {
	case f.netns == everyNetns:
		return usage(errors.New("--netns all: compare takes one network namespace"), "name one: --netns NAME")
	case f.noProbe:
		return usage(errors.New("--no-probe: compare probes"), "trace --no-probe only says which flows match")
	case f.format != "text" && f.format != "json":
		return usage(fmt.Errorf("--output %s has no comparisons", f.format), "text or json")
	case f.siblings < 6 || f.siblings > 1000:
		return usage(fmt.Errorf("--siblings %d: not between 6 and 1000", f.siblings), "the rule wants 6 for one way, 21 for four, 96 for sixteen")
	case f.share <= 0 || f.share > 0.999:
		return usage(fmt.Errorf("--confidence %v: not between 0 and 0.999", f.share), "0.95, as multipath traceroutes have it")
	}
	f.beside = func(w watcher) (watcher, error) { return f.open(w, stderr) }
	return f.traceFlags.run(ctx, stdout, stderr)
}

// open puts siblings beside what a Tracer traces.
func (f *compareFlags) open(w watcher, stderr io.Writer) (watcher, error) {
	t, ok := w.(*servicetraceroute.Tracer)
	if !ok {
		return nil, failed(errors.New("compare takes one network namespace"), "")
	}
	c, err := servicetraceroute.NewComparer(t, f.comparison())
	if err != nil {
		return nil, openFailed(err)
	}
	return &comparing{Tracer: t, comparer: c, stderr: stderr}, nil
}

// comparison is what siblings are like: patient as those of other tools are, if nobody says
// otherwise.
func (f *compareFlags) comparison() servicetraceroute.CompareConfig {
	cfg := servicetraceroute.CompareConfig{Siblings: f.siblings, Confidence: f.share}
	if f.given("timeout") {
		cfg.Timeout = f.params.Timeout
	}
	if f.given("max-silent") {
		if cfg.MaxSilent = f.maxSilent; f.maxSilent == 0 {
			cfg.MaxSilent = -1
		}
	}
	return cfg
}

// comparing is a Tracer whose traces are compared.
type comparing struct {
	*servicetraceroute.Tracer
	comparer *servicetraceroute.Comparer
	stderr   io.Writer
}

// Watch is the Comparer's.
func (c *comparing) Watch(ctx context.Context, sel servicetraceroute.Selection) iter.Seq2[trace.Event, error] {
	return c.comparer.Watch(ctx, sel)
}

// Close says what all comparisons came to.
func (c *comparing) Close() error {
	err := errors.Join(c.comparer.Close(), c.Tracer.Close())
	fmt.Fprint(c.stderr, overall(c.comparer.Stats()))
	return err
}

// overall is the summary of a run.
func overall(s servicetraceroute.CompareStats) string {
	if s.Compared+s.Dropped+s.Skipped == 0 {
		return ""
	}
	text := fmt.Sprintf("compared %d traces: ", s.Compared)
	if s.Compared > 0 {
		text += fmt.Sprintf("%d with siblings that took another way (divergence over all %.0f %%), ", s.Divergent, 100*s.Divergence/float64(s.Compared))
	}
	text += fmt.Sprintf("%d probes of siblings", s.Sent)
	for _, n := range []struct {
		count uint64
		what  string
	}{
		{s.Skipped, "traces that cannot be compared"}, {s.Dropped, "traces not compared: too many, or the time was over"},
		{s.Failed, "probes that could not be sent"}, {s.Unmatched, "answers that fit no probe"},
	} {
		if n.count > 0 {
			text += fmt.Sprintf(", %d %s", n.count, n.what)
		}
	}
	return text + "\n"
}
