package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"servicetraceroute"
	"servicetraceroute/internal/catalogue"
	"servicetraceroute/internal/spell"
	"servicetraceroute/internal/trigger"
)

// whenFlags say when and for what there is a trace.
type whenFlags struct {
	every, per, startOn string
	retrace, coolDown   time.Duration
	when                string
	share               bool
}

// declare defines the flags.
func (f *whenFlags) declare(fl *pflag.FlagSet) {
	fl.StringVar(&f.per, "per", "flow", "one trace for each `KEY`: flow, destination (address) or port (address and port)")
	fl.StringVar(&f.every, "every", "10m", "least time between two traces of one key, or \"once\"")
	fl.StringVar(&f.startOn, "start-on", "any", "begin a trace with `any` packet of its flow, or with payload")
	fl.DurationVar(&f.retrace, "retrace", 0, "trace a live flow again after so long, at once when its path changes; 0: no")
	fl.StringVar(&f.when, "when", "", "trace a TCP flow when `EXPR` over its health becomes true, not at its beginning (docs/when.md)")
	fl.DurationVar(&f.coolDown, "cool-down", 0, "least time between two traces of a flow by --when; 0: 1m")
	fl.BoolVar(&f.share, "share", false, "leave out near hops that other flows saw, and show theirs (TCP; marked, never complete)")
}

// read checks the flags and puts them into a policy.
func (f *whenFlags) read(p *servicetraceroute.Policy) error {
	if err := p.Per.UnmarshalText([]byte(f.per)); err != nil {
		return usage(fmt.Errorf("--per: unknown %q", f.per), "one of flow, destination, port")
	}
	if f.startOn != "any" && f.startOn != "payload" {
		return usage(fmt.Errorf("--start-on: unknown %q", f.startOn), "any or payload")
	}
	p.OnPayload = f.startOn == "payload"
	if err := notNegative("retrace", f.retrace); err != nil {
		return err
	}
	p.Retrace, p.Params.Share = f.retrace, f.share
	if err := f.readTrigger(p); err != nil {
		return err
	}
	if f.every == "once" {
		p.Every = -1
		return nil
	}
	d, err := time.ParseDuration(f.every)
	if err != nil || d <= 0 {
		return usage(fmt.Errorf("--every: %q is neither a duration nor \"once\"", f.every), "for example --every 10m")
	}
	p.Every = d
	return nil
}

// readTrigger checks what begins traces.
func (f *whenFlags) readTrigger(p *servicetraceroute.Policy) error {
	if err := notNegative("cool-down", f.coolDown); err != nil {
		return err
	}
	if f.coolDown > 0 && f.when == "" {
		return usage(errors.New("--cool-down is without --when"), "for example --when 'retransmits >= 5' --cool-down 30s")
	}
	p.When, p.CoolDown = f.when, f.coolDown
	if f.when == "" {
		return nil
	}
	var wrong *trigger.Error
	if _, err := trigger.Compile(f.when); errors.As(err, &wrong) {
		return usage(fmt.Errorf("--when: %w", err), wrong.Hint)
	}
	return nil
}

// policyFlags are all that one service can have of its own.
type policyFlags struct {
	paramFlags
	whenFlags
}

func (f *policyFlags) declare(fl *pflag.FlagSet) {
	f.paramFlags.declare(fl)
	f.whenFlags.declare(fl)
}

// policy checks the flags and returns them in the library's terms.
func (f *policyFlags) policy() (p servicetraceroute.Policy, err error) {
	if p.Params, err = f.paramFlags.read(); err != nil {
		return p, err
	}
	return p, f.whenFlags.read(&p)
}

// ownPolicy is what a configuration file says of one service.
type ownPolicy struct {
	service string
	policy  servicetraceroute.Policy
	wrong   func(hint, format string, args ...any) error // an error at its place in the file
}

// servicesKey is the one key of a configuration file that is no flag's: settings for
// services, which begin with what holds for all.
const servicesKey = "services"

// services reads what the file says of services. The flags have their final values.
func (f *configFile) services(all *pflag.FlagSet, value *yaml.Node) (list []ownPolicy, err error) {
	value = resolve(value)
	const example = "for example: services: {netflix: {every: 1m, max-ttl: 20}}"
	if value.Kind != yaml.MappingNode {
		return nil, f.wrong(value.Line, example, "services: names of services with their settings are expected")
	}
	for i := 0; i+1 < len(value.Content); i += 2 {
		key, settings := value.Content[i], resolve(value.Content[i+1])
		if key.Kind != yaml.ScalarNode || settings.Kind != yaml.MappingNode {
			return nil, f.wrong(key.Line, example, "services: %s: NAME: VALUE is expected", key.Value)
		}
		if slices.ContainsFunc(list, func(p ownPolicy) bool { return p.service == key.Value }) {
			return nil, f.wrong(key.Line, "keep one of the two", "services: %s is there twice", key.Value)
		}
		own, err := f.policy(all, key.Value, settings)
		if err != nil {
			return nil, err
		}
		own.wrong = func(hint, format string, args ...any) error { return f.wrong(key.Line, hint, format, args...) }
		list = append(list, own)
	}
	return list, nil
}

// policy reads the settings of one service.
func (f *configFile) policy(all *pflag.FlagSet, name string, settings *yaml.Node) (own ownPolicy, err error) {
	var flags policyFlags
	fl := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.declare(fl)
	if err := inherit(fl, all); err != nil {
		return own, f.wrong(settings.Line, "", "services: %s: %v", name, err)
	}
	part := configFile{name: f.name, set: map[string]setting{}}
	for i := 0; i+1 < len(settings.Content); i += 2 {
		key, value := settings.Content[i], settings.Content[i+1]
		flag := fl.Lookup(key.Value)
		if flag == nil {
			return own, f.noPolicy(fl, all, name, key)
		}
		if at, ok := part.set[flag.Name]; ok {
			return own, f.wrong(key.Line, "keep one of the two", "%s is set twice, first in line %d", flag.Name, at.line)
		}
		if err := part.apply(flag, value); err != nil {
			return own, err
		}
		part.set[flag.Name] = setting{key.Line, resolve(value).Content}
	}
	if _, pause := part.set["cool-down"]; flags.when == "" && !pause {
		flags.coolDown = 0 // inherited from an expression that this service has not
	}
	p, err := flags.policy()
	if err != nil {
		return own, part.place(err)
	}
	return ownPolicy{service: name, policy: p}, nil
}

// inherit gives flags the values of those that hold for all services.
func inherit(to, from *pflag.FlagSet) (err error) {
	to.VisitAll(func(flag *pflag.Flag) {
		if same := from.Lookup(flag.Name); same != nil && err == nil {
			err = copyValue(flag, same.Value)
		}
	})
	return err
}

// copyValue sets a flag to another one's value.
func copyValue(to *pflag.Flag, from pflag.Value) error {
	if list, ok := from.(pflag.SliceValue); ok {
		return to.Value.(pflag.SliceValue).Replace(list.GetSlice())
	}
	return to.Value.Set(from.String())
}

// noPolicy is the error of a name that no service can have for itself.
func (f *configFile) noPolicy(fl, all *pflag.FlagSet, name string, key *yaml.Node) error {
	var names []string
	fl.VisitAll(func(flag *pflag.Flag) { names = append(names, flag.Name) })
	hint := "a service can have: " + strings.Join(names, ", ")
	if all.Lookup(key.Value) != nil {
		return f.wrong(key.Line, hint, "services: %s: %s holds for all services", name, key.Value)
	}
	if like := spell.Nearest(strings.TrimLeft(key.Value, "-"), names); like != "" {
		hint = "did you mean " + like + "?"
	}
	return f.wrong(key.Line, hint, "services: %s: unknown name %q", name, key.Value)
}

// policies are those of the selection's services. Of what a file names and the command
// line does not ask for, services of the catalogue are passed over.
func (f *traceFlags) policies() (map[string]servicetraceroute.Policy, error) {
	if len(f.own) == 0 {
		return nil, nil
	}
	known, err := f.load()
	if err != nil {
		return nil, err
	}
	all := map[string]servicetraceroute.Policy{}
	for _, own := range f.own {
		name := own.service
		if s, ok := known.Get(name); ok {
			name = s.Name
		} else if !slices.Contains(f.selectors(), name) {
			return nil, own.wrong(f.suggest(known, name), "services: unknown service %q", name)
		}
		all[name] = own.policy
	}
	return all, nil
}

// selectors are the names that flows get in records, besides those of the catalogue.
func (f *traceFlags) selectors() []string {
	all := slices.Concat(f.hosts, f.match, f.processes, f.cgroups)
	for _, pid := range f.pids {
		all = append(all, fmt.Sprint(pid))
	}
	return all
}

func (f *traceFlags) suggest(known *catalogue.Catalogue, name string) string {
	if like := known.Suggest(name); len(like) > 0 {
		return "did you mean " + strings.Join(like, " or ") + "?"
	}
	if like := spell.Nearest(name, f.selectors()); like != "" {
		return "did you mean " + like + "?"
	}
	return "a service of the catalogue (service-traceroute services list), or a --host or --match as it is written there"
}
