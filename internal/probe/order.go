package probe

import "time"

// The four algorithms: each says which TTL is due next, and when, from what was
// sent and answered so far.

// packetByPacket sends one probe and waits for its reply or its timeout.
func packetByPacket(p *Plan) (ttl int, at time.Time, ok bool) {
	ttl, s := p.current()
	if s == nil || s.queued || s.outstanding() > 0 {
		return 0, at, false
	}
	return ttl, p.after(p.params.ProbeInterval), true
}

// hopByHop sends all probes of one TTL, then waits for them.
func hopByHop(p *Plan) (ttl int, at time.Time, ok bool) {
	ttl, s := p.current()
	if s == nil || s.queued || int(s.sent) >= p.params.Probes {
		return 0, at, false
	}
	if s.sent == 0 {
		return ttl, p.after(p.params.TTLInterval), true
	}
	return ttl, p.start.Add(s.lastSent + p.params.ProbeInterval), true
}

// concurrent sends all probes of all TTLs, then waits once.
func concurrent(p *Plan) (ttl int, at time.Time, ok bool) {
	for t := p.params.FirstTTL; t <= p.top(); t++ {
		s := p.slot(t)
		if s.queued || s.left || int(s.sent) >= p.params.Probes {
			continue
		}
		due := p.start.Add(s.lastSent + p.params.ProbeInterval)
		if s.sent == 0 {
			due = p.after(p.params.TTLInterval)
		}
		if !ok || due.Before(at) {
			ttl, at, ok = t, due, true
		}
		if s.sent == 0 {
			break // higher TTLs start after this one
		}
	}
	return ttl, at, ok
}

// adaptive keeps every TTL in flight, one probe each first, and asks again only
// where the answer is missing. It never waits for a silent hop.
func adaptive(p *Plan) (ttl int, at time.Time, ok bool) {
	for t := p.params.FirstTTL; t <= p.top(); t++ {
		s := p.slot(t)
		if s.queued || s.left || s.answered > 0 || int(s.sent) >= p.params.Probes {
			continue
		}
		due := p.start
		if s.sent > 0 {
			due = p.start.Add(s.lastSent + p.retry)
		}
		if !ok || due.Before(at) {
			ttl, at, ok = t, due, true
		}
	}
	return ttl, at, ok
}

// current is the lowest TTL that is not settled, nil when all are or when too
// many in a row were silent.
func (p *Plan) current() (int, *slot) {
	silent := 0
	for t := p.params.FirstTTL; t <= p.top(); t++ {
		s := p.slot(t)
		if !p.settled(s) {
			return t, s
		}
		silent++
		if s.answered > 0 || s.left {
			silent = 0
		}
		if p.params.MaxSilent > 0 && silent >= p.params.MaxSilent {
			return 0, nil
		}
	}
	return 0, nil
}

// after is a time after the newest probe, or the start.
func (p *Plan) after(d time.Duration) time.Time {
	if p.lastSent.IsZero() {
		return p.start
	}
	return p.lastSent.Add(d)
}

// A path is a snapshot: hops that were seen at different times may belong to
// different paths. Probes that left within togetherness of each other count as
// one moment; what is older than the newest discovery is asked once more.
const (
	togetherness = 100 * time.Millisecond
	checksEach   = 2
)

// nextCheck returns the TTL whose answer has to be confirmed: of those that may be asked.
func (p *Plan) nextCheck() (ttl int, at time.Time, ok bool) {
	var newest time.Duration
	for t := p.params.FirstTTL; t <= p.last(); t++ {
		s := p.slot(t)
		if t <= p.top() && !p.settled(s) && p.silentRun() == 0 {
			return 0, at, false // first things first
		}
		newest = max(newest, s.firstSeen)
	}
	for t := p.params.FirstTTL; t <= p.top(); t++ {
		s := p.slot(t)
		if s.answered == 0 || s.unsure || s.queued || s.checking || s.fresh(newest) {
			continue
		}
		if s.checks >= checksEach {
			s.unsure = true
			continue
		}
		return t, p.start.Add(s.lastSent + p.params.TTLInterval), true
	}
	return 0, at, false
}

// fresh reports whether the newest answer belongs to the same moment as the
// newest discovery of the path, and as what Recheck asked for.
func (s *slot) fresh(newest time.Duration) bool {
	return s.seen >= max(newest, s.mustSee)-togetherness
}

// Recheck asks for an answer of one TTL that is as new as since: the last hop
// has to be the last at the moment when the destination answered.
func (p *Plan) Recheck(ttl int, since time.Time) {
	s := p.slot(ttl)
	if at := since.Sub(p.start); s.answered > 0 && at > s.mustSee {
		s.mustSee, s.checks = at, 0
	}
}
