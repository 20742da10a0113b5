package evaluate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"servicetraceroute/internal/scenario"
)

// Odds are what two independent flows from one host to another may expect of their ways, if
// every load balancer gives each of its next hops the same share of flows.
type Odds struct {
	// Other is the probability that the two take different ways.
	Other float64
	// Shown is the probability that this shows: at some TTL two routers that both answer
	// answer with different addresses. Silent routers hide some of it.
	Shown float64
	// Hops is how many routers a flow meets on average, Balancers how many of these have
	// several next hops for it.
	Hops, Balancers float64
}

// place is where one of the two flows is.
type place struct {
	node   string
	answer netip.Addr // with which its probes that end there are answered; zero: silent, or the destination
}

// pair is where both are, after equally many hops.
type pair struct{ a, b place }

// share is the probability of being at a pair. apart: they took different ways, which did not
// show.
type share struct {
	pair
	apart bool
	p     float64
}

// Differ works the odds out from a network's routes, exactly: it follows both flows at once,
// hop by hop, over all pairs of places where they can be.
func Differ(l *scenario.Layout, from, to string, ipv6 bool) (Odds, error) {
	src, dst := l.Nodes[from], l.Nodes[to]
	if src == nil || dst == nil {
		return Odds{}, fmt.Errorf("evaluate: no nodes %q and %q", from, to)
	}
	w := walker{layout: l, to: to, addr: dst.Addr(ipv6), ways: map[string][]place{}}
	begin := place{node: from}
	states := []share{{pair: pair{begin, begin}, p: 1}}
	var odds Odds
	same := 0.0
	for hop := 0; len(states) > 0; hop++ {
		if hop > 255 {
			return Odds{}, fmt.Errorf("evaluate: the way from %s to %s has no end", from, to)
		}
		var next []share
		for _, s := range states {
			if s.a.node == to || s.b.node == to { // of unequal ways, too: nothing more to be held against
				if s.apart || s.a.node != s.b.node {
					odds.Other += s.p
				} else {
					same += s.p
				}
				continue
			}
			more, shown, err := w.step(s)
			odds.Shown += shown
			if err != nil {
				return Odds{}, err
			}
			next = append(next, more...)
		}
		states = merge(next)
	}
	odds.Other += odds.Shown
	var err error
	if total := same + odds.Other; total < 1-1e-9 || total > 1+1e-9 {
		panic(fmt.Sprintf("evaluate: probabilities sum up to %v", total))
	}
	odds.Hops, odds.Balancers, err = w.expect(from)
	return odds, err
}

// walker knows the next hops towards one address.
type walker struct {
	layout *scenario.Layout
	to     string
	addr   netip.Addr
	ways   map[string][]place
}

// step lets both flows go one hop. Those that now show that they differ leave the states.
func (w *walker) step(s share) (next []share, shown float64, err error) {
	as, err := w.from(s.a.node)
	if err != nil {
		return nil, 0, err
	}
	bs, err := w.from(s.b.node)
	if err != nil {
		return nil, 0, err
	}
	p := s.p / float64(len(as)*len(bs))
	for _, a := range as {
		for _, b := range bs {
			if a.answer.IsValid() && b.answer.IsValid() && a.answer != b.answer {
				shown += p
				continue
			}
			next = append(next, share{pair{a, b}, s.apart || a != b, p})
		}
	}
	return next, shown, nil
}

// expect follows one flow.
func (w *walker) expect(from string) (hops, balancers float64, err error) {
	states := []share{{pair: pair{a: place{node: from}}, p: 1}}
	for len(states) > 0 {
		var next []share
		for _, s := range states {
			if s.a.node == w.to {
				continue
			}
			ways, err := w.from(s.a.node)
			if err != nil {
				return 0, 0, err
			}
			if w.layout.Nodes[s.a.node].Node.Kind == scenario.Router {
				hops += s.p
			}
			if len(ways) > 1 {
				balancers += s.p
			}
			for _, n := range ways {
				next = append(next, share{pair: pair{a: place{node: n.node}}, p: s.p / float64(len(ways))})
			}
		}
		states = merge(next)
	}
	return hops, balancers, nil
}

// from returns the next hops of a node, all equally likely.
func (w *walker) from(node string) ([]place, error) {
	if ways, ok := w.ways[node]; ok {
		return ways, nil
	}
	var ways []place
	for _, it := range w.routes(w.layout.Nodes[node]) {
		peer := it.Peer
		n := place{node: peer.Node}
		if at := w.layout.Nodes[peer.Node].Node; at.Kind == scenario.Router && !at.Silent {
			n.answer = peer.Addr4.Addr()
			if w.addr.Is6() {
				n.answer = peer.Addr6.Addr()
			}
		}
		ways = append(ways, n)
	}
	if len(ways) == 0 {
		return nil, fmt.Errorf("evaluate: %s has no route to %s", node, w.to)
	}
	w.ways[node] = ways
	return ways, nil
}

// routes are the interfaces by which a node sends to the address: the longest prefix wins.
func (w *walker) routes(n *scenario.NodeLayout) (via []*scenario.Interface) {
	best := -1
	for _, it := range n.Interfaces {
		own := it.Addr4
		if w.addr.Is6() {
			own = it.Addr6
		}
		if own.Contains(w.addr) && own.Bits() > best {
			via, best = []*scenario.Interface{it}, own.Bits()
		}
	}
	for _, r := range n.Routes {
		if r.Prefix.Contains(w.addr) && r.Prefix.Bits() > best {
			via, best = r.Via, r.Prefix.Bits()
		}
	}
	return via
}

// merge adds up equal states, in an order of their own: sums must not depend on chance.
func merge(states []share) []share {
	slices.SortStableFunc(states, func(x, y share) int {
		return cmp.Or(comparePlaces(x.a, y.a), comparePlaces(x.b, y.b), compareBools(x.apart, y.apart))
	})
	out := states[:0]
	for _, s := range states {
		if n := len(out); n > 0 && out[n-1].pair == s.pair && out[n-1].apart == s.apart {
			out[n-1].p += s.p
			continue
		}
		out = append(out, s)
	}
	return out
}

func comparePlaces(x, y place) int {
	return cmp.Or(cmp.Compare(x.node, y.node), x.answer.Compare(y.answer))
}

func compareBools(x, y bool) int {
	switch {
	case x == y:
		return 0
	case y:
		return -1
	}
	return 1
}
