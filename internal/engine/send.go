package engine

import (
	"time"

	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/wire"
)

// queue lets a probe of that TTL wait for its responder's allowance; release
// grants it, at once if there is any.
func (e *Engine) queue(now time.Time, r *run, ttl int) {
	h := r.hop(ttl)
	place := r.place(ttl)
	var bucket *probe.Bucket
	if n := len(h.replies); n > 0 {
		bucket = e.buckets.For(now, place, h.replies[n-1].Addr)
	} else {
		bucket = e.buckets.For(now, place, noAddr)
	}
	r.plan.Queued(ttl, true)
	h.held++
	leg := r.leg
	w := &probe.Waiter{Place: place, Attempt: r.plan.Attempt(ttl)}
	w.Grant = func(now time.Time, by *probe.Bucket) bool {
		r.dropWaiter(w)
		if r.index < 0 || r.leg != leg {
			return false
		}
		h.held--
		r.plan.Queued(ttl, false)
		if !r.plan.Wanted(ttl) || !r.mayProbe() {
			return false
		}
		if !e.send(now, r, ttl, by, place, false) {
			e.schedule(r, now.Add(roomLook))
			return false
		}
		e.schedule(r, now) // what comes next depends on this one
		return true
	}
	r.waiters = append(r.waiters, w)
	bucket.Wait(w)
	e.newWaits = true
}

func (r *run) dropWaiter(w *probe.Waiter) {
	for i, other := range r.waiters {
		if other == w {
			r.waiters = append(r.waiters[:i], r.waiters[i+1:]...)
			return
		}
	}
}

// send crafts one probe and hands it out. It reports false when the flow leaves
// no room for one now.
func (e *Engine) send(now time.Time, r *run, ttl int, b *probe.Bucket, place probe.Place, reaching bool) bool {
	f := r.flow
	s := &probe.Sent{
		At: now, TTL: ttl, Attempt: r.plan.Attempt(ttl), Reaching: reaching,
		Bucket: b, Place: place, Owner: r, Leg: r.leg,
	}
	if !e.craft(r, s, ttl) {
		return false
	}
	if s.Src.Addr().Is4() {
		s.ID = e.sent.NewID(e.rng)
	}
	r.lastSeq = s.Seq
	from := len(e.buf)
	e.buf = s.AppendTo(e.buf)
	s.Len = len(e.buf) - from
	r.probeLen = s.Len
	if s.UDP {
		f.UDP.ProbeBytes += uint64(s.Len)
	}
	e.noteProbe(r, s, e.buf[from:])
	e.sent.Add(now, s, r.params.Timeout)
	if b != nil {
		b.Sent(s)
	}
	e.budget.spend()
	r.open = append(r.open, s)
	r.hop(ttl).sent++
	r.progressAt = now
	if reaching {
		r.plan.SentReaching(ttl, now)
		r.reach.Sent(ttl, now)
	} else {
		r.plan.Sent(ttl, now)
	}
	e.stats.Probes.Sent++
	e.actions.Probes = append(e.actions.Probes, Probe{
		Packet: e.buf[from:len(e.buf):len(e.buf)], Interface: f.Egress.Interface, NextHop: f.Egress.NextHop, sent: s,
		DropErrors: r.overheard(),
	})
	return true
}

// Failure is why a probe could not be sent.
type Failure uint8

// The failures that are told apart.
const (
	FailEPERM   Failure = iota + 1 // a local firewall
	FailENOBUFS                    // a full queue
	FailOther
)

// Failed tells that a probe of the last Step did not leave. It counts as never
// sent, and its TTL is tried again no sooner than a lost one.
func (e *Engine) Failed(now time.Time, p Probe, why Failure) {
	switch why {
	case FailEPERM:
		e.stats.Probes.EPERM++
	case FailENOBUFS:
		e.stats.Probes.ENOBUFS++
	default:
		e.stats.Probes.Failed++
	}
	e.stats.Probes.Sent--
	s := p.sent
	e.noteUnsent(s)
	r, ok := s.Owner.(*run)
	s.Timeout = true
	if !ok || r.index < 0 || s.Leg != r.leg {
		return
	}
	r.hop(s.TTL).sent--
	r.plan.Lost(s.TTL)
	if s.Reaching {
		r.reach.Void()
		r.reach.Miss(true)
	}
	for i, o := range r.open {
		if o == s {
			r.open = append(r.open[:i], r.open[i+1:]...)
			break
		}
	}
}

// retained copies a decoded quote without the bytes it points at.
func retained(q *wire.Quote) wire.Quote {
	c := *q
	c.Transport = nil
	return c
}
