package capture

import (
	"testing"
	"time"
)

// bench is a machine whose wall clock can be set.
type bench struct {
	start time.Time     // with a monotonic reading
	mono  time.Duration // since start
	wall  time.Duration // that the wall clock was set forward
	clock *Clock
}

func newBench() *bench {
	b := &bench{start: time.Now()}
	b.clock = newClock(func() (time.Time, int64) { return b.at(b.mono), b.stamp(b.mono).UnixNano() })
	return b
}

func (b *bench) at(mono time.Duration) time.Time { return b.start.Add(mono) }

// stamp is what the kernel writes on a packet.
func (b *bench) stamp(mono time.Duration) time.Time { return b.start.Round(0).Add(mono + b.wall) }

// Packets keep their distance on the monotonic line, whatever happens to the wall
// clock between them, and between capture and reading.
func TestClockSteps(t *testing.T) {
	for _, step := range []time.Duration{
		0, time.Hour, -time.Hour, 24 * 365 * time.Hour, 20 * time.Millisecond, -20 * time.Millisecond, 300 * time.Millisecond, -300 * time.Millisecond,
		10 * time.Microsecond, -10 * time.Microsecond,
	} {
		t.Run(step.String(), func(t *testing.T) {
			b := newBench()
			var batch []Packet
			var want []time.Duration
			check := func() {
				b.mono += time.Millisecond // until it is read
				b.clock.Steady(batch)
				for i, p := range batch {
					if !monotonic(p.Time) {
						t.Fatal("not on the monotonic line")
					}
					if off := p.Time.Sub(b.at(want[i])); off.Abs() > 2*clockSlew {
						t.Errorf("captured %v after the start, placed %v off", want[i], off)
					}
				}
				batch, want = nil, nil
			}
			captured := func(after time.Duration) {
				b.mono += after
				batch = append(batch, Packet{Time: b.stamp(b.mono)})
				want = append(want, b.mono)
			}
			for range 3 {
				captured(time.Second)
				captured(time.Microsecond)
				check()
			}
			captured(time.Second)
			captured(time.Microsecond)
			b.wall += step // between two packets of one batch
			captured(time.Microsecond)
			check()
			captured(50 * time.Millisecond)
			check()
			captured(time.Microsecond)
			b.wall += step // between capture and reading
			check()
			captured(time.Minute)
			check()
		})
	}
}

// A clock that is slewed is followed.
func TestClockSlew(t *testing.T) {
	b := newBench()
	var before time.Time
	for i := range 10_000 {
		b.mono += 100 * time.Millisecond
		b.wall += 50 * time.Microsecond // 500 ppm, the most that adjtimex(2) does
		batch := []Packet{{Time: b.stamp(b.mono)}}
		b.clock.Steady(batch)
		if d := batch[0].Time.Sub(before) - 100*time.Millisecond; i > 0 && d.Abs() > 60*time.Microsecond {
			t.Fatalf("packet %d is %v off", i, d)
		}
		before = batch[0].Time
	}
}

// Packets that waited long because the process was stopped keep their times.
func TestClockLateReader(t *testing.T) {
	b := newBench()
	var batch []Packet
	for range 10 {
		b.mono += 10 * time.Second
		batch = append(batch, Packet{Time: b.stamp(b.mono)})
	}
	b.mono += time.Minute
	b.clock.Steady(batch)
	for i, p := range batch {
		if want := b.at(time.Duration(i+1) * 10 * time.Second); p.Time.Sub(want).Abs() > clockSlew {
			t.Errorf("packet %d: %v off", i, p.Time.Sub(want))
		}
	}
}

// A source with a clock of its own, which jumps, gives times near now, in order.
func TestClockOfSource(t *testing.T) {
	b := newBench()
	var before time.Time
	for _, shift := range []time.Duration{-24 * 365 * 10 * time.Hour, 0, time.Hour, 0, -time.Hour, -time.Hour} {
		for range 5 {
			var batch []Packet
			for range 3 {
				b.mono += 5 * time.Millisecond
				batch = append(batch, Packet{Time: b.stamp(b.mono).Add(shift)})
			}
			b.clock.Steady(batch)
			for i, p := range batch {
				if age := b.at(b.mono).Sub(p.Time); age < 0 || age > 60*time.Millisecond {
					t.Errorf("shift %v: packet %d is %v old", shift, i, age)
				}
				if p.Time.Before(before) {
					t.Errorf("shift %v: out of order by %v", shift, before.Sub(p.Time))
				}
				before = p.Time
			}
		}
	}
}

// A caller's times that are on the line already are the best there are.
func TestClockKeepsMonotonic(t *testing.T) {
	b := newBench()
	at := time.Now().Add(-time.Hour)
	batch := []Packet{{Time: at}}
	if b.clock.Steady(batch); batch[0].Time != at {
		t.Errorf("%v became %v", at, batch[0].Time)
	}
}

func BenchmarkClock(b *testing.B) {
	c := NewClock()
	batch := make([]Packet, 64)
	b.ReportAllocs()
	for b.Loop() {
		now := time.Now().Round(0)
		for i := range batch {
			batch[i].Time = now
		}
		c.Steady(batch)
	}
}
