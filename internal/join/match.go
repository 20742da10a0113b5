package join

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"time"

	"servicetraceroute/trace"
)

// Match is how surely two traces are of one flow. The zero value is none; a higher one is surer.
type Match uint8

// The ways to know a flow at its other host.
const (
	ByPorts Match = iota + 1 // both addresses differ (translated at both ends), both ports and the time fit
	ByEnd                    // one end is the same, the other's address and port were translated; the time fits
	ByPort                   // one end is the same, of the other only the address was translated; the time fits
	Exact                    // each host's tuple is the other's, mirrored
)

// String is a phrase for people.
func (m Match) String() string {
	switch m {
	case Exact:
		return "the same addresses and ports at both hosts"
	case ByPort:
		return "one address was translated, ports and time fit"
	case ByEnd:
		return "an address and its port were translated, the other end and time fit"
	case ByPorts:
		return "both addresses were translated, ports and time fit"
	}
	return "no match"
}

// Pair is one flow, traced at both of its hosts.
type Pair struct {
	There, Back *trace.Trace // by the first file's host, by the second's
	Match       Match
}

// Unsure is a trace of the first file for which several flows of the second fit equally
// well, or that shares the one that fits with others, or that fits by its ports alone.
type Unsure struct {
	There *trace.Trace
	Match Match
	Flows []trace.Tuple // those that fit, as the second host knows them
}

// Result is what two files have in common.
type Result struct {
	Pairs  []Pair
	Unsure []Unsure
	// Alone are how many traces of each file found no counterpart.
	AloneThere, AloneBack int
}

// Join matches the traces of two hosts. Translated flows have to be traced within so long
// of each other; those with the same addresses and ports, too, since ports are used again.
func Join(there, back []*trace.Trace, within time.Duration) Result {
	index := newIndex(back)
	best := make([]candidates, len(there))
	asTheyAre := map[way]bool{} // on which some flow was seen untranslated
	for i, a := range there {
		if best[i] = index.find(a, within); best[i].match == Exact {
			asTheyAre[wayOf(a)] = true
		}
	}
	claims := map[trace.FlowKey]map[trace.FlowKey]Match{} // flows of the second host: those of the first that want them
	for i, a := range there {
		if best[i].match < Exact && asTheyAre[wayOf(a)] {
			best[i] = candidates{} // where one flow is not translated, no other one is
		}
		for _, b := range best[i].all {
			key := b.Flow.Wire()
			if claims[key] == nil {
				claims[key] = map[trace.FlowKey]Match{}
			}
			claims[key][a.Flow.Wire()] = best[i].match
		}
	}
	var r Result
	used := map[*trace.Trace]bool{}
	for i, a := range there {
		c := best[i]
		if c.match == 0 {
			r.AloneThere++
			continue
		}
		flows := c.flows()
		// Equal ports alone may be those of an application that uses the same at both ends.
		if len(flows) > 1 || c.match == ByPorts || contested(claims[flows[0].Wire()], a.Flow.Wire()) {
			r.Unsure = append(r.Unsure, Unsure{a, c.match, flows})
			for _, b := range c.all {
				used[b] = true
			}
			continue
		}
		b := nearest(a, c.all)
		used[b] = true
		r.Pairs = append(r.Pairs, Pair{a, b, c.match})
	}
	for _, b := range back {
		if !used[b] {
			r.AloneBack++
		}
	}
	return r
}

// way is what a box that translates flows decides by: all but the source's port.
type way struct {
	proto trace.Proto
	src   netip.Addr
	dst   netip.AddrPort
}

func wayOf(tr *trace.Trace) way {
	k := tr.Flow.Wire()
	return way{k.Proto, k.Src.Addr(), k.Dst}
}

// contested reports whether another flow fits as well, or better.
func contested(claims map[trace.FlowKey]Match, own trace.FlowKey) bool {
	for key, m := range claims {
		if key != own && m >= claims[own] {
			return true
		}
	}
	return false
}

// candidates are the traces that fit best, and how.
type candidates struct {
	match Match
	all   []*trace.Trace
}

// flows are their flows, each once.
func (c candidates) flows() (out []trace.Tuple) {
	for _, b := range c.all {
		if !slices.ContainsFunc(out, func(t trace.Tuple) bool { return t.Wire() == b.Flow.Wire() }) {
			out = append(out, b.Flow)
		}
	}
	return out
}

// ports are a flow's at its two ends, and how it is known that it is one of TCP or UDP.
type ports struct {
	proto    trace.Proto
	src, dst uint16
}

// endOf is one end of a flow.
type endOf struct {
	proto trace.Proto
	at    netip.AddrPort
}

// index finds the second host's traces by what stays the same. Each list is by their begin:
// a server's end may be that of all.
type index struct {
	byEnd   map[endOf][]*trace.Trace
	byPorts map[ports][]*trace.Trace
	longest time.Duration // of a trace
}

func newIndex(back []*trace.Trace) index {
	x := index{byEnd: map[endOf][]*trace.Trace{}, byPorts: map[ports][]*trace.Trace{}}
	back = slices.Clone(back)
	slices.SortStableFunc(back, func(a, b *trace.Trace) int { return a.Start.Compare(b.Start) })
	for _, b := range back {
		x.longest = max(x.longest, b.End.Sub(b.Start))
		k := b.Flow.Wire()
		x.byEnd[endOf{k.Proto, k.Src}] = append(x.byEnd[endOf{k.Proto, k.Src}], b)
		x.byEnd[endOf{k.Proto, k.Dst}] = append(x.byEnd[endOf{k.Proto, k.Dst}], b)
		p := ports{k.Proto, k.Src.Port(), k.Dst.Port()}
		x.byPorts[p] = append(x.byPorts[p], b)
	}
	return x
}

// find returns the traces that fit a best.
func (x index) find(a *trace.Trace, within time.Duration) (c candidates) {
	k := a.Flow.Wire()
	seen := map[*trace.Trace]bool{}
	for _, list := range [][]*trace.Trace{
		x.byEnd[endOf{k.Proto, k.Dst}], x.byEnd[endOf{k.Proto, k.Src}], x.byPorts[ports{k.Proto, k.Dst.Port(), k.Src.Port()}],
	} {
		for _, b := range x.about(a, list, within) {
			m := match(k, b.Flow.Wire())
			if m == 0 || m < c.match || apart(a, b) > within {
				continue
			}
			if m > c.match {
				c = candidates{match: m}
			}
			if !seen[b] { // how well it fits is the same in each list
				seen[b] = true
				c.all = append(c.all, b)
			}
		}
	}
	return c
}

// about are those of a list among which all are that were taken within so long of a trace.
func (x index) about(a *trace.Trace, list []*trace.Trace, within time.Duration) []*trace.Trace {
	within = min(within, math.MaxInt64-x.longest-1)
	from, _ := slices.BinarySearchFunc(list, a.Start.Add(-within-x.longest), func(b *trace.Trace, at time.Time) int { return b.Start.Compare(at) })
	to, _ := slices.BinarySearchFunc(list, a.End.Add(within+1), func(b *trace.Trace, at time.Time) int { return b.Start.Compare(at) })
	return list[from:max(from, to)]
}

// match says how a flow as one host knows it fits one as the other does.
func match(a, b trace.FlowKey) Match {
	if a.Proto != b.Proto || a.Src.Addr().Is4() != b.Src.Addr().Is4() {
		return 0
	}
	far, near := a.Dst == b.Src, a.Src == b.Dst
	farPort, nearPort := a.Dst.Port() == b.Src.Port(), a.Src.Port() == b.Dst.Port()
	switch {
	case far && near:
		return Exact
	case far && nearPort, near && farPort:
		return ByPort
	case far, near:
		return ByEnd
	case farPort && nearPort:
		return ByPorts
	}
	return 0
}

// apart is the time between two traces; 0 when they overlap.
func apart(a, b *trace.Trace) time.Duration {
	return max(a.Start.Sub(b.End), b.Start.Sub(a.End), 0)
}

// nearest is the trace that was taken at nearly the same time.
func nearest(a *trace.Trace, all []*trace.Trace) *trace.Trace {
	return slices.MinFunc(all, func(x, y *trace.Trace) int {
		return cmp.Or(cmp.Compare(apart(a, x), apart(a, y)), cmp.Compare(x.Start.Sub(a.Start).Abs(), y.Start.Sub(a.Start).Abs()))
	})
}
