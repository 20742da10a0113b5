package flow

import "time"

// stamp is a moment as a table counts it, in nanoseconds since it began; zero is none. A
// time.Time is three times as large, and of a flow a dozen moments are known.
type stamp int64

// head is how far before a table's first packet stamps begin: those of several
// processors come out of order, and the clock of a file may have been set back.
const head = 365 * 24 * time.Hour

func (s stamp) since(before stamp) time.Duration { return time.Duration(s - before) }

// stamp is never zero. Like all differences of times it follows the monotonic clock where
// that is known.
func (t *Table) stamp(at time.Time) stamp {
	if t.zero.IsZero() {
		t.zero = at.Add(-head)
	}
	return stamp(max(at.Sub(t.zero), 1))
}

// time is the moment of a stamp, zero of none.
func (t *Table) time(s stamp) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return t.zero.Add(time.Duration(s))
}
