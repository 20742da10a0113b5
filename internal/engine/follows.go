package engine

import (
	"time"

	"servicetraceroute/internal/flow"
)

// A source may show of a flow only how it begins and ends (capture.Follower). So the engine
// says of which flows it wants all packets: of those that are selected, or may be, until
// nothing is done with them any more.

// patient is how often a flow is looked at without knowing whose it is, about twice for each
// packet, until it is followed for that. It is less than a source shows at first.
const patient = 12

// showLessEvery is how often it is looked who need not be followed any more.
const showLessEvery = time.Second

// showWhole has all packets of a flow shown from now on, if they are not yet.
func (e *Engine) showWhole(now time.Time, f *flow.Flow) {
	if e.cfg.Follow == nil || f.Followed {
		return
	}
	if f.HalfOpen() && e.firstShown() {
		return // the handshake is, and most of a flood's have no end
	}
	f.Followed = true
	switch since := e.cfg.Follow.Follow(f.Key, e.transit); {
	case f.Quiet:
		attached(f).gap = now
	case since.After(f.Began()):
		attached(f).gap = since
	}
	f.Quiet = false
	e.follows[f] = struct{}{}
}

// firstShown reports whether a flow's first packets are shown anyway.
func (e *Engine) firstShown() bool { return e.cfg.Follow == nil || e.cfg.Follow.FirstShown() }

// showNothing has of a flow only its end shown: nobody selected it. Without a watch all flows
// are of interest, for one that may begin.
func (e *Engine) showNothing(f *flow.Flow) {
	if e.cfg.Follow == nil || len(e.watches) == 0 || f.Followed && e.firstShown() {
		return
	}
	e.showEnds(f) // it was followed to find out
	f.Quiet = e.cfg.Follow.Ignore(f.Key, e.transit) || f.Quiet
}

// showEnds has only the beginnings and the end of a flow shown.
func (e *Engine) showEnds(f *flow.Flow) {
	if f.Followed {
		f.Followed = false
		delete(e.follows, f)
		f.Quiet = e.cfg.Follow.Unfollow(f.Key, true) // also if both were asked for then, and would not be now
	}
}

// showLess lets go of the flows that nobody needs.
func (e *Engine) showLess(now time.Time) {
	if e.cfg.Follow == nil || now.Before(e.showLessAt) {
		return
	}
	e.showLessAt = now.Add(showLessEvery)
	for f := range e.follows {
		if a, ok := f.Attachment.(*attachment); !ok || !e.needs(a) {
			e.showEnds(f)
		}
	}
}

// needs reports whether something may yet be done with a flow.
func (e *Engine) needs(a *attachment) bool {
	switch w := a.watch; {
	case a.run != nil || a.claimed:
		return true
	case w == nil:
		return a.waits || e.placing(a) && !e.firstShown()
	case a.refused:
		return a.asks || a.unanswered // it may show itself to be another
	case e.cfg.NoProbe:
		return !a.told
	case a.finished > 0:
		p := a.policy()
		return p.Retrace > 0 || p.When != nil || a.anew && p.Every >= 0
	case w.Single:
		return !w.begun
	}
	return true
}

// gap is since when a flow's packets are all seen again; zero: they were all the time.
func (e *Engine) gap(f *flow.Flow) time.Time {
	if a, ok := f.Attachment.(*attachment); ok && a.gap.After(e.lostAt) {
		return a.gap
	}
	return e.lostAt
}
