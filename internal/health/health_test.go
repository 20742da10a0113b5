package health

import (
	"math"
	"testing"
	"time"

	"servicetraceroute/internal/wire"
)

// play shows a flow its segments; times are milliseconds.
type play struct {
	Flow
	start time.Time
}

func newPlay() *play { return &play{start: time.Unix(1_800_000_000, 0)} }

func (p *play) at(ms int) time.Time { return p.start.Add(time.Duration(ms) * time.Millisecond) }

// seg is one segment: its place and acknowledgement, payload, timestamps (0: none) and window.
type seg struct {
	seq, ack     uint32
	data         int
	tsval, tsecr uint32
	window       uint16
	retransmit   bool
	keepalive    bool
}

func (p *play) show(ms int, out bool, s seg) {
	t := &wire.TCP{Seq: s.seq, Ack: s.ack, PayloadLen: s.data, Window: s.window, Flags: wire.ACK}
	if s.tsval > 0 {
		t.Options.HasTimestamp, t.Options.TSVal, t.Options.TSEcr = true, s.tsval, s.tsecr
	}
	p.Observe(Segment{At: p.at(ms), Out: out, TCP: t, Retransmit: s.retransmit, Keepalive: s.keepalive})
}

// An acknowledgement of data that left gives a round trip, one of a retransmission none.
func TestRTTOfAcknowledgements(t *testing.T) {
	p := newPlay()
	p.show(0, true, seg{seq: 1, ack: 1, window: 9})
	p.show(0, false, seg{seq: 1, ack: 1, window: 9})
	p.show(10, true, seg{seq: 1, ack: 1, data: 100, window: 9})
	p.show(40, false, seg{seq: 1, ack: 101, window: 9})
	if smoothed, least, ok := p.RTT(); !ok || smoothed != 30*time.Millisecond || least != smoothed {
		t.Errorf("%v %v %v", smoothed, least, ok)
	}
	p.show(100, true, seg{seq: 101, ack: 1, data: 100, window: 9})
	p.show(150, true, seg{seq: 101, ack: 1, data: 100, window: 9, retransmit: true})
	p.show(160, false, seg{seq: 1, ack: 201, window: 9})
	if _, least, _ := p.RTT(); least != 30*time.Millisecond || p.samples != 1 {
		t.Errorf("a retransmission was timed: %v, %d samples", least, p.samples)
	}
}

// A flow that only receives is timed by timestamps, not when its peer was silent.
func TestRTTOfTimestamps(t *testing.T) {
	p := newPlay()
	p.show(0, true, seg{seq: 1, ack: 1, tsval: 10, tsecr: 1, window: 9})
	p.show(1, false, seg{seq: 1, ack: 1, data: 10, tsval: 1, tsecr: 9, window: 9})
	p.show(19, false, seg{seq: 11, ack: 1, data: 10, tsval: 2, tsecr: 9, window: 9})
	p.show(20, false, seg{seq: 21, ack: 1, data: 10, tsval: 3, tsecr: 10, window: 9})
	if _, least, ok := p.RTT(); !ok || least != 20*time.Millisecond {
		t.Errorf("%v %v", least, ok)
	}
	p.show(30, true, seg{seq: 1, ack: 31, tsval: 20, tsecr: 3, window: 9})
	p.show(630, false, seg{seq: 31, ack: 1, data: 10, tsval: 4, tsecr: 20, window: 9})
	if p.samples != 1 {
		t.Error("a silence was timed")
	}
}

// Each direction has counters of its own, and the state those of the last ten seconds.
func TestCounters(t *testing.T) {
	p := newPlay()
	p.show(0, true, seg{seq: 1, ack: 1, window: 9})
	p.show(0, false, seg{seq: 1, ack: 1, window: 9})
	p.show(1, true, seg{seq: 1, ack: 1, data: 100, window: 9})
	p.show(2, true, seg{seq: 101, ack: 1, data: 100, window: 9})
	p.show(3, false, seg{seq: 1, ack: 1, window: 9}) // duplicate
	p.show(4, false, seg{seq: 1, ack: 1, window: 9}) // duplicate
	p.show(5, true, seg{seq: 1, ack: 1, data: 100, window: 9, retransmit: true})
	p.show(6, false, seg{seq: 1, ack: 201, window: 0})
	p.show(7, false, seg{seq: 1, ack: 201, window: 0}) // still closed
	p.show(8, false, seg{seq: 1, ack: 201, window: 9})
	p.show(9, false, seg{seq: 1, ack: 201, window: 9}) // nothing is under way
	p.show(10, false, seg{seq: 51, ack: 201, data: 50, window: 9})
	p.show(11, false, seg{seq: 1, ack: 201, data: 50, window: 9}) // overtaken
	in, out := p.In, p.Out
	if in.DupAcks != 2 || in.ZeroWindows != 1 || in.OutOfOrder != 1 || in.Retransmits != 0 || out.Retransmits != 1 || out.DupAcks != 0 || out.Bytes != 200 {
		t.Errorf("in %+v, out %+v", in, out)
	}
	s := p.State(p.at(20))
	if s.Retransmits != 1 || s.DupAcks != 2 || s.ZeroWindows != 1 || s.GoodputOut != 1600 {
		t.Errorf("%+v", s)
	}
	if s := p.State(p.at(12_000)); s.Retransmits != 0 || s.DupAcks != 0 || s.GoodputOut != 0 || s.Silent != 11_989 {
		t.Errorf("later: %+v", s)
	}
}

// What this end sent and nobody acknowledged is a stall, silence after all was is none.
func TestStall(t *testing.T) {
	p := newPlay()
	p.show(0, true, seg{seq: 1, ack: 1, window: 9})
	p.show(0, false, seg{seq: 1, ack: 1, window: 9})
	if s := p.State(p.at(5000)); s.Stalled != 0 {
		t.Errorf("%+v", s)
	}
	p.show(1000, true, seg{seq: 1, ack: 1, data: 100, window: 9})
	p.show(2000, true, seg{seq: 1, ack: 1, data: 100, window: 9, retransmit: true})
	if s := p.State(p.at(5000)); s.Stalled != 4000 {
		t.Errorf("%+v", s)
	}
	p.show(5000, false, seg{seq: 1, ack: 101, window: 9})
	if s := p.State(p.at(9000)); s.Stalled != 0 {
		t.Errorf("%+v", s)
	}
}

// An acknowledgement that another overtook takes nothing back, and acknowledgements that rise are
// how a queue drains: neither is a stall.
func TestNoStall(t *testing.T) {
	p := newPlay()
	p.show(0, true, seg{seq: 1, ack: 1, data: 100, window: 9})
	p.show(0, true, seg{seq: 101, ack: 1, data: 100, window: 9})
	p.show(20, false, seg{seq: 1, ack: 201, window: 9})
	p.show(21, false, seg{seq: 1, ack: 101, window: 9})
	if s := p.State(p.at(9000)); s.Stalled != 0 {
		t.Errorf("overtaken: stalled for %v", s.Stalled)
	}
	p.show(9000, true, seg{seq: 201, ack: 1, data: 10_000, window: 9})
	for i := range 100 {
		p.show(9100+20*i, false, seg{seq: 1, ack: uint32(201 + 100*i), window: 9})
	}
	if s := p.State(p.at(11_080)); s.Stalled != 0 {
		t.Errorf("drains: stalled for %v", s.Stalled)
	}
	if s := p.State(p.at(12_080)); s.Stalled != 1000 {
		t.Errorf("and then: stalled for %v", s.Stalled)
	}
}

// Segments are counted as they are on the wire, retransmissions included.
func TestSegments(t *testing.T) {
	p := newPlay()
	p.show(0, true, seg{seq: 1, ack: 1, window: 9})
	p.show(0, true, seg{seq: 1, ack: 1, data: 1400, window: 9})
	p.show(1, true, seg{seq: 1401, ack: 1, data: 64_000, window: 9}) // handed over as one
	p.show(2, true, seg{seq: 1, ack: 1, data: 1400, window: 9, retransmit: true})
	p.show(3, false, seg{seq: 1, ack: 1, data: 1, window: 9})
	if s := p.State(p.at(1000)); s.Segments != 1+46+1+1 || s.Retransmits != 1 {
		t.Errorf("%+v", s)
	}
}

// A gap in what the peer sent is one until this end has all of it, whatever comes behind.
func TestStallOfAGap(t *testing.T) {
	p := newPlay()
	p.show(0, true, seg{seq: 1, ack: 1, window: 9})
	p.show(0, false, seg{seq: 1, ack: 1, window: 9})
	for _, seq := range []uint32{1, 201, 301} { // 101 is lost
		p.show(100, false, seg{seq: seq, ack: 1, data: 100, window: 9})
	}
	p.show(100, true, seg{seq: 1, ack: 101, window: 9})
	p.show(200, false, seg{seq: 301, ack: 1, data: 100, window: 9, retransmit: true}) // fills nothing
	if s := p.State(p.at(3100)); s.Stalled != 3000 {
		t.Errorf("stalled for %v", s.Stalled)
	}
	p.show(3200, false, seg{seq: 101, ack: 1, data: 100, window: 9, retransmit: true})
	p.show(3201, true, seg{seq: 1, ack: 401, window: 9})
	if s := p.State(p.at(9000)); s.Stalled != 0 {
		t.Errorf("stalled for %v, though nothing is missing", s.Stalled)
	}
}

// What a steady flow carries a second is the same while it is young and when it is old.
func TestGoodputOfTheYoung(t *testing.T) {
	p := newPlay()
	p.show(0, true, seg{seq: 1, ack: 1, window: 9})
	p.show(0, false, seg{seq: 1, ack: 1, window: 9})
	seq := uint32(1)
	for ms := 100; ms <= 20_000; ms += 100 {
		p.show(ms, false, seg{seq: seq, ack: 1, data: 1000, window: 9})
		seq += 1000
		if s := p.State(p.at(ms)); ms >= 2000 && (s.GoodputIn < 75_000 || s.GoodputIn > 85_000) {
			t.Errorf("after %d ms: %v", ms, s.GoodputIn)
		}
	}
}

// The factor is the present least over the least ever, and needs samples.
func TestFactor(t *testing.T) {
	p := newPlay()
	p.show(0, true, seg{seq: 1, ack: 1, window: 9})
	p.show(0, false, seg{seq: 1, ack: 1, window: 9})
	next := uint32(1)
	exchange := func(ms, rtt int) {
		p.show(ms, true, seg{seq: next, ack: 1, data: 10, window: 9})
		next += 10
		p.show(ms+rtt, false, seg{seq: 1, ack: next, window: 9})
	}
	exchange(100, 20)
	if s := p.State(p.at(200)); s.RTT != 0 || s.RTTFactor != 0 || s.RTTMin != 20 {
		t.Errorf("one sample: %+v", s)
	}
	for i := range 5 {
		exchange(5000+i*200, 50+i)
	}
	if s := p.State(p.at(6000)); s.RTT != 50 || math.Abs(s.RTTFactor-2.5) > 1e-9 {
		t.Errorf("%+v", s)
	}
}

// Counters stay at their highest value.
func TestCountersSaturate(t *testing.T) {
	c := uint16(65_530)
	if count(&c, 3); c != 65_533 {
		t.Error(c)
	}
	if count(&c, 3); c != 65_535 {
		t.Error(c)
	}
}
