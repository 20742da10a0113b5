package output

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"servicetraceroute/trace"
)

// siblingProtos are the protocols of siblings in the order in which they are shown.
var siblingProtos = []string{"tcp", "udp", "icmp"}

// place is a node of the merged graph.
type place struct {
	ttl  int
	addr netip.Addr
}

// merged is the graph of the paths of a flow and its siblings.
type merged struct {
	flow   map[place]bool
	passed map[place]map[string]int // siblings by protocol
	next   map[place][]netip.Addr
}

// merge puts the paths of a compare record together. Where it names no alternative the
// flow's own hop is that of the siblings.
func merge(c *trace.Compare) merged {
	m := merged{map[place]bool{}, map[place]map[string]int{}, map[place][]netip.Addr{}}
	apart := map[int]bool{}
	for _, a := range c.Alternatives {
		apart[a.TTL] = true
		if a.InFlow.IsValid() {
			m.flow[place{a.TTL, a.InFlow}] = true
		}
	}
	for _, s := range c.Siblings {
		var from place
		for i, h := range s.Hops {
			if len(h.Replies) == 0 {
				from = place{}
				continue
			}
			at := place{h.TTL, h.Replies[0].Addr}
			if m.passed[at] == nil {
				m.passed[at] = map[string]int{}
			}
			m.passed[at][s.Proto]++
			if from.addr.IsValid() && !slices.Contains(m.next[from], at.addr) {
				m.next[from] = append(m.next[from], at.addr)
			}
			if !apart[h.TTL] && !(s.Reached && i == len(s.Hops)-1) {
				m.flow[at] = true
			}
			from = at
		}
	}
	return m
}

// writeGraph writes the merged graph, a line for each address at each TTL.
func writeGraph(b *bytes.Buffer, c *trace.Compare) {
	m := merge(c)
	places := map[place]bool{}
	for at := range m.passed {
		places[at] = true
	}
	for at := range m.flow {
		places[at] = true
	}
	order := make([]place, 0, len(places))
	for at := range places {
		order = append(order, at)
	}
	slices.SortFunc(order, func(x, y place) int {
		if x.ttl != y.ttl {
			return x.ttl - y.ttl
		}
		return x.addr.Compare(y.addr)
	})
	for _, at := range order {
		var who []string
		if m.flow[at] {
			who = append(who, "flow")
		}
		for _, proto := range siblingProtos {
			if n := m.passed[at][proto]; n > 0 {
				who = append(who, fmt.Sprintf("%s %d", proto, n))
			}
		}
		line := fmt.Sprintf("%3d  %-15v  %s", at.ttl, at.addr, strings.Join(who, ", "))
		if next := m.next[at]; len(next) > 0 {
			slices.SortFunc(next, netip.Addr.Compare)
			line += "  -> " + addrs(next)
		}
		b.WriteString(line + "\n")
	}
	for _, a := range c.Alternatives {
		fmt.Fprintf(b, "at TTL %d siblings also met %s; that these are all is %.1f %% sure\n", a.TTL, addrs(a.Addrs), 100*a.Confidence)
	}
}
