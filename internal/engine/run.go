package engine

import (
	"container/heap"
	"encoding/hex"
	"net/netip"
	"time"

	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/probe"
	"servicetraceroute/trace"
)

const (
	patience    = 20 * time.Second // how long a trace waits for nothing but allowances
	hardLimit   = 5 * time.Minute  // of one trace
	resyncLimit = 5 * time.Second
	maxRestarts = 3
	quietWait   = 300 * time.Millisecond
	defaultRTT  = 200 * time.Millisecond // before the flow showed one
	idleLook    = 100 * time.Millisecond
	reachSpread = 150 * time.Millisecond
)

// run is one trace in progress.
type run struct {
	id     string
	flow   *flow.Flow
	at     *attachment
	watch  *Watch
	params probe.Params
	plan   *probe.Plan
	reach  *probe.Reach
	jury   probe.Jury
	start  time.Time
	leg    int // raised by every restart: answers of an earlier leg are late

	hops        []hop // by TTL - FirstTTL
	open        []*probe.Sent
	waiters     []*probe.Waiter
	dest        *trace.Destination
	stopAt      trace.Stop // border or unreachable, once the TTLs below are known
	mixed       bool
	restarts    int
	progressAt  time.Time // of the newest thing that was learnt or sent
	reachDue    time.Time // since when a reaching probe is due
	unsyncedAt  time.Time // zero: in sync
	syncOut     bool
	syncIn      bool
	noiseAt     time.Time // local stack sent what makes the peer acknowledge again
	dataOutAt   time.Time
	before      time.Time // of the packet before the present one
	noisy       bool      // a hit came while the flow was busy
	retransAt   time.Time
	lastReachAt time.Time
	spread      time.Duration // beyond the least interval of reaching probes
	crossed     bool          // the flow carried data while an attempt was open
	impact      trace.Impact

	lastSeq uint32 // conntrack takes two equal segments in a row for a retransmission

	wake  time.Time
	index int
}

// hop collects what one TTL answered.
type hop struct {
	sent    int
	limited bool
	replies []trace.Reply
	sentAt  []time.Time // of the probe that each reply answers
	held    int         // probes that wait for the allowance now
}

func (r *run) hop(ttl int) *hop {
	i := ttl - r.params.FirstTTL
	if i < 0 || i >= len(r.hops) {
		return &hop{}
	}
	return &r.hops[i]
}

// begin starts a trace of the flow.
func (e *Engine) begin(now time.Time, f *flow.Flow, a *attachment) {
	r := &run{
		id: e.newID(), flow: f, at: a, watch: a.watch, params: a.watch.Params,
		start: now, progressAt: now, before: f.LastSeen, index: -1, wake: now,
	}
	r.resetLeg(now)
	a.run = r
	a.watch.running++
	e.stats.Traces.Started++
	heap.Push(&e.runs, r)
}

// resetLeg forgets the path found so far.
func (r *run) resetLeg(now time.Time) {
	d := distance(r.flow)
	r.leg++
	r.plan = probe.NewPlan(r.params, now, d, r.rtt())
	r.reach = probe.NewReach(max(d, r.params.FirstTTL), r.params.MaxTTL)
	r.hops = make([]hop, max(r.params.MaxTTL-r.params.FirstTTL+1, 0))
	r.open = nil
	r.dest = nil
	r.jury = probe.Jury{}
	for _, w := range r.waiters {
		w.Cancel()
	}
	r.waiters = nil
}

// restart begins the trace anew: the flow's own packets take another path now.
func (e *Engine) restart(now time.Time, r *run) {
	if r.restarts++; r.restarts > maxRestarts {
		r.mixed = true
		return
	}
	r.resetLeg(now)
	e.schedule(r, now)
}

// place is where a probe of that TTL expires.
func (r *run) place(ttl int) probe.Place {
	return probe.Place{
		IPv6: r.flow.Key.Dst.Addr().Is6(), Interface: r.flow.Egress.Interface, NextHop: r.flow.Egress.NextHop, TTL: ttl,
	}
}

// rtt is the round-trip time of the flow, or a guess.
func (r *run) rtt() time.Duration {
	if rtt, _, ok := r.flow.TCP.RTT(); ok {
		return rtt
	}
	return defaultRTT
}

func (r *run) loseSync(now time.Time) {
	if r.unsyncedAt.IsZero() {
		r.unsyncedAt = now
	}
	r.syncIn, r.syncOut = false, false
}

// inSync ends a loss of sync once both sides were seen again.
func (r *run) inSync(now time.Time, outgoing bool) {
	if r.unsyncedAt.IsZero() {
		return
	}
	r.syncOut, r.syncIn = r.syncOut || outgoing, r.syncIn || !outgoing
	if r.syncOut && r.syncIn {
		r.unsyncedAt = time.Time{}
	}
}

// work does what is due in one trace and sets when it is looked at next.
func (e *Engine) work(now time.Time, r *run) {
	r.timeouts(now)
	if stop, over := e.over(now, r); over {
		e.finish(now, r, stop)
		return
	}
	next := now.Add(idleLook)
	if r.unsyncedAt.IsZero() {
		next = earliest(next, e.planned(now, r))
		next = earliest(next, e.reaching(now, r))
	}
	for _, s := range r.open {
		next = earliest(next, s.At.Add(r.params.Timeout))
	}
	if !next.After(now) {
		next = now.Add(time.Millisecond)
	}
	e.schedule(r, next)
}

// planned puts every probe that is due below the boundary into its responder's
// queue and returns when the next one is.
func (e *Engine) planned(now time.Time, r *run) time.Time {
	for {
		ttl, at, ok := r.plan.Next()
		if !ok {
			return now.Add(idleLook)
		}
		if at.After(now) {
			return at
		}
		e.queue(now, r, ttl)
	}
}

// reaching sends the next probe that may reach the destination if the flow
// permits it now, and returns when to ask again.
func (e *Engine) reaching(now time.Time, r *run) time.Time {
	if r.dest != nil || r.stopAt != 0 || !e.reachAllowed(now, r) {
		return now.Add(idleLook)
	}
	interval := max(probe.ReachingInterval, 2*r.rtt()) + r.spread
	if a := r.reach.Open(); a.TTL != 0 {
		end := a.Sent.Add(interval)
		if now.Before(end) {
			return end
		}
		r.reach.Miss(r.crossed || r.dataOutAt.After(a.Sent.Add(-r.rtt())))
		r.plan.Lost(a.TTL)
	}
	ttl, at, ok := r.reach.Next(interval)
	if !ok {
		return now.Add(idleLook)
	}
	if last := r.lastReachAt; !last.IsZero() && at.Before(last.Add(interval)) {
		at = last.Add(interval) // also after a restart
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
		if !r.plan.Settled(ttl) || !bucket.Take(now) {
			return now.Add(idleLook)
		}
	}
	if !e.available(now) {
		return now.Add(time.Millisecond)
	}
	if e.send(now, r, ttl, bucket, place, true) {
		// The spread keeps probes from meeting an application's own rhythm each time.
		r.lastReachAt, r.crossed = now, false
		r.spread = time.Duration(e.rng.Int64N(int64(reachSpread)))
		r.reachDue = time.Time{}
	}
	return now.Add(interval)
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
	t := &r.flow.TCP
	spoke := t.PeerSpoke
	if r.flow.Direction == trace.In {
		spoke = t.PeerData
	}
	if !spoke {
		// A server in SYN-cookie mode that missed our third segment knows nothing of
		// the flow, says nothing, and would answer with a reset.
		return now.Add(idleLook)
	}
	rtt := r.rtt()
	if !r.retransAt.IsZero() {
		if calm := r.retransAt.Add(max(2*rtt, 500*time.Millisecond)); now.Before(calm) {
			return calm
		}
	}
	if r.reachDue.IsZero() {
		r.reachDue = now
	}
	if quiet := r.dataOutAt.Add(rtt); now.Before(quiet) && now.Before(r.reachDue.Add(quietWait)) {
		return quiet
	}
	return now
}

// timeouts gives up probes that were not answered in time.
func (r *run) timeouts(now time.Time) {
	kept := r.open[:0]
	for _, s := range r.open {
		switch {
		case s.Answered:
		case now.Before(s.At.Add(r.params.Timeout)):
			kept = append(kept, s)
		default:
			s.Timeout = true
			if s.Reaching {
				break // its attempt ended before
			}
			r.plan.Lost(s.TTL)
			if s.Bucket != nil {
				s.Bucket.Missed(s.At)
				if s.Bucket.Limits(s.At) {
					r.hop(s.TTL).limited = true
				}
			}
			r.progressAt = now
		}
	}
	clear(r.open[len(kept):])
	r.open = kept
}

// over decides whether the trace has ended, and why.
func (e *Engine) over(now time.Time, r *run) (trace.Stop, bool) {
	if !r.unsyncedAt.IsZero() && now.Sub(r.unsyncedAt) > resyncLimit {
		return trace.StopLostSync, true
	}
	if r.params.FlowTimeout > 0 && now.Sub(r.flow.LastSeen) > r.params.FlowTimeout {
		return trace.StopFlowIdle, true
	}
	if now.Sub(r.start) > hardLimit {
		return trace.StopDeadline, true
	}
	if ttl, ok := r.reach.Done(!r.noisy); ok && r.dest == nil {
		at, rtt := r.reach.Proof()
		r.dest = &trace.Destination{TTL: ttl, RTT: rtt, By: trace.DestinationByAck}
		r.plan.SetBoundary(ttl)
		r.plan.Recheck(ttl-1, at)
	}
	if !r.plan.Finished() {
		if now.Sub(r.progressAt) > patience {
			return e.outOfPatience(r), true
		}
		return 0, false
	}
	switch {
	case r.dest != nil:
		return trace.StopDestination, true
	case r.stopAt != 0:
		return r.stopAt, true
	case r.plan.SilentHops() && !r.reach.Found():
		return trace.StopSilentHops, true
	case r.plan.Boundary() > r.params.MaxTTL:
		return trace.StopMaxTTL, true
	case r.reach.Open().TTL != 0:
		return 0, false
	case r.reach.Exhausted() || r.impact.Aborted || e.breaker.open(now, r.flow.Key.Dst.Addr()):
		return trace.StopUnknown, true
	case now.Sub(r.progressAt) > patience:
		return trace.StopUnknown, true
	}
	return 0, false
}

// outOfPatience is why a trace ends that only waited.
func (e *Engine) outOfPatience(r *run) trace.Stop {
	if r.dest != nil {
		return trace.StopDestination
	}
	return trace.StopRateLimited
}

func (e *Engine) newID() string {
	var b [8]byte
	for i := range b {
		b[i] = byte(e.rng.Uint32())
	}
	return hex.EncodeToString(b[:])
}

// isBorder reports whether an address ends the trace.
func (r *run) isBorder(a netip.Addr) bool {
	for _, p := range r.params.Borders {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
