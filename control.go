package servicetraceroute

import (
	"context"
	"errors"
	"time"

	"servicetraceroute/trace"
)

// SetSelection replaces what the running Watches select, and how it is traced; names
// are resolved now. Traces in progress go on as they began when their flow is still
// selected, and end as cancelled otherwise. Trace and TraceConn are not concerned.
//
// On an error, also when no Watch is running, everything stays as it was.
func (t *Tracer) SetSelection(ctx context.Context, sel Selection) error {
	w, err := sel.watch(ctx, t.cfg)
	if err != nil {
		return err
	}
	found := false
	err = t.do(func(now time.Time) {
		for old, s := range t.watches {
			if old.Selector.Flow != nil {
				continue
			}
			found = true
			s.idle = sel.Idle
			t.engine.Replace(now, old, *w)
		}
		t.narrow()
		t.deliver(now)
	})
	if err == nil && !found {
		err = errors.New("servicetraceroute: SetSelection: no Watch is running")
	}
	return err
}

// Pause holds back new traces until Resume, those that Trace and TraceConn ask for
// too. Traces in progress go on, and flows are still followed and reported.
func (t *Tracer) Pause() { _ = t.do(func(time.Time) { t.engine.Pause() }) }

// Resume lets traces begin again; flows that appeared meanwhile are traced now.
// Without a Pause before it does nothing.
func (t *Tracer) Resume() { _ = t.do(func(now time.Time) { t.engine.Resume(now) }) }

// Last returns the newest trace of a flow, however it was asked for. The newest few
// thousand flows are remembered; ok is false for others, and after Close. The trace
// is shared: it must not be changed.
func (t *Tracer) Last(key trace.FlowKey) (tr *trace.Trace, ok bool) {
	if t.do(func(time.Time) { tr, ok = t.results.get(key) }) != nil {
		return nil, false
	}
	return tr, ok
}

// maxResults bounds the traces that Last remembers.
const maxResults = 4096

// results are the newest traces of flows; the flow that got its first trace longest
// ago is forgotten first. It belongs to the loop.
type results struct {
	byFlow map[trace.FlowKey]*trace.Trace
	order  []trace.FlowKey // a ring once it is full
	next   int
}

func (r *results) add(tr *trace.Trace) {
	key := tr.Flow.FlowKey
	if r.byFlow == nil {
		r.byFlow = map[trace.FlowKey]*trace.Trace{}
	}
	if _, known := r.byFlow[key]; !known {
		if len(r.order) < maxResults {
			r.order = append(r.order, key)
		} else {
			delete(r.byFlow, r.order[r.next])
			r.order[r.next] = key
			r.next = (r.next + 1) % maxResults
		}
	}
	r.byFlow[key] = tr
}

func (r *results) get(key trace.FlowKey) (*trace.Trace, bool) {
	tr, ok := r.byFlow[key]
	return tr, ok
}
