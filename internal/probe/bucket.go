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
	nearLimit     = 1.25 // a rate's growth about where a limit is likely
	forbidFor     = 60 * time.Second
	missedNearby  = time.Second
	missesKept    = 8
	answerNearby  = 10 * time.Second // for so long a responder that answered is one that does
	linuxRate4    = 0.95             // net.ipv4.icmp_ratelimit is 1 a second; and a little room, see spend
	linuxRate6    = 9.0              // net.ipv6.icmp.ratelimit, the same
	ticks         = 0.02             // of a second, and more than a tick is long
	maxBuckets    = 16384
	maxTTLAddress = 64 // responders remembered per (interface, next hop, TTL)
)

// Place is where a probe expires as long as nobody there has answered: so far
// away by this link and next hop.
type Place struct {
	Interface int
	TTL       int
	NextHop   capture.HardwareAddr
	IPv6      bool
}

// Bucket is one responder's allowance. Held-back probes wait in it: every
// trace's first probe of a TTL before any trace's second.
type Bucket struct {
	tokens  float64
	rate    float64
	filled  time.Time
	ceiling float64
	failed  failure
	waiting waiting
	queues  *queues // of all buckets; nil: of none
	queued  bool    // among them
	order   uint64

	now, before window // the present second and the one before

	ipv6    bool
	loss    *loss // shared by all; nil: none is known
	saved   float64
	savedAt time.Time
	recent  recent
	changed time.Time // when the rate became what it is

	lastAnswer time.Time
	misses     [missesKept]miss // the last ones; a ring
	nextMiss   int
	used       time.Time
	addrs      map[netip.Addr]struct{} // of a place's bucket
}

// failure is what showed a rate to be too high; zero: none was.
type failure struct {
	rate            float64
	at              time.Time
	missing, judged int       // of the probes at that rate
	from, known     time.Time // between which those left
}

// window counts what became of the probes of one second.
type window struct {
	start          time.Time
	sent, answered int
	due            int // sent or held back
	judged         bool
}

// Waiter is something that wants to send when a bucket lets it: the one in which it waits
// then, not always that in which it began to.
type Waiter struct {
	Place Place
	Rank  int // those of a lower one go first, see Plan.Rank
	Grant func(now time.Time, by *Bucket) bool
	order uint64
	in    *Bucket // in whose queue it is, at that place; nil: in none
	at    int
}

// Cancel withdraws the waiter, and lets go of what its Grant holds.
func (w *Waiter) Cancel() {
	if w.in != nil {
		heap.Remove(&w.in.waiting, w.at)
	}
}

// Wait is how long it takes at most, as things go, until the waiter's bucket has served all
// that wait in it, at that many probes a second in all; false when it waits in none.
func (w *Waiter) Wait(rate int) (time.Duration, bool) {
	if w.in == nil {
		return 0, false
	}
	return time.Duration(float64(len(w.in.waiting)) / min(w.in.rate, float64(rate)) * float64(time.Second)), true
}

type waiting []*Waiter

func (w waiting) Len() int { return len(w) }
func (w waiting) Less(i, j int) bool {
	if w[i].Rank != w[j].Rank {
		return w[i].Rank < w[j].Rank
	}
	return w[i].order < w[j].order
}
func (w waiting) Swap(i, j int) {
	w[i], w[j] = w[j], w[i]
	w[i].at, w[j].at = i, j
}
func (w *waiting) Push(x any) {
	x.(*Waiter).at = len(*w)
	*w = append(*w, x.(*Waiter))
}
func (w *waiting) Pop() any {
	old := *w
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*w = old[:len(old)-1]
	last.in = nil
	return last
}

func newBucket(now time.Time, ceiling float64) *Bucket {
	return &Bucket{
		tokens: bucketBurst, rate: min(bucketRate, ceiling), filled: now, ceiling: ceiling, saved: bucketBurst, savedAt: now,
		now: window{start: now}, before: window{judged: true}, used: now, changed: now,
	}
}

// Wait puts w into the queue.
func (b *Bucket) Wait(w *Waiter) {
	b.order++
	w.order, w.in = b.order, b
	heap.Push(&b.waiting, w)
	if b.queues != nil {
		b.queues.add(b)
	}
}

// yield moves those that wait for a place to the place's own bucket.
func (b *Bucket) yield(place Place, to *Bucket) {
	kept := b.waiting[:0]
	for _, w := range b.waiting {
		if w.Place == place {
			to.Wait(w)
		} else {
			w.at = len(kept)
			kept = append(kept, w)
		}
	}
	clear(b.waiting[len(kept):])
	b.waiting = kept
	heap.Init(&b.waiting)
}

// Release grants as many waiters as there are tokens. A waiter whose Grant
// returns false sent nothing and costs nothing.
func (b *Bucket) Release(now time.Time, more func() bool) {
	b.fill(now)
	for len(b.waiting) > 0 {
		if b.tokens < 1 || !more() {
			return
		}
		w := heap.Pop(&b.waiting).(*Waiter)
		if w.Grant(now, b) {
			b.take(now)
		}
	}
}

// Next is when the next waiter can be granted; ok is false without waiters.
func (b *Bucket) Next(now time.Time) (at time.Time, ok bool) {
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
		b.filled = now
	}
	if to, why := b.recent.tooFast(now, b.changed, b.rate, b.likely(), b.loss.share()); why.rate > 0 {
		b.lower(now, to, why)
	}
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

// Unsent tells that a probe for which the allowance was taken did not leave after all.
func (b *Bucket) Unsent(now time.Time, s *Sent) {
	s.Unsent = true
	b.fill(now)
	b.tokens = min(b.tokens+1, bucketDepth(b.rate))
	if !s.At.Before(b.now.start) {
		b.now.sent--
	}
}

// Answered tells that a probe charged to this bucket, which left at sent, was
// answered.
func (b *Bucket) Answered(now, sent time.Time) {
	b.lastAnswer, b.used = now, now
	b.recent.answered(now, sent)
	b.forgive(now, sent)
	switch {
	case !sent.Before(b.now.start):
		b.now.answered++
	case !sent.Before(b.before.start):
		b.before.answered++
	}
}

// forgive takes a failure back when all that was missing has come: the answers were late, as
// they all are when this host stands still, and no limit kept them away.
func (b *Bucket) forgive(now, sent time.Time) {
	f := &b.failed
	if f.missing == 0 || sent.Before(f.from) || !sent.Before(f.known) || now.Before(f.at) {
		return
	}
	if f.missing--; f.missing == 0 {
		b.rate, b.failed, b.changed = max(b.rate, f.rate), failure{}, now
	}
}

// Missed tells that a probe charged to this bucket got no answer in time, though its
// hop is one that answers. A hop that never did may be another router, which other
// destinations have at that distance.
func (b *Bucket) Missed(s *Sent) {
	if b.lastAnswer.IsZero() {
		return
	}
	b.note(s, true)
	if s.within && b.loss != nil {
		b.loss.add(true)
	}
}

// miss is a probe without an answer.
type miss struct {
	at       time.Time // when it left
	src, dst netip.AddrPort
	proven   bool // the responder answers where it was sent
}

func (b *Bucket) note(s *Sent, proven bool) {
	b.misses[b.nextMiss] = miss{s.At, s.Src, s.Dst, proven}
	b.nextMiss = (b.nextMiss + 1) % len(b.misses)
}

// Limits reports whether the silence of a probe coincides with a miss of this responder,
// which otherwise does answer; or with the silence of a probe of another flow, of which many
// meet a limit at once.
func (b *Bucket) Limits(s *Sent) bool {
	if b.lastAnswer.IsZero() || s.At.Sub(b.lastAnswer) > answerNearby {
		return false
	}
	for _, m := range b.misses {
		if !m.at.IsZero() && s.At.Sub(m.at).Abs() <= missedNearby && (m.proven || m.src != s.Src || m.dst != s.Dst) {
			return true
		}
	}
	return false
}

// debit charges an answer that was asked for through a place's bucket.
func (b *Bucket) debit(now time.Time) {
	b.fill(now)
	b.tokens = max(b.tokens-1, -bucketBurst)
	b.used = now
	b.spend(now)
}

// spend tells that a probe was sent, and reports whether every Linux router, if it has
// the lowest limit, has an answer left for it: then only loss can keep that away. Such a
// router saves one answer a second, up to six; what it had left when it showed its limit
// nobody knows. It counts in clock ticks: whoever comes once a second is now and then one
// too early. So a responder that showed a limit is asked a little less often.
func (b *Bucket) spend(now time.Time) bool {
	if d := now.Sub(b.savedAt); d > 0 {
		b.saved, b.savedAt = min(bucketBurst, b.saved+d.Seconds()*bucketRate), now
	}
	certain := b.saved >= 1+ticks
	b.saved = max(b.saved-1, 0) // also where it had one that it need not have had
	return certain
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

// judge raises the rate when one second's probes were answered.
func (b *Bucket) judge(now time.Time, w *window) {
	if w.judged {
		return
	}
	w.judged = true
	if w.due < judgeAtLeast || w.sent == 0 {
		return
	}
	// What is too fast is seen sooner, see recent.
	if share := float64(w.answered) / float64(w.sent); share >= goodShare*(1-b.loss.share()) {
		b.raise(now)
	}
}

func (b *Bucket) raise(now time.Time) {
	next := min(b.next(), b.ceiling)
	share := b.loss.share()
	if b.loss.explains(b.failed.missing, b.failed.judged) {
		b.failed = failure{} // it was loss, as is known by now
	}
	if b.failed.rate > 0 && now.Sub(b.failed.at) < forbidFor && (next >= b.failed.rate || !b.recent.clean(now, b.changed, share)) {
		return
	}
	if next != b.rate {
		b.rate, b.changed = next, now
	}
}

// next is the rate to try after the present one: twice as much, but where a limit is likely
// to be near, first what is likely and then little more at a time.
func (b *Bucket) next() float64 {
	next, likely := max(b.rate, bucketRate)*2, b.likely()
	if likely <= bucketRate || next <= likely || b.rate > 2*likely {
		return next
	}
	return max(likely, b.rate*nearLimit)
}

// likely is what responders permit most often, where they permit less than was
// tried: what Linux does by itself, of each of the addresses that answer here.
func (b *Bucket) likely() float64 {
	rate := linuxRate4
	if b.ipv6 {
		rate = linuxRate6
	}
	if n := len(b.addrs); n > 1 {
		rate *= 0.8 * float64(n) // flows do not fall on them evenly
	}
	return rate
}

func (b *Bucket) lower(now time.Time, to float64, why failure) {
	if least := min(linuxRate4, b.ceiling); b.rate > least {
		b.failed = why
		if b.rate = to; to <= bucketRate {
			b.rate = least // where what is missing tells of loss, see spend
		}
	}
	b.changed = now
	b.saved, b.savedAt = 0, now // perhaps
	b.tokens = min(b.tokens, 1)
	b.now.judged, b.before.judged = true, true // those seconds tell of the old rate
}
