package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"servicetraceroute/internal/join"
	"servicetraceroute/internal/output"
	"servicetraceroute/trace"
)

const joinHelp = `Put together the traces of one flow that were taken at both of its hosts.

Usage:  service-traceroute join A.ndjson B.ndjson [flags]

A and B are what trace --output json wrote at the two hosts. For each flow that
both have: the way there (A's trace) beside the way back (B's, turned round),
and where they differ. A router answers with the address of the link by which a
probe came, so one router shows two addresses: those at the two ends of one
link (a subnet of four) count as the same, and what cannot be told is left open.

Flows are known again by addresses and ports; where these were translated (NAT),
by the end that stays the same, ports and time, unless another flow from the
same address to the same end came through as it was. What fits several is
ambiguous and said to be.

  --within 1m         traces of one flow were taken within so long of each other
  --output text|json

Examples:
  service-traceroute join client.ndjson server.ndjson
  service-traceroute join a.ndjson b.ndjson --within 10m --output json

Needs no privileges. Exit: 0 done, 1 failed, 2 usage, 3 no flow is in both.
`

// joinFlags are the flags of join as the user wrote them.
type joinFlags struct {
	within time.Duration
	format string
}

func newJoinCommand() *cobra.Command {
	var f joinFlags
	cmd := &cobra.Command{
		Use:        "join A.ndjson B.ndjson",
		Short:      "put together the traces of one flow from both of its hosts",
		SuggestFor: []string{"merge", "reverse"},
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usage(fmt.Errorf("join needs two files, not %d arguments", len(args)), "for example: service-traceroute join client.ndjson server.ndjson")
			}
			return nil
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"ndjson", "json"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fl := cmd.Flags()
	fl.DurationVar(&f.within, "within", time.Minute, "longest time between the two traces of one flow")
	fl.StringVar(&f.format, "output", "text", "format: text, json")
	completeWith(cmd, "output", []string{"text", "json"})
	helpText(cmd, joinHelp)
	return cmd
}

func (f *joinFlags) run(args []string, stdout, stderr io.Writer) error {
	if f.format != "text" && f.format != "json" {
		return usage(fmt.Errorf("--output: unknown %q", f.format), "one of text, json")
	}
	if err := notNegative("within", f.within); err != nil {
		return err
	}
	var traces [2][]*trace.Trace
	for i, name := range args {
		var err error
		if traces[i], err = readTraces(name, stderr); err != nil {
			return err
		}
	}
	r := join.Join(traces[0], traces[1], f.within)
	if len(r.Pairs)+len(r.Unsure) == 0 {
		return &failure{
			fmt.Errorf("no flow is in both files: %d traces in the first, %d in the second", r.AloneThere, r.AloneBack),
			"clocks of the two hosts may differ, or traces were taken at other times: --within 10m takes more", exitNoMatch,
		}
	}
	write := output.Joined
	if f.format == "json" {
		write = output.JoinedJSON
	}
	if err := write(stdout, r); err != nil {
		return failed(fmt.Errorf("write: %w", err), "")
	}
	return nil
}

func readTraces(name string, stderr io.Writer) ([]*trace.Trace, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, failed(err, "")
	}
	defer file.Close()
	traces, err := join.Read(file)
	switch {
	case errors.Is(err, join.ErrCut):
		fmt.Fprintf(stderr, "warning: %s: %v; what is before it is read\n", output.Escape(name), err)
	case errors.Is(err, join.ErrTooMany):
		return nil, failed(fmt.Errorf("%s: %w", name, err), "grep the flows in question out of it first")
	case err != nil:
		return nil, failed(fmt.Errorf("%s: %w", name, err), "a file that trace --output json -o FILE wrote")
	}
	return traces, nil
}
