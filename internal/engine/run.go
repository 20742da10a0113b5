package engine

import (
	"container/heap"
	"encoding/hex"
	"net/netip"
	"slices"
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
	spentWait   = time.Second            // for an answer that a keepalive has not spent
	defaultRTT  = 200 * time.Millisecond // before the flow showed one
	idleLook    = 100 * time.Millisecond
	looks       = 50_000 // a second at traces that wait, of all traces
	reachSpread = 150 * time.Millisecond
	hopsAhead   = 3                     // beyond the expected distance that there is room for at first
	roomLook    = 10 * time.Millisecond // until the flow leaves room for a probe
)

// run is one trace in progress.
type run struct {
	id      string
	trigger string // what began it; empty: the flow itself
	flow    *flow.Flow
	at      *attachment
	watch   *Watch
	params  probe.Params
	plan    *probe.Plan
	reach   *probe.Reach
	jury    probe.Jury
	start   time.Time
	leg     int // raised by every restart: answers of an earlier leg are late

	hops        []hop // by TTL - FirstTTL, as far as they matter
	open        []*probe.Sent
	waiters     []*wish
	asking      *wish // the probe that may reach the destination, if it waits
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
	lastReachAt time.Time // in this trace
	// The same, and near.reachedAt, as they were before the newest reaching probe, should it not leave.
	lastReachBefore, reachedBefore time.Time
	near                           *near
	turn                           *keyed // what the trace stands for, if not its flow alone
	hearing                        Hearing
	crossed                        bool      // the flow carried data while an attempt was open
	changed                        bool      // it was said that the path is another than before
	unverified                     bool      // what a sweep saw is still to be asked first, when probes may leave
	said                           *path     // what the leg had seen by then; nil: nothing was said early
	way                            probe.Way // on which the leg began
	left                           int       // TTLs that are left out, since others saw what is there
	looks                          bool      // it leaves none out
	disputes                       uint64    // as far as was looked at
	spent                          bool      // a keepalive may have taken the answer to the open attempt
	tooSoon                        bool      // an answer to an attempt came too soon to be believed
	impact                         trace.Impact
	exchanges                      []trace.Exchange // room for those of replies to come

	fence       int // if fenced: the highest TTL that may be probed
	answeredTTL int // if fenced: the highest that was answered
	fenceProven bool
	intact      bool // no probe of it can be damaged
	detour      int  // how much longer than the way there the way back from that one is

	closing closing // of a flow that was closed

	damagedTTL int  // of UDP: the highest that answered a probe that no host takes in
	wholeOnly  bool // of UDP: only others come through

	probeLen int // of the newest probe

	lastSeq uint32 // conntrack takes two equal segments in a row for a retransmission

	// Of a replayed trace: when its newest probe left, and the first after a pause; how many
	// were seen.
	probedAt, resumedAt time.Time
	seen                int

	wake  time.Time
	index int
}

// near is what traces of one flow hand on to each other about its destination.
type near struct {
	reachedAt time.Time     // when the newest probe left that might reach it
	spread    time.Duration // beyond the least interval between two such
	distance  int           // as last proven; 0: never
}

// hop collects what one TTL answered.
type hop struct {
	sent     int32
	held     int32 // probes that wait for the allowance now
	limited  bool
	replies  []trace.Reply
	left     *probe.Sight  // if it is left out: what others saw
	believed bool          // some reply only by the jury
	missed   []*probe.Sent // while nobody answers there: whose misses those are is not known
}

// hop is that of a TTL; it is the caller's until the next call.
func (r *run) hop(ttl int) *hop {
	i := ttl - r.params.FirstTTL
	if i < 0 || ttl > r.params.MaxTTL {
		return &hop{}
	}
	if n := i + 1 - len(r.hops); n > 0 {
		r.hops = append(r.hops, make([]hop, n)...)
	}
	return &r.hops[i]
}

// begin starts a trace of the flow.
func (e *Engine) begin(now time.Time, f *flow.Flow, a *attachment) {
	if a.near == nil {
		a.near = &near{}
	}
	w := a.watch
	if w == nil { // of a replayed flow of which that is not known yet
		w = e.watches[0]
	}
	id := a.coming
	if a.coming = ""; id == "" {
		id = e.newID()
	}
	r := &run{
		id: id, flow: f, at: a, watch: w, params: w.policy(a.service.Name).Params, near: a.near, hearing: a.hearing,
		start: now, progressAt: now, probedAt: now, before: f.LastSeen(), index: -1, wake: now,
	}
	r.fence, r.fenceProven = e.fence(now, f)
	r.intact = e.cfg.Intact != nil && e.cfg.Intact(f.Key.Dst.Addr())
	r.resetLeg(now)
	r.syncAfter(now, e.gap(f))
	if f.Key.Proto == trace.TCP && !e.cfg.Replay {
		e.inquireScale(f, a)
	}
	if r.params.Share && e.common == nil {
		e.common = probe.NewCommon()
	}
	a.run = r
	r.trigger, a.hurt = a.hurt, ""
	e.endSweep(a)
	w.running++
	r.turn = w.occupy(now, w.policy(a.service.Name), f)
	w.begun = true
	e.stats.Traces.Started++
	heap.Push(&e.runs, r)
	e.runsTo[f.Key.Dst] = append(e.runsTo[f.Key.Dst], r)
	r.unverified = true
}

// resetLeg forgets the path found so far.
func (r *run) resetLeg(now time.Time) {
	d := distance(r.flow)
	r.leg++
	if known := r.near.distance; known > 0 && known < d {
		d = known
	}
	r.reach = probe.NewReach(max(d, r.params.FirstTTL), r.params.MaxTTL)
	r.plan = probe.NewPlan(r.params, now, d, r.rtt())
	if r.fenced() {
		r.answeredTTL, r.damagedTTL, r.wholeOnly = 0, 0, false
		r.advanceFence(r.params.FirstTTL-1, 0)
	}
	r.hops = make([]hop, max(min(r.params.MaxTTL, d+hopsAhead)-r.params.FirstTTL+1, 0))
	r.way, r.left, r.looks = wayOf(r.flow), 0, r.leg > 1 // a new leg: the flow takes a way of its own
	r.open = nil
	r.dest, r.stopAt, r.noisy, r.crossed = nil, 0, false, false
	r.jury = probe.Jury{}
	r.said = nil
	r.withdraw()
}

// restart begins the trace anew: the flow's own packets take another path now.
func (e *Engine) restart(now time.Time, r *run) {
	if r.restarts++; r.restarts > maxRestarts {
		r.mixed = true
		return
	}
	for _, s := range r.open {
		e.noteFate(s, Restarted)
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
	if rtt, _, ok := r.flow.RTT(); ok {
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

// syncAfter begins the trace without sync where one side of its flow was not seen since
// packets were lost.
func (r *run) syncAfter(now, lost time.Time) {
	if lost.IsZero() {
		return
	}
	out, in := r.flow.Newest()
	r.syncOut, r.syncIn = out.After(lost), in.After(lost)
	if !r.syncOut || !r.syncIn {
		r.unsyncedAt = now
	}
}

// inSync ends a loss of sync once both sides were seen again. What was captured before
// packets were lost, and read later, does not count.
func (r *run) inSync(at time.Time, outgoing bool) {
	if r.unsyncedAt.IsZero() || !at.After(r.unsyncedAt) {
		return
	}
	r.syncOut, r.syncIn = r.syncOut || outgoing, r.syncIn || !outgoing
	if r.syncOut && r.syncIn {
		r.unsyncedAt = time.Time{}
	}
}

// work does what is due in one trace and sets when it is looked at next.
func (e *Engine) work(now time.Time, r *run) {
	if r.unverified {
		r.unverified = false
		e.verify(now, r)
	}
	e.timeouts(now, r)
	e.stillShared(now, r)
	if stop, over := e.over(now, r); over {
		e.finish(now, r, stop)
		return
	}
	e.sayEarly(now, r)
	next := e.later(now)
	if r.mayProbe() {
		next = earliest(next, e.planned(now, r))
		next = earliest(next, e.reaching(now, r, nil))
	}
	for _, s := range r.open {
		next = earliest(next, s.At.Add(r.params.Timeout))
	}
	if !next.After(now) {
		next = now.Add(time.Millisecond)
	}
	e.schedule(r, next)
}

// later is when a trace is looked at again that waits for something of which nothing tells.
func (e *Engine) later(now time.Time) time.Time {
	return now.Add(max(idleLook, time.Duration(len(e.runs))*time.Second/looks))
}

// mayProbe reports whether what is known of the flow is new enough for a probe.
func (r *run) mayProbe() bool { return r.unsyncedAt.IsZero() && !r.flow.Elsewhere() }

// planned puts every probe that is due below the boundary into its responder's
// queue and returns when the next one is.
func (e *Engine) planned(now time.Time, r *run) time.Time {
	if !r.room() {
		return now.Add(roomLook)
	}
	for {
		ttl, at, ok := r.plan.Next()
		if !ok {
			return e.later(now)
		}
		if at.After(now) {
			return at
		}
		if !e.leaveOut(now, r, ttl) {
			e.queue(now, r, ttl)
		}
	}
}

// timeouts gives up probes that were not answered in time.
func (e *Engine) timeouts(now time.Time, r *run) {
	kept := r.open[:0]
	for _, s := range r.open {
		switch {
		case s.Answered:
		case now.Before(s.At.Add(r.params.Timeout)):
			kept = append(kept, s)
			continue
		default:
			s.Timeout = true
			if s.Reaching {
				e.noteFate(s, Silent)
				break // its attempt ended before
			}
			r.plan.Lost(s.TTL)
			e.noteFate(s, e.missed(now, r.hop(s.TTL), s))
			r.progressAt = now
		}
		s.Drop()
	}
	clear(r.open[len(kept):])
	r.open = kept
}

// missed charges a probe that was not answered in time to its responder, if its hop is one
// that answers, and reports whether a limit may be why.
func (e *Engine) missed(now time.Time, h *hop, s *probe.Sent) Verdict {
	if s.Bucket == nil {
		return Silent
	}
	s.Hold()
	if h.missed = append(h.missed, s); len(h.replies) > 0 && h.replies[len(h.replies)-1].Kind != trace.TCPAck {
		e.chargeMisses(now, h)
	} else {
		e.buckets.Silent(now, s)
	}
	if e.buckets.Limits(now, s) {
		return Limited
	}
	return Silent
}

// chargeMisses charges what a hop missed to the responder that answers there.
func (e *Engine) chargeMisses(now time.Time, h *hop) {
	for _, s := range h.missed {
		e.buckets.Missed(now, s, h.replies[len(h.replies)-1].Addr)
		s.Drop()
	}
	h.missed = nil
}

// limited reports whether a hop's silence coincides with what a limit withheld of a responder
// that answers others there.
func (e *Engine) limited(now time.Time, h *hop) bool {
	return slices.ContainsFunc(h.missed, func(s *probe.Sent) bool { return e.buckets.Limits(now, s) })
}

// over decides whether the trace has ended, and why.
func (e *Engine) over(now time.Time, r *run) (trace.Stop, bool) {
	if r.closed() {
		return e.overClosed(now, r)
	}
	if !r.unsyncedAt.IsZero() && now.Sub(r.unsyncedAt) > resyncLimit {
		return trace.StopLostSync, true
	}
	if idle := r.flowTimeout(); idle > 0 && now.Sub(r.flow.LastSeen()) > idle {
		return trace.StopFlowIdle, true
	}
	if now.Sub(r.start) > hardLimit {
		return trace.StopDeadline, true
	}
	e.prove(now, r)
	if !r.plan.Finished() {
		if now.Sub(r.progressAt) > patience && !e.turnComes(r) {
			return outOfPatience(r), true
		}
		return 0, false
	}
	return e.conclusion(now, r)
}

// turnComes reports whether what the trace waits for will have its turn within patience, as
// things go: among very many traces it is our own rate that they wait for.
func (e *Engine) turnComes(r *run) bool {
	return len(r.waiters) > 0 && !slices.ContainsFunc(r.waiters, func(w *wish) bool {
		wait, ok := w.Wait(e.cfg.Rate)
		return !ok || wait > patience
	})
}

// prove takes the destination for known once its answers say where it is.
func (e *Engine) prove(now time.Time, r *run) {
	ttl, ok := r.reach.Done(!r.noisy)
	if !ok || r.dest != nil || r.stopAt == trace.StopBorder {
		return
	}
	at, rtt := r.reach.Proof()
	r.dest = &trace.Destination{TTL: ttl, RTT: rtt, By: trace.DestinationByAck}
	r.near.distance = ttl
	e.learnDistance(now, r.flow.Key.Dst.Addr(), ttl)
	r.plan.SetBoundary(ttl)
	r.plan.Recheck(ttl-1, at)
}

// conclusion is what a trace came to whose plan is finished; false while its destination
// is looked for.
func (e *Engine) conclusion(now time.Time, r *run) (trace.Stop, bool) {
	switch {
	case r.dest != nil:
		return trace.StopDestination, true
	case r.stopAt != 0:
		return r.stopAt, true
	case r.plan.SilentHops() && !r.reach.Found():
		return trace.StopSilentHops, true
	case r.plan.Boundary() > r.params.MaxTTL:
		return trace.StopMaxTTL, true
	case r.closed():
		return trace.StopFlowClosed, true
	case r.fenced():
		return trace.StopFence, true
	case r.reach.Open().TTL != 0:
		return 0, false
	case r.reach.Exhausted() || r.impact.Aborted || e.breaker.open(now, r.flow.Key.Dst.Addr()):
		return trace.StopUnknown, true
	case now.Sub(r.progressAt) > patience:
		return trace.StopUnknown, true
	}
	return 0, false
}

// flowTimeout is how long the flow may be silent; 0: as long as it likes.
func (r *run) flowTimeout() time.Duration {
	if r.params.FlowTimeout == 0 && r.udp() {
		return udpFlowTimeout // nothing else tells its end
	}
	return r.params.FlowTimeout
}

// outOfPatience is why a trace ends that only waited.
func outOfPatience(r *run) trace.Stop {
	switch {
	case r.dest != nil:
		return trace.StopDestination
	case r.unprobed():
		return trace.StopRefused // with ReasonNoState, see finish
	}
	return trace.StopRateLimited
}

// unprobed reports whether no probe was ever safe: too much of the flow's data was
// under way for the window of the peer that is known.
func (r *run) unprobed() bool {
	return !r.udp() && r.leg == 1 && r.lastSeq == 0 && probe.Offsets(r.flow.TCP) == 0
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
