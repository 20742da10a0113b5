package join

import (
	"net/netip"
	"slices"

	"servicetraceroute/trace"
)

// Relation is what the hop of the way there has to do with that of the way back at the
// same distance from the first host.
type Relation uint8

// The relations. Routers answer with the address of the link by which a probe came, so
// that one router shows two addresses.
const (
	Unknown  Relation = iota // one of them is silent
	Same                     // one address
	SameLink                 // the two ends of one link, as its subnet (/30, /31, /126, /127) tells
	Other                    // neither: another router, or another link of the same
)

// String is a phrase for people.
func (r Relation) String() string {
	return [...]string{"", "same address", "same link", "differs"}[r]
}

// Step is one place of a flow's path, counted from the first host.
type Step struct {
	TTL         int // from the first host; BackTTL from the second
	BackTTL     int // 0: the way back has none
	There, Back netip.Addr
	Relation    Relation
}

// Paths are a pair's two ways.
type Paths struct {
	Steps []Step
	// Hops are the routers on each way where the trace got to its end, else 0.
	HopsThere, HopsBack int
}

// Asymmetric reports whether the ways are of different length, which proves that they differ.
func (p Paths) Asymmetric() bool {
	return p.HopsThere > 0 && p.HopsBack > 0 && p.HopsThere != p.HopsBack
}

// Differs are the places at which both ways answered and nothing says that they are one.
func (p Paths) Differs() (ttls []int) {
	for _, s := range p.Steps {
		if s.Relation == Other {
			ttls = append(ttls, s.TTL)
		}
	}
	return ttls
}

// Paths lays the way back beside the way there. Its places are known only when one of the
// traces got to its end.
func (p Pair) Paths() Paths {
	out := Paths{HopsThere: routers(p.There), HopsBack: routers(p.Back)}
	there, back := addrs(p.There), addrs(p.Back)
	last := out.HopsThere
	if last == 0 {
		last = len(there)
	}
	length := out.HopsBack // of the way back, which counts from the other end
	if length == 0 {
		length = out.HopsThere
	}
	for ttl := 1; ttl <= last; ttl++ {
		s := Step{TTL: ttl, There: at(there, ttl)}
		if n := length + 1 - ttl; length > 0 && n >= 1 {
			s.BackTTL, s.Back = n, at(back, n)
			// The link before this router is that behind the one before it, whose address there is
			// what the way back showed one hop later.
			before := at(back, n+1)
			if ttl == 1 {
				before = p.There.Flow.Src.Addr()
			}
			s.Relation = relate(s.There, s.Back, before)
			if ttl == 1 && s.Relation == Other {
				s.Relation = Unknown // a host's own subnet may be of any size
			}
		}
		out.Steps = append(out.Steps, s)
	}
	return out
}

// relate compares a hop there with the hop back at its place, and with the one before.
func relate(there, back, before netip.Addr) Relation {
	switch {
	case !there.IsValid() || !back.IsValid() && !before.IsValid():
		return Unknown
	case there == back:
		return Same
	case before.IsValid() && sameLink(there, before):
		return SameLink
	case !before.IsValid():
		return Unknown // the other end of its link did not answer: nothing can be told
	}
	return Other
}

// sameLink reports whether two addresses are the ends of a point-to-point link: of one
// subnet of two or four addresses (RFC 3021, RFC 6164).
func sameLink(a, b netip.Addr) bool {
	if a.BitLen() != b.BitLen() || a == b {
		return false
	}
	p, err := a.Prefix(a.BitLen() - 2)
	return err == nil && p.Contains(b)
}

// addrs are who answered each TTL first, the destination left out.
func addrs(tr *trace.Trace) (out []netip.Addr) {
	for _, h := range tr.Hops {
		if tr.Reached && tr.Destination != nil && h.TTL == tr.Destination.TTL {
			break
		}
		for len(out) < h.TTL {
			out = append(out, netip.Addr{})
		}
		// What answered another flow's probe tells nothing of this one.
		if i := slices.IndexFunc(h.Replies, func(r trace.Reply) bool { return r.SharedFrom == "" }); i >= 0 {
			out[h.TTL-1] = h.Replies[i].Addr
		}
	}
	return out
}

func at(path []netip.Addr, ttl int) netip.Addr {
	if ttl < 1 || ttl > len(path) {
		return netip.Addr{}
	}
	return path[ttl-1]
}

// routers is how many lie on the way, 0 when the trace does not tell.
func routers(tr *trace.Trace) int {
	if !tr.Reached || tr.Destination == nil {
		return 0
	}
	return tr.Destination.TTL - 1
}
