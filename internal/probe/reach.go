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
	tallies []tally // by TTL, as far as attempts ended
	total   int
	voids   int
	last    time.Time
	open    Attempt
	aborted bool
	lastHit time.Time
	bestRTT time.Duration
}

// tally counts the attempts at one TTL.
type tally struct {
	tries uint8 // weight of those without an answer
	hits  uint8
	made  uint8 // that ended, voided ones apart
	voids uint8 // those
	busy  share // while the flow was busy
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

// at is what is known of one TTL.
func (r *Reach) at(ttl int) tally {
	if ttl < len(r.tallies) {
		return r.tallies[ttl]
	}
	return tally{}
}

// count is the same, to be added to.
func (r *Reach) count(ttl int) *tally {
	if n := ttl + 1 - len(r.tallies); n > 0 {
		r.tallies = append(r.tallies, make([]tally, n)...)
	}
	return &r.tallies[ttl]
}

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
	n := r.count(ttl)
	n.made++
	if busy {
		n.busy.hits++
	}
	rtt := at.Sub(r.open.Sent)
	if n.hits == 0 || r.hi != ttl || rtt < r.bestRTT {
		r.bestRTT = rtt
	}
	n.hits++
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
		r.count(r.open.TTL).voids++
		r.total--
	} else {
		n := r.count(r.open.TTL)
		weight := uint8(quietMiss)
		if busy {
			weight = busyMiss
			n.busy.misses++
		}
		n.tries += weight
		n.made++
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
	if r.hi == 0 || r.at(r.hi).hits < need || r.below() < r.hi-1 {
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
		if r.at(ttl).tries > 0 && r.doubt(ttl) <= doubtLeft+1e-9 {
			low = ttl
		}
	}
	return low
}

// doubt is the chance that probes of that TTL do reach although none was answered. On a
// busy flow the destination's answers merge with its other acknowledgements, how often
// is seen at the TTLs that do reach: without one of these, silence proves nothing.
func (r *Reach) doubt(ttl int) float64 {
	here := r.at(ttl)
	quiet := float64(here.tries-busyMiss*here.busy.misses) / quietMiss
	seen := r.controls()
	answered := float64(seen.hits) / float64(seen.hits+seen.misses+2) // rather too few
	return math.Pow(quietDoubt, quiet) * math.Pow(1-answered, float64(here.busy.misses))
}

// asked counts all attempts at TTLs that are known to reach.
func (r *Reach) asked() (n uint8) {
	for ttl := max(r.hi, 1); ttl <= r.max && ttl < 256; ttl++ {
		n += r.at(ttl).made
	}
	return n
}

// controls are the busy attempts at TTLs that are known to reach.
func (r *Reach) controls() (all share) {
	for ttl := max(r.hi, 1); r.hi != 0 && ttl <= r.max && ttl < 256; ttl++ {
		busy := r.at(ttl).busy
		all.hits += busy.hits
		all.misses += busy.misses
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
	if r.lo+1 < r.hi && r.at(r.lo+1).tries == 0 {
		ttl = r.lo + 1 // most often the very next one
	}
	if r.at(ttl).busy.misses > r.asked() {
		return r.hi // silence there is worth what answers here are
	}
	return ttl
}

// scan is the TTL tried least among those from the expected distance on. An attempt that
// was void was one, too: its answer may come too soon each time, see engine, and be believed
// nearer by; beyond it nothing is to be found then.
func (r *Reach) scan() int {
	first := max(r.from, r.lo+1)
	best := 0
	for ttl := first; ttl <= min(first+scanAhead, r.max); ttl++ {
		n := r.at(ttl)
		if n.tries < triesEach && (best == 0 || n.tries+n.voids < r.at(best).tries+r.at(best).voids) {
			best = ttl
		}
		if n.voids > 0 && best != 0 {
			break
		}
	}
	return best
}

// Found reports whether the destination answered at least once.
func (r *Reach) Found() bool { return r.hi != 0 }

// Lowest is the highest TTL that is known to expire on the way.
func (r *Reach) Lowest() int { return r.lo }
