package finding

import (
	"fmt"
	"slices"
	"strings"

	"servicetraceroute/trace"
)

// says is what one answer says of one kind of change: empty: nothing was changed.
type says struct {
	value string
	known bool // the quote reaches far enough to tell
	weak  bool // something else may look alike
}

// quoteRule reads a kind of change from an answer.
type quoteRule struct {
	kind trace.FindingKind
	read func(p *path, r *trace.Reply) says
}

var quoteRules = []quoteRule{
	{trace.NATSrc, natSrc},
	{trace.NATDst, natDst},
	{trace.NATPort, natPort},
	{trace.SeqRewritten, seqRewritten},
	{trace.DSCPChanged, dscpChanged},
	{trace.ECNSet, ecnSet},
	{trace.TTLMangled, quotedTTL},
	{trace.MPLS, labels},
}

// quotes finds where a kind of change first appears, and where it becomes another.
func (p *path) quotes(rule quoteRule) (out []*trace.Finding) {
	from := 0 // the host itself: what was sent
	var found []string
	for i := range p.hops {
		s := p.at(i, rule)
		if !s.known {
			continue
		}
		if s.value != "" && !slices.Contains(found, s.value) {
			found = append(found, s.value)
			f := &trace.Finding{Kind: rule.kind, TTLFrom: from, TTL: p.hops[i].ttl, Value: s.value}
			f.Evidence = []string{fmt.Sprintf("TTL %d: %v quotes it so", f.TTL, s.by.Addr)}
			f.Confidence = p.trust(i, rule, s, f)
			out = append(out, f)
		}
		from = p.hops[i].ttl
	}
	return out
}

// hopSays is what the answers of a hop say.
type hopSays struct {
	says
	by       *trace.Reply // who says so first
	agree    int          // answers that say the same
	disagree bool         // others say otherwise
}

// at is what a hop says: the first answer that tells of a change, else whether one could.
func (p *path) at(i int, rule quoteRule) (s hopSays) {
	for _, r := range p.hops[i].replies {
		if isQuote := r.Kind != trace.TCPAck && r.Kind != trace.TCPRst && r.Kind != trace.PacketTooBig; !isQuote {
			continue
		}
		one := rule.read(p, r)
		switch {
		case !one.known:
		case !s.known:
			s = hopSays{says: one, by: r, agree: 1}
		case s.value == one.value:
			s.agree++
		case s.value == "":
			s = hopSays{says: one, by: r, agree: 1, disagree: true}
		default:
			s.disagree = true
		}
	}
	return s
}

// trust holds a change against the hops beyond, and puts into the finding what they say.
func (p *path) trust(i int, rule quoteRule, s hopSays, f *trace.Finding) float64 {
	same, clean := 0, 0
	for j := i + 1; j < len(p.hops); j++ {
		switch later := p.at(j, rule); {
		case !later.known:
		case later.value == "":
			clean++
		case later.value == s.value:
			same++
		}
	}
	if same > 0 {
		f.Evidence = append(f.Evidence, fmt.Sprintf("the same at %d farther TTLs", same))
	}
	if clean > 0 {
		f.Evidence = append(f.Evidence, fmt.Sprintf("not at %d farther TTLs", clean))
	}
	// Labels end where their tunnel does.
	gone := clean > 0 && rule.kind != trace.MPLS
	switch {
	case s.disagree:
		f.Evidence = append(f.Evidence, "not all answers of this TTL say so")
		return contradicts
	case gone:
		return contradicts
	case s.weak:
		return guessed
	case same > 0 || s.agree > 1:
		return seen
	}
	return seenOnce
}

func natSrc(p *path, r *trace.Reply) says {
	q, was := r.Exchange.Quoted, p.Flow.Wire().Src.Addr()
	switch {
	case q != nil && q.Src.Addr() != was:
		return says{value: fmt.Sprintf("%v became %v", was, q.Src.Addr()), known: true}
	case r.Addr == p.Flow.Wire().Dst.Addr():
		return says{} // behind a destination NAT the quote's checksum is its concern
	case q != nil && q.Stale:
		return says{value: "rewritten, and put back in the quotes without their checksum", known: true, weak: true}
	case r.Exchange.QuoteShort && p.Flow.Proto == trace.TCP && p.stales():
		return says{}
	}
	return says{known: true}
}

// stales reports whether some quote was put back without its checksum: then one that does not
// hold it cannot tell.
func (p *path) stales() bool {
	for _, h := range p.hops {
		for _, r := range h.replies {
			if q := r.Exchange.Quoted; q != nil && q.Stale {
				return true
			}
		}
	}
	return false
}

// A host does not forward what is its own: behind a destination NAT all errors bear the
// address that the flow was sent to.
func natDst(p *path, r *trace.Reply) says {
	was := p.Flow.Wire().Dst.Addr()
	switch q := r.Exchange.Quoted; {
	case q != nil && q.Dst.Addr() != was:
		return says{value: fmt.Sprintf("%v became %v", was, q.Dst.Addr()), known: true}
	case r.Kind != trace.TimeExceeded:
		return says{}
	case r.Addr == was:
		return says{value: fmt.Sprintf("routers from here on answer as %v", was), known: true}
	}
	return says{known: true}
}

func natPort(p *path, r *trace.Reply) says {
	q, was := r.Exchange.Quoted, p.Flow.Wire()
	if q == nil || q.Src.Port() == was.Src.Port() && q.Dst.Port() == was.Dst.Port() {
		return says{known: true}
	}
	var parts []string
	for _, end := range []struct {
		name     string
		was, now uint16
	}{{"source", was.Src.Port(), q.Src.Port()}, {"destination", was.Dst.Port(), q.Dst.Port()}} {
		if end.was != end.now {
			parts = append(parts, fmt.Sprintf("%s %d became %d", end.name, end.was, end.now))
		}
	}
	return says{value: strings.Join(parts, ", "), known: true}
}

func seqRewritten(_ *path, r *trace.Reply) says {
	if q := r.Exchange.Quoted; q != nil && q.SeqShift != 0 {
		return says{value: fmt.Sprintf("shifted by %d", q.SeqShift), known: true}
	}
	return says{known: true}
}

const ecnMask = 3

func dscpChanged(_ *path, r *trace.Reply) says {
	if was, now := r.Exchange.ProbeTOS>>2, r.Exchange.QuoteTOS>>2; was != now {
		return says{value: fmt.Sprintf("%d became %d", was, now), known: true}
	}
	return says{known: true}
}

func ecnSet(_ *path, r *trace.Reply) says {
	names := [4]string{"", "ECT(1)", "ECT(0)", "CE"} // RFC 3168 section 5
	if now := r.Exchange.QuoteTOS & ecnMask; now != r.Exchange.ProbeTOS&ecnMask {
		return says{value: names[now], known: true}
	}
	return says{known: true}
}

// A packet expires with 1 left, or with 0 where the router counts before it quotes.
func quotedTTL(_ *path, r *trace.Reply) says {
	if r.Kind != trace.TimeExceeded || len(r.MPLS) > 0 { // a tunnel that shows itself need not count
		return says{}
	}
	if r.Exchange.QuoteTTL > 1 {
		return says{value: fmt.Sprintf("expired with a TTL of %d", r.Exchange.QuoteTTL), known: true, weak: true}
	}
	return says{known: true}
}

func labels(_ *path, r *trace.Reply) says {
	if r.Kind != trace.TimeExceeded {
		return says{}
	}
	var parts []string
	for _, l := range r.MPLS {
		parts = append(parts, fmt.Sprintf("label %d TC %d TTL %d", l.Label, l.TC, l.TTL))
	}
	return says{value: strings.Join(parts, ", "), known: true}
}
