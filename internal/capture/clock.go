package capture

import "time"

// Clock puts the timestamps of packets on the monotonic line of time.Now. The
// kernel stamps packets with the wall clock (CLOCK_REALTIME), which is set forward
// and back, by hand and after a suspend, while everything else here is timed by the
// monotonic one: compared as they are, a step of an hour would be an hour of
// silence, or a negative round trip.
//
// Two things are known of a packet besides: it was captured before now, and after
// the packets before it. With the wall clock's offset before and after a step that
// tells by which of the two a packet was stamped. A source whose stamps come from
// elsewhere, and jump by themselves, gets an offset of its own.
//
// A suspend takes no time on the monotonic line.
type Clock struct {
	now  func() (at time.Time, wall int64)
	base time.Time // zero of the line

	offset, before time.Duration // of the wall clock, now and before the last step
	stepped        time.Duration // when that was; zero: never
	skew           time.Duration // of the source's clock against ours
	last           time.Duration // the latest packet's place on the line
}

const (
	clockSlew  = 20 * time.Microsecond // offsets are not measured better, and a slewed clock drifts
	clockStep  = time.Millisecond      // what moves the offset at once
	stepMemory = 5 * time.Second       // so long packets from before a step may still come
	tooLate    = 50 * time.Millisecond // after now
	tooEarly   = time.Second           // before the latest packet
	oldest     = time.Minute           // of the first packet
)

// NewClock returns a clock that begins now.
func NewClock() *Clock {
	return newClock(func() (time.Time, int64) { t := time.Now(); return t, t.UnixNano() })
}

func newClock(now func() (time.Time, int64)) *Clock {
	c := &Clock{now: now}
	c.base, _ = now()
	_, c.offset = c.measure()
	c.last = -oldest
	return c
}

// measure returns the time and how far the wall clock is ahead of the line. A
// preempted sample is too small, never too large: the wall clock is read first.
func (c *Clock) measure() (at time.Time, offset time.Duration) {
	for i := range 3 {
		t, wall := c.now()
		if o := time.Duration(wall) - t.Sub(c.base); i == 0 || o > offset {
			offset = o
		}
		at = t
	}
	return at, offset
}

// Steady replaces the timestamps of a batch that was just read, in the order of
// capture. Those that are on the monotonic line already stay as they are.
func (c *Clock) Steady(batch []Packet) {
	if len(batch) == 0 {
		return
	}
	at, offset := c.measure()
	now := at.Sub(c.base)
	if d := (offset - c.offset).Abs(); d > clockStep {
		c.before, c.stepped = c.offset, max(now, 1)
		c.offset = offset
	} else if d > clockSlew {
		c.offset = offset
	}
	for i := range batch {
		if monotonic(batch[i].Time) {
			continue
		}
		p := c.place(time.Duration(batch[i].Time.UnixNano()), now)
		if p > now+tooLate || p < c.last-tooEarly {
			c.calibrate(batch[i:], now)
			p = c.place(time.Duration(batch[i].Time.UnixNano()), now)
			c.last = p
		}
		c.last = max(c.last, p)
		// With the present wall clock: that is what records show.
		batch[i].Time = at.Add(p - now)
	}
}

// place is where a timestamp lies on the line. After a step it is the later of the
// two places that is not after now.
func (c *Clock) place(stamp, now time.Duration) time.Duration {
	p := stamp - c.offset - c.skew
	if c.stepped == 0 || now-c.stepped > stepMemory {
		return p
	}
	q := stamp - c.before - c.skew
	switch {
	case p > now+clockStep:
		return q
	case q > now+clockStep:
		return p
	}
	return max(p, q)
}

// calibrate sets the skew so that the last packet before the next jump was captured
// just now.
func (c *Clock) calibrate(rest []Packet, now time.Duration) {
	k := 0
	for k+1 < len(rest) && !monotonic(rest[k+1].Time) && rest[k+1].Time.Sub(rest[k].Time).Abs() < tooEarly {
		k++
	}
	c.skew = time.Duration(rest[k].Time.UnixNano()) - c.offset - now
}

// monotonic reports whether a time has a reading of the monotonic clock, which
// Round strips.
func monotonic(t time.Time) bool { return t != t.Round(0) }
