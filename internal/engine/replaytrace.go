package engine

import (
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/probe"
	"servicetraceroute/trace"
)

// probeSeen takes a probe of the flow into its trace, which begins with it.
func (e *Engine) probeSeen(p *capture.Packet, f *flow.Flow, s *probe.Sent) {
	now := p.Time
	a := e.match(now, f)
	awaited := a.words != nil && a.words.said.Awaited // who sent the probe knew more
	if a.watch == nil && !awaited || s.TTL > replayMaxTTL {
		return
	}
	if r := a.run; r != nil && r.endsBefore(now, s.TTL) {
		e.finish(now, r, trace.StopUnknown)
	}
	if e.replayed >= maxReplayed || a.run == nil && len(e.runs) >= maxReplays {
		return
	}
	if a.run == nil {
		e.begin(now, f, a)
	}
	r := a.run
	r.seen++
	e.replayed++
	s.At, s.Owner, s.Leg, s.Place = now, r, r.leg, r.place(s.TTL)
	s.Place.Interface = p.Interface
	if twin := e.sent.Same(s); twin != nil {
		e.spoil(twin)
		s.Answered = true
		e.sent.Add(now, s, r.params.Timeout)
		return
	}
	e.stats.Probes.Sent++
	s.Attempt = r.plan.Attempt(s.TTL)
	s.Reaching = r.mayReach(s.TTL)
	e.charge(now, r, s)
	e.sent.Add(now, s, r.params.Timeout)
	r.open = append(r.open, s)
	s.Hold()
	r.hop(s.TTL).sent++
	r.progressAt, r.probedAt = now, now
	e.schedule(r, now)
	switch {
	case s.Reaching:
		crowded := r.reach.Open().TTL != 0
		if crowded {
			r.reach.Void()
			r.reach.Miss(true)
		}
		r.plan.SentReaching(s.TTL, now)
		r.reach.Sent(s.TTL, now)
		if crowded {
			r.reach.Void() // an answer may be to either
		}
		r.lastReachAt, r.crossed = now, false
		r.near.reachedAt = now
	default:
		r.plan.Sent(s.TTL, now)
		if r.udp() && s.TTL > r.fence {
			r.fence = s.TTL // who sent it knew of a farther one
			r.plan.SetBoundary(max(r.plan.Boundary(), s.TTL+1))
		}
	}
}

// endsBefore reports whether the trace was over before a probe of that TTL: the next one
// asks again what this one knew. It is no longer, and holds no more, than a live one.
func (r *run) endsBefore(now time.Time, ttl int) bool {
	if now.Sub(r.probedAt) >= settledFor {
		r.resumedAt = now
	}
	again := now.Sub(r.resumedAt) < restartWithin && ttl <= r.reach.Lowest() && r.plan.Settled(ttl)
	return again || r.follows(now, ttl) || r.seen >= maxSeen || now.Sub(r.start) > hardLimit
}

// follows reports whether a probe of that TTL is none of this trace's: it came later than this
// one's would, and asks for what is known; or this is none, see lone.
func (r *run) follows(now time.Time, ttl int) bool {
	since := now.Sub(r.probedAt)
	if r.lone() {
		return since >= min(nextWithin+2*r.rtt(), sweepInterval*9/10)
	}
	return since >= sweepInterval*9/10 && ttl < r.reach.Lowest() && r.plan.Settled(ttl) && r.plan.Finished()
}

// nextWithin is how long after its first answer a trace sends the next probe, mostly much sooner.
const nextWithin = 150 * time.Millisecond

// lone reports whether what looks like a trace is a single probe behind the flow's traces: it
// only asked whether the path was still the same (sweep.go).
func (r *run) lone() bool { return r.seen == 1 && r.at.finished > 0 }

// charge charges the probe to its responder's bucket as if it had waited there: what a
// router's limit keeps silent is not called loss.
func (e *Engine) charge(now time.Time, r *run, s *probe.Sent) {
	if s.Reaching && s.TTL >= r.plan.Boundary() && !e.buckets.Answers(s.Place) {
		return
	}
	hop := noAddr
	if n := len(r.hop(s.TTL).replies); n > 0 {
		hop = r.hop(s.TTL).replies[n-1].Addr
	}
	s.Bucket = e.buckets.For(now, s.Place, hop)
	s.Bucket.Sent(s)
}

// mayReach reports whether a probe of that TTL is one of those that look for the
// destination, which go alone.
func (r *run) mayReach(ttl int) bool {
	if r.udp() {
		return false
	}
	return ttl >= r.plan.Boundary() || r.reach.Found() && ttl > r.reach.Lowest() && r.plan.Settled(ttl)
}

// shown reports whether the flow is one: both ends have spoken, or one for long. It may be
// over.
func shown(now time.Time, f *flow.Flow) bool {
	if f.Key.Proto == trace.UDP {
		return f.UDP.PacketsIn > 0 && f.UDP.PacketsOut > 0 || mute(now, f)
	}
	return f.TCP.Established || f.BytesIn+f.BytesOut > 0
}

// identify writes the record of a selected flow, once.
func (e *Engine) identify(now time.Time, f *flow.Flow, a *attachment) {
	if !a.told {
		a.told = true
		e.tell(now, f, a, trace.FlowMatched, 0)
	}
}

// renew lets the next connection of the same addresses and ports be another flow, with
// names of its own. A flow whose way was guessed was opened by its near end.
func (e *Engine) renew(f *flow.Flow, o *flow.Observation) {
	if a, ok := f.Attachment.(*attachment); ok && o.FirstSYN {
		a.told = false // what else was of the one before ownerOf forgot
	}
	if e.guessed && !f.TCP.SynOut && !f.TCP.SynIn {
		f.Direction = trace.Out
	}
}

// follow is work for a replayed trace: it is over when it has all it needs, or when no
// probe came for longer than a trace waits.
func (e *Engine) follow(now time.Time, r *run) {
	e.timeouts(now, r)
	next := r.probedAt.Add(patience)
	if end, open := r.attempt(now, max(probe.ReachingInterval, 2*r.rtt())); open {
		next = earliest(next, end)
	}
	e.prove(now, r)
	if stop, over := e.concluded(now, r); over {
		if now.Sub(r.probedAt) >= settledFor {
			e.finish(now, r, stop)
			return
		}
		next = earliest(next, r.probedAt.Add(settledFor))
	}
	if now.Sub(r.probedAt) >= patience {
		e.finish(now, r, trace.StopUnknown)
		return
	}
	for _, s := range r.open {
		next = earliest(next, s.At.Add(r.params.Timeout))
	}
	if !next.After(now) {
		next = now.Add(time.Millisecond)
	}
	e.schedule(r, next)
}

// concluded is what the trace came to, as far as the file shows; false while it may go on.
func (e *Engine) concluded(now time.Time, r *run) (trace.Stop, bool) {
	for _, s := range r.open {
		if !s.Answered {
			return 0, false
		}
	}
	if !r.plan.Finished() {
		return 0, false
	}
	return e.conclusion(now, r)
}

// ending is when and why a replayed trace ended, of which that is known only later.
func (e *Engine) ending(now time.Time, r *run, stop trace.Stop) (time.Time, trace.Stop) {
	e.replayed -= r.seen
	if r.at.watch != nil {
		e.identify(now, r.flow, r.at)
	}
	if told, over := e.concluded(now, r); over {
		stop = told
	}
	if stop != trace.StopFlowClosed && stop != trace.StopCancelled {
		now = r.progressAt
	}
	if now.Before(r.start) { // packets may be a little out of order
		now = r.start
	}
	return now, stop
}

// disown takes a trace out of the counters.
func (e *Engine) disown(t *trace.Trace) {
	e.stats.Traces.Started--
	e.stats.Traces.Done--
	if e.stats.Traces.ByStop[t.Stop]--; e.stats.Traces.ByStop[t.Stop] == 0 {
		delete(e.stats.Traces.ByStop, t.Stop)
	}
	for _, h := range t.Hops {
		e.stats.Probes.Sent -= uint64(h.Sent)
		e.stats.Replies.Matched -= uint64(len(h.Replies))
	}
}
