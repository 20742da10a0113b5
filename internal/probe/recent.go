package probe

import (
	"math"
	"time"
)

// A second is too long to wait when a rate proves too high: at twice what a router
// permits, half of the probes are in vain. So the newest ones are looked at all the
// time, and a miss is believed as soon as its answer is overdue.

const (
	recentProbes = 24
	recentJudged = 8                     // of them, those whose fate is known
	recentMore   = 16                    // and when the excess is small
	smallExcess  = 2                     // of which so many are missing
	smallSteps   = 3                     // what does not get better by then is loss, not a limit
	overdue      = 50 * time.Millisecond // at least, after a probe left
	slowRate     = 4.0                   // below, one miss is enough
)

// recent holds the newest probes that were charged to a bucket.
type recent struct {
	sent    [recentProbes]*Sent // a ring
	next    int
	latency time.Duration // of the answers, the longest of late
	steps   int           // by small excesses since all was well
}

// Sent tells which probe used the allowance that was taken.
func (b *Bucket) Sent(s *Sent) {
	s.within = b.spend(s.At)
	r := &b.recent
	r.sent[r.next] = s
	r.next = (r.next + 1) % recentProbes
}

func (r *recent) answered(now, sent time.Time) { r.latency = max(r.latency*9/10, now.Sub(sent)) }

// known is the time before which a probe must have left for its silence to be a
// miss.
func (r *recent) known(now time.Time) time.Time { return now.Add(-max(overdue, 3*r.latency)) }

// tooFast reports whether the newest probes of the present rate show that it is
// beyond what the responder permits, and about what that is.
func (r *recent) tooFast(now, changed time.Time, rate, likely, loss float64) (to float64, yes bool) {
	if rate <= bucketRate {
		return 0, false
	}
	known := r.known(now)
	need := 2 + int(math.Ceil(3*loss*recentJudged))
	if rate < slowRate && loss < lossTold {
		need = 1
	}
	few, missing := r.fate(recentJudged, known, changed)
	clearly := missing >= need && float64(missing) > (1-badShare*(1-loss))*float64(few)
	many, missing := r.fate(recentMore, known, changed)
	switch {
	case clearly:
		to = min(rate/2, likely)
	case many == recentMore && float64(missing) >= smallExcess+2*loss*recentMore && r.steps < smallSteps:
		r.steps++
		to = rate * 3 / 4
	default:
		if many == recentMore && missing == 0 {
			r.steps = 0
		}
		return 0, false
	}
	return to, true
}

// fate counts, of the newest probes that left after changed, at most n whose fate
// is known: answered, or sent before known and therefore overdue.
func (r *recent) fate(n int, known, changed time.Time) (judged, missing int) {
	for i := 0; i < recentProbes && judged < n; i++ {
		s := r.sent[(r.next+recentProbes-1-i)%recentProbes]
		if s == nil || s.At.Before(changed) {
			break
		}
		if !s.Answered && !s.At.Before(known) {
			continue
		}
		judged++
		if !s.Answered {
			missing++
		}
	}
	return judged, missing
}

// clean reports whether the newest probes of the present rate, enough to outlast a
// router's saved-up burst, were answered, all but one at most.
func (r *recent) clean(now, changed time.Time, loss float64) bool {
	judged, missing := r.fate(recentMore, r.known(now), changed)
	return judged == recentMore && float64(missing) <= 1+2*loss*recentMore
}
