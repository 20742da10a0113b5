package probe

import "math"

// loss is the share of probes that stay unanswered whatever the rate: those of
// responders that do answer and showed no limit, sent within the burst and the rate that
// every Linux router permits. What is missing beyond that share is missing because of a limit.
type loss struct {
	judged, missed float64 // both fade
}

const (
	lossMemory = 63.0 / 64 // of each new probe's predecessors
	lossLeast  = 12        // so many probes make an estimate
	lossTold   = 0.04      // a share of loss that counts as such
	lossChance = 0.05      // what is less likely than that was no chance
	lossTwice  = 1.5       // missed, faded: one alone is a chance, and would be a share of 8 % of the first 12
)

func (l *loss) add(missed bool) {
	l.judged, l.missed = l.judged*lossMemory+1, l.missed*lossMemory
	if missed {
		l.missed++
	}
}

// share is 0 as long as too little is known.
func (l *loss) share() float64 {
	if l == nil || l.judged < lossLeast {
		return 0
	}
	return l.missed / l.judged
}

// explains reports whether that share alone, known from more than one chance miss, may
// well have kept so many of so many answers away.
func (l *loss) explains(missing, judged int) bool {
	return l != nil && l.missed >= lossTwice && atLeast(missing, judged, l.share()) > lossChance
}

// atLeast is the probability of k or more hits in n tries of probability p each.
func atLeast(k, n int, p float64) float64 {
	one, sum := math.Pow(1-p, float64(n)), 0.0 // the probability of exactly i hits
	for i := range k {
		sum += one
		one *= float64(n-i) / float64(i+1) * p / (1 - p)
	}
	return 1 - sum
}
