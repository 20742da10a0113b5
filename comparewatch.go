package servicetraceroute

import (
	"context"
	"errors"
	"iter"
	"sync"

	"servicetraceroute/trace"
)

// maxToCompare is how many traces may wait for their comparison; of more, none is made.
const maxToCompare = 64

// Watch is the Tracer's Watch, with a *trace.Compare after each trace that can be compared,
// when its siblings are done: other records may come between. When ctx ends, the comparison
// in progress ends with what it has, and those that wait are dropped and counted. The last
// record is *trace.Stats, as without comparisons.
func (c *Comparer) Watch(ctx context.Context, sel Selection) iter.Seq2[trace.Event, error] {
	return func(yield func(trace.Event, error) bool) {
		inner, cancel := context.WithCancel(ctx)
		all := make(chan newsOf)
		traces := make(chan *trace.Trace, maxToCompare)
		var work sync.WaitGroup
		work.Go(func() {
			defer close(traces)
			c.watch(inner, sel, all, traces)
		})
		work.Go(func() { c.compareAll(inner, traces, all) })
		go func() { work.Wait(); close(all) }()
		defer func() { // also when yield wants no more: both end first
			cancel()
			for range all {
			}
		}()
		var last *trace.Stats // held back until it is known to be that
		for n := range all {
			if last != nil && n.watched {
				if !yield(last, nil) {
					return
				}
				last = nil
			}
			if s, ok := n.event.(*trace.Stats); ok && n.err == nil {
				last = s
				continue
			}
			if !yield(n.event, n.err) {
				return
			}
		}
		if last != nil {
			yield(last, nil)
		}
	}
}

// newsOf is a record, or an error, on its way to the reader.
type newsOf struct {
	event   trace.Event
	err     error
	watched bool // of the Tracer's, not a comparison
}

// watch hands on the Tracer's records, and the traces to be compared.
func (c *Comparer) watch(ctx context.Context, sel Selection, all chan<- newsOf, traces chan<- *trace.Trace) {
	for ev, err := range c.t.Watch(ctx, sel) {
		all <- newsOf{ev, err, true}
		tr, ok := ev.(*trace.Trace)
		if !ok {
			continue
		}
		select {
		case traces <- tr:
		default:
			c.count(func(s *CompareStats) { s.Dropped++ })
			c.t.log.Warn("a trace is not compared: too many wait", "flow", tr.Flow.FlowKey, "waiting", maxToCompare)
		}
	}
}

// compareAll compares one trace after the other.
func (c *Comparer) compareAll(ctx context.Context, traces <-chan *trace.Trace, all chan<- newsOf) {
	for tr := range traces {
		if ctx.Err() != nil {
			c.count(func(s *CompareStats) { s.Dropped++ })
			continue
		}
		out, err := c.Compare(ctx, tr)
		switch {
		case errors.Is(err, ErrNoCompare):
			c.t.log.Debug("not compared", "err", err)
		case err != nil:
			all <- newsOf{nil, err, false}
		default:
			all <- newsOf{out, nil, false}
		}
	}
}
