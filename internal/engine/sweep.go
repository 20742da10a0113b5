package engine

import (
	"container/heap"
	"net/netip"
	"slices"
	"time"

	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// Between the traces of a live flow (Policy.Retrace) single probes confirm its path, one TTL
// after another, for as long as the flow carries packets. An answer of another router begins
// a trace at once. docs/decisions/0051-following.md has the reasons.

const (
	sweepInterval = 500 * time.Millisecond // between two probes of a flow
	sweepHop      = time.Second            // between two of one TTL
	sweepBusy     = 5 * time.Second        // a flow that is silent for longer is left alone
	sweepStalled  = time.Minute            // one that waits for what is missing, after so long
	sweepLeg      = -1                     // marks the probes: no trace has such a leg
	localiseEvery = 4                      // probes it is looked whether more can be said of where delay or loss begins
	// sweepPart of the process's rate is for flows that are followed, each with two a second.
	sweepPart = 5
)

// sweep confirms the path of one flow.
type sweep struct {
	run      *run  // the trace whose path it is
	ttls     []int // that answered
	believed []int // of those: whose answers were told by others that bear the same shift
	back     int   // the distance of the destination as its packets told it then
	next     int
	turn     int   // raised by each probe
	near     []int // TTLs that two of three probes go to, while loss begins somewhere there
	nextNear int
	at       time.Time     // when the next probe is due
	index    int           // in the queue; negative: it is over
	open     []*probe.Sent // that may be answered yet
}

// sweepQueue is a heap of sweeps by the time at which their next probe is due.
type sweepQueue []*sweep

func (q sweepQueue) Len() int           { return len(q) }
func (q sweepQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q sweepQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push implements heap.Interface.
func (q *sweepQueue) Push(x any) {
	s := x.(*sweep)
	s.index = len(*q)
	*q = append(*q, s)
}

// Pop implements heap.Interface.
func (q *sweepQueue) Pop() any {
	old := *q
	s := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	s.index = -1
	return s
}

// sweepFrom follows the path that a trace found, if the flow goes on and is to be traced
// again.
func (e *Engine) sweepFrom(now time.Time, r *run, t *trace.Trace) {
	if r.flow.Closed() {
		r.at.forgetSamples()
	}
	if r.watch.policy(r.at.service.Name).Retrace <= 0 || e.cfg.Replay || r.flow.Closed() || t.Stop == trace.StopRefused ||
		t.Stop == trace.StopCancelled || t.Impact.Aborted {
		return
	}
	if len(e.sweeps) >= max(e.cfg.Rate/(2*sweepPart), 1) {
		e.stats.Traces.Unfollowed++
		return
	}
	s := &sweep{run: r, at: now.Add(sweepInterval), back: distance(r.flow)}
	for _, h := range t.Hops {
		if t.Destination != nil && t.Destination.TTL > 0 && h.TTL >= t.Destination.TTL {
			break
		}
		if slices.ContainsFunc(h.Replies, func(x trace.Reply) bool { return x.Kind == trace.TimeExceeded && x.SharedFrom == "" }) {
			s.ttls = append(s.ttls, h.TTL)
			if r.hop(h.TTL).believed {
				s.believed = append(s.believed, h.TTL)
			}
		}
	}
	if len(s.ttls) == 0 {
		return
	}
	r.at.sweep = s
	heap.Push(&e.sweeps, s)
}

// endSweep follows the flow's path no more, until the next trace has found it.
func (e *Engine) endSweep(a *attachment) {
	if s := a.sweep; s != nil && s.index >= 0 {
		heap.Remove(&e.sweeps, s.index)
		for _, p := range s.open {
			p.Drop()
		}
		s.open = nil
	}
	a.sweep = nil
}

// forgetSamples frees what sweeps measured, 2 KiB for each hop: none follows.
func (a *attachment) forgetSamples() {
	if a.path != nil {
		a.path.samples = samples{}
	}
}

// sweepDue sends the probes that are due.
func (e *Engine) sweepDue(now time.Time) {
	for len(e.sweeps) > 0 && !e.sweeps[0].at.After(now) {
		s := e.sweeps[0]
		if s.run.flow.Closed() || s.run.at.hearing == HearsErrors || s.run.flow.Attachment != any(s.run.at) ||
			s.run.at.path == nil || s.run.at.policy().Retrace <= 0 {
			e.endSweep(s.run.at)
			s.run.at.forgetSamples()
			continue
		}
		s.at = now.Add(max(sweepInterval, sweepHop/time.Duration(len(s.ttls))))
		heap.Fix(&e.sweeps, 0)
		e.overdue(now, s)
		if !e.sweepable(now, s) || !e.budget.available(now) {
			continue
		}
		if s.turn++; s.turn%localiseEvery == 0 {
			e.localise(now, s)
		}
		ttl := s.whose()
		if s.mayReach(e, now, ttl) {
			continue
		}
		if p := e.sweepOne(now, s.run, ttl); p != nil {
			p.Hold()
			s.open = append(s.open, p)
		}
	}
}

// whose is the TTL of the next probe.
func (s *sweep) whose() int {
	if n := len(s.near); n > 0 && s.turn%3 > 0 {
		s.nextNear = (s.nextNear + 1) % n
		return s.near[s.nextNear]
	}
	ttl := s.ttls[s.next]
	s.next = (s.next + 1) % len(s.ttls)
	return ttl
}

// sweepable reports whether the flow carries packets, and what is known of it is new enough
// for a probe.
func (e *Engine) sweepable(now time.Time, s *sweep) bool {
	f := s.run.flow
	silent := now.Sub(f.LastSeen())
	if e.paused || f.Elsewhere() || silent > sweepStalled || silent > sweepBusy && !s.run.at.stalled(now) {
		return false
	}
	if lost := e.gap(f); !lost.IsZero() {
		if out, in := f.Newest(); !out.After(lost) || !in.After(lost) {
			return false
		}
	}
	return true
}

// mayReach reports whether the path may have become so much shorter that a probe with that
// TTL would come to the destination.
func (s *sweep) mayReach(e *Engine, now time.Time, ttl int) bool {
	if fence, _ := e.fence(now, s.run.flow); s.run.fenced() && ttl > fence {
		return true
	}
	shorter := s.back - distance(s.run.flow)
	return shorter > 0 && ttl > s.ttls[len(s.ttls)-1]-shorter
}

// sweepOne asks the router at one TTL, if its allowance permits and the flow has room for a
// probe; else it returns nil.
func (e *Engine) sweepOne(now time.Time, r *run, ttl int) *probe.Sent {
	if !r.room() {
		return nil
	}
	place := r.place(ttl)
	last := noAddr
	if at := r.at.path.at(ttl); len(at.addrs) > 0 {
		last = at.addrs[0]
	}
	bucket := e.buckets.For(now, place, last)
	if !bucket.Take(now) {
		e.stats.Probes.Deferred++
		return nil
	}
	p := e.sent.New()
	p.At, p.TTL, p.Bucket, p.Place, p.Owner, p.Leg = now, ttl, bucket, place, r, sweepLeg
	if !e.put(now, r, p) {
		return nil
	}
	return p
}

// verifications is how many probes in a row ask again where a sweep saw another router: one
// that spreads packets shows others then.
const verifications = 3

// verify begins a trace that a sweep asked for with the TTL that it is about.
func (e *Engine) verify(now time.Time, r *run) {
	p := r.at.path
	if p == nil || len(p.doubt.addrs) == 0 || !r.mayProbe() {
		return
	}
	for range verifications {
		if !e.budget.available(now) {
			return
		}
		e.sweepOne(now, r, p.doubtTTL)
	}
}

// confirm takes in what a sweep's probe was answered.
func (e *Engine) confirm(r *run, s *probe.Sent, reply probe.Reply) {
	e.stats.Replies.Matched++
	e.buckets.Answer(reply.At, s, reply.From)
	a := r.at
	if a.path == nil || a.run != r && (a.sweep == nil || a.sweep.run != r) || reply.Kind != wire.TimeExceeded {
		return
	}
	if a.sweep != nil && reply.At.Sub(s.At) > 0 && !s.Timeout {
		a.path.samples.at(s.TTL).Add(s.At, reply.At.Sub(s.At))
	}
	if a.run == nil && a.path.doubts(reply.At, s.TTL, reply.From) {
		e.consider(reply.At, r.flow)
	} else if a.run == r {
		a.path.verified(s.TTL, reply.From)
	}
}

// doubts takes in an answer between two traces, and reports whether a trace has to tell
// whether the path changed.
func (p *path) doubts(now time.Time, ttl int, from netip.Addr) bool {
	at := p.at(ttl)
	if slices.Contains(at.addrs, from) {
		at.seen++
		return false
	}
	if p.doubtTTL != 0 || now.Before(p.calmAt) {
		return false
	}
	p.doubt, p.doubtTTL = waypoint{addrs: []netip.Addr{from}, seen: 1}, ttl
	return true
}

// verified takes in one more answer from where there is a doubt.
func (p *path) verified(ttl int, from netip.Addr) {
	if at := p.at(ttl); slices.Contains(at.addrs, from) {
		at.both = true // after the other one
	}
	if ttl == p.doubtTTL && slices.Contains(p.doubt.addrs, from) {
		p.doubt.seen++
	} else if ttl == p.doubtTTL {
		p.doubt.join([]netip.Addr{from})
	}
}

// relabelled has a flow traced again whose own packets bear another flow label now: what
// balances by it may send them another way.
func (a *attachment) relabelled() {
	if p := a.path; p != nil && p.doubtTTL == 0 && a.sweep != nil {
		p.doubtTTL = 1
	}
}
