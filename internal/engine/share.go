package engine

import (
	"net/netip"
	"time"

	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/probe"
	"servicetraceroute/trace"
)

// Near hops that flows have in common are asked for by some and shown for the others.
// docs/decisions/0049-share.md has the reasons.

// wayOf is what a flow shares with others that may have the same near hops.
func wayOf(f *flow.Flow) probe.Way {
	return probe.Way{Src: f.Key.Src.Addr(), Dst: f.Key.Dst.Addr(), Interface: f.Egress.Interface, NextHop: f.Egress.NextHop}
}

// leaveOut decides whether the trace does without a probe of that TTL. The last one below
// the boundary is its own: the proof of the destination rests on it.
func (e *Engine) leaveOut(now time.Time, r *run, ttl int) bool {
	h := r.hop(ttl)
	if !r.params.Share || r.looks || r.fenced() || h.sent > 0 || ttl >= r.plan.Boundary()-1 || r.way != wayOf(r.flow) {
		return false
	}
	s, due, ok := e.common.Shared(now, r.way, ttl)
	switch {
	case !ok || r.isBorder(s.Addr):
		return false
	case due && r.left == 0:
		r.looks = true
		e.common.Looks(now, r.way)
		return false
	}
	if r.left == 0 {
		r.disputes = e.common.Disputes()
	}
	r.left++
	h.left = &s
	r.plan.LeaveOut(ttl, true)
	r.progressAt = now
	return true
}

// leftOut reports whether the trace does without probes of that TTL.
func (r *run) leftOut(ttl int) bool {
	i := ttl - r.params.FirstTTL
	return i >= 0 && i < len(r.hops) && r.hops[i].left != nil
}

// takeBack has the trace ask for what it left out from one TTL to another.
func (r *run) takeBack(from, to int) {
	if r.left == 0 {
		return
	}
	for ttl := from; ttl <= to; ttl++ {
		if r.leftOut(ttl) {
			r.hop(ttl).left = nil
			r.left--
			r.plan.LeaveOut(ttl, false)
		}
	}
}

// anchor has the trace ask for the last hop that it left out, unless one farther off may
// answer yet: the search for the destination begins where the flow itself met a router.
func (r *run) anchor() {
	if last := r.lastLeft(); !r.plan.Awaits(last + 1) {
		r.looks = true
		r.takeBack(last, last)
	}
}

// overshot returns up to which TTL the destination has not to be feared, now that it
// answered a probe of that TTL, or a lower one: routers are below. Of what others saw the
// last is asked for, unless the destination is nearer than that.
func (r *run) overshot(ttl int) int {
	last, lowest := r.lastLeft(), r.reach.Lowest()
	switch {
	case last >= ttl:
		r.distrust(r.params.FirstTTL)
		return lowest
	case last > lowest:
		r.looks = true
		r.takeBack(last, last)
	}
	return max(last, lowest)
}

// lastLeft is the highest TTL that is left out; 0: none is.
func (r *run) lastLeft() (ttl int) {
	for i := range r.hops {
		if r.leftOut(r.params.FirstTTL + i) {
			ttl = r.params.FirstTTL + i
		}
	}
	return ttl
}

// distrust has the trace ask for all from that TTL on.
func (r *run) distrust(ttl int) {
	r.looks = true
	r.takeBack(ttl, r.params.MaxTTL)
}

// stillShared looks whether what the trace left out is still what others agree upon.
func (e *Engine) stillShared(now time.Time, r *run) {
	if r.left == 0 {
		return
	}
	if r.way != wayOf(r.flow) {
		r.distrust(r.params.FirstTTL)
		return
	}
	if r.disputes == e.common.Disputes() {
		return
	}
	r.disputes = e.common.Disputes()
	for ttl := r.params.FirstTTL; ttl <= r.params.MaxTTL; ttl++ {
		if !r.leftOut(ttl) {
			continue
		}
		if s, _, ok := e.common.Shared(now, r.way, ttl); !ok || s.Addr != r.hop(ttl).left.Addr {
			r.distrust(ttl)
			return
		}
	}
}

// saw holds what the trace saw against what others did. If that is something else behind
// what it left out, this may be, too. Else the trace bears witness: to one router at each
// TTL from 1 on, by probes of its own.
func (e *Engine) saw(now time.Time, r *run, s *probe.Sent, from netip.Addr) {
	if e.common == nil || r.fenced() || r.way != wayOf(r.flow) {
		return
	}
	if e.common.Differs(now, r.way, s.TTL, from) {
		if r.left > 0 {
			r.distrust(r.params.FirstTTL)
		}
		return
	}
	e.path = e.path[:0]
	for ttl := 1; ttl < s.TTL || len(r.hop(ttl).replies) > 0; ttl++ {
		at, ok := r.hop(ttl).sight(r.id)
		if !ok {
			break
		}
		e.path = append(e.path, at)
	}
	if len(e.path) >= s.TTL {
		e.common.Learn(now, s.At, r.way, r.flow.Key, e.path)
	}
}

// missedThere tells others where nobody answered a trace that ended, if no limit is why.
func (e *Engine) missedThere(now time.Time, r *run) {
	if e.common == nil || r.fenced() || r.way != wayOf(r.flow) {
		return
	}
	for ttl := r.params.FirstTTL; ttl < r.top(); ttl++ {
		h := r.hop(ttl)
		if len(h.replies) == 0 && int(h.sent) >= r.params.Probes && h.held == 0 && !h.limited && r.plan.Settled(ttl) {
			e.common.Differs(now, r.way, ttl, noAddr)
		}
	}
}

// top is the destination's TTL, or the one behind the highest that answered: below it silence
// means something.
func (r *run) top() int {
	if r.dest != nil {
		return r.dest.TTL
	}
	for i := len(r.hops) - 1; i >= 0; i-- {
		if len(r.hops[i].replies) > 0 {
			return r.params.FirstTTL + i + 1
		}
	}
	return 0
}

// sight is the one router that answered the trace's own probes.
func (h *hop) sight(id string) (s probe.Sight, ok bool) {
	for i, reply := range h.replies {
		if reply.Kind != trace.TimeExceeded || i > 0 && reply.Addr != s.Addr {
			return s, false
		}
		s = probe.Sight{Addr: reply.Addr, RTT: reply.RTT, ReplyTTL: reply.ReplyTTL, Trace: id}
	}
	return s, len(h.replies) > 0
}

// shared is what a record shows of a hop that was left out.
func shared(s probe.Sight) trace.Reply {
	return trace.Reply{Addr: s.Addr, RTT: s.RTT, Kind: trace.TimeExceeded, ReplyTTL: s.ReplyTTL, SharedFrom: s.Trace}
}
