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
	slots    []slot // from params.FirstTTL on
	lastSent time.Time
	due      func(*Plan) (ttl int, at time.Time, ok bool)
}

// slot is what is known of one TTL.
type slot struct {
	sent, answered, lost int
	queued               bool
	lastSent             time.Time
	firstSeen, seen      time.Time // when the first and the newest answered probe left
	checks               int       // probes in a row that only asked whether the path is still the same, unanswered
	checking             bool      // one of them is outstanding
	unsure               bool      // the check got no answer
	mustSee              time.Time // an answer to a probe that left about then or later is needed
}

func (s *slot) outstanding() int { return s.sent - s.answered - s.lost }

// NewPlan returns the plan of a trace that starts now to a destination at the
// given distance (see Distance), over a path whose round trip takes about rtt (0
// when unknown).
func NewPlan(params Params, now time.Time, distance int, rtt time.Duration) *Plan {
	p := &Plan{
		params: params, start: now, boundary: distance, limit: params.MaxTTL,
		slots: make([]slot, max(params.MaxTTL-params.FirstTTL+1, 0)),
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

func (p *Plan) slot(ttl int) *slot {
	if i := ttl - p.params.FirstTTL; i >= 0 && i < len(p.slots) {
		return &p.slots[i]
	}
	return &slot{}
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
func (p *Plan) Attempt(ttl int) int { return p.slot(ttl).sent }

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
	s.lastSent, p.lastSent = now, now
}

// SentReaching tells the same of a probe that Reach asked for: it checks nothing.
func (p *Plan) SentReaching(ttl int, now time.Time) {
	s := p.slot(ttl)
	s.sent++
	s.lastSent, p.lastSent = now, now
}

// Answered tells that a probe of that TTL, which left at sent, was answered by
// an ICMP error.
func (p *Plan) Answered(ttl int, sent time.Time) {
	s := p.slot(ttl)
	s.answered++
	s.checks, s.checking = 0, false
	if s.firstSeen.IsZero() {
		s.firstSeen = sent
	}
	if sent.After(s.seen) {
		s.seen = sent
	}
}

// Lost tells that a probe of that TTL got no answer in time.
func (p *Plan) Lost(ttl int) {
	s := p.slot(ttl)
	s.lost++
	s.checking = false
}

// settled: nothing more is asked of this TTL in the algorithm's own order.
func (p *Plan) settled(s *slot) bool {
	if p.params.Algorithm == trace.Adaptive && s.answered > 0 {
		return true
	}
	return s.sent >= p.params.Probes && s.outstanding() <= 0
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
		if p.slot(ttl).answered > 0 {
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
		if s.unsure || s.queued || (s.answered == 0 && (s.sent < p.params.Probes || s.outstanding() > 0)) {
			return false
		}
	}
	return true
}
