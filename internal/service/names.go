package service

import (
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
	Awaited bool // they may yet come
	Name    string
	By      trace.By // sni, quic-sni or http-host
}

// what tells whether the destination is one of those that are wanted.
//
// The client's own words decide over names. Without them the names of the address do,
// when they agree: an address of a content network has many, and what it was asked for
// last need not be what this flow wants.
func (s *Selector) what(t trace.Tuple, k *Known) (trace.Service, Verdict) {
	if s.Flow != nil {
		return answer(s.matchFlow(t))
	}
	at, here := s.matchRules(t)
	switch {
	case here && at.By != trace.ByNameAtStart || s.Domains == nil:
		return answer(at, here)
	case k.Words.Name != "":
		why, ok := s.named(k.Words.Name)
		why.By = k.Words.By
		return answer(why, ok)
	case k.Words.Awaited:
		return trace.Service{}, Listen
	}
	return s.byAddress(at, here, k.Names)
}

func answer(s trace.Service, yes bool) (trace.Service, Verdict) {
	if !yes {
		return trace.Service{}, No
	}
	return s, Yes
}

// named is the service that a host name belongs to.
func (s *Selector) named(name string) (trace.Service, bool) {
	pattern, ok := s.Domains.Match(name)
	if !ok {
		return trace.Service{}, false
	}
	if of := s.Services[pattern]; of != "" {
		pattern = of
	}
	return trace.Service{Name: pattern, Value: name}, true
}

// byAddress asks what all names of the destination say, and the one that was resolved
// when the selection was made. They have to agree on one service.
func (s *Selector) byAddress(at trace.Service, here bool, all []names.Name) (trace.Service, Verdict) {
	var wanted []trace.Service
	led := map[string]bool{} // names that a wanted one led to
	for _, n := range all {
		if why, ok := s.chained(n); ok {
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
func (s *Selector) chained(n names.Name) (trace.Service, bool) {
	for _, name := range n.Chain {
		if why, ok := s.named(name); ok {
			why.By, why.Value = trace.ByDNS, n.Asked()
			return why, true
		}
	}
	return trace.Service{}, false
}
