package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"servicetraceroute"
	"servicetraceroute/internal/output"
	"servicetraceroute/internal/privilege"
	"servicetraceroute/trace"
)

const traceHelp = `Trace the flows of hosts as they appear, and those that exist, until stopped.

Usage:  service-traceroute trace --host HOST [flags]

What:   --host ADDR|PREFIX|NAME (repeat)   names are resolved once, at the start
Narrow: --port N|A-B  --proto tcp  --interface IF  --direction out|in  -4  -6
How:    --algorithm packet-by-packet|hop-by-hop|concurrent|adaptive   --probes 3
        --first-ttl 1  --max-ttl 32  --timeout 2s  --max-silent 5  --border ADDR|PREFIX
        --no-probe (only say which flows match)  --exclude PREFIX (never probed)
When:   --duration D  --idle D  --stop-new-after D  --retrace D  --every 10m|once
Rates:  --rate 1000 probes/s in all  --hop-rate 200 probes/s per router, at most
Output: --output text|json  -o FILE  --label TEXT  -v
All flags with their meaning: service-traceroute trace --help-all

Examples:
  service-traceroute trace --host www.example.com --port 443
  service-traceroute trace --host 203.0.113.0/24 --duration 1m --output json
  service-traceroute trace --host 2001:db8::7 --algorithm hop-by-hop --max-ttl 16
  sudo service-traceroute trace --host 203.0.113.7 --retrace 1m -o paths.txt

Ctrl-C prints what was found. Exit: 0 done, 1 failed, 2 usage, 3 no flow matched.
`

// traceFlags are the flags of trace as the user wrote them.
type traceFlags struct {
	hosts, ports, protos, interfaces, directions []string
	v4, v6, noProbe, verbose, all, loopback      bool
	algorithm, every, format, file, label        string
	borders, borderFile, excludes, excludeFile   []string
	rate, hopRate                                int
	params                                       servicetraceroute.Params
	maxSilent                                    int
	duration, idle, stopNew, retrace             time.Duration
}

func newTraceCommand() *cobra.Command {
	var f traceFlags
	cmd := &cobra.Command{
		Use:   "trace --host HOST",
		Short: "trace the flows of hosts as they appear, until stopped",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.all {
				fmt.Fprintf(cmd.OutOrStdout(), "Flags of service-traceroute trace:\n%s", cmd.Flags().FlagUsages())
				return nil
			}
			return f.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f.declare(cmd)
	helpText(cmd, traceHelp)
	return cmd
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage(fmt.Errorf("unexpected argument %q", args[0]), "see "+cmd.CommandPath()+" -h")
	}
	return nil
}

// declare defines the flags and their completion.
func (f *traceFlags) declare(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringArrayVar(&f.hosts, "host", nil, "address, prefix or `NAME` whose flows are traced (repeat)")
	fl.StringArrayVar(&f.ports, "port", nil, "only this server `PORT` or range A-B (repeat)")
	fl.StringArrayVar(&f.protos, "proto", nil, "only this `PROTOCOL`: tcp (repeat)")
	fl.StringArrayVar(&f.interfaces, "interface", nil, "only flows at this `INTERFACE` (repeat)")
	fl.StringArrayVar(&f.directions, "direction", nil, "only flows opened by this host (`out`) or accepted by it (in)")
	fl.BoolVarP(&f.v4, "ipv4", "4", false, "only IPv4")
	fl.BoolVarP(&f.v6, "ipv6", "6", false, "only IPv6")
	fl.BoolVar(&f.noProbe, "no-probe", false, "only identify flows, send nothing")
	fl.BoolVar(&f.loopback, "loopback", false, "also probe flows that end on this host")
	fl.StringVar(&f.algorithm, "algorithm", "adaptive", "order of the probes: "+strings.Join(algorithms, ", "))
	fl.IntVar(&f.params.FirstTTL, "first-ttl", 1, "TTL to start at")
	fl.IntVar(&f.params.MaxTTL, "max-ttl", 32, "highest TTL")
	fl.IntVar(&f.params.Probes, "probes", 3, "probes per hop, at most")
	fl.DurationVar(&f.params.Timeout, "timeout", 2*time.Second, "wait so long for a reply")
	fl.DurationVar(&f.params.ProbeInterval, "probe-interval", 20*time.Millisecond, "between probes of one TTL (not adaptive)")
	fl.DurationVar(&f.params.TTLInterval, "ttl-interval", time.Millisecond, "between TTLs (not adaptive)")
	fl.IntVar(&f.maxSilent, "max-silent", 5, "stop after so many silent hops in a row; 0: never")
	fl.StringArrayVar(&f.borders, "border", nil, "stop at an answer from this address or `PREFIX` (repeat)")
	fl.StringArrayVar(&f.borderFile, "border-file", nil, "`FILE` of borders, one a line")
	fl.StringVar(&f.every, "every", "10m", "least time between two traces of one flow, or \"once\"")
	fl.DurationVar(&f.retrace, "retrace", 0, "trace a live flow again after so long; 0: no")
	fl.DurationVar(&f.params.FlowTimeout, "flow-timeout", 0, "end the trace of a flow silent for so long; 0: no")
	fl.DurationVar(&f.duration, "duration", 0, "stop after so long; 0: no limit")
	fl.DurationVar(&f.idle, "idle", 0, "stop when no such flow showed a packet for so long; 0: no")
	fl.DurationVar(&f.stopNew, "stop-new-after", 0, "start no new trace after so long; 0: no limit")
	fl.IntVar(&f.rate, "rate", 1000, "probes per second of this process")
	fl.IntVar(&f.hopRate, "hop-rate", 200, "probes per second and router, at most")
	fl.StringArrayVar(&f.excludes, "exclude", nil, "never probe this address or `PREFIX` (repeat)")
	fl.StringArrayVar(&f.excludeFile, "exclude-file", nil, "`FILE` of addresses and prefixes never probed, one a line")
	fl.StringVar(&f.label, "label", "", "`TEXT` in every record")
	fl.StringVar(&f.format, "output", "text", "format: "+strings.Join(output.Formats, ", "))
	fl.StringVarP(&f.file, "out", "o", "", "write to `FILE` (mode 0600) instead of standard output")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "also show flows and counters, and log what happens")
	fl.BoolVar(&f.all, "help-all", false, "list all flags")
	fixed := func(values ...string) cobra.CompletionFunc {
		return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
	}
	for name, values := range map[string][]string{
		"algorithm": algorithms, "output": output.Formats, "direction": {"out", "in"}, "proto": {"tcp"},
		"interface": interfaceNames(),
	} {
		if err := cmd.RegisterFlagCompletionFunc(name, fixed(values...)); err != nil {
			panic("main: completion of --" + name + ": " + err.Error())
		}
	}
}

var algorithms = []string{"packet-by-packet", "hop-by-hop", "concurrent", "adaptive"}

// run watches until the time is over or Ctrl-C.
func (f *traceFlags) run(ctx context.Context, stdout, stderr io.Writer) error {
	cfg, sel, err := f.config(stderr)
	if err != nil {
		return err
	}
	out := stdout
	if f.file != "" {
		file, err := os.OpenFile(f.file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return failed(err, "")
		}
		defer file.Close()
		out = file
	}
	w, err := output.New(f.format, out, output.Options{Verbose: f.verbose || f.noProbe})
	if err != nil {
		return usage(err, "")
	}
	tracer, err := servicetraceroute.New(cfg)
	if err != nil {
		return openFailed(err)
	}
	defer tracer.Close()
	if err := privilege.Drop(); err != nil {
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
func (f *traceFlags) watch(ctx context.Context, t *servicetraceroute.Tracer, sel servicetraceroute.Selection, w output.Writer, stderr io.Writer) error {
	progress := startProgress(stderr, "watching for flows of "+strings.Join(sel.Hosts, ", "), t)
	defer progress.stop()
	matched := false
	for ev, err := range t.Watch(ctx, sel) {
		if err != nil {
			return watchFailed(err)
		}
		if _, ok := ev.(*trace.Flow); ok {
			matched = true
		}
		progress.clear()
		if err := w.Write(ev); err != nil {
			return failed(fmt.Errorf("write: %w", err), "")
		}
	}
	over := errors.Is(ctx.Err(), context.DeadlineExceeded) || ctx.Err() == nil
	if over && !matched {
		return errNoMatch
	}
	return nil
}

// config turns the flags into the library's terms.
func (f *traceFlags) config(stderr io.Writer) (servicetraceroute.Config, servicetraceroute.Selection, error) {
	cfg := servicetraceroute.Config{
		Interfaces: f.interfaces, Rate: f.rate, HopRate: f.hopRate, NoProbe: f.noProbe, Loopback: f.loopback,
		Label: f.label, Defaults: f.params,
	}
	sel := servicetraceroute.Selection{
		Hosts: f.hosts, Ports: f.ports, IPv4Only: f.v4, IPv6Only: f.v6,
		Retrace: f.retrace, StopNewAfter: f.stopNew, Idle: f.idle,
	}
	if f.verbose {
		cfg.Logger = slog.New(slog.NewTextHandler(stderr, nil))
	}
	cfg.Defaults.MaxSilent = f.maxSilent
	if f.maxSilent == 0 {
		cfg.Defaults.MaxSilent = -1
	}
	if len(f.hosts) == 0 {
		return cfg, sel, usage(errors.New("nothing selected: --host is missing"),
			"for example: service-traceroute trace --host www.example.com")
	}
	for _, check := range []error{
		f.words(&cfg, &sel), f.times(&sel),
		prefixes("--exclude", f.excludes, f.excludeFile, &cfg.Exclude),
		prefixes("--border", f.borders, f.borderFile, &cfg.Defaults.Borders),
	} {
		if check != nil {
			return cfg, sel, check
		}
	}
	if f.rate <= 0 || f.hopRate <= 0 {
		return cfg, sel, usage(errors.New("--rate and --hop-rate must be at least 1"), "")
	}
	if err := sel.Check(); err != nil {
		return cfg, sel, watchFailed(err)
	}
	return cfg, sel, nil
}

// words reads the flags whose values are words.
func (f *traceFlags) words(cfg *servicetraceroute.Config, sel *servicetraceroute.Selection) error {
	if err := cfg.Defaults.Algorithm.UnmarshalText([]byte(f.algorithm)); err != nil {
		return usage(fmt.Errorf("--algorithm: unknown %q", f.algorithm), "one of "+strings.Join(algorithms, ", "))
	}
	for _, word := range f.directions {
		var d trace.Direction
		switch err := d.UnmarshalText([]byte(word)); {
		case word == "any":
			sel.Directions = append(sel.Directions, trace.Out, trace.In)
			continue
		case err != nil:
			return usage(fmt.Errorf("--direction: unknown %q", word), "one of out, in, any")
		case d == trace.Transit:
			return usage(errors.New("--direction transit: forwarded flows are not traced by this version"), "")
		}
		sel.Directions = append(sel.Directions, d)
	}
	for _, word := range f.protos {
		var p trace.Proto
		if err := p.UnmarshalText([]byte(word)); err != nil {
			return usage(fmt.Errorf("--proto: unknown %q", word), "tcp")
		}
		if p != trace.TCP {
			return usage(errors.New("--proto udp: only TCP is traced by this version"), "")
		}
		sel.Protos = append(sel.Protos, p)
	}
	return nil
}

func (f *traceFlags) times(sel *servicetraceroute.Selection) error {
	if f.every == "once" {
		sel.Every = -1
		return nil
	}
	d, err := time.ParseDuration(f.every)
	if err != nil || d <= 0 {
		return usage(fmt.Errorf("--every: %q is neither a duration nor \"once\"", f.every), "")
	}
	sel.Every = d
	for _, t := range []time.Duration{f.duration, f.idle, f.stopNew, f.retrace} {
		if t < 0 {
			return usage(errors.New("a time must not be negative"), "")
		}
	}
	return nil
}

// prefixes reads addresses and prefixes from flags and files.
func prefixes(flag string, values, files []string, to *[]netip.Prefix) error {
	for _, name := range files {
		lines, err := readLines(name)
		if err != nil {
			return failed(fmt.Errorf("%s-file: %w", flag, err), "")
		}
		values = append(values, lines...)
	}
	for _, text := range values {
		p, err := netip.ParsePrefix(text)
		if a, addrErr := netip.ParseAddr(text); addrErr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return usage(fmt.Errorf("%s: %q is neither an address nor a prefix", flag, text), "for example "+flag+" 192.0.2.0/24")
		}
		*to = append(*to, p.Masked())
	}
	return nil
}

// readLines returns a file's lines without comments (#) and empty ones.
func readLines(name string) ([]string, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var lines []string
	in := bufio.NewScanner(file)
	for in.Scan() {
		text, _, _ := strings.Cut(in.Text(), "#")
		if text = strings.TrimSpace(text); text != "" {
			lines = append(lines, text)
		}
	}
	return lines, in.Err()
}
