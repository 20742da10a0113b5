package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"servicetraceroute"
	"servicetraceroute/internal/output"
	"servicetraceroute/trace"
)

// traceFlags are the flags of trace as the user wrote them.
type traceFlags struct {
	serviceFlags
	ownerFlags
	netnsFlags
	probeFlags
	resultFlags
	whenFlags
	configuration
	hosts, match, ports, protos, interfaces, directions []string
	v4, v6, noProbe, noDNS                              bool
	duration, idle, stopNew                             time.Duration

	beside func(watcher) (watcher, error) // what compare puts around the tracer; nil: nothing
}

// declare defines the flags and their completion.
func (f *traceFlags) declare(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.DurationVar(&f.duration, "duration", 0, "stop after so long; 0: no limit")
	fl.DurationVar(&f.idle, "idle", 0, "stop when no such flow showed a packet for so long; 0: no")
	f.ownerFlags.declare(cmd)
	f.netnsFlags.declare(cmd)
	f.declareShared(cmd)
}

// declareShared defines the flags that run has, too.
func (f *traceFlags) declareShared(cmd *cobra.Command) {
	fl := cmd.Flags()
	f.declareWhich(cmd)
	fl.BoolVar(&f.noProbe, "no-probe", false, "only identify flows, send nothing")
	f.whenFlags.declare(fl)
	fl.DurationVar(&f.stopNew, "stop-new-after", 0, "start no new trace after so long; 0: no limit")
	f.probeFlags.declare(cmd)
	f.resultFlags.declare(cmd)
	for name, values := range map[string][]string{
		"interface": interfaceNames(), "every": {"once", "10m"},
		"per": {"flow", "destination", "port"}, "start-on": {"any", "payload"},
	} {
		completeWith(cmd, name, values)
	}
}

// declareWhich defines the flags that say which flows, of an interface or of a file.
func (f *traceFlags) declareWhich(cmd *cobra.Command) {
	fl := cmd.Flags()
	f.serviceFlags.declareAll(cmd)
	fl.StringArrayVar(&f.hosts, "host", nil, "address, prefix, `NAME` with all below it, *.NAME or /REGEX/ whose flows are traced (repeat)")
	fl.StringArrayVar(&f.match, "match", nil, "flows of which this `EXPR` is true, such as 'dport == 443 && process == \"curl\"' (repeat; docs/match.md)")
	fl.StringArrayVar(&f.ports, "port", nil, "only this server `PORT` or range A-B (repeat)")
	fl.StringArrayVar(&f.protos, "proto", nil, "only this `PROTOCOL`: tcp, udp (repeat)")
	fl.StringArrayVar(&f.interfaces, "interface", nil, "only flows at this `INTERFACE` (repeat)")
	fl.StringArrayVar(&f.directions, "direction", nil, "only flows of this `WAY`: out (opened by this host), in (accepted), transit (only forwarded, on a gateway), any; without it out and in")
	fl.BoolVarP(&f.v4, "ipv4", "4", false, "only IPv4")
	fl.BoolVarP(&f.v6, "ipv6", "6", false, "only IPv6")
	fl.BoolVar(&f.noDNS, "no-dns", false, "do not learn names from DNS answers on the wire")
	completeWith(cmd, "match", nil)
	completeWith(cmd, "direction", []string{"out", "in", "transit", "any"})
	completeWith(cmd, "proto", []string{"tcp", "udp"})
}

// config turns the flags into the library's terms.
func (f *traceFlags) config(stderr io.Writer) (cfg servicetraceroute.Config, sel servicetraceroute.Selection, err error) {
	if err := f.something(); err != nil {
		return cfg, sel, err
	}
	return f.settings(stderr)
}

// something refuses to watch for nothing.
func (f *traceFlags) something() error {
	if len(f.services)+len(f.hosts)+len(f.match) > 0 || f.any() {
		return nil
	}
	return usage(errors.New("nothing selected: neither --service, --host, --match nor --process, --pid or --cgroup"),
		"for example: service-traceroute trace --host www.example.com")
}

// settings is config without asking what is selected.
func (f *traceFlags) settings(stderr io.Writer) (cfg servicetraceroute.Config, sel servicetraceroute.Selection, err error) {
	if err := f.probeFlags.apply(&cfg); err != nil {
		return cfg, sel, err
	}
	cfg.Defaults = servicetraceroute.Params{} // the selection has them, which may change
	if err := f.resultFlags.apply(&cfg, stderr); err != nil {
		return cfg, sel, err
	}
	cfg.Interfaces, cfg.NoProbe, cfg.NoDNS = f.interfaces, f.noProbe, f.noDNS
	if sel, err = f.selection(); err != nil {
		return cfg, sel, err
	}
	f.report(sel)
	cfg.Processes = sel.ByProcess()
	f.where(&cfg)
	return cfg, sel, nil
}

// report notes with what parameters flows are traced, for formats that tell.
func (f *traceFlags) report(sel servicetraceroute.Selection) {
	params := func(p servicetraceroute.Params, onPayload bool) output.Params {
		shown := shown(p)
		shown.PayloadOnly = onPayload
		return shown
	}
	f.reported.Params, f.reported.ServiceParams = params(sel.Params, sel.OnPayload), map[string]output.Params{}
	for name, p := range sel.Policies {
		f.reported.ServiceParams[name] = params(p.Params, p.OnPayload)
	}
}

// selection is which flows are traced, and how: what can change while that goes on.
func (f *traceFlags) selection() (sel servicetraceroute.Selection, err error) {
	sel = servicetraceroute.Selection{
		Hosts: f.hosts, Match: f.match, Ports: f.ports, IPv4Only: f.v4, IPv6Only: f.v6,
		StopNewAfter: f.stopNew, Idle: f.idle,
	}
	if sel.Services, err = f.serviceFlags.selected(); err != nil {
		return sel, err
	}
	if err := f.ownerFlags.apply(&sel); err != nil {
		return sel, err
	}
	if err := f.words(&sel); err != nil {
		return sel, err
	}
	p, err := (&policyFlags{f.paramFlags, f.whenFlags}).policy()
	if err != nil {
		return sel, err
	}
	sel.Params, sel.Every, sel.Retrace, sel.Per, sel.OnPayload = p.Params, p.Every, p.Retrace, p.Per, p.OnPayload
	sel.When, sel.CoolDown = p.When, p.CoolDown
	if sel.Policies, err = f.policies(); err != nil {
		return sel, err
	}
	for name, value := range map[string]time.Duration{"duration": f.duration, "idle": f.idle, "stop-new-after": f.stopNew} {
		if err := notNegative(name, value); err != nil {
			return sel, err
		}
	}
	if err := f.namespaces(f); err != nil {
		return sel, err
	}
	err = sel.Check()
	if err != nil && !errors.Is(err, servicetraceroute.ErrNothingSelected) {
		return sel, watchFailed(err)
	}
	return sel, nil
}

// words reads the flags whose values are words.
func (f *traceFlags) words(sel *servicetraceroute.Selection) error {
	for _, word := range f.directions {
		var d trace.Direction
		switch err := d.UnmarshalText([]byte(word)); {
		case word == "any":
			sel.Directions = append(sel.Directions, trace.Out, trace.In, trace.Transit)
			continue
		case err != nil:
			return usage(fmt.Errorf("--direction: unknown %q", word), "one of out, in, transit, any")
		}
		sel.Directions = append(sel.Directions, d)
	}
	for _, word := range f.protos {
		var p trace.Proto
		if err := p.UnmarshalText([]byte(word)); err != nil {
			return usage(fmt.Errorf("--proto: unknown %q", word), "tcp or udp")
		}
		sel.Protos = append(sel.Protos, p)
	}
	return nil
}

// forwarded reports whether flows that this host only forwards may be selected.
func (f *traceFlags) forwarded() bool {
	return slices.Contains(f.directions, "transit") || slices.Contains(f.directions, "any")
}
