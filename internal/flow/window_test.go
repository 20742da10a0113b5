package flow

import (
	"testing"

	"servicetraceroute/internal/wire"
)

// settled is an established flow: the peer's next number is 5000, ours 1000, and
// either offers 64 KiB.
func settled() *TCP {
	t := &TCP{synScale: [2]int8{-1, -1}}
	t.SynOut, t.SynIn, t.Established = true, true, true
	t.PeerNxt, t.HavePeer, t.Acked, t.HaveAckd = 5000, true, 5000, true
	t.Nxt, t.HaveNxt, t.Una, t.HaveUna = 1000, true, 1000, true
	t.Newest = Template{Valid: true, Timestamp: true, TSVal: 100}
	t.Inbound = Inbound{at: 1, timestamp: true, tsval: 900, tsecr: 90, TTL: 60}
	t.MaxPeerWindow = 0xffff
	t.offered(&wire.TCP{Ack: 5000, Window: 0xffff})
	return t
}

func TestOutsideTheWindow(t *testing.T) {
	for _, test := range []struct {
		name string
		s    wire.TCP
		want bool
	}{
		{"the next one", wire.TCP{Seq: 5000, Ack: 1000, Flags: wire.ACK}, false},
		{"a retransmission", wire.TCP{Seq: 4000, Ack: 900, Flags: wire.ACK, PayloadLen: 1000}, false},
		{"at the window's end", wire.TCP{Seq: 5000 + 0xffff, Ack: 1000, Flags: wire.ACK, PayloadLen: 1}, false},
		{"what the capture missed before", wire.TCP{Seq: 5000, Ack: 1000 + 1<<19, Flags: wire.ACK}, false},
		{"a SYN", wire.TCP{Seq: 1 << 31, Flags: wire.SYN}, false},
		{"far beyond", wire.TCP{Seq: 5000 + 1<<20, Ack: 1000, Flags: wire.ACK, PayloadLen: 1}, true},
		{"long ago", wire.TCP{Seq: 1<<32 - 1<<20, Ack: 1000, Flags: wire.ACK, PayloadLen: 1}, true},
		{"acknowledges the future", wire.TCP{Seq: 5000, Ack: 1000 + 1<<21, Flags: wire.ACK}, true},
		{"acknowledges the past", wire.TCP{Seq: 5000, Ack: 1<<32 - 1<<21, Flags: wire.ACK}, true},
		{"a reset far beyond", wire.TCP{Seq: 1 << 30, Flags: wire.RST}, true},
	} {
		if got := settled().outside(&test.s); got != test.want {
			t.Errorf("%s: outside = %v", test.name, got)
		}
	}
	young := settled()
	young.Established = false
	if young.outside(&wire.TCP{Seq: 1 << 30, Ack: 1 << 30, Flags: wire.ACK}) {
		t.Error("nothing is outside before the handshake's end")
	}
}

func TestTimely(t *testing.T) {
	for _, test := range []struct {
		name  string
		has   bool
		value uint32
		echo  uint32
		want  bool
	}{
		{"the next one", true, 901, 95, true},
		{"the same again", true, 900, 90, true},
		{"echo of the newest", true, 901, 100, true},
		{"none", false, 0, 0, false},
		{"echo of what is yet to leave", true, 901, 101, false},
		{"echo of something older", true, 901, 89, false},
		{"an older clock", true, 899, 95, false},
	} {
		s := wire.TCP{Seq: 5000, Ack: 1000, Flags: wire.ACK}
		s.Options.HasTimestamp, s.Options.TSVal, s.Options.TSEcr = test.has, test.value, test.echo
		if got := settled().timely(&s); got != test.want {
			t.Errorf("%s: timely = %v", test.name, got)
		}
	}
	plain := settled()
	plain.Newest.Timestamp = false
	if !plain.timely(&wire.TCP{}) || plain.incoming(0, &wire.Packet{TTL: 60}, &wire.TCP{Flags: wire.ACK}).Timely == false {
		t.Error("flows without timestamps have nothing to be timely with")
	}
}

// A segment that cannot be the peer's does not soften what the next is held against.
func TestAForgeryIsNoMeasure(t *testing.T) {
	a := newTaps(t)
	stamp := func(val, echo uint32) wire.TCPOptions {
		return wire.TCPOptions{HasTimestamp: true, TSVal: val, TSEcr: echo}
	}
	a.out(wire.TCP{Flags: wire.SYN, Seq: 100, Window: 64240, Options: stamp(1000, 0)})
	a.in(wire.TCP{Flags: wire.SYN | wire.ACK, Seq: 900, Ack: 101, Window: 65160, Options: stamp(5000, 1000)})
	a.out(wire.TCP{Flags: wire.ACK, Seq: 101, Ack: 901, Window: 502, Options: stamp(1010, 5000)})
	a.in(wire.TCP{Flags: wire.ACK, Seq: 901, Ack: 101, Window: 502, Options: stamp(5010, 1010)})
	a.in(wire.TCP{Flags: wire.ACK, Seq: 901, Ack: 101, Window: 502}) // without timestamps
	if o := a.in(wire.TCP{Flags: wire.ACK, Seq: 901, Ack: 101, Window: 502, Options: stamp(77, 12)}); o.Timely {
		t.Error("timestamps of any kind are believed after a segment without")
	}
}
