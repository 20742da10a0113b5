package engine

import (
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

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
	if a.TTL != 0 && !a.Void {
		if p.Time.Sub(a.Sent) >= min(floor, r.soonestBehind(a.TTL-1, floor)) {
			e.hit(p, r, a)
			return
		}
		// Was it this attempt's answer, the TTL that was tried is not silent.
		r.reach.Void()
		r.tooSoon = true
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
			r.dest = nil // it is nearer than was proven
		}
		e.disprove(r, top)
		r.plan.SetBoundary(r.overshot(top) + 1)
		r.fence = r.reach.Lowest()
		e.schedule(r, p.Time)
	case r.lastReachAt.IsZero() && e.checkReached(r, soonest):
		e.noteAcknowledgement(r, nil, p.Time)
		r.mixed = true // a TTL that expired on the way before now reaches
	default:
		e.harmed(p.Time, r, harmDupAck)
	}
}

// disprove forgets a distance that is known of the destination, if that answered a probe of a
// lower TTL: until it is proven anew no other flow's fence rests on it.
func (e *Engine) disprove(r *run, ttl int) {
	if r.near.distance > ttl {
		r.near.distance = 0
	}
	if dst := r.flow.Key.Dst.Addr(); e.distances[dst].ttl > ttl {
		delete(e.distances, dst)
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

// lateBy is how much longer the least round trip that a flow has shown may be than its way
// is: a busy application answers late, and some have shown but a few.
const lateBy = 5 * time.Millisecond

// soonestBehind is the least time after which an answer from behind the router at that TTL can
// come, by that router's own; no less than the flow's round trips say, up to lateBy.
func (r *run) soonestBehind(ttl int, floor time.Duration) time.Duration {
	least := time.Duration(-1)
	for _, reply := range r.hop(ttl).replies {
		if reply.Kind == trace.TimeExceeded && (least < 0 || reply.RTT < least) {
			least = reply.RTT
		}
	}
	if least < 0 {
		return floor
	}
	return max(least*4/5, floor-lateBy)
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
				s.Acked = true
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
	e.stats.Replies.Matched++
	r.progressAt = p.Time
	e.schedule(r, p.Time)
}
