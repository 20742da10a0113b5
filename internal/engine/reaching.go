package engine

import (
	"time"

	"servicetraceroute/internal/probe"
	"servicetraceroute/trace"
)

// reaching sends the next probe that may reach the destination if the flow
// permits it now, and returns when to ask again. A bucket that granted one before, after
// others that waited longer, is asked no more.
func (e *Engine) reaching(now time.Time, r *run, granted *probe.Bucket) time.Time {
	if r.fenced() {
		return e.later(now)
	}
	interval := max(probe.ReachingInterval, 2*r.rtt()) + r.near.spread
	if end, open := r.attempt(now, interval); open {
		return end
	}
	if r.dest != nil || r.stopAt != 0 || !e.reachAllowed(now, r) {
		return e.later(now)
	}
	ttl, at, ok := r.reach.Next(interval)
	if !ok {
		return e.later(now)
	}
	if before := min(ttl, r.plan.Boundary()) - 1; r.tooSoon && before >= r.params.FirstTTL && !r.plan.Settled(before) {
		return e.later(now) // the router before the destination tells how soon that can answer
	}
	if last := r.near.reachedAt; !last.IsZero() && at.Before(last.Add(interval)) {
		at = last.Add(interval) // also after a restart, and after another trace of the flow
	}
	if at.After(now) {
		return at
	}
	if at = e.reachGate(now, r); at.After(now) {
		return at
	}
	var bucket *probe.Bucket
	place := r.place(ttl)
	if ttl < r.plan.Boundary() {
		// Most likely a router that has not answered: it is asked in the
		// algorithm's order first, and within its allowance.
		bucket = e.buckets.For(now, place, noAddr)
		if !r.plan.Settled(ttl) {
			return e.later(now)
		}
		if r.leftOut(ttl) {
			r.anchor()
			return now.Add(idleLook)
		}
	} else if e.buckets.Answers(place) {
		bucket = e.buckets.For(now, place, noAddr) // a router is there for other flows
	}
	if !e.budget.available(now) { // before a token is taken for nothing
		return now.Add(max(e.budget.turn(len(e.runs)), time.Millisecond))
	}
	if bucket != nil && bucket != granted && (r.asking != nil || !bucket.Take(now)) {
		e.ask(r, ttl, bucket, place)
		return e.later(now)
	}
	reachedBefore, lastBefore := r.near.reachedAt, r.lastReachAt
	if e.send(now, r, ttl, bucket, place, true) {
		r.reachedBefore, r.lastReachBefore = reachedBefore, lastBefore
		// The spread keeps probes from meeting an application's own rhythm each time.
		r.lastReachAt, r.crossed, r.spent = now, false, now.Before(r.answerable())
		r.near.reachedAt = now
		r.near.spread = time.Duration(e.rng.Int64N(int64(reachSpread)))
		r.reachDue = time.Time{}
	}
	return now.Add(interval)
}

// attempt gives up the outstanding attempt after the interval; else it returns when.
func (r *run) attempt(now time.Time, interval time.Duration) (end time.Time, open bool) {
	a := r.reach.Open()
	if a.TTL == 0 {
		return end, false
	}
	if end = a.Sent.Add(interval); now.Before(end) {
		return end, true
	}
	if r.spent {
		r.reach.Void()
	}
	r.reach.Miss(r.crossed || r.dataOutAt.After(a.Sent.Add(-r.rtt())))
	r.plan.Lost(a.TTL)
	return end, false
}

// reachAllowed reports whether reaching probes are part of this trace now: the
// paper's sequential algorithms come to them last.
func (e *Engine) reachAllowed(now time.Time, r *run) bool {
	if e.breaker.open(now, r.flow.Key.Dst.Addr()) || r.impact.Aborted {
		return false
	}
	switch r.params.Algorithm {
	case trace.PacketByPacket, trace.HopByHop:
		return r.plan.Finished() && !r.plan.SilentHops()
	default:
		return true
	}
}

// reachGate returns when a reaching probe may go: not before the peer has shown
// that its connection stands, not while segments are being lost, and rather
// while the local stack is quiet.
func (e *Engine) reachGate(now time.Time, r *run) time.Time {
	t := r.flow.TCP
	spoke := t.PeerSpoke
	if r.flow.Direction == trace.In {
		spoke = t.PeerData
	}
	if !spoke {
		// A server in SYN-cookie mode that missed our third segment knows nothing of
		// the flow, says nothing, and would answer with a reset.
		return e.later(now)
	}
	rtt := r.rtt()
	if !r.retransAt.IsZero() {
		if calm := r.retransAt.Add(max(2*rtt, 500*time.Millisecond)); now.Before(calm) {
			return calm
		}
	}
	if !t.SACK {
		// A local stack without SACK counts acknowledgements. The destination's answer is
		// one too many: taken in while data is under way and something is missing, it
		// raises the count that the next loss has to reach (TCPRenoReorder), and what
		// would be a fast retransmission becomes a timeout.
		still := rtt
		if t.NoSACK() {
			still = max(time.Second, 4*rtt)
		}
		if quiet := r.flow.DataOut().Add(still); t.Nxt != t.Una || now.Before(quiet) {
			return e.later(now)
		}
	}
	if r.reachDue.IsZero() {
		r.reachDue = now
	}
	if at := r.answerable(); now.Before(at) && now.Before(r.reachDue.Add(spentWait)) {
		return at
	}
	if quiet := r.dataOutAt.Add(rtt); now.Before(quiet) && now.Before(r.reachDue.Add(quietWait)) {
		return quiet
	}
	return now
}

// answerable is when the peer answers what is old again: Linux does so once in 500 ms
// and socket, and a keepalive asks for the same answer as a probe.
func (r *run) answerable() time.Time { return r.flow.OldOut().Add(probe.ReachingInterval) }
