package flow

import (
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// Flow is one followed flow. It belongs to its Table's goroutine.
type Flow struct {
	Key       trace.FlowKey // Src is the local end
	Direction trace.Direction
	TCP       TCP // of a TCP flow
	UDP       UDP // of a UDP flow

	FirstSeen, LastSeen time.Time
	BytesIn, BytesOut   uint64 // payload, each byte counted once
	Retransmits         int    // of both sides

	// Egress is where the flow's packets leave: what a probe must copy.
	Egress Egress
	// TTL is the highest with which a packet left; 0: none did.
	TTL uint8

	// Attachment is the engine's own; the table never looks at it.
	Attachment any

	ingress              tap
	older, newer         *Flow // LRU list
	lastOut              sighting
	outElsewhere, inElse int
}

// Egress is the link and next hop by which a flow leaves.
type Egress struct {
	Interface int
	NextHop   capture.HardwareAddr
	Known     bool
}

// tap is the interface at which incoming packets are followed.
type tap struct {
	index int
	known bool
	at    time.Time // of the newest packet there
}

// sighting identifies a packet for a moment, to recognise it at the next tap.
type sighting struct {
	at       time.Time
	seq, end uint32
	ack      uint32
	id       uint16
}

// A packet crosses the taps of one host (bridge, then its port) within
// microseconds; a true retransmission takes at least a millisecond.
const sameMoment = time.Millisecond

// A flow that was rerouted is followed at another interface once so many packets in a
// row, over so long a time, were seen only there. A packet may wait that long between
// two taps: below a bond or a bridge stands the port's queue.
const (
	elsewhereLimit = 3
	elsewhereFor   = 250 * time.Millisecond
)

// followOut reports whether the flow is followed at the tap that saw this
// outgoing packet. Of several taps the last one a packet passes is nearest the
// wire.
func (f *Flow) followOut(p *capture.Packet, ip *wire.Packet, s *wire.TCP) bool {
	return f.followOutAt(p, sighting{at: p.Time, seq: s.Seq, end: segmentEnd(s), ack: s.Ack, id: ip.ID})
}

func (f *Flow) followOutAt(p *capture.Packet, seen sighting) bool {
	if p.Tagged {
		return false // the VLAN's own interface shows it as a probe has to leave
	}
	if !f.Egress.Known {
		f.Egress = Egress{p.Interface, p.NextHop, p.NextHopKnown}
		f.lastOut = seen
		return true
	}
	if p.Interface != f.Egress.Interface {
		again := f.lastOut
		again.at = seen.at
		if again == seen && seen.at.Sub(f.lastOut.at) < sameMoment {
			f.Egress = Egress{p.Interface, p.NextHop, p.NextHopKnown}
			return false // its content was taken in at the tap before
		}
		if f.outElsewhere++; f.outElsewhere < elsewhereLimit || p.Time.Sub(f.lastOut.at) < elsewhereFor {
			return false
		}
	}
	f.outElsewhere = 0
	f.Egress = Egress{p.Interface, p.NextHop, p.NextHopKnown}
	f.lastOut = seen
	return true
}

// Elsewhere reports whether the flow's newest packets were seen to leave only at
// another interface than the one where it is followed: for the moment it is not known
// where a probe has to leave.
func (f *Flow) Elsewhere() bool { return f.outElsewhere >= elsewhereLimit }

// followIn is the same for incoming packets, whose first tap is nearest the wire.
func (f *Flow) followIn(p *capture.Packet) bool {
	if f.ingress.known && p.Interface != f.ingress.index {
		if f.inElse++; f.inElse < elsewhereLimit || p.Time.Sub(f.ingress.at) < elsewhereFor {
			return false
		}
	}
	f.inElse = 0
	f.ingress = tap{p.Interface, true, p.Time}
	return true
}

// observe takes in one segment that is followed here.
func (f *Flow) observe(p *capture.Packet, ip *wire.Packet, s *wire.TCP, outgoing bool) Observation {
	if s.Flags&(wire.SYN|wire.ACK) == wire.SYN && (f.TCP.Established || f.TCP.Closed || f.TCP.otherStart(s, outgoing)) {
		f.TCP.reset() // the tuple's next connection
		f.Direction = 0
	}
	var o Observation
	before := f.TCP
	if outgoing {
		f.TTL = max(f.TTL, ip.TTL)
		o = f.TCP.outgoing(p.Time, ip, s)
		f.BytesOut += advance(before.HaveNxt, before.Nxt, f.TCP.Nxt, s)
	} else {
		o = f.TCP.incoming(p.Time, ip, s)
		f.BytesIn += advance(before.HavePeer, before.PeerNxt, f.TCP.PeerNxt, s)
	}
	f.TCP.joined(p.Time, &o)
	if o.Retransmit {
		f.Retransmits++
	}
	f.orient(s, outgoing)
	f.LastSeen = p.Time
	return o
}

// advance is how many payload bytes of s lie beyond what was seen before.
func advance(have bool, before, after uint32, s *wire.TCP) uint64 {
	if s.PayloadLen == 0 {
		return 0
	}
	if !have {
		return uint64(s.PayloadLen)
	}
	n := wire.SeqDiff(after, before)
	return uint64(min(max(n, 0), int32(min(s.PayloadLen, 1<<30))))
}

// orient tells who opened the flow: a SYN does; else the lower port is taken for
// the server's.
func (f *Flow) orient(s *wire.TCP, outgoing bool) {
	switch {
	case s.Flags&(wire.SYN|wire.ACK) == wire.SYN:
		f.Direction = trace.In
		if outgoing {
			f.Direction = trace.Out
		}
	case s.Flags&wire.SYN != 0 && f.Direction == 0:
		f.Direction = trace.Out
		if outgoing {
			f.Direction = trace.In
		}
	case f.Direction == 0 && f.Key.Src.Port() < f.Key.Dst.Port():
		f.Direction = trace.In
	case f.Direction == 0:
		f.Direction = trace.Out
	}
}
