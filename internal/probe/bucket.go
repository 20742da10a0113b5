package probe

import (
	"container/heap"
	"net/netip"
	"time"

	"servicetraceroute/internal/capture"
)

// Routers limit the ICMP errors they send, and all flows of this host share a
// router's limit. A Bucket is what we allow ourselves towards one responder.

const (
	bucketBurst   = 6           // Linux lets so many errors through at once
	bucketRate    = 1.0         // and then one a second
	rateWindow    = time.Second // over which answers are judged
	judgeAfter    = 500 * time.Millisecond
	judgeAtLeast  = 4 // probes due, sent or held back, in a window that is judged
	goodShare     = 0.90
	badShare      = 0.70
	forbidFor     = 60 * time.Second
	missedNearby  = time.Second
	maxBuckets    = 16384
	maxTTLAddress = 64 // responders remembered per (interface, next hop, TTL)
)

// Place is where a probe expires as long as nobody there has answered: so far
// away by this link and next hop.
type Place struct {
	IPv6      bool
	Interface int
	NextHop   capture.HardwareAddr
	TTL       int
}

// Bucket is one responder's allowance. Held-back probes wait in it: every
// trace's first probe of a TTL before any trace's second.
type Bucket struct {
	tokens   float64
	rate     float64
	filled   time.Time
	ceiling  float64
	failed   float64 // the rate that proved too high
	failedAt time.Time
	waiting  waiting
	order    uint64

	now, before window // the present second and the one before

	lastAnswer, lastMiss time.Time
	used                 time.Time
	addrs                map[netip.Addr]struct{} // of a place's bucket
}

// window counts what became of the probes of one second.
type window struct {
	start          time.Time
	sent, answered int
	due            int // sent or held back
	judged         bool
}

// Waiter is something that wants to send when the bucket lets it.
type Waiter struct {
	Attempt int // 0 for a trace's first probe of a TTL
	Grant   func(now time.Time) bool
	order   uint64
	gone    bool
}

// Cancel withdraws the waiter.
func (w *Waiter) Cancel() { w.gone = true }

type waiting []*Waiter

func (w waiting) Len() int { return len(w) }
func (w waiting) Less(i, j int) bool {
	if w[i].Attempt != w[j].Attempt {
		return w[i].Attempt < w[j].Attempt
	}
	return w[i].order < w[j].order
}
func (w waiting) Swap(i, j int) { w[i], w[j] = w[j], w[i] }
func (w *waiting) Push(x any)   { *w = append(*w, x.(*Waiter)) }
func (w *waiting) Pop() any {
	old := *w
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*w = old[:len(old)-1]
	return last
}

func newBucket(now time.Time, ceiling float64) *Bucket {
	return &Bucket{
		tokens: bucketBurst, rate: min(bucketRate, ceiling), filled: now, ceiling: ceiling,
		now: window{start: now}, before: window{judged: true}, used: now,
	}
}

// Wait puts w into the queue.
func (b *Bucket) Wait(w *Waiter) {
	b.order++
	w.order = b.order
	heap.Push(&b.waiting, w)
}

// Release grants as many waiters as there are tokens. A waiter whose Grant
// returns false sent nothing and costs nothing.
func (b *Bucket) Release(now time.Time, more func() bool) {
	b.fill(now)
	for len(b.waiting) > 0 {
		if b.waiting[0].gone {
			heap.Pop(&b.waiting)
			continue
		}
		if b.tokens < 1 || !more() {
			return
		}
		w := heap.Pop(&b.waiting).(*Waiter)
		if w.Grant(now) {
			b.take(now)
		}
	}
}

// Next is when the next waiter can be granted; ok is false without waiters.
func (b *Bucket) Next(now time.Time) (at time.Time, ok bool) {
	for len(b.waiting) > 0 && b.waiting[0].gone {
		heap.Pop(&b.waiting)
	}
	if len(b.waiting) == 0 {
		return time.Time{}, false
	}
	b.fill(now)
	if b.tokens >= 1 {
		return now, true
	}
	return now.Add(untilWhole(b.tokens, b.rate)), true
}

// untilWhole is the time until tokens that grow at a rate a second make one. It is
// rounded up: who asks again then must not be a fraction too early, over and over.
func untilWhole(tokens, rate float64) time.Duration {
	return time.Duration((1-tokens)/rate*float64(time.Second)) + 1
}

func (b *Bucket) fill(now time.Time) {
	if d := now.Sub(b.filled); d > 0 {
		b.tokens = min(bucketDepth(b.rate), b.tokens+d.Seconds()*b.rate)
	}
	b.filled = now
	b.roll(now)
}

// bucketDepth lets a fast responder be asked in small bursts, a slow one in the
// burst that every Linux router allows.
func bucketDepth(rate float64) float64 { return max(bucketBurst, rate/10) }

func (b *Bucket) take(now time.Time) {
	b.tokens--
	b.used = now
	b.now.sent++
}

// Take charges a probe that is not queued; false when the allowance is spent or
// others wait for it.
func (b *Bucket) Take(now time.Time) bool {
	b.fill(now)
	if b.tokens < 1 || len(b.waiting) > 0 {
		return false
	}
	b.take(now)
	return true
}

// Answered tells that a probe charged to this bucket, which left at sent, was
// answered.
func (b *Bucket) Answered(now, sent time.Time) {
	b.lastAnswer, b.used = now, now
	switch {
	case !sent.Before(b.now.start):
		b.now.answered++
	case !sent.Before(b.before.start):
		b.before.answered++
	}
}

// Missed tells that a probe charged to this bucket got no answer in time.
func (b *Bucket) Missed(sent time.Time) {
	if !b.lastAnswer.IsZero() {
		b.lastMiss = sent
	}
}

// Limits reports whether a silence of a probe sent at the given time coincides
// with a miss of this responder, which otherwise does answer.
func (b *Bucket) Limits(sent time.Time) bool {
	if b.lastMiss.IsZero() || b.lastAnswer.IsZero() {
		return false
	}
	return sent.Sub(b.lastMiss).Abs() <= missedNearby
}

// debit charges an answer that was asked for through a place's bucket.
func (b *Bucket) debit(now time.Time) {
	b.fill(now)
	b.tokens = max(b.tokens-1, -bucketBurst)
	b.used = now
}

// roll ends the present second when it is over, and judges the one before when
// its answers have had time to come.
func (b *Bucket) roll(now time.Time) {
	if now.Sub(b.now.start) >= rateWindow {
		b.now.due = b.now.sent + len(b.waiting)
		b.judge(now, &b.before)
		b.before, b.now = b.now, window{start: now}
		if b.before.answered == b.before.sent {
			b.judge(now, &b.before) // nothing more will come
		}
	}
	if now.Sub(b.before.start) >= rateWindow+judgeAfter {
		b.judge(now, &b.before)
	}
}

// judge changes the rate by what became of one second's probes.
func (b *Bucket) judge(now time.Time, w *window) {
	if w.judged {
		return
	}
	w.judged = true
	if w.due < judgeAtLeast || w.sent == 0 {
		return
	}
	switch share := float64(w.answered) / float64(w.sent); {
	case share >= goodShare:
		b.raise(now)
	case share < badShare:
		b.lower(now)
	}
}

func (b *Bucket) raise(now time.Time) {
	next := min(b.rate*2, b.ceiling)
	if b.failed > 0 && next >= b.failed && now.Sub(b.failedAt) < forbidFor {
		return
	}
	b.rate = next
}

func (b *Bucket) lower(now time.Time) {
	b.failed, b.failedAt = b.rate, now
	b.rate = max(b.rate/2, min(bucketRate, b.ceiling))
	b.tokens = min(b.tokens, 1)
}

// Buckets holds every responder's bucket.
type Buckets struct {
	ceiling float64
	places  map[Place]*Bucket
	byAddr  map[netip.Addr]*Bucket
}

// NewBuckets returns an empty set with a ceiling of probes per second and
// responder.
func NewBuckets(ceiling int) *Buckets {
	return &Buckets{float64(max(ceiling, 1)), map[Place]*Bucket{}, map[netip.Addr]*Bucket{}}
}

// For returns the bucket that a probe is charged to: the responder's when one
// address alone answers at that place; the place's own while nobody has answered
// there, and when several addresses do. Those may be interfaces of one router,
// whose limit does not multiply with its addresses.
func (s *Buckets) For(now time.Time, place Place, hop netip.Addr) *Bucket {
	b := s.places[place]
	if b == nil {
		b = newBucket(now, s.ceiling)
		b.addrs = map[netip.Addr]struct{}{}
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

func (s *Buckets) at(now time.Time, a netip.Addr) *Bucket {
	b := s.byAddr[a]
	if b == nil {
		b = newBucket(now, s.ceiling)
		s.byAddr[a] = b
		s.prune(now)
	}
	return b
}

// Answer tells that a responder answered a probe for a place that was charged to
// bucket b.
func (s *Buckets) Answer(now, sent time.Time, place Place, from netip.Addr, b *Bucket) {
	b.Answered(now, sent)
	_, known := s.byAddr[from]
	own := s.at(now, from)
	if own != b {
		if !known {
			own.tokens = b.tokens // what b has spent of the burst, it has spent
		} else {
			own.debit(now)
		}
		own.lastAnswer = now
	}
	p := s.places[place]
	if p == nil || len(p.addrs) >= maxTTLAddress {
		return
	}
	p.addrs[from] = struct{}{}
	switch {
	case len(p.addrs) == 1 && b == p:
		own.rate, own.failed, own.failedAt = p.rate, p.failed, p.failedAt
	case len(p.addrs) == 2 && b != p:
		// From here on the place is charged: it begins where its one responder was.
		p.rate, p.failed, p.failedAt = max(p.rate, b.rate), b.failed, b.failedAt
		p.tokens = min(p.tokens, b.tokens)
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
