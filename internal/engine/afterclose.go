package engine

import (
	"slices"
	"time"

	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// A trace may go on in a flow that was closed (probe.Params.AfterClose): the routers on its
// way still answer. The peer's host would answer with a reset (RFC 9293 section 3.10.7.1), so
// nothing goes there that might come to it.

// timeWait is how long Linux keeps the addresses and ports of a connection that it closed
// first from the next one: TCP_TIMEWAIT_LEN, include/net/tcp.h. Connection tracking on the
// way keeps them for twice as long (nf_conntrack_proto_tcp.c).
const timeWait = 60 * time.Second

// closing is the part of a trace behind its flow's first FIN.
type closing struct {
	at   time.Time // of that; zero: the flow is open
	most int       // the highest TTL that may be asked, whatever else is known
}

// closed reports whether the trace goes on in a flow that was closed.
func (r *run) closed() bool { return !r.closing.at.IsZero() }

// outlives reports whether a trace goes on behind this segment, which closes its flow. Not to
// where a probe may have done harm, nor while the flow's numbers, or its path, are in doubt.
func (e *Engine) outlives(now time.Time, r *run, o *flow.Observation) bool {
	return r.params.AfterClose && !e.cfg.Replay && o.Closed && !o.RST && !o.LabelChanged && r.unsyncedAt.IsZero() &&
		!e.breaker.open(now, r.flow.Key.Dst.Addr())
}

// outlive lets a trace go on although its flow was closed. The search for the destination
// is over: what answers from now on answers the close as well.
func (e *Engine) outlive(now time.Time, r *run) {
	if !r.closed() {
		r.closing = closing{now, r.params.MaxTTL}
		if a := r.reach.Open(); a.TTL != 0 {
			r.plan.Lost(a.TTL)
		}
		r.reach.Abort()
	}
	e.bound(now, r)
	e.schedule(r, now)
}

// bound keeps what the trace of a closed flow asks below the known distance: two hops before
// the one that the peer's packets tell, as a datagram's fence has it (see Engine.fence). What
// this trace proved, or another one whose way may be another, spares one hop of that caution
// and no more, unless it is nearer. TTLs that expired on the way are below it in any case.
func (e *Engine) bound(now time.Time, r *run) {
	lowest := max(r.reach.Lowest(), r.params.FirstTTL-1)
	passive := distance(r.flow) - r.detourAt(lowest)
	top := passive - fenceMargin
	if d, known := e.distances[r.flow.Key.Dst.Addr()]; known && now.Sub(d.at) < distanceLife {
		top = min(passive, d.ttl) - 1
	}
	top = min(top, lowest+fenceAhead)
	if r.reach.Found() && r.dest == nil {
		top = lowest // it answered from there or nearer, which is all that is known
	}
	top = max(min(top, r.closing.most), lowest)
	if r.dest != nil { // also by its own ICMP error, which came from there or from beyond
		top = min(top, r.dest.TTL-1)
	}
	r.plan.SetBoundary(top + 1)
}

// detourAt is how much longer than the way to a hop the way back from there is, as its
// newest answer's TTL tells, see advanceFence.
func (r *run) detourAt(ttl int) int {
	replies := r.hop(ttl).replies
	if len(replies) == 0 {
		return 0
	}
	if longer := probe.Distance(uint8(replies[len(replies)-1].ReplyTTL)) - ttl; longer > 0 && longer <= maxDetour {
		return longer
	}
	return 0
}

// heardClosed takes in what the peer of a closed flow says. What repeats the acknowledgement
// before may answer a probe: then no TTL is safe but those that expired.
func (e *Engine) heardClosed(now time.Time, r *run, o *flow.Observation) {
	if o.Retransmit {
		e.harmed(now, r, harmRetransmit)
	}
	if !o.Outgoing && o.PureAck && o.Repeated {
		r.closing.most = r.reach.Lowest()
		e.bound(now, r)
	}
}

// blamed reports whether a reset of the peer may answer a probe that left after the close:
// it then has the number that the probe acknowledges.
func (e *Engine) blamed(now time.Time, r *run) bool {
	return r.closed() && e.tcp.Flags&wire.ACK == 0 && slices.ContainsFunc(r.open, func(s *probe.Sent) bool {
		return !s.Answered && s.Ack == e.tcp.Seq && s.At.After(r.closing.at) && r.mayShow(now, s.At)
	})
}

// overClosed is over of a trace whose flow was closed. What it did not ask until then is
// the close's fault, whatever kept it from that.
func (e *Engine) overClosed(now time.Time, r *run) (trace.Stop, bool) {
	if !r.unsyncedAt.IsZero() || r.impact.Aborted || now.Sub(r.closing.at) >= timeWait || now.Sub(r.start) > hardLimit {
		return trace.StopFlowClosed, true // what was lost may have been a SYN
	}
	e.prove(now, r)
	e.bound(now, r)
	if !r.plan.Finished() {
		return trace.StopFlowClosed, now.Sub(r.progressAt) > patience
	}
	if r.dest == nil && slices.ContainsFunc(r.open, func(s *probe.Sent) bool { return !s.Answered }) {
		return 0, false // those from before the close, beyond what may be asked now
	}
	return e.conclusion(now, r)
}

// reused ends the trace of a closed flow whose addresses and ports another connection takes
// at another interface than where this one is followed.
func (e *Engine) reused(now time.Time, f *flow.Flow) {
	if a, ok := f.Attachment.(*attachment); ok && a.run != nil && a.run.closed() {
		e.finish(now, a.run, trace.StopFlowClosed)
	}
}
