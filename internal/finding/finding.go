package finding

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"servicetraceroute/trace"
)

// TooBig is a router's word that a segment of the flow's own did not fit into its next link.
type TooBig struct {
	From netip.Addr
	MTU  uint32 // bytes, of that link
	Len  int    // bytes, of the segment's packet
}

// How much a statement is trusted, see docs/findings.md.
const (
	seen        = 0.95 // farther hops, or other packets, say the same
	seenOnce    = 0.8  // nothing else could say so
	guessed     = 0.6  // something else may look alike
	contradicts = 0.5  // another answer says otherwise
)

// Of returns what the trace says of its path, by rising TTL, each with the time now. tooBig is
// what routers said about the flow's own packets. Nothing is found in a trace that was read
// from a file: its record does not hold the quotes.
func Of(now time.Time, t *trace.Trace, tooBig []TooBig) []*trace.Finding {
	p := pathOf(t)
	var all []*trace.Finding
	for _, r := range quoteRules {
		all = append(all, p.quotes(r)...)
	}
	all = append(all, p.interfaces()...)
	all = append(all, p.responders()...)
	all = append(all, p.loop()...)
	all = append(all, p.stays()...)
	all = append(all, p.wayBack()...)
	all = append(all, p.mtu(tooBig)...)
	for _, f := range all {
		f.Time, f.Label, f.Trace, f.Flow = now, t.Label, t.ID, t.Flow
		// Its hops may be of two paths; that is what these two kinds say.
		if t.Mixed && f.Kind != trace.MultiResponder && f.Kind != trace.PerPacketLB {
			f.Confidence = min(f.Confidence, contradicts)
		}
		f.Evidence = append(f.Evidence, p.gap(f.TTLFrom, f.TTL)...)
	}
	slices.SortStableFunc(all, func(a, b *trace.Finding) int {
		return cmp.Or(cmp.Compare(a.TTL, b.TTL), cmp.Compare(a.Kind, b.Kind))
	})
	return all
}

// path is a trace as the rules look at it.
type path struct {
	*trace.Trace
	hops []hop // by rising TTL, those alone at which something answered
	end  int   // the destination's TTL; 0: not known
}

// hop is what the trace's own probes met at one TTL.
type hop struct {
	ttl     int
	replies []*trace.Reply // in the order in which the probes were sent
}

func pathOf(t *trace.Trace) *path {
	p := &path{Trace: t}
	if t.Reached && t.Destination != nil {
		p.end = t.Destination.TTL
	}
	replies := 0
	for _, h := range t.Hops {
		replies += len(h.Replies)
	}
	p.hops = make([]hop, 0, len(t.Hops))
	room := make([]*trace.Reply, 0, replies) // of all hops
	for i := range t.Hops {
		first := len(room)
		for j := range t.Hops[i].Replies {
			// What another trace saw tells of another flow's packets.
			if r := &t.Hops[i].Replies[j]; r.SharedFrom == "" && r.Exchange != nil {
				room = append(room, r)
			}
		}
		h := hop{t.Hops[i].TTL, room[first:len(room):len(room)]}
		slices.SortStableFunc(h.replies, func(a, b *trace.Reply) int { return a.Exchange.Sent.Compare(b.Exchange.Sent) })
		if len(h.replies) > 0 {
			p.hops = append(p.hops, h)
		}
	}
	return p
}

// router is the one address that answered here, in transit; invalid where several did, or
// something else than a router on the way.
func (h *hop) router() netip.Addr {
	for _, r := range h.replies {
		if r.Kind != trace.TimeExceeded || r.Addr != h.replies[0].Addr {
			return netip.Addr{}
		}
	}
	return h.replies[0].Addr
}

// gap says of each TTL between the two why nothing is known there.
func (p *path) gap(from, to int) (out []string) {
	for _, h := range p.Hops {
		if h.TTL <= from || h.TTL >= to {
			continue
		}
		i := slices.IndexFunc(p.hops, func(known hop) bool { return known.ttl == h.TTL })
		switch {
		case i >= 0 && slices.ContainsFunc(p.hops[i].replies, func(r *trace.Reply) bool { return r.Exchange.QuoteShort }):
			out = append(out, fmt.Sprintf("TTL %d unknown: its quote is too short to tell", h.TTL))
		case i >= 0:
			out = append(out, fmt.Sprintf("TTL %d unknown: its answer does not tell", h.TTL))
		case len(h.Replies) > 0:
			out = append(out, fmt.Sprintf("TTL %d unknown: another flow's trace measured it", h.TTL))
		default:
			out = append(out, fmt.Sprintf("TTL %d unknown: silent", h.TTL))
		}
	}
	return out
}
