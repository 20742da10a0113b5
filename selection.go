package servicetraceroute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"servicetraceroute/internal/engine"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/service"
	"servicetraceroute/trace"
)

// Errors of a Selection.
var (
	// ErrNothingSelected: the Selection has no Hosts.
	ErrNothingSelected = errors.New("nothing selected")
	// ErrNameFromWire: a wildcard or an expression needs names from the traffic
	// itself, which this version does not read.
	ErrNameFromWire = errors.New("wildcards and expressions need names from the traffic itself, which this version does not read")
)

const (
	defaultRate    = 1000
	defaultHopRate = 200
	defaultEvery   = 10 * time.Minute
)

// withDefaults checks every field and fills in what is zero.
func (c Config) withDefaults() (Config, error) {
	bad := func(field, why string) (Config, error) {
		return c, fmt.Errorf("servicetraceroute: Config.%s: %s", field, why)
	}
	switch {
	case c.Rate < 0:
		return bad("Rate", "must not be negative")
	case c.HopRate < 0:
		return bad("HopRate", "must not be negative")
	case c.Source != nil && c.Sink == nil && !c.NoProbe:
		return bad("Sink", "a Source needs a Sink, unless NoProbe is set")
	case c.Source == nil && c.Sink != nil:
		return bad("Source", "a Sink needs a Source")
	}
	if c.Rate == 0 {
		c.Rate = defaultRate
	}
	if c.HopRate == 0 {
		c.HopRate = defaultHopRate
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	_, err := c.Defaults.plan()
	return c, err
}

// plan checks the parameters and fills in the documented defaults.
func (p Params) plan() (probe.Params, error) {
	d := probe.Defaults()
	bad := func(field, why string) (probe.Params, error) {
		return d, fmt.Errorf("servicetraceroute: Params.%s: %s", field, why)
	}
	if p.Algorithm != 0 {
		if _, err := p.Algorithm.MarshalText(); err != nil {
			return bad("Algorithm", "unknown")
		}
		d.Algorithm = p.Algorithm
	}
	if err := p.limits(); err != nil {
		return d, err
	}
	set(&d.FirstTTL, p.FirstTTL)
	set(&d.MaxTTL, p.MaxTTL)
	set(&d.Probes, p.Probes)
	set(&d.Timeout, p.Timeout)
	set(&d.ProbeInterval, p.ProbeInterval)
	set(&d.TTLInterval, p.TTLInterval)
	set(&d.MaxSilent, p.MaxSilent)
	d.MaxSilent = max(d.MaxSilent, 0)
	d.Borders, d.FlowTimeout = p.Borders, p.FlowTimeout
	if d.FirstTTL > d.MaxTTL {
		return bad("FirstTTL", fmt.Sprintf("%d is beyond MaxTTL %d", d.FirstTTL, d.MaxTTL))
	}
	return d, nil
}

func set[T comparable](to *T, v T) {
	var zero T
	if v != zero {
		*to = v
	}
}

func (p Params) limits() error {
	for _, f := range []struct {
		name      string
		value     int
		low, high int
	}{
		{"FirstTTL", p.FirstTTL, 0, 255}, {"MaxTTL", p.MaxTTL, 0, 255}, {"Probes", p.Probes, 0, 20},
		{"MaxSilent", p.MaxSilent, -1, 255},
	} {
		if f.value < f.low || f.value > f.high {
			return fmt.Errorf("servicetraceroute: Params.%s: %d is not within %d to %d", f.name, f.value, f.low, f.high)
		}
	}
	for _, f := range []struct {
		name  string
		value time.Duration
		high  time.Duration
	}{
		{"Timeout", p.Timeout, time.Minute}, {"ProbeInterval", p.ProbeInterval, time.Minute},
		{"TTLInterval", p.TTLInterval, time.Minute}, {"FlowTimeout", p.FlowTimeout, 1<<63 - 1},
	} {
		if f.value < 0 || f.value > f.high {
			return fmt.Errorf("servicetraceroute: Params.%s: %v is not within 0 to %v", f.name, f.value, f.high)
		}
	}
	return nil
}

// watch turns the selection into the engine's terms, resolving names.
func (s Selection) watch(ctx context.Context, cfg Config) (*engine.Watch, error) {
	if len(s.Hosts) == 0 {
		return nil, fmt.Errorf("servicetraceroute: Selection.Hosts: %w", ErrNothingSelected)
	}
	params, err := cfg.Defaults.plan()
	if err != nil {
		return nil, err
	}
	w := &engine.Watch{
		Params: params, Every: s.Every, Retrace: s.Retrace, StopNewAfter: s.StopNewAfter,
		Selector: service.Selector{
			Protos: s.Protos, Interfaces: s.Interfaces, Directions: s.Directions,
			IPv4Only: s.IPv4Only, IPv6Only: s.IPv6Only,
		},
	}
	if w.Every == 0 {
		w.Every = defaultEvery
	}
	if s.IPv4Only && s.IPv6Only {
		return nil, errors.New("servicetraceroute: Selection: IPv4Only and IPv6Only exclude each other")
	}
	for _, text := range s.Ports {
		r, err := service.ParsePorts(text)
		if err != nil {
			return nil, fmt.Errorf("servicetraceroute: Selection.Ports: %w", err)
		}
		w.Selector.Ports = append(w.Selector.Ports, r)
	}
	for _, host := range s.Hosts {
		rules, err := hostRules(ctx, host)
		if err != nil {
			return nil, fmt.Errorf("servicetraceroute: Selection.Hosts: %w", err)
		}
		w.Selector.Rules = append(w.Selector.Rules, rules...)
	}
	return w, nil
}

// Check reports what is wrong with the selection as written, without resolving
// names.
func (s Selection) Check() error {
	nowhere, cancel := context.WithCancel(context.Background())
	cancel() // the resolver gives up at once: only the form is of interest
	_, err := s.watch(nowhere, Config{})
	var dns *net.DNSError
	if errors.As(err, &dns) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// hostRules reads one selector as the user wrote it.
func hostRules(ctx context.Context, host string) ([]service.Rule, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		a = a.Unmap().WithZone("")
		s := trace.Service{Name: host, By: trace.ByAddress, Value: a.String()}
		return []service.Rule{{Prefix: netip.PrefixFrom(a, a.BitLen()), Service: s}}, nil
	}
	if strings.HasPrefix(host, "/") || strings.Contains(host, "*") {
		return nil, fmt.Errorf("%q: %w", host, ErrNameFromWire)
	}
	if strings.Contains(host, "/") {
		p, err := netip.ParsePrefix(host)
		if err != nil {
			return nil, fmt.Errorf("%q is not a prefix", host)
		}
		s := trace.Service{Name: host, By: trace.ByPrefix, Value: p.Masked().String()}
		return []service.Rule{{Prefix: p.Masked(), Service: s}}, nil
	}
	if !validName(host) {
		return nil, fmt.Errorf("%q is neither an address, a prefix nor a name", host)
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("resolve %q: %w", host, err)
	}
	var rules []service.Rule
	for _, a := range addrs {
		a = a.Unmap()
		s := trace.Service{Name: host, By: trace.ByNameAtStart, Value: host}
		rules = append(rules, service.Rule{Prefix: netip.PrefixFrom(a, a.BitLen()), Service: s})
	}
	return rules, nil
}

// validName reports whether text can be a host name (RFC 1123 section 2.1, and
// the underscore that the DNS knows). One of digits and dots is a mistyped
// address.
func validName(text string) bool {
	text = strings.TrimSuffix(text, ".")
	if text == "" || len(text) > 253 || strings.Trim(text, "0123456789.") == "" {
		return false
	}
	for label := range strings.SplitSeq(text, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range label {
			ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c > 127
			if !ok {
				return false
			}
		}
	}
	return true
}

// flowWatch selects one flow.
func flowWatch(f trace.Flow, cfg Config) (*engine.Watch, error) {
	params, err := cfg.Defaults.plan()
	if err != nil {
		return nil, err
	}
	if f.Proto != trace.TCP {
		return nil, fmt.Errorf("servicetraceroute: flow %v: only TCP is traced by this version", f.FlowKey)
	}
	if !f.Dst.IsValid() || f.Dst.Port() == 0 {
		return nil, fmt.Errorf("servicetraceroute: flow %v: needs a destination address and port", f.FlowKey)
	}
	t := f.Tuple
	return &engine.Watch{
		Params: params, Every: -1, Selector: service.Selector{Flow: &t},
	}, nil
}
