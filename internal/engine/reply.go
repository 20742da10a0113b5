package engine

import (
	"net/netip"
	"time"

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
	r := probe.Reply{
		At: p.Time, From: e.ip.Src, TTL: e.ip.TTL, Kind: m.Kind, MTU: m.MTU,
		Quote: retained(&q), HasInfo: wire.HasInterfaceInfo(m.Extensions),
		TOS: e.ip.TOS, ID: e.ip.ID, Len: e.ip.Len, Type: m.Type, Code: m.Code,
	}
	if len(m.Extensions) > 0 {
		r.MPLS = wire.AppendMPLS(nil, m.Extensions)
	}
	switch s, verdict := e.sent.Match(&q); verdict {
	case probe.Exact:
		t := s.Owner.(*run)
		r.Serial = e.noteError(p, &m, &q, t.id, !s.Answered)
		e.answer(s, r)
		e.heardAnyway(t, s, r)
	default:
		t := e.runOf(&r.Quote)
		r.Serial = e.noteError(p, &m, &q, e.idOf(t, &r.Quote), false)
		e.doubtful(t, r)
		e.heardAnyway(t, s, r)
	}
}

// doubtful handles a quote that no probe explains exactly. If it is about a
// traced flow, the flow's jury hears it.
func (e *Engine) doubtful(t *run, r probe.Reply) {
	if t == nil {
		e.noteUnmatched(r.Serial)
		return
	}
	if t.udp() {
		e.stats.Replies.Unmatched++
		e.noteUnmatched(r.Serial)
		return
	}
	believed := t.jury.Hear(r, t.open)
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
		e.answer(b.Sent, b.Reply)
	}
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
	if s.Answered {
		e.stats.Replies.Duplicate++
		e.noteAnswer(s, &r, Duplicate, false)
		return
	}
	t, _ := s.Owner.(*run)
	s.Answered = true
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
		Exchange: &trace.Exchange{
			Sent: s.At, Attempt: s.Attempt + 1, ProbeLen: s.Len, ProbeTOS: s.TOS,
			ReplyLen: r.Len, ReplyTOS: r.TOS, ReplyID: r.ID, ICMPType: r.Type, ICMPCode: r.Code, MTU: r.MTU,
			QuoteTTL: r.Quote.TTL, QuoteTOS: r.Quote.TOS, QuoteLen: r.Quote.Len,
		},
	})
	h.sentAt = append(h.sentAt, s.At)
	t.progressAt = r.At
	if r.Kind == wire.TimeExceeded {
		e.expired(t, s, r)
	} else {
		e.unreachable(t, s, r)
	}
	e.schedule(t, r.At)
}

// expired handles a Time Exceeded: the destination is farther than that TTL.
func (e *Engine) expired(t *run, s *probe.Sent, r probe.Reply) {
	if t.dest != nil && s.TTL >= t.dest.TTL {
		t.mixed = true // the destination answered at that TTL before
	}
	t.reach.Expired(s.TTL)
	switch {
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
		t.dest = &trace.Destination{TTL: s.TTL, RTT: max(r.At.Sub(s.At), 0), By: trace.DestinationByICMP}
		t.plan.SetBoundary(s.TTL)
		return
	}
	t.stopAt = trace.StopUnreachable
}

// destinationReply handles a pure acknowledgement from the peer that repeats the
// one before: the destination's own answer to an old segment, if a probe can
// have caused it and nothing else has.
func (e *Engine) destinationReply(p *capture.Packet, r *run) {
	rtt := r.rtt()
	floor := soonestAnswer(r.flow)
	soonest := func(sent time.Time) bool { return p.Time.Sub(sent) >= floor }
	a := r.reach.Open()
	answer := rtt*3/2 + 10*time.Millisecond // the longest that one takes
	if r.noiseAt.After(p.Time.Add(-answer)) {
		if r.noiseAt.Before(a.Sent.Add(answer)) { // else the attempt's own would be here
			r.reach.Void()
		}
		return
	}
	if a.TTL != 0 && !a.Void && soonest(a.Sent) {
		e.hit(p, r, a)
		return
	}
	top := 0
	for _, s := range r.open {
		if !s.Answered && !s.Reaching && s.TTL > r.reach.Lowest() && soonest(s.At) {
			top = max(top, s.TTL)
		}
	}
	switch {
	case top > 0:
		e.noteAcknowledgement(r, nil, p.Time)
		r.reach.Overshot(top)
		if r.dest != nil && top < r.dest.TTL {
			r.dest, r.near.distance = nil, 0 // it is nearer than was proven
		}
		r.plan.SetBoundary(r.reach.Lowest() + 1)
		r.fence = r.reach.Lowest()
		e.schedule(r, p.Time)
	case r.lastReachAt.IsZero() && e.checkReached(r, soonest):
		e.noteAcknowledgement(r, nil, p.Time)
		r.mixed = true // a TTL that expired on the way before now reaches
	default:
		e.harmed(p.Time, r, harmDupAck)
	}
}

// soonestAnswer is the least time after which an answer to a probe can come: 0.8
// of the least round trip. What the two stacks need to make and take in a segment
// varies by some hundred microseconds, which is all there is on a short path.
func soonestAnswer(f *flow.Flow) time.Duration {
	_, least, ok := f.TCP.RTT()
	if !ok {
		return 0
	}
	return max(min(least*4/5, least-500*time.Microsecond), 0)
}

// checkReached reports whether a probe is outstanding whose TTL expired on the
// way before.
func (e *Engine) checkReached(r *run, soonest func(time.Time) bool) bool {
	for _, s := range r.open {
		if !s.Answered && s.TTL <= r.reach.Lowest() && len(r.hop(s.TTL).replies) > 0 && soonest(s.At) {
			return true
		}
	}
	return false
}

// hit credits the destination's answer to the one reaching probe outstanding.
func (e *Engine) hit(p *capture.Packet, r *run, a probe.Attempt) {
	exchange := &trace.Exchange{
		Sent: a.Sent, Attempt: 1, ReplyLen: e.ip.Len, ReplyTOS: e.ip.TOS, ReplyID: e.ip.ID, TCPFlags: uint8(wire.ACK),
	}
	for _, s := range r.open {
		if s.Reaching && s.TTL == a.TTL && !s.Answered && s.Leg == r.leg {
			if s.At.Equal(a.Sent) {
				exchange.Attempt, exchange.ProbeLen, exchange.ProbeTOS = s.Attempt+1, s.Len, s.TOS
				e.noteAcknowledgement(r, s, p.Time)
			} else {
				e.noteFate(s, Silent) // an earlier attempt, given up
			}
			s.Answered = true
		}
	}
	busy := r.before.After(a.Sent.Add(-r.rtt()))
	r.noisy = r.noisy || busy
	r.reach.Hit(p.Time, busy)
	r.plan.Lost(a.TTL) // no router answered there
	h := r.hop(a.TTL)
	h.replies = append(h.replies, trace.Reply{
		Addr: r.flow.Key.Dst.Addr(), RTT: p.Time.Sub(a.Sent), Kind: trace.TCPAck, ReplyTTL: int(e.ip.TTL),
		Exchange: exchange,
	})
	h.sentAt = append(h.sentAt, a.Sent)
	e.stats.Replies.Matched++
	r.progressAt = p.Time
	e.schedule(r, p.Time)
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

func labels(stack []wire.MPLSLabel) []trace.Label {
	var out []trace.Label
	for _, l := range stack {
		out = append(out, trace.Label{Label: l.Label, TC: l.TC, S: l.S, TTL: l.TTL})
	}
	return out
}

// changes names what differs between the quote and the probe as sent.
func changes(s *probe.Sent, r *probe.Reply) []trace.FindingKind {
	var out []trace.FindingKind
	add := func(yes bool, kind trace.FindingKind) {
		if yes {
			out = append(out, kind)
		}
	}
	d := s.Differences(&r.Quote)
	add(d.NATSrc, trace.NATSrc)
	// A host does not forward what is its own: behind a destination NAT all errors bear
	// the address that the flow was sent to (Linux translates their source as well).
	add(d.NATDst || r.Kind == wire.TimeExceeded && r.From == s.Dst.Addr(), trace.NATDst)
	add(d.NATPort, trace.NATPort)
	add(d.Seq, trace.SeqRewritten)
	add(d.DSCP, trace.DSCPChanged)
	add(d.ECN, trace.ECNSet)
	add(len(r.MPLS) > 0, trace.MPLS)
	add(r.HasInfo, trace.InterfaceInfo)
	add(r.Kind == wire.PacketTooBig, trace.MTU)
	return out
}
