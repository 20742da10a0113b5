package probe

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

// told reports whether the share has risen by enough since then, by more than one chance
// miss, to explain what was missing at the time.
func (l *loss) told(then float64) bool {
	return l != nil && l.missed >= lossTwice && l.share() > then+lossTold
}
