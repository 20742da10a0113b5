package localise

import (
	"slices"
	"time"
)

const (
	kept   = 64 // samples of one hop
	recent = 8  // of these are the present of delay

	// lossWindow is from when on probes tell of loss: the same for all hops, some of which are
	// asked more often than others.
	lossWindow = time.Minute
)

// Series are the newest samples of one hop, in order. The zero value has none.
type Series struct {
	rtt  [kept]time.Duration // negative: no answer
	sent [kept]time.Time
	next int
	n    int
}

// Lost is a sample of a probe that was not answered.
const Lost = time.Duration(-1)

// Add takes in one more round trip, or Lost, of a probe that left at that time.
func (s *Series) Add(sent time.Time, rtt time.Duration) {
	s.rtt[s.next], s.sent[s.next] = rtt, sent
	s.next = (s.next + 1) % kept
	s.n = min(s.n+1, kept)
}

// newest returns the newest n samples, or all there are, the oldest first.
func (s *Series) newest(n int) []time.Duration {
	n = min(n, s.n)
	out := make([]time.Duration, 0, n)
	for i := range n {
		out = append(out, s.rtt[(s.next-n+i+kept)%kept])
	}
	return out
}

// split returns the round trips of the present and those before, each sorted.
func (s *Series) split() (before, now []time.Duration) {
	all := slices.DeleteFunc(s.newest(kept), func(d time.Duration) bool { return d < 0 })
	cut := max(len(all)-recent, 0)
	before, now = all[:cut], all[cut:]
	slices.Sort(before)
	slices.Sort(now)
	return before, now
}

// Rise is how much higher the present is than before; 0: not known, or not.
func (s *Series) Rise() time.Duration {
	before, now := s.split()
	if len(before) < leastBefore || len(now) < recent {
		return 0
	}
	return max(quantile(now, 0.5)-quantile(before, 0.5), 0)
}

// quantile is that of sorted samples; there must be one.
func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

// Counts counts the probes of the last minute, and those that were not answered.
func (s *Series) Counts(now time.Time) (n, lost int) {
	for i := range s.n {
		if now.Sub(s.sent[i]) > lossWindow {
			continue
		}
		n++
		if s.rtt[i] < 0 {
			lost++
		}
	}
	return n, lost
}
