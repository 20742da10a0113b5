package engine

import (
	"time"

	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/owner"
	"servicetraceroute/trace"
)

const (
	// An owner is often known before the flow is: the kernel answers within a
	// fraction of the millisecond that a captured packet waits.
	maxEarly  = 4096
	earlyLife = 5 * time.Second
)

// Question is a flow whose beginning nobody saw, or whose owner was not told.
type Question struct {
	Key       trace.FlowKey
	Interface int
}

// early keeps owners until their flows appear, the oldest first.
type early struct {
	byKey map[trace.FlowKey]*owner.Owner
	order []arrival
}

type arrival struct {
	key trace.FlowKey
	at  time.Time
}

func (y *early) put(now time.Time, o *owner.Owner) {
	if y.byKey == nil {
		y.byKey = map[trace.FlowKey]*owner.Owner{}
	}
	for len(y.order) > 0 && (len(y.order) >= maxEarly || now.Sub(y.order[0].at) > earlyLife) {
		delete(y.byKey, y.order[0].key)
		y.order = y.order[1:]
	}
	if y.byKey[o.Key] == nil {
		y.order = append(y.order, arrival{o.Key, now})
	}
	y.byKey[o.Key] = o
}

func (y *early) take(k trace.FlowKey) *owner.Owner {
	o := y.byKey[k]
	delete(y.byKey, k)
	return o
}

// Owner tells whose a flow is, which may decide that it is traced.
func (e *Engine) Owner(now time.Time, o owner.Owner) {
	f := e.table.Get(o.Key)
	if f == nil || o.At.After(f.LastSeen()) {
		// Its SYN is still on the way here; what has these ports now is another
		// connection.
		e.early.put(now, &o)
		if f == nil || !f.Quiet {
			return
		}
		// Or the SYN has no time but that of its reading, and nothing more of the flow is
		// shown. If it is another one's, that begins before anything is probed.
	}
	a := attached(f)
	if a.owner != nil && a.owner.Process.PID != 0 && o.Process.PID == 0 {
		return
	}
	a.owner, a.epoch = &o, 0
	e.consider(now, f)
	e.closedBefore(now, f)
}

// ownerOf gives a flow the owner that was told before it appeared. With a SYN a
// new connection begins, whose owner may be another one.
func (e *Engine) ownerOf(now time.Time, f *flow.Flow, o *flow.Observation) {
	a, _ := f.Attachment.(*attachment)
	if o.FirstSYN && a != nil {
		if a.run != nil {
			if o.Before != nil {
				a.run.flow = o.Before // what the trace tells is of the connection that it was in
			}
			e.finish(now, a.run, trace.StopFlowClosed)
		}
		a.owner, a.asked, a.epoch = nil, false, 0
		a.process, a.wondered = nil, time.Time{}
		// Its client may want another name, too.
		if a.watch != nil && !a.watch.single() {
			a.watch, a.ignored = nil, false
			a.told = a.told && a.finished > 0
		}
	}
	if len(e.early.byKey) == 0 {
		return
	}
	if known := e.early.take(f.Key); known != nil {
		a = attached(f)
		a.owner, a.epoch = known, 0
	}
}

// inquire asks once for the owner of a flow that depends on it, unless its SYN
// was seen and the answer may be on its way.
func (e *Engine) inquire(f *flow.Flow, a *attachment) {
	switch {
	case a.owner != nil || a.asked:
		return
	case !f.Egress.Known:
		a.epoch = 0 // look again when something leaves
		return
	case f.TCP != nil && f.TCP.SynOut && !f.TCP.Established:
		a.epoch = 0 // look again with the next packet
		return
	}
	a.asked = true
	e.questions = append(e.questions, Question{f.Key, f.Egress.Interface})
}

// Questions hands out what the engine wants to know since the last call; the
// answers come back by Owner, or never.
func (e *Engine) Questions() []Question {
	out := e.questions
	e.questions = nil
	return out
}

// inquireScale asks once for the window scale of a flow whose handshake was not seen.
func (e *Engine) inquireScale(f *flow.Flow, a *attachment) {
	if !a.sized && !f.TCP.WindowScaleKnown() {
		a.sized = true
		e.scales = append(e.scales, Question{f.Key, f.Egress.Interface})
	}
}

// Scales hands out the flows whose window scale is wanted since the last call; the
// answers come back by Scale, or never.
func (e *Engine) Scales() []Question {
	out := e.scales
	e.scales = nil
	return out
}

// Scale tells what the local socket of a flow knows of its handshake.
func (e *Engine) Scale(k trace.FlowKey, local, peer uint8, sack bool) {
	if f := e.table.Get(k); f != nil && f.TCP != nil {
		f.TCP.Told(local, peer, sack)
	}
}

// wonder asks once whose a selected flow is, where nothing but its records depends on it.
func (e *Engine) wonder(now time.Time, f *flow.Flow, a *attachment) {
	if !a.wondered.IsZero() || !f.Egress.Known || f.Direction == trace.Transit || a.watch.Selector.ByOwner() {
		return
	}
	a.wondered = now
	e.wonders = append(e.wonders, owner.Query{Key: f.Key, Interface: f.Egress.Interface, At: now})
}

// Wonders hands out the flows whose process their records lack, since the last call; the
// answers come back by Found, or never.
func (e *Engine) Wonders() []owner.Query {
	out := e.wonders
	e.wonders = nil
	return out
}

// Found tells whose a flow is. That decides nothing.
func (e *Engine) Found(o owner.Finding) {
	e.tellNameless(&o)
	f := e.table.Get(o.Key)
	if f == nil {
		return
	}
	// Another time is that of an earlier connection with the same ports.
	if a, ok := f.Attachment.(*attachment); ok && a.wondered.Equal(o.At) {
		a.process = &o.Process
	}
}

// whose is what a record tells of a flow's owner.
func (a *attachment) whose() *trace.Process {
	p := a.process
	if a.owner != nil && (a.owner.Process.PID != 0 || p == nil) {
		p = &a.owner.Process
	}
	if p == nil || *p == (trace.Process{}) {
		return nil
	}
	known := *p
	return &known
}
