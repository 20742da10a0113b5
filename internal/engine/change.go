package engine

import (
	"net/netip"
	"slices"
	"time"

	"servicetraceroute/trace"
)

// The causes of a change, as records have them.
const (
	causeRoute     = "route"
	causeFlowLabel = "flow-label"
	causeUnknown   = "unknown"
)

// sureOfRoute is how much has to speak against a balancer that spreads the packets of one
// flow before a change is called one of the route. Each sighting beyond the first at a TTL
// that changed counts one: such a balancer with two ways shows first only the one and then
// only the other in 1 of 2^6 cases.
const sureOfRoute = 6

// maxAtTTL bounds the addresses that are remembered of one TTL.
const maxAtTTL = 16

// path is what the traces of one flow saw of its way, and the sweeps between them.
type path struct {
	hops   []waypoint // by TTL - 1
	label  uint32     // the flow's, when the newest trace began
	doubt  waypoint   // what a sweep saw that no trace did; at doubtTTL, 0: nothing
	calmAt time.Time  // no sweep asks for a trace before that

	doubtTTL int
	samples  samples
}

// waypoint is what was seen at one TTL.
type waypoint struct {
	addrs []netip.Addr
	ref   trace.PathRef // by which trace
	seen  int           // how often in a row
	// both: the addresses took turns, or might have. Whether the route changed there is
	// not known any more.
	both bool
}

// at is what is known of a TTL; the zero waypoint of one that was always silent.
func (p *path) at(ttl int) *waypoint {
	if ttl < 1 || ttl > len(p.hops) {
		return &waypoint{}
	}
	return &p.hops[ttl-1]
}

// seenBy is what a trace saw, as a path.
func seenBy(t *trace.Trace, label uint32) *path {
	p := &path{label: label}
	for _, h := range t.Hops {
		for len(p.hops) < h.TTL {
			p.hops = append(p.hops, waypoint{})
		}
		w := &p.hops[h.TTL-1]
		w.ref = trace.PathRef{Trace: t.ID, PathID: t.PathID}
		for _, reply := range h.Replies {
			// What another flow saw is not this one's way, and the destination is none of it.
			if reply.Kind != trace.TimeExceeded || reply.SharedFrom != "" {
				continue
			}
			w.seen++
			if !slices.Contains(w.addrs, reply.Addr) && len(w.addrs) < maxAtTTL {
				w.addrs = append(w.addrs, reply.Addr)
			}
		}
		slices.SortFunc(w.addrs, netip.Addr.Compare)
		w.both = len(w.addrs) > 1
	}
	return p
}

// disjoint reports whether a TTL shows that the paths differ: both have addresses there, and
// none in common. Silence against an address is no change.
func disjoint(a, b *waypoint) bool {
	return len(a.addrs) > 0 && len(b.addrs) > 0 && !slices.ContainsFunc(a.addrs, func(x netip.Addr) bool {
		return slices.Contains(b.addrs, x)
	})
}

// differs is the lowest TTL at which the paths are disjoint, 0: none, and how much speaks
// against a balancer of packets.
func (p *path) differs(next *path) (ttl, evidence int, turns bool) {
	for i := range next.hops {
		was, is := p.at(i+1), &next.hops[i]
		if !disjoint(was, is) {
			continue
		}
		if ttl == 0 {
			ttl = i + 1
		}
		evidence += was.seen + is.seen - 1
		turns = turns || was.both || is.both
	}
	return ttl, evidence, turns
}

// changed returns the record of what differs between the path so far and the next trace's,
// nil: nothing does.
func (p *path) changed(next *path, mixed bool) *trace.Change {
	ttl, evidence, turns := p.differs(next)
	if ttl == 0 {
		return nil
	}
	was, is := p.at(ttl), next.at(ttl)
	c := &trace.Change{
		Old: was.ref, New: is.ref, TTL: ttl, From: slices.Clone(was.addrs), To: slices.Clone(is.addrs), Cause: causeUnknown,
	}
	switch {
	case p.label != next.label:
		c.Cause = causeFlowLabel
	case !mixed && !turns && evidence >= sureOfRoute:
		c.Cause = causeRoute
	}
	return c
}

// follow takes in the next trace's path, of which c tells what changed.
func (p *path) follow(next *path, c *trace.Change, mixed bool) {
	p.label = next.label
	for i := range next.hops {
		if len(p.hops) == i {
			p.hops = append(p.hops, waypoint{})
		}
		was, is := &p.hops[i], next.hops[i]
		switch {
		case len(is.addrs) == 0:
			if c != nil {
				*was = waypoint{} // of another path
			}
		case disjoint(was, &is):
			if c != nil && c.Cause == causeUnknown {
				is.join(was.addrs)
			}
			*was = is
		case len(was.addrs) > 0 && (mixed || was.both || is.both):
			was.join(is.addrs)
			was.seen += is.seen
		default:
			is.seen += was.seen
			*was = is
		}
	}
	if c != nil {
		p.hops = p.hops[:len(next.hops)]
		p.samples = samples{} // of other routers
	}
}

// join adds addresses that may take turns with those that are there.
func (w *waypoint) join(addrs []netip.Addr) {
	for _, a := range addrs {
		if !slices.Contains(w.addrs, a) && len(w.addrs) < maxAtTTL {
			w.addrs = append(w.addrs, a)
			w.both = true
		}
	}
}

// label is the flow label of the flow's newest packet; 0 of IPv4.
func (r *run) label() uint32 {
	if r.udp() {
		return r.flow.UDP.Newest.FlowLabel
	}
	return r.flow.TCP.Newest.FlowLabel
}

// compare says what changed since the traces of the flow before this one.
func (e *Engine) compare(now time.Time, r *run, t *trace.Trace) {
	if r.watch.policy(r.at.service.Name).Retrace <= 0 || e.cfg.Replay {
		return
	}
	next := seenBy(t, r.label())
	p := r.at.path
	if p == nil {
		r.at.path = next
		return
	}
	p.hand(next)
	next, r.said = next.since(r.said), next
	c := p.changed(next, t.Mixed)
	if c != nil {
		c.Time, c.Label, c.Flow = now, e.cfg.Label, e.tuple(r.flow)
		e.emit(r.watch, c)
	}
	p.follow(next, c, t.Mixed)
	if r.index < 0 {
		p.settle(now, c != nil || r.changed)
	}
	r.changed = r.changed || c != nil
}

// hand adds what the sweep saw that asked for the trace to what the trace saw.
func (p *path) hand(next *path) {
	if w := next.at(p.doubtTTL); len(w.addrs) > 0 {
		w.join(p.doubt.addrs)
		w.seen += p.doubt.seen
	}
}

// since is the path with only those sightings counted that an earlier look at the same trace,
// if there was one, did not have: each speaks once.
func (p *path) since(earlier *path) *path {
	if earlier == nil {
		return p
	}
	later := &path{hops: slices.Clone(p.hops), label: p.label}
	for i := range later.hops {
		later.hops[i].seen = max(later.hops[i].seen-earlier.at(i+1).seen, 0)
	}
	return later
}

// falseAlarm is how long no sweep asks for a trace after one that found nothing.
const falseAlarm = 10 * time.Second

// settle ends a sweep's doubt when the trace is over. If no trace saw what a sweep did, the
// addresses take turns.
func (p *path) settle(now time.Time, changed bool) {
	if p.doubtTTL > 0 && !changed {
		p.at(p.doubtTTL).join(p.doubt.addrs)
		p.calmAt = now.Add(falseAlarm)
	}
	p.doubt, p.doubtTTL = waypoint{}, 0
}

// changeWait is how long a trace that a sweep asked for may look for the destination before
// it says what changed: the TTLs below are known by then.
const changeWait = 1200 * time.Millisecond

// sayEarly says what changed before the trace that was to find it is over; the name of its
// path is not known by then.
func (e *Engine) sayEarly(now time.Time, r *run) {
	if r.at.path == nil || r.at.path.doubtTTL == 0 || r.changed || now.Sub(r.start) < changeWait {
		return
	}
	t := r.record(now, trace.StopUnknown)
	next := seenBy(t, r.label())
	if r.at.path.hand(next); r.at.path.changed(next, t.Mixed) != nil {
		e.compare(now, r, t)
	}
}
