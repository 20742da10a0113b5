package probe

import (
	"time"

	"servicetraceroute/trace"
)

// Plan is what one trace still has to ask. TTLs below the boundary are sent in
// the algorithm's order; the boundary and everything above it may reach the
// destination and is the business of Reach.
//
// The caller asks Next what is due, sends it and reports Sent; it reports
// Answered and Lost for every probe; and asks Finished whether all is known.
type Plan struct {
	params   Params
	start    time.Time
	boundary int // the lowest TTL that may reach the destination
	limit    int // the highest TTL worth asking: a border, an unreachable
	retry    time.Duration
	slots    []slot // from params.FirstTTL on, as far as they matter
	lastSent time.Time
	due      func(*Plan) (ttl int, at time.Time, ok bool)
}

// slot is what is known of one TTL. Its moments are counted from the plan's start.
type slot struct {
	sent, answered, lost int32
	checks               int32 // probes in a row that only asked whether the path is still the same, unanswered
	queued               bool
	left                 bool // out: others saw what is there
	checking             bool // one of the checks is outstanding
	unsure               bool // the check got no answer
	lastSent             time.Duration
	firstSeen, seen      time.Duration // when the first and the newest answered probe left
	mustSee              time.Duration // an answer to a probe that left about then or later is needed
}

func (s *slot) outstanding() int { return int(s.sent - s.answered - s.lost) }

// NewPlan returns the plan of a trace that starts now to a destination at the
// given distance (see Distance), over a path whose round trip takes about rtt (0
// when unknown).
func NewPlan(params Params, now time.Time, distance int, rtt time.Duration) *Plan {
	p := &Plan{
		params: params, start: now, boundary: distance, limit: params.MaxTTL,
		slots: make([]slot, max(min(params.MaxTTL, distance+scanAhead)-params.FirstTTL+1, 0)),
	}
	p.SetRTT(rtt)
	switch params.Algorithm {
	case trace.PacketByPacket:
		p.due = packetByPacket
	case trace.HopByHop:
		p.due = hopByHop
	case trace.Concurrent:
		p.due = concurrent
	default:
		p.due = adaptive
	}
	return p
}

// SetRTT tells the path's round-trip time, from which the time of a repetition
// follows.
func (p *Plan) SetRTT(rtt time.Duration) {
	p.retry = min(max(2*rtt, 250*time.Millisecond), p.params.Timeout)
}

// Boundary is the lowest TTL that may reach the destination.
func (p *Plan) Boundary() int { return p.boundary }

// SetBoundary moves it: down when the destination proved nearer than its TTL
// said, up when a reaching probe expired on its way.
func (p *Plan) SetBoundary(ttl int) { p.boundary = ttl }

// Limit cuts the path at a TTL beyond which nothing is of interest.
func (p *Plan) Limit(ttl int) { p.limit = min(p.limit, ttl) }

// top is the highest TTL that is sent in the algorithm's order.
func (p *Plan) top() int { return min(p.boundary-1, p.limit, p.params.MaxTTL) }

// last is the highest TTL of which something may be known.
func (p *Plan) last() int {
	return max(p.top(), min(p.limit, p.params.MaxTTL, p.params.FirstTTL+len(p.slots)-1))
}

func (p *Plan) slot(ttl int) *slot {
	i := ttl - p.params.FirstTTL
	if i < 0 || ttl > p.params.MaxTTL {
		return &slot{}
	}
	if n := i + 1 - len(p.slots); n > 0 {
		p.slots = append(p.slots, make([]slot, n)...)
	}
	return &p.slots[i]
}

// Next returns the TTL to ask next and from when on; ok is false when nothing is
// to be sent until something is answered, lost or reported sent.
func (p *Plan) Next() (ttl int, at time.Time, ok bool) {
	if ttl, at, ok = p.due(p); ok {
		return ttl, at, true
	}
	return p.nextCheck()
}

// Settled reports whether the algorithm has asked all it wants of that TTL.
func (p *Plan) Settled(ttl int) bool {
	s := p.slot(ttl)
	return !s.queued && p.settled(s)
}

// Attempt is how many probes of that TTL were sent so far.
func (p *Plan) Attempt(ttl int) int { return int(p.slot(ttl).sent) }

// Rank says which probes go first where many wait for one allowance: the lower. Those of each
// TTL's first moment go before repetitions of what was silent. A second look at what answered
// is needed for a trace to end and ranks with the first: behind all others' it could come
// when nobody waits for it any more.
func (p *Plan) Rank(ttl int) int {
	s := p.slot(ttl)
	if s.sent > 0 && p.settled(s) {
		return int(s.checks)
	}
	return int(s.sent)
}

// LeaveOut tells that nothing needs to be asked of that TTL, or that it has to be after all.
func (p *Plan) LeaveOut(ttl int, yes bool) { p.slot(ttl).left = yes }

// Awaits reports whether, from that TTL on, the first probe of one is to be sent or to be
// answered.
func (p *Plan) Awaits(from int) bool {
	for ttl := from; ttl <= p.top(); ttl++ {
		if s := p.slot(ttl); s.sent == 0 || s.outstanding() > 0 {
			return true
		}
	}
	return false
}

// Queued tells that a probe of that TTL waits for its responder's allowance.
func (p *Plan) Queued(ttl int, yes bool) { p.slot(ttl).queued = yes }

// Wanted reports whether a probe that had to wait is still of use.
func (p *Plan) Wanted(ttl int) bool { return ttl <= p.top() }

// Sent tells that a probe of that TTL left.
func (p *Plan) Sent(ttl int, now time.Time) {
	s := p.slot(ttl)
	if s.sent > 0 && p.settled(s) {
		s.checks++
		s.checking = true
	}
	s.sent++
	s.lastSent, p.lastSent = now.Sub(p.start), now
}

// SentReaching tells the same of a probe that Reach asked for: it checks nothing.
func (p *Plan) SentReaching(ttl int, now time.Time) {
	s := p.slot(ttl)
	s.sent++
	s.lastSent, p.lastSent = now.Sub(p.start), now
}

// Answered tells that a probe of that TTL, which left at sent, was answered by
// an ICMP error.
func (p *Plan) Answered(ttl int, sent time.Time) {
	s := p.slot(ttl)
	s.answered++
	s.checks, s.checking = 0, false
	left := sent.Sub(p.start)
	if s.answered == 1 {
		s.firstSeen, s.seen = left, left
	}
	s.seen = max(s.seen, left)
}

// Lost tells that a probe of that TTL got no answer in time.
func (p *Plan) Lost(ttl int) {
	s := p.slot(ttl)
	s.lost++
	s.checking = false
}

// Unlost takes that back, before Answered.
func (p *Plan) Unlost(ttl int) { p.slot(ttl).lost-- }

// settled: nothing more is asked of this TTL in the algorithm's own order.
func (p *Plan) settled(s *slot) bool {
	if s.left {
		return true
	}
	if p.params.Algorithm == trace.Adaptive && s.answered > 0 {
		return true
	}
	return int(s.sent) >= p.params.Probes && s.outstanding() <= 0
}

// Finished reports whether every TTL up to the end is settled and the answers
// belong together.
func (p *Plan) Finished() bool {
	for ttl := p.params.FirstTTL; ttl <= p.top(); ttl++ {
		if s := p.slot(ttl); s.queued || !p.settled(s) {
			return p.silentRun() > 0
		}
	}
	_, _, pending := p.nextCheck()
	return !pending && !p.checking()
}

func (p *Plan) checking() bool {
	for i := range p.slots {
		if p.slots[i].checking {
			return true
		}
	}
	return false
}

// silentRun is the number of silent TTLs in a row, no answer above them, when it
// has reached the limit; 0 otherwise.
func (p *Plan) silentRun() int {
	if p.params.MaxSilent <= 0 {
		return 0
	}
	run, ttl := 0, p.silentFrom()
	for ; ttl <= p.top() && p.settled(p.slot(ttl)); ttl++ {
		run++
	}
	for ; ttl <= p.top(); ttl++ {
		if p.slot(ttl).outstanding() > 0 {
			return 0 // an answer may yet end the run
		}
	}
	if run < p.params.MaxSilent {
		return 0
	}
	return run
}

// silentFrom is the first TTL of the run that silentRun counted.
func (p *Plan) silentFrom() int {
	first := p.params.FirstTTL
	for ttl := p.params.FirstTTL; ttl <= p.top(); ttl++ {
		if s := p.slot(ttl); s.answered > 0 || s.left {
			first = ttl + 1
		}
	}
	return first
}

// SilentHops reports whether the trace ends for too many silent hops in a row.
func (p *Plan) SilentHops() bool { return p.silentRun() > 0 }

// Complete reports whether nothing is missing from FirstTTL to last.
func (p *Plan) Complete(last int) bool {
	for ttl := p.params.FirstTTL; ttl <= last; ttl++ {
		s := p.slot(ttl)
		if s.left || s.unsure || s.queued || (s.answered == 0 && (int(s.sent) < p.params.Probes || s.outstanding() > 0)) {
			return false
		}
	}
	return true
}
