package engine

import (
	"slices"
	"time"

	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/service"
	"servicetraceroute/trace"
)

// A flow belongs to one watch. One that asks for exactly this flow comes before those
// that select it among others: it takes the flow over between two traces, and gives
// it back with all that was known when it ends. Of two such watches the second waits
// for the first.

// enlist adds a watch, those for one flow first.
func (e *Engine) enlist(w *Watch) {
	if w.Selector.Flow != nil {
		e.watches = slices.Insert(e.watches, 0, w)
		return
	}
	e.watches = append(e.watches, w)
}

// claim gives the one flow that the watch wants to it, unless it is being traced:
// then the end of that trace calls again.
func (e *Engine) claim(now time.Time, w *Watch) {
	if !w.single() {
		return
	}
	f := e.table.Get(w.Selector.Flow.Wire())
	if f == nil {
		return
	}
	a, _ := f.Attachment.(*attachment)
	if a != nil && a.run != nil {
		a.claimed = true
		return
	}
	if a != nil && a.watch != nil && !a.watch.single() {
		if s, v := w.Selector.Match(e.tuple(f), e.known(now, f, a)); v == service.Yes {
			if a.near == nil {
				a.near = &near{}
			}
			mine := a.forgotten()
			mine.epoch, mine.watch, mine.service, mine.home, mine.asked = e.epoch, w, s, a, a.asked
			f.Attachment = mine
			w.matched++
		}
	}
	e.consider(now, f)
	e.closedBefore(now, f)
}

// claims lets watches for one flow have it, after a trace ended for which one waited.
func (e *Engine) claims(now time.Time) {
	if !e.freed {
		return
	}
	e.freed = false
	for _, w := range e.watches {
		e.claim(now, w)
	}
}

// Shown reports whether the one flow that the watch wants can be traced to its end as
// far as its packets go; what it waits for then is another watch's trace, or Resume.
// Settled is when nothing is under way to the peer: of a flow joined at a keepalive
// that is known only after the second. Known is when any packet of it was seen.
func (e *Engine) Shown(w *Watch) (shown, settled, known bool) {
	f := e.table.Get(w.Selector.Flow.Wire())
	if f == nil || f.Key.Proto == trace.UDP && f.UDP.Exchanges < exchangesFirst ||
		f.Key.Proto == trace.TCP && (!showsItself(f) || !f.TCP.PeerSpoke) {
		return false, false, f != nil
	}
	return true, f.TCP == nil || f.TCP.Nxt == f.TCP.Una, true
}

// giveBack returns a flow to the watch from which it was claimed, if that still
// wants it.
func (e *Engine) giveBack(now time.Time, f *flow.Flow, a *attachment) {
	f.Attachment = a.forgotten()
	home := a.home
	if home == nil || !slices.Contains(e.watches, home.watch) {
		return
	}
	if s, v := home.watch.Selector.Match(e.tuple(f), e.known(now, f, a)); v == service.Yes {
		home.service, home.epoch, home.owner = s, e.epoch, a.owner
		home.process, home.wondered = a.process, a.wondered
		home.passing, home.place, home.client = a.passing, a.place, a.client
		home.health = nil // of what passed meanwhile it knows nothing
		f.Attachment = home
		if again := home.policy().Retrace; again > 0 && home.finished > 0 {
			home.watch.retraceAt = earliest(home.watch.retraceAt, home.ended.Add(again))
		}
	}
}
