package engine

import (
	"net/netip"
	"time"

	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/service"
	"servicetraceroute/trace"
)

// Watch is a selection of flows and what is to be done with them.
type Watch struct {
	Selector     service.Selector
	Policy       // of all flows but those of the services in
	Policies     map[string]*Policy
	StopNewAfter time.Duration // 0: never
	Single       bool          // only the first flow that it selects

	begun     bool // with its first flow
	started   time.Time
	lastSeen  time.Time // of a packet of a selected flow
	matched   uint64
	running   int
	unsaid    int // traces that are over, whose records wait for the flow's process
	retraceAt time.Time
	keys      map[netip.AddrPort]*keyed // by destination, of policies whose Per is not PerFlow
}

// Policy says when and how flows are traced.
type Policy struct {
	Params  probe.Params
	Every   time.Duration // least time between traces of one flow; negative: once
	Retrace time.Duration // 0: off
	Per     Per           // what Every counts for
	// When begins the traces of a TCP flow instead of its beginning, no sooner than CoolDown
	// after the one before; nil: none. It belongs to the engine's goroutine.
	When     Trigger
	CoolDown time.Duration
	// OnPayload: a trace begins no sooner than the flow carries payload.
	OnPayload bool
}

// Matched is the number of flows that the watch selected so far.
func (w *Watch) Matched() uint64 { return w.matched }

// LastSeen is when a selected flow last showed a packet, or when the watch began.
func (w *Watch) LastSeen() time.Time { return w.lastSeen }

// Running is the number of its traces in progress, and of those whose records are to come.
func (w *Watch) Running() int { return w.running + w.unsaid }

// Over reports whether the watch starts no new trace and has no record to come.
func (w *Watch) Over(now time.Time) bool { return w.late(now) && w.Running() == 0 }

func (w *Watch) late(now time.Time) bool {
	return w.StopNewAfter > 0 && now.Sub(w.started) > w.StopNewAfter
}

// policy is that of a service's flows.
func (w *Watch) policy(service string) *Policy {
	if p, ok := w.Policies[service]; ok {
		return p
	}
	return &w.Policy
}

// single reports whether the watch wants one flow, which is known exactly.
func (w *Watch) single() bool {
	f := w.Selector.Flow
	return f != nil && f.Src.Addr().IsValid() && f.Src.Port() != 0
}

// Add starts a watch; flows already in the table are looked at again.
func (e *Engine) Add(now time.Time, w *Watch) {
	w.started, w.lastSeen = now, now
	e.enlist(w)
	e.attune()
	e.epoch++
	e.claim(now, w)
	for f := range e.table.Each {
		e.consider(now, f)
		e.closedBefore(now, f)
	}
}

// closedBefore writes the record of a flow that was over before it could be traced,
// where somebody waits for just that flow, or its owner was told too late.
func (e *Engine) closedBefore(now time.Time, f *flow.Flow) {
	a, ok := f.Attachment.(*attachment)
	if !ok || a.watch == nil || !f.Closed() || a.run != nil || a.refused || a.finished > 0 {
		return
	}
	if a.waitsToHurt() && !a.watch.single() {
		return // it never did
	}
	// Not those that were over before the watch began.
	owned := a.watch.Selector.ByOwner() && !e.cfg.NoProbe && !f.LastSeen().Before(a.watch.started)
	if !owned && !a.watch.single() {
		return
	}
	a.finished++
	if !a.told {
		a.told = true
		e.tell(now, f, a, trace.FlowMatched, 0)
	}
	e.ended(now, f, a, trace.StopFlowClosed, 0)
}

// Replace gives a watch another selection and other policies. Traces in progress
// of flows that it no longer selects end as cancelled, the others go on as they
// began; their flows keep their service.
func (e *Engine) Replace(now time.Time, w *Watch, by Watch) {
	w.Selector, w.Policy, w.Policies, w.StopNewAfter = by.Selector, by.Policy, by.Policies, by.StopNewAfter
	w.started, w.lastSeen, w.retraceAt = now, now, time.Time{}
	e.attune()
	e.epoch++
	for f := range e.table.Each {
		a, ok := f.Attachment.(*attachment)
		if !ok || a.watch != w {
			continue
		}
		if _, v := w.Selector.Match(e.tuple(f), e.known(now, f, a)); v == service.Yes {
			a.epoch = e.epoch
			if a.policy().When != nil && a.health != nil {
				e.triggers[f] = struct{}{}
			}
			if a.policy().Retrace > 0 && a.finished > 0 {
				w.retraceAt = now
			}
			continue
		}
		if a.run != nil {
			e.finish(now, a.run, trace.StopCancelled)
		}
		f.Attachment = a.forgotten()
	}
	for f := range e.table.Each {
		e.consider(now, f)
	}
}

// Pause holds back new traces until Resume; those in progress go on.
func (e *Engine) Pause() { e.paused = true }

// Resume lets traces begin again, of the flows that waited too.
func (e *Engine) Resume(now time.Time) {
	e.paused = false
	for f := range e.table.Each {
		e.consider(now, f)
	}
}

// Remove ends a watch: its traces stop with the given reason, and Records holds
// them.
func (e *Engine) Remove(now time.Time, w *Watch, why trace.Stop) {
	for _, r := range append([]*run(nil), e.runs...) {
		if r.watch == w {
			e.finish(now, r, why)
		}
	}
	e.sayAll(w)
	for i, other := range e.watches {
		if other == w {
			e.watches = append(e.watches[:i], e.watches[i+1:]...)
			break
		}
	}
	e.attune()
	e.epoch++
	for f := range e.table.Each {
		if a, ok := f.Attachment.(*attachment); ok && a.watch == w {
			e.giveBack(now, f, a)
		}
	}
	e.freed = true
	e.claims(now)
}

// removed forgets a flow that left the table.
func (e *Engine) removed(f *flow.Flow) {
	a, ok := f.Attachment.(*attachment)
	if !ok {
		return
	}
	e.deaf(a)
	delete(e.triggers, f)
	if a.run != nil {
		stop := trace.StopFlowIdle
		if a.run.closed() {
			stop = trace.StopFlowClosed
		}
		end := f.LastSeen()
		if end.Before(a.run.progressAt) { // the flow was silent while it was traced
			end = a.run.progressAt
		}
		e.finish(end, a.run, stop)
	}
	e.endSweep(a) // also what began with that trace's end
	e.showEnds(f)
}

// match attaches a flow to the first watch that selects it. It returns nil of one that none
// does, once that is certain.
func (e *Engine) match(now time.Time, f *flow.Flow) *attachment {
	a, _ := f.Attachment.(*attachment)
	if a == nil {
		if f.Judged == e.epoch {
			return nil
		}
		a = attached(f)
	}
	if a.epoch == e.epoch || a.watch != nil {
		switch {
		case f.Followed:
		case a.watch == nil && a.waits && a.waited < patient && e.firstShown():
			a.waited++ // most will be nobody's
		case e.needs(a):
			e.showWhole(now, f)
		}
		return a
	}
	a.epoch, a.waits, a.waited = e.epoch, false, 0
	t := e.tuple(f)
	for _, w := range e.watches {
		if w.Selector.ByInterface() && !f.Egress.Known {
			a.epoch = 0 // an accepted flow: look again when something leaves
			continue
		}
		switch s, v := w.Selector.Match(t, e.known(now, f, a)); v {
		case service.Yes:
			a.watch, a.service = w, s
			w.matched++
			e.stats.Flows.Matched++
			e.showWhole(now, f)
			e.wonder(now, f, a)
			return a
		case service.Wait:
			a.waits = true
			e.inquire(f, a)
		case service.Unclear:
			e.ignore(now, f, a, w)
		}
	}
	if !e.firstShown() && (a.waits || e.placing(a)) {
		e.showWhole(now, f)
	}
	if a.epoch == e.epoch && !a.waits && !a.listens() && !e.placing(a) {
		e.showNothing(f)
		if e.settle(f, a) {
			return nil
		}
	}
	return a
}

// ignore says once that a flow is not traced although it may be one of those wanted.
func (e *Engine) ignore(now time.Time, f *flow.Flow, a *attachment, w *Watch) {
	if !a.ignored && e.stands(now, f) {
		a.ignored = true
		e.emit(w, &trace.Flow{
			Tuple: e.tuple(f), Time: now, Label: e.cfg.Label, Process: a.whose(), State: trace.FlowIgnored, Reason: trace.ReasonAmbiguous,
		})
	}
	if !a.ignored {
		a.epoch = 0 // say so when it stands
	}
}

// tuple describes a flow in a record.
func (e *Engine) tuple(f *flow.Flow) trace.Tuple {
	t := trace.Tuple{FlowKey: f.Key, Direction: f.Direction, NetNS: e.cfg.NetNS}
	if e.cfg.InterfaceName != nil && f.Egress.Known {
		t.Interface = e.cfg.InterfaceName(f.Egress.Interface)
	}
	if a, ok := f.Attachment.(*attachment); ok && a.socket().IsValid() {
		wire := f.Key
		t.FlowKey, t.NAT = a.socket(), &wire
	}
	return t
}

// retraceDue starts the next trace of live flows whose time has come.
func (e *Engine) retraceDue(now time.Time, w *Watch) {
	if w.retraceAt.IsZero() || w.retraceAt.After(now) {
		return
	}
	w.retraceAt = time.Time{}
	for f := range e.table.Each {
		a, ok := f.Attachment.(*attachment)
		if !ok || a.watch != w || a.run != nil || a.finished == 0 || f.Closed() {
			continue
		}
		again := a.policy().Retrace
		if again == 0 {
			continue
		}
		if due := a.ended.Add(again); due.After(now) {
			w.retraceAt = earliest(w.retraceAt, due)
		} else {
			e.consider(now, f)
		}
	}
	if soonest := now.Add(time.Duration(e.table.Len()) * lookEach); w.retraceAt.Before(soonest) && !w.retraceAt.IsZero() {
		w.retraceAt = soonest
	}
}

// lookEach is how long the next look at the whole table has to wait for each flow there.
const lookEach = 4 * time.Microsecond

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
