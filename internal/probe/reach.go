package probe

import "time"

const (
	// ReachingInterval is the least time between two probes of one flow that may
	// reach its destination: a Linux socket answers one old segment in 500 ms.
	ReachingInterval = 600 * time.Millisecond

	triesEach     = 4  // weight of the misses that show that a TTL does not reach
	quietMiss     = 2  // an answer would have been recognised
	busyMiss      = 1  // an answer may have merged with the flow's own acknowledgements
	scanAhead     = 3  // TTLs beyond the expected distance that are tried
	attemptsTotal = 16 // in all, before the destination is called unknown
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
	tries   [256]uint8 // attempts without an answer
	hits    [256]uint8
	total   int
	voids   int
	last    time.Time
	open    Attempt
	aborted bool
	lastHit time.Time
	bestRTT time.Duration
}

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

// Hit tells that the destination answered the open attempt.
func (r *Reach) Hit(at time.Time) {
	ttl := r.open.TTL
	if ttl == 0 {
		return
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
		}
		r.tries[r.open.TTL] += weight
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

// below is the highest TTL that is known not to reach.
func (r *Reach) below() int {
	low := r.lo
	for ttl := r.lo + 1; ttl <= r.max && ttl < 256 && (r.hi == 0 || ttl < r.hi); ttl++ {
		if r.tries[ttl] >= triesEach {
			low = ttl
		}
	}
	return low
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
	if r.lo+1 < r.hi && r.tries[r.lo+1] == 0 {
		return r.lo + 1 // most often the very next one
	}
	return low + (r.hi-low)/2
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
