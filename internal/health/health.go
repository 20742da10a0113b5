package health

import (
	"time"

	"servicetraceroute/internal/wire"
)

const (
	// Window is what the figures of "now" are about.
	Window = 10 * time.Second
	// rttWindow is the same of round-trip times; rttLeast samples are needed there.
	rttWindow = 2
	rttLeast  = 3

	// onWire is the payload of a segment on the wire, of which segmentation offload hands over many at once.
	onWire = 1400

	slots = int(Window/time.Second) + 1 // the second that has begun is one of its own
)

// Segment is one segment of a flow.
type Segment struct {
	At         time.Time
	Out        bool // it left
	TCP        *wire.TCP
	Retransmit bool // payload or SYN that was seen before
	Keepalive  bool // old on purpose: a keepalive, a probe of the window
}

// Side counts what one end sent, since the flow is watched.
type Side struct {
	Retransmits int
	DupAcks     int // RFC 5681, section 2
	OutOfOrder  int // segments that came, or left, after later ones, and were no retransmissions
	ZeroWindows int // how often the end closed its window
	Bytes       uint64

	next     uint32 // the end of its highest segment
	acked    uint32 // its newest acknowledgement
	window   uint16
	spoke    bool
	acks     bool      // it has acknowledged something
	progress time.Time // when its payload, or what is acknowledged of it, went on
	hole     bool      // something below next is missing
}

// Flow is the state of one TCP flow. The zero value is ready for its first segment. It is not
// safe for concurrent use.
type Flow struct {
	Out, In Side

	ackAt  time.Time // when the segment left that ackEnd acknowledges; zero: none is timed
	ackEnd uint32
	tsAt   time.Time // the same of a timestamp
	ts     uint32
	tsUsed bool // the newest timestamp was timed before
	skip   bool // the next one is not timed

	smoothed, least time.Duration
	samples         int

	lastIn, last time.Time
	ring         [slots]second
	first        time.Time // of the segments
}

// second is what one second showed. There are many: counters are small, and stay at their
// highest value.
type second struct {
	at                                         uint32 // Unix time
	in, out                                    uint32 // bytes: up to 34 Gbit/s
	segments                                   uint32 // with payload, as they are on the wire
	rtt                                        uint32 // the least, in microseconds
	retransmits, dupAcks, zeroWindows, samples uint16
}

// count adds to a counter that stays at its highest value.
func count[N uint16 | uint32](c *N, more uint64) {
	if sum := uint64(*c) + more; sum <= uint64(^N(0)) {
		*c = N(sum)
	} else {
		*c = ^N(0)
	}
}

// now is the counter of the second of that time.
func (f *Flow) now(at time.Time) *second {
	unix := uint32(at.Unix())
	s := &f.ring[unix%uint32(slots)]
	if s.at != unix {
		*s = second{at: unix}
	}
	return s
}

// Observe takes in the flow's next segment.
func (f *Flow) Observe(s Segment) {
	if f.first.IsZero() {
		f.first = s.At
	}
	side, other := &f.In, &f.Out
	if s.Out {
		side, other = other, side
	}
	n := f.now(s.At)
	if length := s.TCP.PayloadLen; length > 0 {
		count(&n.segments, 1+uint64(length-1)/onWire)
	}
	if s.Retransmit {
		side.Retransmits++
		count(&n.retransmits, 1)
	}
	f.time(&s, side, n)
	if side.duplicate(&s, other) {
		side.DupAcks++
		count(&n.dupAcks, 1)
	}
	if side.closes(s.TCP) {
		side.ZeroWindows++
		count(&n.zeroWindows, 1)
	}
	if fresh := side.carry(&s); s.Out {
		count(&n.out, fresh)
	} else {
		count(&n.in, fresh)
		f.lastIn = s.At
	}
	side.note(&s, other)
	if s.TCP.Flags&wire.ACK != 0 { // who has all of it misses nothing
		other.hole = other.hole && wire.SeqLess(s.TCP.Ack, other.next)
	}
	f.last = s.At
}

// carry takes in a segment's payload and returns how much of it was new.
func (d *Side) carry(s *Segment) (fresh uint64) {
	length := uint32(s.TCP.PayloadLen)
	if s.TCP.Flags&wire.SYN != 0 {
		length++
	}
	end := s.TCP.Seq + length
	switch {
	case !d.spoke:
		fresh = uint64(s.TCP.PayloadLen)
	case length == 0:
		return 0
	case wire.SeqLess(d.next, end):
		if wire.SeqLess(d.next, s.TCP.Seq) {
			d.hole = true
			fresh = uint64(s.TCP.PayloadLen)
		} else {
			fresh = uint64(wire.SeqDiff(end, d.next))
		}
	default:
		if !s.Retransmit && !s.Keepalive {
			d.OutOfOrder++
		}
		return 0
	}
	d.next = end
	d.Bytes += fresh
	d.progress = s.At
	return fresh
}

// duplicate reports whether a segment acknowledges once more what the one before did, while
// the other end's data is under way (RFC 5681, section 2).
func (d *Side) duplicate(s *Segment, other *Side) bool {
	t := s.TCP
	return d.spoke && other.spoke && t.PayloadLen == 0 && t.Flags&^(wire.ECE|wire.CWR) == wire.ACK && !s.Keepalive &&
		t.Ack == d.acked && t.Window == d.window && t.Window != 0 && wire.SeqLess(t.Ack, other.next)
}

// closes reports whether a segment closes the window.
func (d *Side) closes(t *wire.TCP) bool {
	return t.Window == 0 && t.Flags&(wire.SYN|wire.RST) == 0 && (!d.spoke || d.window != 0)
}

// note keeps what the next segment is compared with. The highest acknowledgement is the newest,
// also where a lower one was overtaken by it; that it rises is how the other end's payload goes on.
func (d *Side) note(s *Segment, other *Side) {
	t := s.TCP
	if t.Flags&wire.RST != 0 {
		return
	}
	if t.Flags&wire.ACK != 0 && (!d.acks || wire.SeqLess(d.acked, t.Ack)) {
		if d.acks {
			other.progress = s.At
		}
		d.acked, d.acks = t.Ack, true
	}
	d.spoke, d.window = true, t.Window
}

// time takes round-trip times: from data that left to its acknowledgement, never of what was
// retransmitted (Karn, RFC 6298, section 3); and from a timestamp to its echo (RFC 7323),
// also of a flow that only receives.
func (f *Flow) time(s *Segment, side *Side, n *second) {
	t := s.TCP
	if s.Out {
		f.begin(s, side)
		return
	}
	if !f.ackAt.IsZero() && t.Flags&wire.ACK != 0 && !wire.SeqLess(t.Ack, f.ackEnd) {
		f.sample(s.At.Sub(f.ackAt), n)
		f.ackAt = time.Time{}
	}
	if f.tsAt.IsZero() || !t.Options.HasTimestamp || wire.SeqLess(t.Options.TSEcr, f.ts) {
		return
	}
	// An end that had nothing to say echoes late: then the silence before is most of the time.
	d := s.At.Sub(f.tsAt)
	switch silent := s.At.Sub(f.lastIn) > d/2; {
	case t.Options.TSEcr != f.ts || t.PayloadLen == 0:
	case silent:
		f.skip = true // the next one is to be timed from the midst of a burst
	default:
		f.sample(d, n)
	}
	f.tsAt = time.Time{}
}

// begin times a segment that leaves.
func (f *Flow) begin(s *Segment, side *Side) {
	t := s.TCP
	end := t.Seq + uint32(t.PayloadLen)
	switch {
	case s.Retransmit:
		f.ackAt = time.Time{}
	case f.ackAt.IsZero() && t.PayloadLen > 0 && side.spoke && !wire.SeqLess(t.Seq, side.next):
		f.ackAt, f.ackEnd = s.At, end
	}
	if !t.Options.HasTimestamp || s.Retransmit || s.Keepalive {
		return
	}
	// Only the first segment with a timestamp is timed: its echo may be to any of them.
	fresh := !f.tsUsed || wire.SeqLess(f.ts, t.Options.TSVal)
	if f.skip {
		f.skip = false
		return
	}
	if f.tsAt.IsZero() && fresh {
		f.tsAt, f.ts, f.tsUsed = s.At, t.Options.TSVal, true
	}
}

func (f *Flow) sample(d time.Duration, n *second) {
	if d <= 0 {
		return // the clock was stepped
	}
	if f.samples == 0 {
		f.smoothed, f.least = d, d
	}
	f.samples++
	f.smoothed += (d - f.smoothed) / 8
	f.least = min(f.least, d)
	us := uint32(min(d.Microseconds(), 1<<31))
	if n.samples == 0 || us < n.rtt {
		n.rtt = us
	}
	count(&n.samples, 1)
}

// RTT returns the smoothed and the least round-trip time; ok is false before the first.
func (f *Flow) RTT() (smoothed, least time.Duration, ok bool) {
	return f.smoothed, f.least, f.samples > 0
}
