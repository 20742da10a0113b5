package probe

import (
	"net/netip"
	"time"
)

// Buckets holds every responder's bucket.
type Buckets struct {
	ceiling float64
	places  map[Place]*Bucket
	byAddr  map[netip.Addr]*Bucket
	queues  *queues
	loss    loss
}

// queues are the buckets in which somebody waits, or did until just now: few of all. Those
// that were not served for longest come first, so that none starves where the rate of all is
// short, and nothing is left to chance.
type queues struct{ line, other, served []*Bucket }

func (q *queues) add(b *Bucket) {
	if !b.queued {
		b.queued = true
		q.line = append(q.line, b)
	}
}

// NewBuckets returns an empty set with a ceiling of probes per second and
// responder.
func NewBuckets(ceiling int) *Buckets {
	return &Buckets{ceiling: float64(max(ceiling, 1)), places: map[Place]*Bucket{}, byAddr: map[netip.Addr]*Bucket{}, queues: &queues{}}
}

// For returns the bucket that a probe is charged to: the responder's when one
// address alone answers at that place; the place's own while nobody has answered
// there, and when several addresses do. Those may be interfaces of one router,
// whose limit does not multiply with its addresses.
func (s *Buckets) For(now time.Time, place Place, hop netip.Addr) *Bucket {
	b := s.places[place]
	if b == nil {
		b = newBucket(now, s.ceiling)
		b.addrs, b.ipv6, b.loss, b.queues = map[netip.Addr]struct{}{}, place.IPv6, &s.loss, s.queues
		s.places[place] = b
		s.prune(now)
	}
	if len(b.addrs) > 1 || len(b.waiting) > 0 {
		return b
	}
	for a := range b.addrs {
		return s.at(now, a)
	}
	if hop.IsValid() {
		return s.at(now, hop)
	}
	return b
}

// Answers reports whether some router at that place has answered a probe.
func (s *Buckets) Answers(place Place) bool {
	b := s.places[place]
	return b != nil && len(b.addrs) > 0
}

func (s *Buckets) at(now time.Time, a netip.Addr) *Bucket {
	b := s.byAddr[a]
	if b == nil {
		b = newBucket(now, s.ceiling)
		b.ipv6, b.loss, b.queues = a.Is6(), &s.loss, s.queues
		s.byAddr[a] = b
		s.prune(now)
	}
	return b
}

// Answer tells that a responder answered a probe that was charged to a bucket.
func (s *Buckets) Answer(now time.Time, p *Sent, from netip.Addr) {
	sent, place, b := p.At, p.Place, p.Bucket
	b.Answered(now, sent)
	if p.within {
		s.loss.add(false)
	}
	_, known := s.byAddr[from]
	own := s.at(now, from)
	if own != b {
		if !known {
			own.tokens, own.saved, own.savedAt = b.tokens, b.saved, b.savedAt // what b has spent of the burst, it has spent
		} else {
			own.debit(now)
		}
		own.lastAnswer = now
	}
	at := s.places[place]
	if at == nil || len(at.addrs) >= maxTTLAddress {
		return
	}
	if _, again := at.addrs[from]; len(at.addrs) == 1 && !again {
		for only := range at.addrs {
			// From here on the place is charged: it begins where its one responder was, and
			// has those that wait for it. In two queues they would be answered by one limit.
			if one := s.byAddr[only]; one != nil {
				at.rate, at.failed = max(at.rate, one.rate), one.failed
				at.tokens, at.saved = min(at.tokens, one.tokens), min(at.saved, one.saved)
				one.yield(place, at)
			}
		}
	}
	at.addrs[from] = struct{}{}
	if len(at.addrs) == 1 && b == at {
		own.rate, own.failed = at.rate, at.failed
	}
}

// Missed tells that a probe got no answer in time at a hop where that address answers.
func (s *Buckets) Missed(now time.Time, p *Sent, from netip.Addr) {
	if p.doubted {
		return
	}
	// Of another responder's allowance nothing was used.
	if b := s.For(now, p.Place, from); b == p.Bucket || p.Bucket == s.places[p.Place] {
		b.Missed(p)
	}
}

// Silent tells the same of a hop where nobody answered yet.
func (s *Buckets) Silent(now time.Time, p *Sent) {
	if !p.doubted {
		s.For(now, p.Place, netip.Addr{}).note(p, false)
	}
}

// Limits reports whether the silence of a probe coincides with a miss of the responder that
// answers others where it was sent.
func (s *Buckets) Limits(now time.Time, p *Sent) bool {
	return s.For(now, p.Place, netip.Addr{}).Limits(p)
}

// Release lets all buckets grant what they may and returns when the next grant
// is possible (zero: no one waits).
func (s *Buckets) Release(now time.Time, more func() bool) (next time.Time) {
	q := s.queues
	line := q.line
	q.line, q.served = q.other[:0], q.served[:0]
	for i, b := range line {
		line[i] = nil
		waited := len(b.waiting)
		if waited > 0 {
			b.Release(now, more)
		}
		at, ok := b.Next(now)
		switch {
		case !ok:
			b.queued = false
			continue
		case len(b.waiting) < waited:
			q.served = append(q.served, b)
		default:
			q.line = append(q.line, b)
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	q.line, q.other = append(q.line, q.served...), line[:0]
	clear(q.served)
	return next
}

// pruneScan bounds the work of one call.
const pruneScan = 64

// prune keeps the number of buckets bounded: where there are too many it forgets
// some that nobody waits for, stale ones first among those it happens to look at.
// A forgotten responder starts again with the least allowance.
func (s *Buckets) prune(now time.Time) {
	if len(s.places)+len(s.byAddr) <= maxBuckets {
		return
	}
	evict(s.places, now)
	evict(s.byAddr, now)
}

func evict[K comparable](m map[K]*Bucket, now time.Time) {
	var oldest K
	var at time.Time
	found, scanned := false, 0
	for k, b := range m {
		if scanned++; scanned > pruneScan {
			break
		}
		// What was used just now may be in its caller's hands.
		if len(b.waiting) > 0 || b.used.Equal(now) {
			continue
		}
		if !found || b.used.Before(at) {
			oldest, at, found = k, b.used, true
		}
	}
	if found {
		delete(m, oldest)
	}
}

// Len is the number of buckets.
func (s *Buckets) Len() int { return len(s.places) + len(s.byAddr) }
