package engine

import (
	"time"

	"servicetraceroute/internal/owner"
	"servicetraceroute/trace"
)

// A short path is known sooner than whose the flow is. Its record waits for that.

const (
	// namelessWait is how long after the question a record waits at most.
	namelessWait = time.Second
	// namelessLook is how often it is looked whether the answer has come.
	namelessLook = 10 * time.Millisecond
)

// nameless are the records that wait for the answer to what was wondered about a flow.
type nameless struct {
	watch   *Watch
	records []told
}

// told is what a trace came to.
type told struct {
	trace    *trace.Trace
	findings []*trace.Finding
}

// write queues a trace's record and those of what it found.
func (e *Engine) write(w *Watch, t told) {
	e.emit(w, t.trace)
	for _, f := range t.findings {
		e.emit(w, f)
	}
}

// say queues the record of a trace that is over, unless its flow's process is about to
// be told.
func (e *Engine) say(now time.Time, r *run, t *trace.Trace) {
	a, what := r.at, told{t, findings(now, r.flow, t)}
	if !e.cfg.Finds || a.process != nil || t.Process != nil || a.wondered.IsZero() || now.Sub(a.wondered) >= namelessWait {
		e.write(r.watch, what)
		return
	}
	r.watch.unsaid++
	about := question{r.flow.Key, a.wondered.UnixNano()}
	n := e.nameless[about]
	n.watch, n.records = r.watch, append(n.records, what)
	e.nameless[about] = n
}

// question tells the answers about the connections of one key apart.
type question struct {
	key trace.FlowKey
	at  int64 // nanoseconds, UNIX time
}

// tellNameless gives the records about a flow the process that they wait for.
func (e *Engine) tellNameless(o *owner.Finding) {
	about := question{o.Key, o.At.UnixNano()}
	n, ok := e.nameless[about]
	if !ok {
		return
	}
	if o.Process != (trace.Process{}) {
		for _, t := range n.records {
			known := o.Process
			t.trace.Process = &known
		}
	}
	e.sayNow(about, n)
}

// sayNameless queues the records that have waited for long.
func (e *Engine) sayNameless(now time.Time) {
	if now.Before(e.namelessAt) {
		return
	}
	e.namelessAt = now.Add(namelessLook)
	for about, n := range e.nameless {
		if now.UnixNano()-about.at >= int64(namelessWait) {
			e.sayNow(about, n)
		}
	}
}

// sayAll queues the records of a watch that ends.
func (e *Engine) sayAll(w *Watch) {
	for about, n := range e.nameless {
		if n.watch == w {
			e.sayNow(about, n)
		}
	}
}

func (e *Engine) sayNow(about question, n nameless) {
	delete(e.nameless, about)
	n.watch.unsaid -= len(n.records)
	for _, t := range n.records {
		e.write(n.watch, t)
	}
}
