package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"servicetraceroute"
	"servicetraceroute/trace"
)

// traceFlags are the flags of trace as the user wrote them.
type traceFlags struct {
	serviceFlags
	ownerFlags
	netnsFlags
	probeFlags
	resultFlags
	hosts, ports, protos, interfaces, directions []string
	v4, v6, noProbe, noDNS                       bool
	every, per, startOn                          string
	duration, idle, stopNew, retrace             time.Duration
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
	fl.StringVar(&f.per, "per", "flow", "one trace for each `KEY`: flow, destination (address) or port (address and port)")
	fl.StringVar(&f.every, "every", "10m", "least time between two traces of one key, or \"once\"")
	fl.StringVar(&f.startOn, "start-on", "any", "begin a trace with `any` packet of its flow, or with payload")
	fl.DurationVar(&f.retrace, "retrace", 0, "trace a live flow again after so long; 0: no")
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
	fl.StringArrayVar(&f.ports, "port", nil, "only this server `PORT` or range A-B (repeat)")
	fl.StringArrayVar(&f.protos, "proto", nil, "only this `PROTOCOL`: tcp, udp (repeat)")
	fl.StringArrayVar(&f.interfaces, "interface", nil, "only flows at this `INTERFACE` (repeat)")
	fl.StringArrayVar(&f.directions, "direction", nil, "only flows of this `WAY`: out (opened by this host), in (accepted), transit (only forwarded, on a gateway), any; without it out and in")
	fl.BoolVarP(&f.v4, "ipv4", "4", false, "only IPv4")
	fl.BoolVarP(&f.v6, "ipv6", "6", false, "only IPv6")
	fl.BoolVar(&f.noDNS, "no-dns", false, "do not learn names from DNS answers on the wire")
	completeWith(cmd, "direction", []string{"out", "in", "transit", "any"})
	completeWith(cmd, "proto", []string{"tcp", "udp"})
}

// config turns the flags into the library's terms.
func (f *traceFlags) config(stderr io.Writer) (cfg servicetraceroute.Config, sel servicetraceroute.Selection, err error) {
	if len(f.services)+len(f.hosts) == 0 && !f.any() {
		return cfg, sel, usage(errors.New("nothing selected: neither --service, --host nor --process, --pid or --cgroup"),
			"for example: service-traceroute trace --host www.example.com")
	}
	return f.settings(stderr)
}

// settings is config without asking what is selected.
func (f *traceFlags) settings(stderr io.Writer) (cfg servicetraceroute.Config, sel servicetraceroute.Selection, err error) {
	if err := f.probeFlags.apply(&cfg); err != nil {
		return cfg, sel, err
	}
	if err := f.resultFlags.apply(&cfg, stderr); err != nil {
		return cfg, sel, err
	}
	cfg.Interfaces, cfg.NoProbe, cfg.NoDNS = f.interfaces, f.noProbe, f.noDNS
	sel = servicetraceroute.Selection{
		Hosts: f.hosts, Ports: f.ports, IPv4Only: f.v4, IPv6Only: f.v6,
		Retrace: f.retrace, StopNewAfter: f.stopNew, Idle: f.idle,
	}
	if sel.Services, err = f.serviceFlags.selected(); err != nil {
		return cfg, sel, err
	}
	if err := f.ownerFlags.apply(&cfg, &sel); err != nil {
		return cfg, sel, err
	}
	if err := f.where(&cfg, f); err != nil {
		return cfg, sel, err
	}
	if err := f.words(&sel); err != nil {
		return cfg, sel, err
	}
	if err := f.policy(&sel); err != nil {
		return cfg, sel, err
	}
	if err := f.times(&sel); err != nil {
		return cfg, sel, err
	}
	err = sel.Check()
	if err != nil && !errors.Is(err, servicetraceroute.ErrNothingSelected) {
		return cfg, sel, watchFailed(err)
	}
	return cfg, sel, nil
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

// policy reads when and for what there is a trace.
func (f *traceFlags) policy(sel *servicetraceroute.Selection) error {
	if err := sel.Per.UnmarshalText([]byte(f.per)); err != nil {
		return usage(fmt.Errorf("--per: unknown %q", f.per), "one of flow, destination, port")
	}
	if f.startOn != "any" && f.startOn != "payload" {
		return usage(fmt.Errorf("--start-on: unknown %q", f.startOn), "any or payload")
	}
	sel.OnPayload = f.startOn == "payload"
	f.reported.PayloadOnly = sel.OnPayload
	return nil
}

// times reads the flags whose values are durations.
func (f *traceFlags) times(sel *servicetraceroute.Selection) error {
	for name, value := range map[string]time.Duration{
		"duration": f.duration, "idle": f.idle, "stop-new-after": f.stopNew, "retrace": f.retrace,
	} {
		if err := notNegative(name, value); err != nil {
			return err
		}
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
