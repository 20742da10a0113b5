package engine

import (
	"time"

	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/health"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// Trigger says of a flow that does like this whether it is to be traced now.
type Trigger interface {
	Hurts(health.State) bool
	String() string // as the user wrote it
}

const (
	// triggerLook is how often flows are looked at whose traces a trigger begins, each flow of
	// many adding triggerEach.
	triggerLook = 250 * time.Millisecond
	triggerEach = 10 * time.Microsecond
)

// examine takes a segment of a selected flow into account.
func (e *Engine) examine(now time.Time, f *flow.Flow, a *attachment, s *wire.TCP, o *flow.Observation) {
	if a.watch == nil || f.HalfOpen() && o.FirstSYN {
		return
	}
	if a.health == nil {
		a.health = &health.Flow{}
		if a.policy().When != nil {
			e.triggers[f] = struct{}{}
		}
	}
	a.health.Observe(health.Segment{At: now, Out: o.Outgoing, TCP: s, Retransmit: o.Retransmit, Keepalive: o.Keepalive})
}

// triggersDue begins the traces of flows that hurt now.
func (e *Engine) triggersDue(now time.Time) {
	if len(e.triggers) == 0 || now.Before(e.triggersAt) {
		return
	}
	e.triggersAt = now.Add(triggerLook + time.Duration(len(e.triggers))*triggerEach)
	for f := range e.triggers {
		a, ok := f.Attachment.(*attachment)
		if !ok || a.watch == nil || a.policy().When == nil || a.health == nil || f.Closed() {
			delete(e.triggers, f)
			continue
		}
		if a.run != nil || a.hurt != "" || a.finished > 0 && now.Sub(a.ended) < a.policy().CoolDown || f.Quiet {
			continue
		}
		if when := a.policy().When; when.Hurts(a.health.State(now)) {
			a.hurt = when.String()
			e.consider(now, f)
			if a.run == nil {
				a.hurt = "" // it may not begin now; and by then it may be well again
			}
		}
	}
}

// waitsToHurt reports whether the flow's next trace is for its trigger to begin.
func (a *attachment) waitsToHurt() bool { return a.policy().When != nil && a.hurt == "" }

// observed is what the flow itself showed.
func observed(f *flow.Flow, now time.Time) trace.Observed {
	o := trace.Observed{RTT: -1, Retransmits: int(f.Retransmits), BytesIn: f.BytesIn, BytesOut: f.BytesOut}
	if rtt, _, ok := f.RTT(); ok {
		o.RTT = rtt
	}
	a, ok := f.Attachment.(*attachment)
	if !ok || a.health == nil {
		return o
	}
	if rtt, least, ok := a.health.RTT(); ok {
		o.RTTMin = least
		if o.RTT < 0 {
			o.RTT = rtt
		}
	}
	s := a.health.State(now)
	o.In, o.Out = side(&a.health.In, s.GoodputIn), side(&a.health.Out, s.GoodputOut)
	return o
}

func side(d *health.Side, goodput float64) *trace.Health {
	return &trace.Health{
		Retransmits: d.Retransmits, DupAcks: d.DupAcks, OutOfOrder: d.OutOfOrder, ZeroWindows: d.ZeroWindows, Goodput: int64(goodput),
	}
}
