package health

import (
	"time"

	"servicetraceroute/internal/wire"
)

// State is how a flow does now. The tags are the names of the fields in expressions; times
// are in milliseconds, counters those of the last ten seconds of both directions.
type State struct {
	Retransmits int     `expr:"retransmits"`
	Segments    int     `expr:"segments"` // with payload, retransmissions included
	DupAcks     int     `expr:"dup_acks"`
	ZeroWindows int     `expr:"zero_windows"`
	RTT         float64 `expr:"rtt_ms"`      // the least of the last two seconds; 0: too few samples
	RTTMin      float64 `expr:"rtt_min_ms"`  // the least since the flow is watched; 0: no sample
	RTTFactor   float64 `expr:"rtt_factor"`  // how many times the least the present one is; 0: not known
	Stalled     float64 `expr:"stalled_ms"`  // how long nothing has gone on although something is missing
	Silent      float64 `expr:"silent_ms"`   // since the newest packet
	GoodputIn   float64 `expr:"goodput_in"`  // bit/s, each byte of payload counted once
	GoodputOut  float64 `expr:"goodput_out"` // the same of what leaves
}

// State returns how the flow does at that time.
func (f *Flow) State(at time.Time) State {
	var s State
	var in, out uint64
	var rtt time.Duration
	samples := 0
	for i := range f.ring {
		n := &f.ring[i]
		age := at.Unix() - int64(n.at)
		if age < 0 || age >= int64(slots) {
			continue
		}
		s.Retransmits += int(n.retransmits)
		s.Segments += int(n.segments)
		s.DupAcks += int(n.dupAcks)
		s.ZeroWindows += int(n.zeroWindows)
		in, out = in+uint64(n.in), out+uint64(n.out)
		if n.samples > 0 && age < rttWindow {
			if least := time.Duration(n.rtt) * time.Microsecond; samples == 0 || least < rtt {
				rtt = least
			}
			samples += int(n.samples)
		}
	}
	span := f.span(at)
	s.GoodputIn, s.GoodputOut = rate(in, span), rate(out, span)
	if f.samples > 0 {
		s.RTTMin = ms(f.least)
	}
	if samples >= rttLeast {
		s.RTT, s.RTTFactor = ms(rtt), float64(rtt)/float64(f.least)
	}
	if !f.last.IsZero() {
		s.Silent = ms(max(at.Sub(f.last), 0))
	}
	s.Stalled = ms(f.stalled(at))
	return s
}

// stalled is for how long nothing went on although data of this end is not acknowledged, or
// something of the peer's is missing.
func (f *Flow) stalled(at time.Time) time.Duration {
	if !f.In.spoke || !f.Out.spoke || !wire.SeqLess(f.In.acked, f.Out.next) && !f.In.hole {
		return 0
	}
	since := f.In.progress
	if f.Out.progress.After(since) {
		since = f.Out.progress
	}
	return max(at.Sub(since), 0)
}

// span is the time that the counters of the last seconds cover: the window and what has passed
// of the present second, or the flow's life, if that is shorter; a second at least.
func (f *Flow) span(at time.Time) time.Duration {
	window := Window + time.Duration(at.Nanosecond())
	return max(min(at.Sub(f.first), window), time.Second)
}

func rate(bytes uint64, in time.Duration) float64 { return float64(bytes) * 8 / in.Seconds() }

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
