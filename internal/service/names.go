package service

import (
	"net/netip"
	"slices"
	"strconv"

	"servicetraceroute/internal/names"
	"servicetraceroute/internal/owner"
	"servicetraceroute/trace"
)

// Domains tells whether a host name is one of those wanted, and by which pattern.
type Domains interface {
	Match(name string) (pattern string, ok bool)
}

// Known is what is known of a flow beside its tuple. The zero value is nothing, and
// that nothing more will come of Words.
type Known struct {
	Owner *owner.Owner // nil, or not final, while it is not known
	Words Words
	// Names are those by which the destination's address was asked for (DNS).
	Names []names.Name
}

// Words are a client's first ones, as far as they name whom it wants.
type Words struct {
	Name    string
	By      trace.By // sni, quic-sni or http-host
	Awaited bool     // they may yet come
	ECH     bool     // they hide others
}

// Offer is a service by its name: what it is known by. Domains and Rules are
// alternatives, Ports and Protos narrow both; with neither, the ports alone tell.
type Offer struct {
	Name    string
	Domains Domains // nil: none
	Rules   []Rule  // prefixes
	Ports   []PortRange
	Protos  []trace.Proto
	// Except are names and prefixes that do not belong to it, whatever else fits.
	Except         Domains // nil: none
	ExceptPrefixes []netip.Prefix
}

// fits reports whether a flow has the service's port and protocol, and no address that
// is excepted.
func (o *Offer) fits(t trace.Tuple) bool {
	in := func(r PortRange) bool {
		return r.Contains(serverPort(t, t.FlowKey)) || r.Contains(serverPort(t, t.Wire()))
	}
	except := func(p netip.Prefix) bool { return p.Contains(t.Dst.Addr()) || p.Contains(t.Wire().Dst.Addr()) }
	return (len(o.Ports) == 0 || slices.ContainsFunc(o.Ports, in)) && (len(o.Protos) == 0 || slices.Contains(o.Protos, t.Proto)) &&
		!slices.ContainsFunc(o.ExceptPrefixes, except)
}

// serverPort is the port of the end that was connected to.
func serverPort(t trace.Tuple, k trace.FlowKey) uint16 {
	if t.Direction == trace.In {
		return k.Src.Port()
	}
	return k.Dst.Port()
}

// ByName reports whether names decide, alone or among others.
func (s *Selector) ByName() bool { return s.byName() || s.use(NameFields) }

// byName reports whether names can select a flow without an expression.
func (s *Selector) byName() bool {
	named := func(o Offer) bool { return o.Domains != nil }
	return s.Domains != nil || slices.ContainsFunc(s.Offers, named)
}

// what tells whether the destination is one of those that are wanted.
//
// An address that was asked for as such is enough. Else the client's own words decide
// over names. Without them the names of the address do, when they agree: an address of a
// content network has many, and what it was asked for last need not be what this flow
// wants. What lies in a service's prefix needs no name, but gets one that is more exact.
//
// The words of an accepted flow name this host, the names of its address name the peer:
// either is enough.
func (s *Selector) what(t trace.Tuple, k *Known) (trace.Service, Verdict) {
	if s.Flow != nil {
		return answer(s.matchFlow(t))
	}
	if why, ok := s.matchClient(t); ok {
		return why, Yes
	}
	at, here := s.matchRules(t)
	if here && at.By != trace.ByNameAtStart || !s.byName() {
		if why, ok := s.offered(t, k); ok && !here {
			return why, Yes
		}
		return answer(at, here)
	}
	if k.Words.Name != "" {
		if why, ok := s.named(t, k.Words.Name); ok {
			why.By, why.ECH = k.Words.By, k.Words.ECH
			return why, Yes
		}
		if t.Direction != trace.In {
			return answer(s.offered(t, k))
		}
	}
	if k.Words.Awaited {
		return trace.Service{}, Listen
	}
	why, v := s.byAddress(t, at, here, k.Names)
	if v != Yes {
		if by, ok := s.offered(t, k); ok {
			return by, Yes
		}
	}
	return why, v
}

// itself is the service of a flow that belongs to none: what its client names, else the
// one name by which its destination was asked for, else the address.
func itself(t trace.Tuple, k *Known) (trace.Service, Verdict) {
	switch {
	case k.Words.Name != "":
		return trace.Service{Name: k.Words.Name, By: k.Words.By, Value: k.Words.Name, ECH: k.Words.ECH}, Yes
	case k.Words.Awaited:
		return trace.Service{}, Listen
	case len(k.Names) == 1:
		name := k.Names[0].Asked()
		return trace.Service{Name: name, By: trace.ByDNS, Value: name}, Yes
	}
	addr := t.Dst.Addr().String()
	return trace.Service{Name: addr, By: trace.ByAddress, Value: addr}, Yes
}

func answer(s trace.Service, yes bool) (trace.Service, Verdict) {
	if !yes {
		return trace.Service{}, No
	}
	return s, Yes
}

// offered is the service in whose prefix the destination lies, or whose port it has
// where that alone tells.
func (s *Selector) offered(t trace.Tuple, k *Known) (trace.Service, bool) {
	var best *Rule
	for i := range s.Offers {
		o := &s.Offers[i]
		if !o.fits(t) || o.excepts(k.Words.Name) {
			continue
		}
		for j := range o.Rules {
			if r := &o.Rules[j]; r.holds(t) && (best == nil || r.Prefix.Bits() > best.Prefix.Bits()) {
				best = r
			}
		}
	}
	if best != nil {
		return best.Service, true
	}
	for i := range s.Offers {
		if o := &s.Offers[i]; o.Domains == nil && len(o.Rules) == 0 && len(o.Ports) > 0 && o.fits(t) && !o.excepts(k.Words.Name) {
			return trace.Service{Name: o.Name, By: trace.ByPort, Value: strconv.Itoa(int(serverPort(t, t.FlowKey)))}, true
		}
	}
	return trace.Service{}, false
}

func (o *Offer) excepts(name string) bool {
	if o.Except == nil || name == "" {
		return false
	}
	_, ok := o.Except.Match(name)
	return ok
}

// named is the service that a host name belongs to: of several the one with the longest
// pattern, of these the first.
func (s *Selector) named(t trace.Tuple, name string) (trace.Service, bool) {
	best, who := "", ""
	if s.Domains != nil {
		if pattern, ok := s.Domains.Match(name); ok {
			best, who = pattern, pattern
		}
	}
	for i := range s.Offers {
		o := &s.Offers[i]
		if o.Domains == nil || !o.fits(t) || o.excepts(name) {
			continue
		}
		if pattern, ok := o.Domains.Match(name); ok && len(pattern) > len(best) {
			best, who = pattern, o.Name
		}
	}
	return trace.Service{Name: who, Value: name}, who != ""
}

// byAddress asks what all names of the destination say, and the one that was resolved
// when the selection was made. They have to agree on one service.
func (s *Selector) byAddress(t trace.Tuple, at trace.Service, here bool, all []names.Name) (trace.Service, Verdict) {
	var wanted []trace.Service
	led := map[string]bool{} // names that a wanted one led to
	for _, n := range all {
		if why, ok := s.chained(t, n); ok {
			wanted = append(wanted, why)
			for _, name := range n.Chain {
				led[name] = true
			}
		}
	}
	if here {
		wanted = append(wanted, at)
	}
	if len(wanted) == 0 {
		return trace.Service{}, No
	}
	for _, why := range wanted {
		if why.Name != wanted[0].Name {
			return trace.Service{}, Unclear
		}
	}
	for _, n := range all {
		if !led[n.Asked()] {
			return trace.Service{}, Unclear // somebody else's, too
		}
	}
	return wanted[0], Yes
}

// chained is the service of a name by which an address was asked for: of the name
// itself, else of one to which it led.
func (s *Selector) chained(t trace.Tuple, n names.Name) (trace.Service, bool) {
	for _, name := range n.Chain {
		if why, ok := s.named(t, name); ok {
			why.By, why.Value = trace.ByDNS, n.Asked()
			return why, true
		}
	}
	return trace.Service{}, false
}
