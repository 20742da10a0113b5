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
	loss    loss
}

// NewBuckets returns an empty set with a ceiling of probes per second and
// responder.
func NewBuckets(ceiling int) *Buckets {
	return &Buckets{ceiling: float64(max(ceiling, 1)), places: map[Place]*Bucket{}, byAddr: map[netip.Addr]*Bucket{}}
}

// For returns the bucket that a probe is charged to: the responder's when one
// address alone answers at that place; the place's own while nobody has answered
// there, and when several addresses do. Those may be interfaces of one router,
// whose limit does not multiply with its addresses.
func (s *Buckets) For(now time.Time, place Place, hop netip.Addr) *Bucket {
	b := s.places[place]
	if b == nil {
		b = newBucket(now, s.ceiling)
		b.addrs, b.ipv6, b.loss = map[netip.Addr]struct{}{}, place.IPv6, &s.loss
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
		b.ipv6, b.loss = a.Is6(), &s.loss
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
				at.rate, at.failed, at.failedAt = max(at.rate, one.rate), one.failed, one.failedAt
				at.tokens, at.saved = min(at.tokens, one.tokens), min(at.saved, one.saved)
				one.yield(place, at)
			}
		}
	}
	at.addrs[from] = struct{}{}
	if len(at.addrs) == 1 && b == at {
		own.rate, own.failed, own.failedAt = at.rate, at.failed, at.failedAt
	}
}

// Release lets all buckets grant what they may and returns when the next grant
// is possible (zero: no one waits).
func (s *Buckets) Release(now time.Time, more func() bool) (next time.Time) {
	visit := func(b *Bucket) {
		if len(b.waiting) == 0 {
			return
		}
		b.Release(now, more)
		if at, ok := b.Next(now); ok && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	for _, b := range s.places {
		visit(b)
	}
	for _, b := range s.byAddr {
		visit(b)
	}
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
