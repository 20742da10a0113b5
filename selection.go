package servicetraceroute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/domain"
	"servicetraceroute/internal/engine"
	"servicetraceroute/internal/match"
	"servicetraceroute/internal/netns"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/service"
	"servicetraceroute/trace"
)

// Errors of a Config or a Selection.
var (
	// ErrNoInterface: one of Config.Interfaces does not exist.
	ErrNoInterface = capture.ErrNoInterface
	// ErrNoNetNS: there is no network namespace such as Config.NetNS.
	ErrNoNetNS = netns.ErrNone
	// ErrNothingSelected: the Selection has neither Services, Hosts, Match nor any process.
	ErrNothingSelected = errors.New("nothing selected")
	// ErrNoOwner: flows that this host only forwards are selected by a process.
	ErrNoOwner = errors.New("a flow that this host only forwards belongs to no process here")
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
	case c.Source != nil && c.Processes:
		return bad("Processes", "needs the Tracer's own sockets, not a Source")
	case c.Source != nil && c.NetNS != "":
		return bad("NetNS", "needs the Tracer's own sockets, not a Source")
	case int(c.Backend) >= len(backendWords):
		return bad("Backend", "unknown")
	case c.Backend == BackendEBPF && c.PcapPayload:
		return bad("PcapPayload", "needs packet sockets")
	case c.Backend == BackendSock && c.Source == nil && c.Processes:
		return bad("Processes", "needs packets, and BackendSock sees none")
	case c.Backend == BackendSock && c.Source == nil && c.Pcap != nil:
		return bad("Pcap", "needs packets, and BackendSock sees none")
	case c.RingBytes < 0:
		return bad("RingBytes", "must not be negative")
	case c.Source == nil && c.Sink != nil:
		return bad("Source", "a Sink needs a Source")
	}
	var err error
	if c.Exclude, err = ordinary(c.Exclude); err != nil {
		return bad("Exclude", err.Error())
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
	if _, err := c.Defaults.plan(); err != nil {
		return c, fmt.Errorf("servicetraceroute: Config.Defaults: %w", err)
	}
	return c, nil
}

// plan checks the parameters and fills in the documented defaults.
func (p Params) plan() (probe.Params, error) {
	d := probe.Params(p.or(Params(probe.Defaults())))
	bad := func(field, why string) (probe.Params, error) {
		return d, fmt.Errorf("%s: %s", "Params."+field, why)
	}
	if _, err := d.Algorithm.MarshalText(); err != nil {
		return bad("Algorithm", "unknown")
	}
	if err := p.limits(); err != nil {
		return d, err
	}
	d.MaxSilent = max(d.MaxSilent, 0)
	if _, err := p.UDPProbe.MarshalText(); err != nil {
		return bad("UDPProbe", "unknown")
	}
	var err error
	if d.Borders, err = ordinary(p.Borders); err != nil {
		return bad("Borders", err.Error())
	}
	if d.FirstTTL > d.MaxTTL {
		return bad("FirstTTL", fmt.Sprintf("%d is beyond MaxTTL %d", d.FirstTTL, d.MaxTTL))
	}
	return d, nil
}

// ordinary returns prefixes as packets have their addresses: IPv4 as IPv4. One that
// would contain nothing is an error, since it was meant to.
func ordinary(list []netip.Prefix) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, p := range list {
		if !p.IsValid() {
			return nil, fmt.Errorf("%v is no prefix", p)
		}
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// or returns p with what is zero in it taken from d.
func (p Params) or(d Params) Params {
	set(&d.Algorithm, p.Algorithm)
	set(&d.FirstTTL, p.FirstTTL)
	set(&d.MaxTTL, p.MaxTTL)
	set(&d.Probes, p.Probes)
	set(&d.Timeout, p.Timeout)
	set(&d.ProbeInterval, p.ProbeInterval)
	set(&d.TTLInterval, p.TTLInterval)
	set(&d.MaxSilent, p.MaxSilent)
	set(&d.FlowTimeout, p.FlowTimeout)
	set(&d.UDPProbe, p.UDPProbe)
	set(&d.AfterClose, p.AfterClose)
	set(&d.Share, p.Share)
	if p.Borders != nil {
		d.Borders = p.Borders
	}
	return d
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
			return fmt.Errorf("%s: %d is not within %d to %d", "Params."+f.name, f.value, f.low, f.high)
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
			return fmt.Errorf("%s: %v is not within 0 to %v", "Params."+f.name, f.value, f.high)
		}
	}
	return nil
}

// byOwner reports whether the selection, expressions aside, depends on whose a flow is.
func (s Selection) byOwner() bool {
	return len(s.Processes)+len(s.PIDs)+len(s.Cgroups) > 0 || s.Run != nil
}

// resolver returns a name's addresses.
type resolver func(host string) ([]netip.Addr, error)

// watch turns the selection into the engine's terms, resolving names.
func (s Selection) watch(ctx context.Context, cfg Config) (*engine.Watch, error) {
	if len(s.Hosts)+len(s.Services)+len(s.Match) == 0 && !s.byOwner() {
		return nil, fmt.Errorf("servicetraceroute: Selection.Hosts: %w", ErrNothingSelected)
	}
	return s.terms(cfg, func(host string) ([]netip.Addr, error) {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		var dns *net.DNSError
		if errors.As(err, &dns) && ctx.Err() == nil {
			cfg.Logger.Warn("a name does not resolve now: its flows are known only once they name it", "name", host, "err", dns.Err)
			return nil, nil
		}
		return addrs, err
	})
}

// terms is watch with a resolver of its own; nil resolves nothing.
func (s Selection) terms(cfg Config, resolve resolver) (*engine.Watch, error) {
	w := &engine.Watch{StopNewAfter: s.StopNewAfter, Selector: service.Selector{
		Protos: s.Protos, Interfaces: s.Interfaces, Directions: s.Directions, IPv4Only: s.IPv4Only, IPv6Only: s.IPv6Only,
	}}
	for _, text := range s.Match {
		e, err := match.Compile(text)
		if err != nil {
			return nil, fmt.Errorf("servicetraceroute: Selection.Match: %w", err)
		}
		w.Selector.Exprs = append(w.Selector.Exprs, e)
	}
	if err := s.possible(cfg, w.Selector.Exprs); err != nil {
		return nil, err
	}
	for _, text := range s.Ports {
		r, err := service.ParsePorts(text)
		if err != nil {
			return nil, fmt.Errorf("servicetraceroute: Selection.Ports: %w", err)
		}
		w.Selector.Ports = append(w.Selector.Ports, r)
	}
	if err := s.policies(cfg, w); err != nil {
		return nil, err
	}
	if err := s.owned(w); err != nil {
		return nil, err
	}
	var err error
	if w.Selector.Offers, err = s.offers(); err != nil {
		return nil, fmt.Errorf("servicetraceroute: Selection.Services: %w", err)
	}
	if err := s.hosts(resolve, &w.Selector); err != nil {
		return nil, fmt.Errorf("servicetraceroute: Selection.Hosts: %w", err)
	}
	return w, nil
}

// possible refuses what cannot be traced.
func (s Selection) possible(cfg Config, exprs []service.Expr) error {
	if s.byOwner() && !cfg.Processes {
		return fmt.Errorf("servicetraceroute: Selection by process: %w", ErrNoProcesses)
	}
	for i, e := range exprs {
		if e.Uses(service.OwnerFields) && !cfg.Processes {
			return fmt.Errorf("servicetraceroute: Selection.Match: %q: %w", s.Match[i], ErrNoProcesses)
		}
	}
	for field, d := range map[string]time.Duration{"StopNewAfter": s.StopNewAfter, "Idle": s.Idle} {
		if d < 0 {
			return fmt.Errorf("servicetraceroute: Selection.%s: %v is negative", field, d)
		}
	}
	for _, p := range s.Protos {
		if p != trace.TCP && p != trace.UDP {
			return fmt.Errorf("servicetraceroute: Selection.Protos: %v flows are not traced by this version: %w", p, errors.ErrUnsupported)
		}
	}
	for _, d := range s.Directions {
		if _, err := d.MarshalText(); err != nil {
			return errors.New("servicetraceroute: Selection.Directions: unknown")
		}
	}
	if s.byOwner() && len(s.Directions) > 0 && !slices.ContainsFunc(s.Directions, func(d trace.Direction) bool { return d != trace.Transit }) {
		return fmt.Errorf("servicetraceroute: Selection.Directions: %w", ErrNoOwner)
	}
	if s.IPv4Only && s.IPv6Only {
		return errors.New("servicetraceroute: Selection: IPv4Only and IPv6Only exclude each other")
	}
	return nil
}

// hosts puts the selection's hosts into the selector: addresses and prefixes as rules,
// names as patterns, and what they resolve to now as rules too, for flows of which no
// name was seen.
func (s Selection) hosts(resolve resolver, sel *service.Selector) error {
	var patterns []string
	for _, host := range s.Hosts {
		rules, pattern, err := hostRules(resolve, host)
		if err != nil {
			return err
		}
		if pattern {
			patterns = append(patterns, host)
		}
		sel.Rules = append(sel.Rules, rules...)
	}
	if len(patterns) == 0 {
		return nil
	}
	set, err := domain.New(patterns)
	if err != nil {
		return err
	}
	sel.Domains = set
	return nil
}

// ByProcess reports whether the selection, as far as it is right, depends on which
// process a flow belongs to, and so needs Config.Processes.
func (s Selection) ByProcess() bool {
	if s.byOwner() {
		return true
	}
	for _, text := range s.Match {
		if e, err := match.Compile(text); err == nil && e.Uses(service.OwnerFields) {
			return true
		}
	}
	return false
}

// Check reports what is wrong with the selection as written, without resolving
// names.
func (s Selection) Check() error {
	if len(s.Hosts)+len(s.Services)+len(s.Match) == 0 && !s.byOwner() {
		return fmt.Errorf("servicetraceroute: Selection.Hosts: %w", ErrNothingSelected)
	}
	_, err := s.terms(Config{Processes: true}, nil)
	return err
}

// hostRules reads one selector as the user wrote it; pattern tells that it is one of
// names.
func hostRules(resolve resolver, host string) (rules []service.Rule, pattern bool, err error) {
	if a, err := netip.ParseAddr(host); err == nil {
		a = a.Unmap().WithZone("")
		s := trace.Service{Name: host, By: trace.ByAddress, Value: a.String()}
		return []service.Rule{{Prefix: netip.PrefixFrom(a, a.BitLen()), Service: s}}, false, nil
	}
	if strings.HasPrefix(host, "/") || strings.Contains(host, "*") {
		return nil, true, domain.Parse(host)
	}
	if strings.Contains(host, "/") {
		p, err := netip.ParsePrefix(host)
		if err != nil {
			return nil, false, fmt.Errorf("%q is not a prefix", host)
		}
		all, _ := ordinary([]netip.Prefix{p}) // it is valid
		s := trace.Service{Name: host, By: trace.ByPrefix, Value: all[0].String()}
		return []service.Rule{{Prefix: all[0], Service: s}}, false, nil
	}
	if !validName(host) {
		return nil, false, fmt.Errorf("%q is neither an address, a prefix nor a name", host)
	}
	if err := domain.Parse(host); err != nil {
		return nil, false, err
	}
	if resolve == nil {
		return nil, true, nil
	}
	addrs, err := resolve(host)
	if err != nil {
		return nil, true, fmt.Errorf("resolve %q: %w", host, err)
	}
	for _, a := range addrs {
		a = a.Unmap()
		s := trace.Service{Name: host, By: trace.ByNameAtStart, Value: host}
		rules = append(rules, service.Rule{Prefix: netip.PrefixFrom(a, a.BitLen()), Service: s})
	}
	return rules, true, nil
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

// onWire is an address as packets have it: without zone, IPv4 as IPv4.
func onWire(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// flowWatch selects one flow.
func flowWatch(f trace.Flow, cfg Config) (*engine.Watch, error) {
	params, err := cfg.Defaults.plan()
	if err != nil {
		return nil, err
	}
	if f.Proto != trace.TCP && f.Proto != trace.UDP {
		return nil, fmt.Errorf("servicetraceroute: flow %v: only TCP and UDP are traced: %w", f.FlowKey, errors.ErrUnsupported)
	}
	if !f.Dst.IsValid() || f.Dst.Port() == 0 {
		return nil, fmt.Errorf("servicetraceroute: flow %v: needs a destination address and port", f.FlowKey)
	}
	if cfg.NoProbe {
		return nil, fmt.Errorf("servicetraceroute: flow %v: Config.NoProbe: nothing is traced: %w", f.FlowKey, errors.ErrUnsupported)
	}
	if params.UDPProbe == probe.UDPAuto {
		params.UDPProbe = probe.UDPAlways // this very flow was asked for
	}
	t := f.Tuple
	t.Src, t.Dst = onWire(t.Src), onWire(t.Dst)
	return &engine.Watch{
		Policy: engine.Policy{Params: params, Every: -1}, Single: true, Selector: service.Selector{Flow: &t},
	}, nil
}
