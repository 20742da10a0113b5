package probe

import (
	"math"
	"time"
)

const (
	// ReachingInterval is the least time between two probes of one flow that may
	// reach its destination: a Linux socket answers one old segment in 500 ms.
	ReachingInterval = 600 * time.Millisecond

	triesEach     = 4     // weight of the misses after which a TTL is not scanned again
	quietMiss     = 2     // an answer would have been recognised
	busyMiss      = 1     // an answer may have merged with the flow's own acknowledgements
	doubtLeft     = 0.003 // the chance that a TTL reaches though it stayed silent
	quietDoubt    = 0.05  // the same after one quiet miss: the answer was lost
	scanAhead     = 3     // TTLs beyond the expected distance that are tried
	attemptsTotal = 16    // in all, before the destination is called unknown
	voidedTotal   = 14
)

// Reach looks for the lowest TTL at which the destination itself answers. It
// sends one probe at a time. A Time Exceeded moves lo up, a hit (the
// destination's answer) moves hi down; the TTL is told when nothing is left
// between them.
type Reach struct {
	lo      int // the highest TTL that expired on the way
	hi      int // the lowest TTL that reached, 0: none yet
	from    int // where the search starts
	max     int
	tries   [256]uint8 // weight of the attempts without an answer
	hits    [256]uint8
	busy    [256]share // of the attempts while the flow was busy
	made    [256]uint8 // attempts that ended, voided ones apart
	total   int
	voids   int
	last    time.Time
	open    Attempt
	aborted bool
	lastHit time.Time
	bestRTT time.Duration
}

// share counts attempts that were answered and that were not.
type share struct{ hits, misses uint8 }

// Attempt is the one outstanding reaching probe; TTL 0 is none.
type Attempt struct {
	TTL  int
	Sent time.Time
	Void bool
}

// NewReach starts a search at the expected distance, never beyond maxTTL.
func NewReach(distance, maxTTL int) *Reach { return &Reach{from: distance, max: maxTTL} }

// Expired tells that a probe of that TTL, reaching or not, died on its way.
func (r *Reach) Expired(ttl int) {
	r.lo = max(r.lo, ttl)
	if r.hi != 0 && r.hi <= r.lo {
		r.hi = 0 // the path grew
	}
	if r.open.TTL == ttl {
		r.open = Attempt{}
	}
}

// Overshot tells that the destination answered although only probes up to ttl
// were on their way, none of them alone.
func (r *Reach) Overshot(ttl int) {
	if ttl > r.lo && (r.hi == 0 || ttl < r.hi) {
		r.hi = ttl
		r.from = min(r.from, r.lo+1)
	}
}

// Hit tells that the destination answered the open attempt; busy tells that the flow
// itself sent or received data around it.
func (r *Reach) Hit(at time.Time, busy bool) {
	ttl := r.open.TTL
	if ttl == 0 {
		return
	}
	r.made[ttl]++
	if busy {
		r.busy[ttl].hits++
	}
	rtt := at.Sub(r.open.Sent)
	if r.hits[ttl] == 0 || r.hi != ttl || rtt < r.bestRTT {
		r.bestRTT = rtt
	}
	r.hits[ttl]++
	if r.hi == 0 || ttl <= r.hi {
		r.hi = ttl
	}
	r.lastHit = r.open.Sent
	r.open = Attempt{}
}

// Void tells that something else may make the destination answer now.
func (r *Reach) Void() { r.open.Void = true }

// Open is the outstanding attempt.
func (r *Reach) Open() Attempt { return r.open }

// Sent tells that the attempt was made.
func (r *Reach) Sent(ttl int, now time.Time) {
	r.open = Attempt{TTL: ttl, Sent: now}
	r.last = now
	r.total++
}

// Stamp replaces the open attempt's time by the kernel's.
func (r *Reach) Stamp(ttl int, at time.Time) {
	if r.open.TTL == ttl {
		r.open.Sent = at
	}
}

// Miss ends the open attempt without an answer; busy tells that the flow itself
// sent or received data around it.
func (r *Reach) Miss(busy bool) {
	if r.open.TTL == 0 {
		return
	}
	if r.open.Void {
		r.voids++
		r.total--
	} else {
		weight := uint8(quietMiss)
		if busy {
			weight = busyMiss
			r.busy[r.open.TTL].misses++
		}
		r.tries[r.open.TTL] += weight
		r.made[r.open.TTL]++
	}
	r.open = Attempt{}
}

// Abort ends the search: a probe may have done harm.
func (r *Reach) Abort() { r.aborted, r.open = true, Attempt{} }

// Done returns the destination's TTL when it is proven; quiet flows need one hit,
// others two.
func (r *Reach) Done(quiet bool) (ttl int, ok bool) {
	need := uint8(2)
	if quiet {
		need = 1
	}
	if r.hi == 0 || r.hits[r.hi] < need || r.below() < r.hi-1 {
		return 0, false
	}
	return r.hi, true
}

// Proof returns when the probe of the last hit left, and the least round-trip
// time of the hits at the final TTL.
func (r *Reach) Proof() (at time.Time, rtt time.Duration) { return r.lastHit, r.bestRTT }

// below is the highest TTL that does not reach, as far as is known.
func (r *Reach) below() int {
	low := r.lo
	for ttl := r.lo + 1; ttl <= r.max && ttl < 256 && (r.hi == 0 || ttl < r.hi); ttl++ {
		if r.tries[ttl] > 0 && r.doubt(ttl) <= doubtLeft+1e-9 {
			low = ttl
		}
	}
	return low
}

// doubt is the chance that probes of that TTL do reach although none was answered. On a
// busy flow the destination's answers merge with its other acknowledgements, how often
// is seen at the TTLs that do reach: without one of these, silence proves nothing.
func (r *Reach) doubt(ttl int) float64 {
	quiet := float64(r.tries[ttl]-busyMiss*r.busy[ttl].misses) / quietMiss
	seen := r.controls()
	answered := float64(seen.hits) / float64(seen.hits+seen.misses+2) // rather too few
	return math.Pow(quietDoubt, quiet) * math.Pow(1-answered, float64(r.busy[ttl].misses))
}

// asked counts all attempts at TTLs that are known to reach.
func (r *Reach) asked() (n uint8) {
	for ttl := max(r.hi, 1); ttl <= r.max && ttl < 256; ttl++ {
		n += r.made[ttl]
	}
	return n
}

// controls are the busy attempts at TTLs that are known to reach.
func (r *Reach) controls() (all share) {
	for ttl := max(r.hi, 1); r.hi != 0 && ttl <= r.max && ttl < 256; ttl++ {
		all.hits += r.busy[ttl].hits
		all.misses += r.busy[ttl].misses
	}
	return all
}

// Next returns the TTL to try next; ok is false when the search is over or an
// attempt is still open. interval is at least ReachingInterval.
func (r *Reach) Next(interval time.Duration) (ttl int, at time.Time, ok bool) {
	if r.open.TTL != 0 || r.Exhausted() {
		return 0, at, false
	}
	ttl = r.choose()
	if ttl == 0 || ttl > r.max {
		return 0, at, false
	}
	if !r.last.IsZero() {
		at = r.last.Add(max(interval, ReachingInterval))
	}
	return ttl, at, true
}

// Exhausted reports whether no further attempt will be made.
func (r *Reach) Exhausted() bool {
	return r.aborted || r.total >= attemptsTotal || r.voids >= voidedTotal || r.choose() == 0 || r.choose() > r.max
}

func (r *Reach) choose() int {
	if r.hi == 0 {
		return r.scan()
	}
	low := r.below()
	if low >= r.hi-1 {
		return r.hi // prove it once more
	}
	ttl := low + (r.hi-low)/2
	if r.lo+1 < r.hi && r.tries[r.lo+1] == 0 {
		ttl = r.lo + 1 // most often the very next one
	}
	if r.busy[ttl].misses > r.asked() {
		return r.hi // silence there is worth what answers here are
	}
	return ttl
}

// scan is the TTL tried least among those from the expected distance on.
func (r *Reach) scan() int {
	first := max(r.from, r.lo+1)
	best := 0
	for ttl := first; ttl <= min(first+scanAhead, r.max); ttl++ {
		if r.tries[ttl] >= triesEach {
			continue
		}
		if best == 0 || r.tries[ttl] < r.tries[best] {
			best = ttl
		}
	}
	return best
}

// Found reports whether the destination answered at least once.
func (r *Reach) Found() bool { return r.hi != 0 }

// Lowest is the highest TTL that is known to expire on the way.
func (r *Reach) Lowest() int { return r.lo }
