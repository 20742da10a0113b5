package sibling

import (
	"math"
	"net/netip"
	"slices"

	"servicetraceroute/trace"
)

// node is an address at a TTL; one without address stands for all silence there, and that
// of the first TTL's predecessor for this host.
type node struct {
	ttl  int
	addr netip.Addr
}

// next is what siblings met behind a node.
type next struct {
	flows int // siblings with a router's answer there
	addrs map[netip.Addr]int
	ends  int // siblings whose next hop was the destination
}

// seen is what the stopping rule counts: different next hops, and siblings that met any.
// Where all go on to the destination there is nothing to look for.
func (n *next) seen() (hops, flows int) {
	switch {
	case n.flows == 0:
		return 0, 0
	case n.ends > 0: // ways of unlike length
		return len(n.addrs) + 1, n.flows + n.ends
	}
	return len(n.addrs), n.flows
}

// graph is what siblings of one protocol met behind each node.
func graph(siblings []trace.Sibling, proto string) map[node]*next {
	g := map[node]*next{}
	for i := range siblings {
		x := &siblings[i]
		if x.Proto != proto {
			continue
		}
		from := node{}
		for j := range x.Hops {
			h := &x.Hops[j]
			a := addrOf(h)
			if j == 0 {
				from = node{ttl: h.TTL - 1}
			}
			if a.IsValid() && g[from] == nil {
				g[from] = &next{addrs: map[netip.Addr]int{}}
			}
			switch {
			case !a.IsValid():
			case x.Reached && j == len(x.Hops)-1:
				g[from].ends++
			default:
				g[from].flows++
				g[from].addrs[a]++
			}
			from = node{h.TTL, a}
		}
	}
	return g
}

// addrOf is the address that answered a sibling, invalid when none did.
func addrOf(h *trace.Hop) netip.Addr {
	if len(h.Replies) == 0 {
		return netip.Addr{}
	}
	return h.Replies[0].Addr
}

// wanted is how many more siblings the stopping rule asks for, so that the node that has
// the fewest for what was seen behind it gets as many as it needs if they spread as they did.
func wanted(siblings []trace.Sibling, proto string, confidence float64) (more int) {
	total := 0
	for i := range siblings {
		if siblings[i].Proto == proto {
			total++
		}
	}
	last := fence(siblings, proto)
	for at, n := range graph(siblings, proto) {
		hops, flows := n.seen()
		if missing := Enough(hops, confidence) - flows; at.ttl < last && flows > 0 && missing > 0 {
			more = max(more, int(math.Ceil(float64(missing*total)/float64(flows))))
		}
	}
	// Where few have gone little is known: in steps, so that no more go than are needed.
	return min(more, total)
}

// fence is the last TTL at which siblings are still asked for: behind it some meet the
// destination, and only a few may go on.
func fence(siblings []trace.Sibling, proto string) int {
	last := math.MaxInt
	for i := range siblings {
		x := &siblings[i]
		if n := len(x.Hops); n > 0 && x.Proto == proto && x.Stop == trace.StopFence {
			last = min(last, x.Hops[n-1].TTL)
		}
	}
	return last
}

// confidence is the probability that no further next hop, as likely as those seen, leads
// to this TTL: that of the node before it of which least is known.
func confidence(g map[node]*next, ttl int) float64 {
	least := -1.0
	for at, n := range g {
		hops, flows := n.seen()
		if at.ttl != ttl-1 || flows == 0 {
			continue
		}
		if c := 1 - Missed(hops+1, flows); least < 0 || c < least {
			least = c
		}
	}
	return math.Round(max(least, 0)*1e4) / 1e4
}

// blockedAfter is the last TTL that answered a protocol's siblings, if they all ended
// before the destination for want of answers, and enough of them did to say so.
func blockedAfter(siblings []trace.Sibling, proto string) (ttl int, ok bool) {
	ended := 0
	for i := range siblings {
		x := &siblings[i]
		if x.Proto != proto {
			continue
		}
		switch {
		case x.Reached:
			return 0, false
		case x.Stop == trace.StopSilentHops || x.Stop == trace.StopUnreachable:
			ended++
		}
		for j := range x.Hops {
			if len(x.Hops[j].Replies) > 0 {
				ttl = max(ttl, x.Hops[j].TTL)
			}
		}
	}
	return ttl, ended >= reaching
}

// Compare holds the flow's path against its siblings'. Time, label, flow and trace are
// taken from the trace; the siblings become the record's.
func Compare(tr *trace.Trace, siblings []trace.Sibling) *trace.Compare {
	c := &trace.Compare{Time: tr.End, Label: tr.Label, Flow: tr.Flow, Trace: tr.ID, Siblings: siblings}
	own, last := flowPath(tr)
	c.Alternatives = alternatives(own, siblings)
	for _, proto := range Protocols {
		if after, ok := blockedAfter(siblings, proto); ok && after < last {
			c.Blocked = append(c.Blocked, trace.Blocked{Proto: proto, AfterTTL: after})
		}
	}
	apart := 0
	for i := range siblings {
		if disjoint(own, &siblings[i]) {
			apart++
		}
	}
	if apart > 0 {
		c.Divergent, c.Divergence = true, float64(apart)/float64(len(siblings))
	}
	return c
}

// flowPath is who answered the flow's own probes, by TTL, without the destination; last is
// the highest TTL that is known to be passed, the destination's included.
func flowPath(tr *trace.Trace) (own map[int][]netip.Addr, last int) {
	own = map[int][]netip.Addr{}
	for i := range tr.Hops {
		h := &tr.Hops[i]
		final := tr.Reached && tr.Destination != nil && tr.Destination.TTL == h.TTL
		for _, r := range h.Replies {
			if r.SharedFrom != "" {
				continue // it answered another flow's
			}
			last = max(last, h.TTL)
			if !final && !slices.Contains(own[h.TTL], r.Addr) {
				own[h.TTL] = append(own[h.TTL], r.Addr)
			}
		}
	}
	return own, last
}

// disjoint reports whether at some TTL at which both answered nobody answered both.
func disjoint(own map[int][]netip.Addr, x *trace.Sibling) bool {
	for i := range x.Hops {
		h := &x.Hops[i]
		a := addrOf(h)
		if a.IsValid() && !(x.Reached && i == len(x.Hops)-1) && len(own[h.TTL]) > 0 && !slices.Contains(own[h.TTL], a) {
			return true
		}
	}
	return false
}

// alternatives are the TTLs at which siblings met others than the flow did.
func alternatives(own map[int][]netip.Addr, siblings []trace.Sibling) []trace.Alternative {
	graphs := map[string]map[node]*next{}
	others := map[int][]netip.Addr{}
	for _, proto := range Protocols {
		graphs[proto] = graph(siblings, proto)
		for at, n := range graphs[proto] {
			ttl := at.ttl + 1
			for a := range n.addrs {
				if !slices.Contains(own[ttl], a) && !slices.Contains(others[ttl], a) {
					others[ttl] = append(others[ttl], a)
				}
			}
		}
	}
	var all []trace.Alternative
	for ttl, addrs := range others {
		slices.SortFunc(addrs, netip.Addr.Compare)
		alt := trace.Alternative{TTL: ttl, Addrs: addrs}
		if len(own[ttl]) > 0 {
			alt.InFlow = own[ttl][0]
		}
		for _, g := range graphs {
			alt.Confidence = max(alt.Confidence, confidence(g, ttl))
		}
		all = append(all, alt)
	}
	slices.SortFunc(all, func(a, b trace.Alternative) int { return a.TTL - b.TTL })
	return all
}
