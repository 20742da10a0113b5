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
	if before := r.sent[r.next]; before != nil {
		before.Drop()
	}
	s.Hold()
	r.sent[r.next] = s
	r.next = (r.next + 1) % recentProbes
}

func (r *recent) answered(now, sent time.Time) { r.latency = max(r.latency*9/10, now.Sub(sent)) }

// known is the time before which a probe must have left for its silence to be a
// miss.
func (r *recent) known(now time.Time) time.Time { return now.Add(-max(overdue, 3*r.latency)) }

// tooFast reports what shows, in the newest probes of the present rate, that it is
// beyond what the responder permits, and about what that is. The zero failure: nothing.
func (r *recent) tooFast(now, changed time.Time, rate, likely, loss float64) (to float64, why failure) {
	if rate <= bucketRate {
		return 0, failure{}
	}
	known := r.known(now)
	need := 2 + int(math.Ceil(3*loss*recentJudged))
	if rate < slowRate && loss < lossTold {
		need = 1
	}
	few := r.fate(recentJudged, known, changed)
	few.rate, few.at = rate, now
	if few.missing >= need && float64(few.missing) > (1-badShare*(1-loss))*float64(few.judged) {
		return min(rate/2, likely), few
	}
	many := r.fate(recentMore, known, changed)
	many.rate, many.at = rate, now
	if many.judged < recentMore {
		return 0, failure{}
	}
	if float64(many.missing) >= smallExcess+2*loss*recentMore && r.steps < smallSteps {
		r.steps++
		return rate * 3 / 4, many
	}
	if many.missing == 0 {
		r.steps = 0
	}
	return 0, failure{}
}

// fate counts, of the newest probes that left after changed, at most n whose fate
// is known: answered, or sent before known and therefore overdue. An answer that is doubted did
// come.
func (r *recent) fate(n int, known, changed time.Time) (f failure) {
	f.known = known
	for i := 0; i < recentProbes && f.judged < n; i++ {
		s := r.sent[(r.next+recentProbes-1-i)%recentProbes]
		if s == nil || s.At.Before(changed) {
			break
		}
		if s.Unsent || !s.Answered && (s.doubted || !s.At.Before(known)) {
			continue
		}
		f.judged++
		if !s.Answered {
			f.missing++
			f.from = s.At
		}
	}
	return f
}

// clean reports whether the newest probes of the present rate, enough to outlast a
// router's saved-up burst, were answered, all but one at most.
func (r *recent) clean(now, changed time.Time, loss float64) bool {
	f := r.fate(recentMore, r.known(now), changed)
	return f.judged == recentMore && float64(f.missing) <= 1+2*loss*recentMore
}
