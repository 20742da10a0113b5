package selftest

import (
	"net/netip"

	"servicetraceroute/trace"
)

// add holds a trace against the path as it was made: its routers in their order, and
// behind them the server. Nodes tells whose an address is.
func (p *Paths) add(tr *trace.Trace, path []string, nodes map[netip.Addr]string) {
	p.Traces++
	if tr.Complete {
		p.Complete++
	}
	for _, h := range tr.Hops {
		for _, r := range h.Replies {
			if r.Kind != trace.TimeExceeded {
				continue
			}
			p.Hops++
			if h.TTL > len(path) || nodes[r.Addr] != path[h.TTL-1] {
				p.False++
			}
		}
	}
	if tr.Reached {
		p.Reached++
		if tr.Destination == nil || tr.Destination.TTL != len(path)+1 {
			p.WrongDistance++
		}
	}
}
