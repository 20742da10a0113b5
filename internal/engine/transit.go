package engine

import (
	"slices"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/service"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// Flows that this host only forwards (transit). Each is followed at one place, where its
// client's packets leave, with the addresses that they have there: probes go that way.
// What is seen at the other side is the same flow once more.
//
// Two kinds look different. Where neither address is this host's (passing), each side's
// packets leave somewhere, and the client has to be told from the server. Where addresses
// are translated to this host's own, the client's side looks like a flow that this host
// opened. Connection tracking knows of both; a SYN tells the client too.

// place is what is known of where a flow's ends are.
type place uint8

const (
	unplaced place = iota
	placeAsked
	placed
	aside // the server's side of a forwarded flow: followed at the client's
)

// attune sees whether any watch may select forwarded flows. Without one they are not
// followed, and what is known of them would grow old.
func (e *Engine) attune() {
	was := e.transit
	e.transit = e.cfg.Local != nil && slices.ContainsFunc(e.watches, func(w *Watch) bool {
		return w.Selector.WantsTransit() || w.single() && !e.cfg.Local(w.Selector.Flow.Src.Addr())
	})
	if was && !e.transit {
		e.table.Forget(func(f *flow.Flow) bool {
			a, ok := f.Attachment.(*attachment)
			return ok && (a.passing || a.place == aside)
		})
	}
}

func isAside(f *flow.Flow) bool {
	a, ok := f.Attachment.(*attachment)
	return ok && a.place == aside
}

// seenHere reports whether a packet is one of a flow that is followed where it was seen;
// passing, that neither end of it is this host. Key is the flow's, as seen from there.
func (e *Engine) seenHere(p *capture.Packet, key trace.FlowKey) (passing, ok bool) {
	if e.cfg.Local == nil || e.cfg.Local(key.Src.Addr()) {
		return false, true
	}
	if !e.transit || e.cfg.Local(key.Dst.Addr()) {
		return false, false
	}
	if f := e.table.Get(key); f != nil {
		return true, !isAside(f)
	}
	// Not at the interface by which its packets come.
	other := e.table.Get(turned(key))
	return true, p.Direction == capture.Outgoing && (other == nil || isAside(other))
}

// turned is the same flow seen from its other end.
func turned(k trace.FlowKey) trace.FlowKey {
	return trace.FlowKey{Proto: k.Proto, Src: k.Dst, Dst: k.Src}
}

// locate takes in where the newest packet of a flow was seen, and asks once for the
// place of one that stands: a flood of first packets asks nothing. It reports false when
// the flow is followed elsewhere.
func (e *Engine) locate(f *flow.Flow, passing, outgoing bool) bool {
	a, _ := f.Attachment.(*attachment)
	if !e.transit && (a == nil || a.place == unplaced) {
		return true
	}
	a = attached(f)
	if a.passing = passing; passing {
		f.Direction = trace.Transit
	}
	if f.Key.Proto == trace.TCP && e.tcp.Flags&wire.SYN != 0 {
		switch {
		case e.tcp.Flags&wire.ACK == 0: // the tuple may be another connection's now
			a.place, a.client = unplaced, nil
		case passing && outgoing:
			a.place = aside
		}
	}
	if e.transit && a.place == unplaced && f.Stands() {
		e.askPlace(f, a)
	}
	return a.place != aside
}

// tupleLife is how long a UDP flow may be silent before its tuple can be another client's:
// connection tracking forgets one after 30 s or later.
const tupleLife = 25 * time.Second

// reusable lets the place of a UDP flow that was silent for long be asked for again.
func (e *Engine) reusable(now time.Time, k trace.FlowKey) {
	if !e.cfg.Tracked {
		return
	}
	if f := e.table.Get(k); f != nil && now.Sub(f.LastSeen()) > tupleLife && attached(f).run == nil {
		a := attached(f)
		a.place, a.client = unplaced, nil
	}
}

func (e *Engine) askPlace(f *flow.Flow, a *attachment) {
	if !e.cfg.Tracked || e.cfg.Local == nil {
		e.untracked(f, a)
		return
	}
	a.place = placeAsked
	e.places = append(e.places, f.Key)
}

// placing reports whether it is yet to come who a flow's ends are, which may select it.
func (e *Engine) placing(a *attachment) bool {
	return e.transit && a.place != placed && a.place != aside
}

// knowsPlace reports whether it is known who a selected flow's ends are, and asks if it was
// not asked yet. Where no forwarded flows are wanted it matters only whether one that looks
// like this host's own is.
func (e *Engine) knowsPlace(f *flow.Flow, a *attachment) bool {
	if !e.transit && (f.Direction != trace.Out || a.owner != nil || a.watch.single()) {
		return true
	}
	if a.place == unplaced {
		e.askPlace(f, a)
	}
	if a.place == placeAsked && a.coming == "" {
		a.coming = e.newID()
	}
	return a.place == placed
}

// Places hands out the flows, by their keys on the wire, of which the engine wants to
// know what connection tracking says, since the last call; the answers come back by
// Place or Untracked.
func (e *Engine) Places() []trace.FlowKey {
	out := e.places
	e.places = nil
	return out
}

// Place tells what connection tracking knows of a flow: the tuple of its first packet as
// it came, and that of the answers.
func (e *Engine) Place(now time.Time, k, first, answers trace.FlowKey) {
	f, a := e.awaitsPlace(k)
	if a == nil {
		return
	}
	in := turned(k)
	foreign := func(x trace.FlowKey) bool { return !e.cfg.Local(x.Src.Addr()) }
	was := f.Direction
	a.place = placed
	switch {
	case answers == in && (a.passing || foreign(first) && foreign(answers)):
		f.Direction = trace.Transit
		if first != k {
			a.client = &first
		}
	case first == in && e.transit && (a.passing || foreign(answers)):
		a.place = aside
	case !a.passing && was == trace.Transit:
		f.Direction = trace.Out // this host's own has the tuple now
	}
	e.replaced(now, f, a, was)
}

// Untracked tells that connection tracking does not know a flow.
func (e *Engine) Untracked(now time.Time, k trace.FlowKey) {
	if f, a := e.awaitsPlace(k); a != nil {
		e.untracked(f, a)
		e.replaced(now, f, a, f.Direction)
	}
}

func (e *Engine) awaitsPlace(k trace.FlowKey) (*flow.Flow, *attachment) {
	f := e.table.Get(k)
	if f == nil || attached(f).place != placeAsked {
		return nil, nil
	}
	return f, attached(f)
}

// untracked places a flow of which only its packets tell: who sent the SYN is its client,
// else who does not have the lower port.
func (e *Engine) untracked(f *flow.Flow, a *attachment) {
	a.place = placed
	if a.passing && f.Key.Proto == trace.TCP && !f.TCP.SynOut && f.Key.Src.Port() < f.Key.Dst.Port() {
		a.place = aside
	}
}

// replaced lets the selections look again at a flow whose place was told: until now they
// took it for what it looked like.
func (e *Engine) replaced(now time.Time, f *flow.Flow, a *attachment, was trace.Direction) {
	if a.run != nil && (a.place == aside || f.Direction != was) {
		e.finish(now, a.run, trace.StopCancelled)
	}
	if w := a.watch; w != nil {
		if s, v := w.Selector.Match(e.tuple(f), e.known(now, f, a)); v == service.Yes && a.place != aside {
			a.service = s
		} else {
			if !a.told {
				w.matched--
				e.stats.Flows.Matched--
			}
			a = a.forgotten()
			f.Attachment = a
		}
	}
	if a.watch == nil {
		a.epoch = 0
	}
	if a.place != aside {
		e.consider(now, f)
		e.closedBefore(now, f)
	}
}
