package engine

import (
	"slices"
	"time"

	"servicetraceroute/internal/localise"
	"servicetraceroute/internal/probe"
)

// stateAgain is for how long nothing must have called for a statement about a flow before it is
// made again: what lasts is stated once.
const stateAgain = 10 * time.Minute

// samples are what the sweeps of one path measured.
type samples struct {
	hops   []localise.Series // by TTL - 1
	own    localise.Series   // the flow's own round trips, one a round
	stated []stated
}

// stated is what was said of where delay or loss begins.
type stated struct {
	kind, ttl int
	at        time.Time
}

// stalled reports whether the flow waits for what is missing.
func (a *attachment) stalled(now time.Time) bool {
	return a.health != nil && a.health.State(now).Stalled > 0
}

// maxStated bounds what is remembered of that.
const maxStated = 16

// at are the samples of a TTL.
func (s *samples) at(ttl int) *localise.Series {
	for len(s.hops) < ttl {
		s.hops = append(s.hops, localise.Series{})
	}
	return &s.hops[ttl-1]
}

// overdue takes probes of the sweep that were not answered in time for lost.
func (e *Engine) overdue(now time.Time, s *sweep) {
	kept := s.open[:0]
	for _, p := range s.open {
		if !p.Answered && now.Sub(p.At) < s.run.params.Timeout {
			kept = append(kept, p)
			continue
		}
		if !p.Answered && !p.Unsent {
			e.unconfirmed(now, s, p)
		}
		p.Drop()
	}
	clear(s.open[len(kept):])
	s.open = kept
}

// unconfirmed takes in that a router that answered once did not answer. What its allowance
// may have withheld is no sample of loss, nor is what this host may not have seen, or no longer
// knows for an answer.
func (e *Engine) unconfirmed(now time.Time, s *sweep, p *probe.Sent) {
	p.Timeout = true
	e.noteFate(p, Silent)
	if !e.gap(s.run.flow).Before(p.At) || slices.Contains(s.believed, p.TTL) && !s.run.jury.Decided() {
		return
	}
	at := s.run.at.path.at(p.TTL)
	if len(at.addrs) > 0 {
		e.buckets.Missed(now, p, at.addrs[0])
	}
	s.run.at.path.samples.at(p.TTL).Add(p.At, localise.Lost)
}

// localise says where delay or loss begins, when each hop was asked once more and it can be
// said.
func (e *Engine) localise(now time.Time, s *sweep) {
	a := s.run.at
	m := &a.path.samples
	hops := make([]localise.Hop, 0, len(s.ttls))
	for _, ttl := range s.ttls {
		hops = append(hops, localise.Hop{TTL: ttl, Series: m.at(ttl)})
	}
	s.near = localise.Suspects(now, hops)
	var own localise.Own
	if a.health != nil {
		state := a.health.State(now)
		own = localise.Own{Retransmits: state.Retransmits, Segments: state.Segments}
		if state.Stalled > 1000 {
			own.Retransmits++ // it waits for its timer
		}
		if state.RTT > 0 {
			m.own.Add(now, time.Duration(state.RTT*float64(time.Millisecond)))
		}
	}
	for _, found := range []*localise.Statement{localise.Delay(hops, m.own.Rise()), localise.Loss(now, hops, own)} {
		if found != nil && m.fresh(now, found) {
			e.emit(s.run.watch, found.Finding(now, s.run.id, e.tuple(s.run.flow), e.cfg.Label))
		}
	}
}

// fresh reports whether a statement was not made lately, and notes that it is now.
func (m *samples) fresh(now time.Time, found *localise.Statement) bool {
	for i := range m.stated {
		if s := &m.stated[i]; s.kind == int(found.Kind) && s.ttl == found.TTL {
			old := now.Sub(s.at) >= stateAgain
			s.at = now
			return old
		}
	}
	if len(m.stated) == maxStated {
		m.stated = m.stated[1:]
	}
	m.stated = append(m.stated, stated{int(found.Kind), found.TTL, now})
	return true
}
