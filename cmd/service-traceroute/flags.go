package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"servicetraceroute"
	"servicetraceroute/internal/output"
	"servicetraceroute/trace"
)

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
		"interface": interfaceNames(), "every": {"once", "10m"},
	} {
		if err := cmd.RegisterFlagCompletionFunc(name, fixed(values...)); err != nil {
			panic("main: completion of --" + name + ": " + err.Error())
		}
	}
}

var algorithms = []string{"packet-by-packet", "hop-by-hop", "concurrent", "adaptive"}

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
	if len(f.hosts) == 0 {
		return cfg, sel, usage(errors.New("nothing selected: --host is missing"),
			"for example: service-traceroute trace --host www.example.com")
	}
	for _, check := range []error{
		f.words(&cfg, &sel), f.times(&sel), f.numbers(&cfg.Defaults),
		prefixes("--exclude", f.excludes, f.excludeFile, &cfg.Exclude),
		prefixes("--border", f.borders, f.borderFile, &cfg.Defaults.Borders),
	} {
		if check != nil {
			return cfg, sel, check
		}
	}
	if err := sel.Check(); err != nil {
		return cfg, sel, watchFailed(err)
	}
	return cfg, sel, nil
}

// words reads the flags whose values are words.
func (f *traceFlags) words(cfg *servicetraceroute.Config, sel *servicetraceroute.Selection) error {
	if !slices.Contains(output.Formats, f.format) {
		return usage(fmt.Errorf("--output: unknown %q", f.format), "one of "+strings.Join(output.Formats, ", "))
	}
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

// times reads the flags whose values are durations.
func (f *traceFlags) times(sel *servicetraceroute.Selection) error {
	for _, t := range []struct {
		flag  string
		value time.Duration
	}{
		{"duration", f.duration}, {"idle", f.idle}, {"stop-new-after", f.stopNew}, {"retrace", f.retrace},
		{"flow-timeout", f.params.FlowTimeout}, {"probe-interval", f.params.ProbeInterval}, {"ttl-interval", f.params.TTLInterval},
	} {
		if t.value < 0 {
			return usage(fmt.Errorf("--%s: %v is negative", t.flag, t.value), "")
		}
	}
	if f.params.Timeout <= 0 {
		return usage(fmt.Errorf("--timeout: %v is not above 0", f.params.Timeout), "for example --timeout 2s")
	}
	if f.every == "once" {
		sel.Every = -1
		return nil
	}
	d, err := time.ParseDuration(f.every)
	if err != nil || d <= 0 {
		return usage(fmt.Errorf("--every: %q is neither a duration nor \"once\"", f.every), "for example --every 10m")
	}
	sel.Every = d
	return nil
}

// numbers checks what the library takes for "the default" when it is 0.
func (f *traceFlags) numbers(p *servicetraceroute.Params) error {
	for _, n := range []struct {
		flag             string
		value, low, high int
	}{
		{"first-ttl", f.params.FirstTTL, 1, 255}, {"max-ttl", f.params.MaxTTL, 1, 255}, {"probes", f.params.Probes, 1, 20},
		{"max-silent", f.maxSilent, 0, 255}, {"rate", f.rate, 1, 1e6}, {"hop-rate", f.hopRate, 1, 1e6},
	} {
		if n.value < n.low || n.value > n.high {
			return usage(fmt.Errorf("--%s: %d is not within %d to %d", n.flag, n.value, n.low, n.high), "")
		}
	}
	if f.params.FirstTTL > f.params.MaxTTL {
		return usage(fmt.Errorf("--first-ttl %d is beyond --max-ttl %d", f.params.FirstTTL, f.params.MaxTTL), "")
	}
	p.MaxSilent = f.maxSilent
	if f.maxSilent == 0 {
		p.MaxSilent = -1 // the library's word for no limit
	}
	// As near to none as the library's "0 is the default" allows.
	p.ProbeInterval, p.TTLInterval = max(p.ProbeInterval, 1), max(p.TTLInterval, 1)
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
