// Package service answers which service a flow belongs to: by addresses and prefixes, by
// the names that the client's first words or DNS answers give it, by its owner. It is
// told what is known and does no I/O itself.
package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"servicetraceroute/trace"
)

// Rule is one address or prefix that selects flows, and how it came about.
type Rule struct {
	Prefix  netip.Prefix
	Service trace.Service
}

// PortRange is a range of ports, both ends included. The zero value is port 0.
type PortRange struct{ First, Last uint16 }

// ParsePorts reads "443" or "8000-8999".
func ParsePorts(text string) (PortRange, error) {
	first, last, isRange := strings.Cut(text, "-")
	a, err := strconv.ParseUint(first, 10, 16)
	b := a
	if err == nil && isRange {
		b, err = strconv.ParseUint(last, 10, 16)
	}
	if err != nil || a == 0 || b < a {
		return PortRange{}, fmt.Errorf("port %q: want N or A-B between 1 and 65535", text)
	}
	return PortRange{uint16(a), uint16(b)}, nil
}

// Contains reports whether the port lies in the range.
func (r PortRange) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

// Run is a command whose flows are wanted, with all that it starts.
type Run struct {
	Service trace.Service
	Cgroup  string // the control group that it was started in; empty: none
	Tree    int    // else the process whose descendant it is
}

// Selector decides which flows are wanted. What: any Rule, Domains, Offer or Expr, or Flow, or
// All. All the other fields narrow; an empty one does not. Without any of the former those about
// the flow's owner select by themselves.
type Selector struct {
	Rules      []Rule
	Domains    Domains      // by name; nil: none
	Offers     []Offer      // services
	Exprs      []Expr       // for what none of the above selects
	All        bool         // also what none of these selects, under its own name or address
	Flow       *trace.Tuple // one flow, by its key on the wire; source port 0 and an invalid source match any
	Ports      []PortRange
	Protos     []trace.Proto
	Interfaces []string
	Directions []trace.Direction // empty: out and in
	IPv4Only   bool
	IPv6Only   bool

	// Of the flow's owner.
	Processes []string
	PIDs      []int
	Cgroups   []string // with all groups below
	Run       *Run
}

// Verdict is what a Selector says of a flow. The zero value is invalid.
type Verdict uint8

// The verdicts.
const (
	No      Verdict = iota + 1
	Unclear         // its address has names that say different things
	Wait            // the flow's owner decides, who is not known yet
	Listen          // the client's first words decide, which did not come yet
	Yes
)

// Match tells whether a flow is selected, and why. The server's port is the one
// that Ports are about: the peer's, or this host's own for an accepted flow.
func (s *Selector) Match(t trace.Tuple, k *Known) (trace.Service, Verdict) {
	if !s.narrowed(t) {
		return trace.Service{}, No
	}
	why, owned := s.owned(k.Owner)
	if owned == No {
		return trace.Service{}, No
	}
	if s.Flow == nil && len(s.Rules)+len(s.Offers)+len(s.Exprs) == 0 && s.Domains == nil && !s.All {
		if !s.ByOwner() {
			return trace.Service{}, No
		}
		return why, owned
	}
	why, v := s.what(t, k)
	// Who gave a host or a service a name wants it in the record: first words that may yet
	// tell come before an expression that is true already.
	if v != Yes && v != Listen {
		if by, w := s.expressed(t, k); w > v {
			why, v = by, w
		}
	}
	if s.All && v <= Unclear {
		why, v = itself(t, k)
	}
	return why, min(v, owned)
}

func (s *Selector) matchRules(t trace.Tuple) (trace.Service, bool) {
	var best *Rule
	for i := range s.Rules {
		r := &s.Rules[i]
		if r.holds(t) && (best == nil || r.Prefix.Bits() > best.Prefix.Bits()) {
			best = r
		}
	}
	if best == nil {
		return trace.Service{}, false
	}
	return best.Service, true
}

// WantsTransit reports whether the selector may select flows that this host only
// forwards. Such flows belong to no process here.
func (s *Selector) WantsTransit() bool {
	return slices.Contains(s.Directions, trace.Transit) && !s.ByOwner()
}

// matchClient is the rule that the client of a forwarded flow is selected by.
func (s *Selector) matchClient(t trace.Tuple) (why trace.Service, ok bool) {
	if t.Direction != trace.Transit {
		return why, false
	}
	t.Dst, t.NAT = t.Src, nil
	return s.matchRules(t)
}

// holds reports whether the flow's destination, by either of its names, is the rule's.
func (r *Rule) holds(t trace.Tuple) bool {
	return r.Prefix.Contains(t.Dst.Addr()) || r.Prefix.Contains(t.Wire().Dst.Addr())
}

func (s *Selector) matchFlow(t trace.Tuple) (trace.Service, bool) {
	f, wire := s.Flow.Wire(), t.Wire()
	same := f.Proto == wire.Proto && f.Dst == wire.Dst &&
		(!f.Src.Addr().IsValid() || f.Src.Addr().IsUnspecified() || f.Src.Addr() == wire.Src.Addr()) &&
		(f.Src.Port() == 0 || f.Src.Port() == wire.Src.Port())
	name := s.Flow.Dst.String() // as it was asked for
	return trace.Service{Name: name, By: trace.ByConnection, Value: name}, same
}

func (s *Selector) narrowed(t trace.Tuple) bool {
	port, wire := serverPort(t, t.FlowKey), serverPort(t, t.Wire())
	in := func(r PortRange) bool { return r.Contains(port) || r.Contains(wire) }
	switch {
	case len(s.Ports) > 0 && !slices.ContainsFunc(s.Ports, in),
		len(s.Protos) > 0 && !slices.Contains(s.Protos, t.Proto),
		len(s.Interfaces) > 0 && !slices.Contains(s.Interfaces, t.Interface),
		len(s.Directions) > 0 && !slices.Contains(s.Directions, t.Direction),
		len(s.Directions) == 0 && s.Flow == nil && t.Direction == trace.Transit,
		s.IPv4Only && !t.Dst.Addr().Is4(),
		s.IPv6Only && t.Dst.Addr().Is4():
		return false
	}
	return true
}

// ByInterface reports whether the interface decides at which a flow is followed.
func (s *Selector) ByInterface() bool { return len(s.Interfaces) > 0 || s.use(InterfaceField) }

// WantsUDP reports whether the selector may select a UDP flow.
func (s *Selector) WantsUDP() bool {
	if s.Flow != nil {
		return s.Flow.Proto == trace.UDP
	}
	return len(s.Protos) == 0 || slices.Contains(s.Protos, trace.UDP)
}

// Accepted reports whether the selector may select a flow that this host accepted.
func (s *Selector) Accepted() bool {
	return len(s.Directions) == 0 || slices.Contains(s.Directions, trace.In)
}

// Prefixes returns the sorted prefixes of all rules, for a capture filter; none
// when flows to anywhere may be wanted.
func (s *Selector) Prefixes() []netip.Prefix {
	var all []netip.Prefix
	if s.ByName() || len(s.Exprs) > 0 || s.WantsTransit() { // a client's address is another where its packets leave
		return nil
	}
	for i := range s.Offers {
		o := &s.Offers[i]
		if len(o.Rules) == 0 {
			return nil
		}
		for _, r := range o.Rules {
			all = append(all, r.Prefix)
		}
	}
	if s.Flow != nil {
		dst := s.Flow.Wire().Dst.Addr()
		all = append(all, netip.PrefixFrom(dst, dst.BitLen()))
	}
	for _, r := range s.Rules {
		all = append(all, r.Prefix)
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(all)
}
