package engine

import (
	"net/netip"
	"slices"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

var noAddr netip.Addr

// icmp takes in an ICMP error: an answer to a probe, or nothing of ours.
func (e *Engine) icmp(p *capture.Packet) {
	var m wire.ICMP
	var q wire.Quote
	if err := m.Decode(e.ip.Version, e.ip.Transport); err != nil {
		e.stats.Packets.Malformed++
		return
	}
	if _, ok := replyKind(m.Kind); !ok {
		return
	}
	if err := q.Decode(m.Quote); err != nil {
		e.stats.Packets.Malformed++
		return
	}
	if e.ours != nil && q.HasPorts && e.ours(q.SrcPort, q.Dst) {
		return
	}
	r := probe.Reply{
		At: p.Time, From: e.ip.Src, TTL: e.ip.TTL, Kind: m.Kind, MTU: m.MTU,
		Quote: retained(&q),
		TOS:   e.ip.TOS, ID: e.ip.ID, Len: e.ip.Len, Type: m.Type, Code: m.Code,
	}
	if len(m.Extensions) > 0 {
		r.MPLS, r.Info = wire.AppendMPLS(nil, m.Extensions), wire.AppendInterfaceInfo(nil, m.Extensions)
	}
	fits, known := q.TCPChecksumFits()
	r.Short, r.Stale = !known, known && !fits
	switch s, verdict := e.sent.Match(&q); verdict {
	case probe.Exact:
		t := s.Owner.(*run)
		r.Serial = e.noteError(p, &m, &q, t.id, !s.Answered)
		e.answer(s, r)
		e.heardAnyway(t, s, r)
	default:
		e.tooBig(&r)
		t := e.runOf(&r.Quote)
		r.Serial = e.noteError(p, &m, &q, e.idOf(t, &r.Quote), false)
		e.doubtful(t, r)
		e.heardAnyway(t, s, r)
	}
}

// doubtful handles a quote that no probe explains exactly. If it is about a
// traced flow, the flow's jury hears it.
func (e *Engine) doubtful(t *run, r probe.Reply) {
	var open []*probe.Sent
	if t != nil {
		open = t.open
	} else if s := e.sweepOf(&r.Quote); s != nil && s.run.jury.Decided() {
		t, open = s.run, s.open // as the trace's jury had it
	}
	if t == nil {
		e.noteUnmatched(r.Serial)
		return
	}
	if t.udp() {
		e.stats.Replies.Unmatched++
		e.noteUnmatched(r.Serial)
		return
	}
	believed := t.jury.Hear(r, open)
	if len(believed) == 0 {
		e.stats.Replies.Unmatched++
		if t.jury.Guessing() {
			e.noteUnmatched(r.Serial)
		}
		if (r.Kind == wire.HostUnreachable || r.Kind == wire.NetUnreachable) && heard(t.flow, &r.Quote) {
			e.harmed(r.At, t, harmUnreachable)
		}
		return
	}
	// All but the newest were no match when they came.
	e.stats.Replies.Unmatched -= uint64(len(believed) - 1)
	for _, b := range believed {
		if b.Sent.Leg != sweepLeg {
			t.hop(b.Sent.TTL).believed = true
		}
		e.answer(b.Sent, b.Reply)
	}
}

// sweepOf finds the sweep of the flow that a quote is about; nil: there is none.
func (e *Engine) sweepOf(q *wire.Quote) *sweep {
	key, ok := about(q)
	if !ok {
		return nil
	}
	f := e.table.Get(key)
	if f == nil {
		return nil
	}
	a, ok := f.Attachment.(*attachment)
	if !ok || a.run != nil {
		return nil
	}
	return a.sweep
}

// heard reports whether the flow's own socket believes an error with that quote:
// its kernel does when the sequence number is in flight (RFC 5927 section 4.1).
func heard(f *flow.Flow, q *wire.Quote) bool {
	return q.HasSeq && q.Src == f.Key.Src.Addr() && q.SrcPort == f.Key.Src.Port() && f.TCP.HaveUna && f.TCP.HaveNxt &&
		!wire.SeqLess(q.Seq, f.TCP.Una) && !wire.SeqLess(f.TCP.Nxt, q.Seq)
}

// idOf is the id of a trace, or of the one that is about to begin in the flow of which the
// quote tells; empty: there is none.
func (e *Engine) idOf(t *run, q *wire.Quote) string {
	if t != nil {
		return t.id
	}
	if key, ok := about(q); ok {
		if f := e.table.Get(key); f != nil {
			if a, ok := f.Attachment.(*attachment); ok {
				return a.coming
			}
		}
	}
	return ""
}

// runOf finds the trace whose flow a quote is about. The quoted source may have
// been translated without being translated back, so the destination decides
// where the full tuple does not.
func (e *Engine) runOf(q *wire.Quote) *run {
	key, ok := about(q)
	if !ok {
		return nil
	}
	if f := e.table.Get(key); f != nil {
		if a, ok := f.Attachment.(*attachment); ok && a.run != nil {
			return a.run
		}
		return nil
	}
	var found *run
	for _, r := range e.runsTo[key.Dst] {
		if len(r.open) > 0 && r.flow.Key.Proto == key.Proto {
			if found != nil {
				return nil // cannot tell which
			}
			found = r
		}
	}
	return found
}

// answer credits a reply to the probe it is about. The first answer wins.
func (e *Engine) answer(s *probe.Sent, r probe.Reply) {
	t, _ := s.Owner.(*run)
	if s.Acked && r.Kind == wire.TimeExceeded && t != nil && t.index >= 0 && s.Leg == t.leg {
		e.withdraw(t, s)
	}
	if s.Answered {
		e.stats.Replies.Duplicate++
		e.noteAnswer(s, &r, Duplicate, false)
		return
	}
	s.Answered = true
	if t != nil && s.Leg == sweepLeg {
		e.noteAnswer(s, &r, Answered, false)
		e.confirm(t, s, r)
		return
	}
	if t == nil || t.index < 0 || s.Leg != t.leg {
		e.stats.Replies.Late++
		e.noteAnswer(s, &r, Answered, true)
		return
	}
	e.noteAnswer(s, &r, Answered, s.Timeout)
	kind, _ := replyKind(r.Kind)
	e.stats.Replies.Matched++
	if s.Bucket != nil {
		e.buckets.Answer(r.At, s, r.From)
	}
	if s.Timeout {
		e.stats.Replies.Late++
	} else {
		t.plan.Answered(s.TTL, s.At)
	}
	if s.UDP {
		t.passed(s)
	}
	h := t.hop(s.TTL)
	h.replies = append(h.replies, trace.Reply{
		Addr: r.From, RTT: max(r.At.Sub(s.At), 0), Kind: kind, ReplyTTL: int(r.TTL),
		MPLS: labels(r.MPLS), Changes: changes(s, &r), Late: s.Timeout,
		Exchange: t.exchange(trace.Exchange{
			Sent: s.At, Attempt: s.Attempt + 1, ProbeLen: s.Len, ProbeTOS: s.TOS,
			ReplyLen: r.Len, ReplyTOS: r.TOS, ReplyID: r.ID, ICMPType: r.Type, ICMPCode: r.Code, MTU: r.MTU,
			QuoteTTL: r.Quote.TTL, QuoteTOS: r.Quote.TOS, QuoteLen: r.Quote.Len,
			QuoteShort: r.Short, Quoted: quoted(s, &r), Interfaces: interfaces(r.Info),
		}),
	})
	e.chargeMisses(r.At, h)
	t.progressAt = r.At
	if r.Kind == wire.TimeExceeded {
		e.saw(r.At, t, s, r.From)
		e.expired(t, s, r)
	} else {
		e.unreachable(t, s, r)
	}
	e.schedule(t, r.At)
}

// exchange keeps one for the record, several of a trace in one piece.
func (r *run) exchange(x trace.Exchange) *trace.Exchange {
	const atOnce = 12 // about as many as a path has hops
	if len(r.exchanges) == cap(r.exchanges) {
		r.exchanges = make([]trace.Exchange, 0, atOnce)
	}
	r.exchanges = append(r.exchanges, x)
	return &r.exchanges[len(r.exchanges)-1]
}

// withdraw takes back that the destination answered a probe: the acknowledgement was
// another's, if the probe died on its way.
func (e *Engine) withdraw(r *run, s *probe.Sent) {
	s.Answered, s.Acked = false, false
	h := r.hop(s.TTL)
	for i := range h.replies {
		if h.replies[i].Kind == trace.TCPAck && h.replies[i].Exchange.Sent.Equal(s.At) {
			h.replies = slices.Delete(h.replies, i, i+1)
			r.plan.Unlost(s.TTL)
			e.stats.Replies.Matched--
			break
		}
	}
	if r.dest != nil && r.dest.By == trace.DestinationByAck && r.dest.TTL <= s.TTL {
		r.dest, r.near.distance = nil, 0
		delete(e.distances, r.flow.Key.Dst.Addr())
	}
}

// expired handles a Time Exceeded: the destination is farther than that TTL.
func (e *Engine) expired(t *run, s *probe.Sent, r probe.Reply) {
	if t.dest != nil && s.TTL >= t.dest.TTL {
		t.mixed = true // the destination answered at that TTL before
	}
	t.reach.Expired(s.TTL)
	switch {
	case t.closed():
		e.bound(r.At, t)
	case t.fenced():
		t.advanceFence(s.TTL, probe.Distance(r.TTL))
	case s.TTL >= t.plan.Boundary():
		t.plan.SetBoundary(s.TTL + 1)
	}
	if t.isBorder(r.From) {
		t.plan.Limit(s.TTL)
		t.stopAt = trace.StopBorder
		if t.dest != nil && t.dest.TTL > s.TTL { // it answered first, from beyond
			t.dest = nil
		}
	}
}

// unreachable handles an ICMP error that ends the path.
func (e *Engine) unreachable(t *run, s *probe.Sent, r probe.Reply) {
	if r.Kind == wire.PacketTooBig {
		return // an empty segment that is too big says nothing of the end
	}
	t.plan.Limit(s.TTL)
	// Only routers say that a net or a host is out of reach: the address that such a one
	// bears is the flow's where it is behind a destination NAT.
	if r.From == t.flow.Key.Dst.Addr() && r.Kind != wire.NetUnreachable && r.Kind != wire.HostUnreachable {
		if t.dest != nil && t.dest.TTL <= s.TTL {
			return // a nearer probe came there, too
		}
		e.disprove(t, s.TTL)
		t.dest = &trace.Destination{TTL: s.TTL, RTT: max(r.At.Sub(s.At), 0), By: trace.DestinationByICMP}
		t.plan.SetBoundary(s.TTL)
		return
	}
	t.stopAt = trace.StopUnreachable
}

// replyKind translates an ICMP message into a record's word.
func replyKind(k wire.ICMPKind) (trace.ReplyKind, bool) {
	switch k {
	case wire.TimeExceeded:
		return trace.TimeExceeded, true
	case wire.NetUnreachable:
		return trace.NetUnreachable, true
	case wire.HostUnreachable:
		return trace.HostUnreachable, true
	case wire.PortUnreachable:
		return trace.PortUnreachable, true
	case wire.AdminProhibited:
		return trace.AdminProhibited, true
	case wire.OtherUnreachable:
		return trace.Unreachable, true
	case wire.PacketTooBig:
		return trace.PacketTooBig, true
	}
	return 0, false
}
