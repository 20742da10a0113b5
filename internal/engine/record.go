package engine

import (
	"container/heap"
	"slices"
	"time"

	"servicetraceroute/trace"
)

// finish ends a trace and writes its record.
func (e *Engine) finish(now time.Time, r *run, stop trace.Stop) {
	if r.index < 0 {
		return
	}
	if e.cfg.Replay {
		now, stop = e.ending(now, r, stop)
	}
	heap.Remove(&e.runs, r.index)
	r.index = -1
	dst := r.flow.Key.Dst
	e.runsTo[dst] = slices.DeleteFunc(e.runsTo[dst], func(other *run) bool { return other == r })
	if len(e.runsTo[dst]) == 0 {
		delete(e.runsTo, dst)
	}
	e.stillShared(now, r)
	for i := range r.hops {
		r.hops[i].limited = e.limited(now, &r.hops[i])
	}
	t := r.record(now, stop)
	e.missedThere(now, r)
	if stop == trace.StopRefused {
		t.Reason = trace.ReasonNoState
		if r.at.hearing == HearsErrors {
			t.Reason = heardReason(r.flow)
		}
	}
	t.Label, t.Flow = e.cfg.Label, e.tuple(r.flow)
	e.stats.Traces.Done++
	e.stats.Traces.ByStop[stop]++
	for _, h := range t.Hops {
		e.stats.Probes.Deferred += uint64(h.Deferred)
	}
	r.withdraw()
	for _, s := range r.open {
		e.noteFate(s, CutShort)
		s.Timeout = true
	}
	r.open = nil
	r.at.run = nil
	if r.at.hearing != HearsErrors {
		r.at.hearing = 0 // for the next trace: its socket may be another, or have changed its mind
	}
	r.at.ended = now
	alone := r.lone()
	r.at.finished++
	r.watch.running--
	r.turn.vacate(now)
	if again := r.watch.policy(r.at.service.Name).Retrace; again > 0 {
		r.watch.retraceAt = earliest(r.watch.retraceAt, now.Add(again))
	}
	if e.cfg.Replay && (r.at.watch == nil || len(t.Hops) == 0 || alone) {
		e.disown(t) // not selected after all, none of its probes can be told from another, or no trace
		return
	}
	e.say(now, r, t)
	e.compare(now, r, t)
	e.sweepFrom(now, r, t)
	if r.at.claimed {
		r.at.claimed, e.freed = false, true
	}
}

// record is what the trace found.
func (r *run) record(now time.Time, stop trace.Stop) *trace.Trace {
	last := r.last()
	service := r.at.service
	t := &trace.Trace{
		ID: r.id, Start: r.start, End: now, Algorithm: r.params.Algorithm, Service: &service, Process: r.at.whose(),
		Stop: stop, Mixed: r.mixed, Trigger: r.trigger, Observed: observed(r.flow, now), Impact: r.impact, Hops: []trace.Hop{},
	}
	final := 0 // the destination's TTL
	if r.dest != nil {
		final = r.dest.TTL
		t.Reached, t.Destination = true, r.dest
	} else if rtt, _, ok := r.flow.RTT(); ok && !r.udp() && stop != trace.StopBorder && stop != trace.StopUnreachable {
		t.Destination = &trace.Destination{RTT: rtt, By: trace.DestinationByPassive}
	}
	for ttl := r.params.FirstTTL; ttl <= last; ttl++ {
		t.Hops = append(t.Hops, r.hopRecord(ttl, final))
		t.Mixed = t.Mixed || rerouted(r.hop(ttl), ttl == final)
	}
	t.Complete = r.complete(t, stop, last, final)
	if t.Complete {
		end := last
		if final > 0 {
			end = final - 1
		}
		t.PathID = trace.PathID(t.Hops, end)
	}
	return t
}

// last is the highest TTL worth showing: the destination, the end of the path,
// or the highest that was probed.
func (r *run) last() int {
	if r.dest != nil {
		return r.dest.TTL
	}
	last := 0
	for ttl := r.params.FirstTTL; ttl < r.params.FirstTTL+len(r.hops); ttl++ {
		h := r.hop(ttl)
		if h.sent > 0 || h.held > 0 || r.leftOut(ttl) {
			last = ttl
		}
		if r.stopAt != 0 && endsPath(h, r) {
			return ttl
		}
	}
	return last
}

// endsPath reports whether a border or an unreachable answered at this hop.
func endsPath(h *hop, r *run) bool {
	for _, reply := range h.replies {
		if reply.Kind != trace.TimeExceeded && reply.Kind != trace.TCPAck && reply.Kind != trace.PacketTooBig {
			return true
		}
		if r.isBorder(reply.Addr) {
			return true
		}
	}
	return false
}

func (r *run) hopRecord(ttl, final int) trace.Hop {
	h := r.hop(ttl)
	out := trace.Hop{TTL: ttl, Sent: int(h.sent), Deferred: int(h.held), Replies: []trace.Reply{}}
	for _, reply := range h.replies {
		// An acknowledgement at a TTL that turned out to be another's is no hop.
		if reply.Kind == trace.TCPAck && ttl != final {
			continue
		}
		out.Replies = append(out.Replies, reply)
	}
	if r.leftOut(ttl) {
		out.Replies = append(out.Replies, shared(*h.left))
	}
	out.Limited = h.limited && len(out.Replies) == 0
	return out
}

// rerouted reports whether the replies of one TTL show that the path changed:
// first only some addresses, later only others. Alternating ones are a balancer
// that spreads packets.
func rerouted(h *hop, final bool) bool {
	changes := 0
	for i := 1; i < len(h.replies); i++ {
		if h.replies[i].Addr != h.replies[i-1].Addr {
			changes++
		}
	}
	if final && changes > 0 {
		return true
	}
	return changes == 1
}

// complete reports whether nothing is missing up to the end of the path.
func (r *run) complete(t *trace.Trace, stop trace.Stop, last, final int) bool {
	switch stop {
	case trace.StopDestination, trace.StopUnreachable, trace.StopBorder, trace.StopMaxTTL:
	default:
		return false
	}
	if t.Mixed || r.params.FirstTTL != 1 {
		return false
	}
	end := last
	if final > 0 {
		end = final - 1
	}
	for _, h := range t.Hops {
		// A probe that could not be sent is none of the silent ones.
		if h.TTL <= end && (h.Deferred > 0 || h.Limited || len(h.Replies) == 0 && h.Sent < r.params.Probes) {
			return false
		}
	}
	return r.plan.Complete(end)
}
