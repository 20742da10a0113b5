package engine

import (
	"slices"
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
	w := e.newWish()
	w.run, w.leg, w.ttl = r, r.leg, ttl
	w.Place, w.Rank = place, r.plan.Rank(ttl)
	r.waiters = append(r.waiters, w)
	bucket.Wait(&w.Waiter)
	e.newWaits = true
}

// ask lets the probe that may reach the destination wait for its responder's allowance, as
// others do: whoever came and looked now and then would find it taken each time.
func (e *Engine) ask(r *run, ttl int, bucket *probe.Bucket, place probe.Place) {
	if r.asking != nil {
		return
	}
	w := e.newWish()
	w.run, w.leg, w.ttl, w.reaching = r, r.leg, ttl, true
	w.Place, w.Rank = place, r.plan.Attempt(ttl)
	r.asking = w
	bucket.Wait(&w.Waiter)
	e.newWaits = true
}

// wish is a probe that waits for an allowance.
type wish struct {
	probe.Waiter
	run      *run
	leg, ttl int
	reaching bool
}

// newWish returns one to be filled in, of those that were granted if there are.
func (e *Engine) newWish() *wish {
	if n := len(e.wishes); n > 0 {
		w := e.wishes[n-1]
		e.wishes = e.wishes[:n-1]
		return w
	}
	w := &wish{}
	w.Grant = func(now time.Time, by *probe.Bucket) bool { return e.grant(now, w, by) }
	return w
}

// maxWishes bounds those that are kept for others to come.
const maxWishes = 1 << 14

// grant sends the probe that waited, if it is still of use.
func (e *Engine) grant(now time.Time, w *wish, by *probe.Bucket) bool {
	r, ttl := w.run, w.ttl
	over, reaching := r.index < 0 || r.leg != w.leg, w.reaching
	r.drop(w)
	w.run, w.reaching = nil, false
	if len(e.wishes) < maxWishes {
		e.wishes = append(e.wishes, w)
	}
	if over {
		return false
	}
	if reaching {
		next := now
		if r.mayProbe() {
			next = e.reaching(now, r, by)
		}
		e.schedule(r, next)
		return r.lastReachAt.Equal(now)
	}
	r.hop(ttl).held--
	r.plan.Queued(ttl, false)
	if !r.plan.Wanted(ttl) || !r.mayProbe() {
		return false
	}
	if e.leaveOut(now, r, ttl) {
		e.schedule(r, now)
		return false
	}
	if !e.send(now, r, ttl, by, w.Place, false) {
		e.schedule(r, now.Add(roomLook))
		return false
	}
	e.schedule(r, now) // what comes next depends on this one
	return true
}

// withdraw lets nothing wait any more.
func (r *run) withdraw() {
	for _, w := range r.waiters {
		w.Cancel()
	}
	if r.asking != nil {
		r.asking.Cancel()
	}
	r.waiters, r.asking = nil, nil
}

func (r *run) drop(w *wish) {
	if r.asking == w {
		r.asking = nil
	}
	if i := slices.Index(r.waiters, w); i >= 0 {
		r.waiters = slices.Delete(r.waiters, i, i+1)
	}
}

// send crafts one probe and hands it out. It reports false when the flow leaves
// no room for one now.
func (e *Engine) send(now time.Time, r *run, ttl int, b *probe.Bucket, place probe.Place, reaching bool) bool {
	s := e.sent.New()
	s.At, s.TTL, s.Attempt, s.Reaching = now, ttl, r.plan.Attempt(ttl), reaching
	s.Bucket, s.Place, s.Owner, s.Leg = b, place, r, r.leg
	if !e.put(now, r, s) {
		return false
	}
	r.open = append(r.open, s)
	s.Hold()
	r.takeBack(ttl, ttl)
	r.hop(ttl).sent++
	r.progressAt = now
	if reaching {
		r.plan.SentReaching(ttl, now)
		r.reach.Sent(ttl, now)
	} else {
		r.plan.Sent(ttl, now)
	}
	return true
}

// put crafts a probe of which everything else is filled in, and hands it out. It reports
// false when the flow leaves no room for one now.
func (e *Engine) put(now time.Time, r *run, s *probe.Sent) bool {
	f := r.flow
	if !e.craft(r, s, s.TTL) {
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
	if s.Bucket != nil {
		s.Bucket.Sent(s)
	}
	e.budget.spend()
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
	if s.Bucket != nil {
		s.Bucket.Unsent(now, s)
	}
	if !ok || r.index < 0 || s.Leg != r.leg {
		return
	}
	r.hop(s.TTL).sent--
	r.plan.Lost(s.TTL)
	if s.Reaching {
		r.reach.Void()
		r.reach.Miss(true)
		// Nothing left that could do harm. (When the next may go the search itself keeps.)
		r.near.reachedAt, r.lastReachAt = r.reachedBefore, r.lastReachBefore
	}
	for i, o := range r.open {
		if o == s {
			r.open = append(r.open[:i], r.open[i+1:]...)
			s.Drop()
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
