package engine

import (
	"time"

	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/service"
	"servicetraceroute/trace"
)

// Watch is a selection of flows and what is to be done with them.
type Watch struct {
	Selector     service.Selector
	Params       probe.Params
	Every        time.Duration // least time between traces of one flow; negative: once
	Retrace      time.Duration // 0: off
	StopNewAfter time.Duration // 0: never
	ExistingToo  bool

	started   time.Time
	lastSeen  time.Time // of a packet of a selected flow
	matched   uint64
	running   int
	retraceAt time.Time
}

// Matched is the number of flows that the watch selected so far.
func (w *Watch) Matched() uint64 { return w.matched }

// LastSeen is when a selected flow last showed a packet, or when the watch began.
func (w *Watch) LastSeen() time.Time { return w.lastSeen }

// Running is the number of its traces in progress.
func (w *Watch) Running() int { return w.running }

// attachment is what the engine knows of a flow beyond the table.
type attachment struct {
	epoch    uint64 // of the selections it was matched against
	watch    *Watch
	service  trace.Service
	run      *run
	told     bool // a flow record was written
	ended    time.Time
	finished int
	refused  bool
}

// Add starts a watch; flows already in the table are looked at again.
func (e *Engine) Add(now time.Time, w *Watch) {
	w.started, w.lastSeen = now, now
	e.watches = append(e.watches, w)
	e.epoch++
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
	for i, other := range e.watches {
		if other == w {
			e.watches = append(e.watches[:i], e.watches[i+1:]...)
			break
		}
	}
	e.epoch++
	for f := range e.table.Each {
		if a, ok := f.Attachment.(*attachment); ok && a.watch == w {
			f.Attachment = nil
		}
	}
}

// removed forgets a flow that left the table.
func (e *Engine) removed(f *flow.Flow) {
	if a, ok := f.Attachment.(*attachment); ok && a.run != nil {
		e.finish(f.LastSeen, a.run, trace.StopFlowIdle)
	}
}

// match attaches a flow to the first watch that selects it.
func (e *Engine) match(f *flow.Flow) *attachment {
	a, _ := f.Attachment.(*attachment)
	if a == nil {
		a = &attachment{}
		f.Attachment = a
	}
	if a.epoch == e.epoch || a.watch != nil {
		return a
	}
	a.epoch = e.epoch
	t := e.tuple(f)
	for _, w := range e.watches {
		if s, ok := w.Selector.Match(t); ok {
			a.watch, a.service = w, s
			w.matched++
			e.stats.Flows.Matched++
			break
		}
	}
	return a
}

// tuple describes a flow in a record.
func (e *Engine) tuple(f *flow.Flow) trace.Tuple {
	t := trace.Tuple{FlowKey: f.Key, Direction: f.Direction}
	if e.cfg.InterfaceName != nil && f.Egress.Known {
		t.Interface = e.cfg.InterfaceName(f.Egress.Interface)
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
		if !ok || a.watch != w || a.run != nil || a.finished == 0 || f.TCP.Closed {
			continue
		}
		if due := a.ended.Add(w.Retrace); due.After(now) {
			w.retraceAt = earliest(w.retraceAt, due)
		} else {
			e.consider(now, f)
		}
	}
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
