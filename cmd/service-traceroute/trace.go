package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/spf13/cobra"

	"servicetraceroute"
	"servicetraceroute/internal/output"
	"servicetraceroute/internal/privilege"
	"servicetraceroute/trace"
)

const traceHelp = `Trace the flows of services and hosts, existing and new ones, until stopped.
Usage:  service-traceroute trace --service NAME|--host HOST|--match EXPR [flags]

What:   --service NAME (of: services list)  --catalogue FILE  --no-dns
        --host ADDR|PREFIX|NAME (and all below it)|*.NAME|/REGEX/
        --match EXPR (docs/match.md)  --process NAME  --pid N  --cgroup PATH
Narrow: all of these, --port N|A-B  --proto tcp|udp  --udp-probe off|auto|always
        --interface IF  --direction out|in|transit (forwarded)|any  -4  -6
Where:  --netns NAME|PATH|all (containers: another network namespace, or each)
How:    --algorithm packet-by-packet|hop-by-hop|concurrent|adaptive   --probes 3
        --first-ttl 1  --max-ttl 32 --timeout 2s --max-silent 5  --border PREFIX
        --no-probe (only say which match) --exclude PREFIX --after-close --share
When:   --duration D --idle D --stop-new-after D  --retrace D  --every 10m|once
        --per flow|destination|port --start-on payload --when EXPR: docs/when.md
Rates:  --rate 1000 probes/s in all  --hop-rate 200 probes/s per router, at most
Output: --output text|json|reference|scamper  -o FILE  --privacy  --pcap FILE
From a file: --config FILE (SIGHUP: once more)  All, explained: trace --help-all

Examples:
  sudo service-traceroute trace --host '*.example.com' --pcap packets.pcapng
  service-traceroute trace --service netflix --duration 1m --output json
  service-traceroute trace --match 'dport in 8000..8999 && process == "curl"'

Ctrl-C prints what was found. Exit: 0 done, 1 failed, 2 usage, 3 none matched.
`

// onlyFlags refuses arguments: hosts are given by flags.
func onlyFlags(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage(fmt.Errorf("unexpected argument %q", args[0]), "a host is given with --host "+args[0])
	}
	return nil
}

func newTraceCommand() *cobra.Command {
	var f traceFlags
	cmd := &cobra.Command{
		Use:        "trace --host HOST",
		Short:      "trace the flows of hosts as they appear, until stopped",
		SuggestFor: []string{"traceroute", "mtr", "tracepath", "watch"},
		Args:       onlyFlags,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f.declare(cmd)
	helpText(cmd, traceHelp)
	return configurable(cmd, &f.configuration)
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage(fmt.Errorf("unexpected argument %q", args[0]), "see "+cmd.CommandPath()+" -h")
	}
	return nil
}

// run watches until the time is over or Ctrl-C.
func (f *traceFlags) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	cfg, sel, err := f.config(stderr)
	if err != nil {
		return err
	}
	packets, err := f.pcap.config(&cfg, f.file)
	if err != nil {
		return err
	}
	tracer, err := f.netnsFlags.tracer(cfg, stderr)
	if err != nil {
		return err
	}
	defer func() { err = packets.end(err, tracer.Close()) }()
	if f.beside != nil {
		more, err := f.beside(tracer)
		if err != nil {
			return err
		}
		tracer = more // the deferred Close is that of both
	}
	if err := packets.open(ctx, stdout, stderr); err != nil {
		return err
	}
	w, done, err := f.open(ctx, stdout, stderr, f.verbose || f.noProbe)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	keep := append(append(f.needs(), f.dropping()...), seeing(cfg.Processes)...)
	if err := privilege.Drop(keep...); err != nil {
		return failed(err, "")
	}
	if f.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.duration)
		defer cancel()
	}
	return f.watch(ctx, tracer, sel, w, stderr)
}

// watch writes records as they come.
func (f *traceFlags) watch(ctx context.Context, t watcher, sel servicetraceroute.Selection, w output.Writer, stderr io.Writer) error {
	progress := startProgress(stderr, "watching for flows of "+f.what(), t)
	defer progress.stop()
	current := &switching{w}
	wishes, enough := f.hangups()
	var following sync.WaitGroup
	inner, over := context.WithCancel(ctx)
	defer func() { enough(); over(); following.Wait() }()
	sel.Ready = func() {
		progress.begin()
		following.Go(func() { f.follow(inner, wishes, t, current, progress) })
	}
	matched, ambiguous := false, 0
	for ev, err := range t.Watch(ctx, sel) {
		if err != nil && ctx.Err() != nil {
			break // the time was over, or Ctrl-C came, while names were resolved
		}
		if err != nil {
			return watchFailed(err)
		}
		if flow, ok := ev.(*trace.Flow); ok {
			matched = matched || flow.State != trace.FlowIgnored
			if flow.Reason == trace.ReasonAmbiguous {
				ambiguous++
			}
		}
		if err := progress.aside(func() error { return current.Write(ev) }); err != nil {
			return failed(fmt.Errorf("write: %w", err), "")
		}
	}
	late := errors.Is(ctx.Err(), context.DeadlineExceeded) || ctx.Err() == nil
	if late && !matched && ambiguous > 0 {
		return &failure{errNoMatch.err, fmt.Sprintf("flows to addresses with other names as well, whose clients named none: %d; "+
			"-v shows them, and --host ADDRESS takes them", ambiguous), exitNoMatch}
	}
	if late && !matched {
		return errNoMatch
	}
	return nil
}
