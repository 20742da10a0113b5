package flow

import (
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// Flow is one followed flow. It belongs to its Table's goroutine. There may be hundreds of
// thousands: what it takes is bounded by a test (TestIdleFlowIsSmall of the engine).
type Flow struct {
	Key trace.FlowKey // Src is the local end
	TCP *TCP          // of a TCP flow, else nil
	UDP *UDP          // of a UDP flow, else nil

	BytesIn, BytesOut uint64 // payload, each byte counted once

	// Egress is where the flow's packets leave: what a probe must copy.
	Egress Egress

	// Attachment and Judged are the engine's own; the table never looks at them.
	Attachment any
	Judged     uint64

	table        *Table
	older, newer *Flow // in one of the table's lists
	collision    *Flow // the next one with the same hash
	lastSeen     stamp
	lastOut      sighting

	// Incoming packets are followed at one interface. The newest came there then; zero: none did.
	ingressAt   stamp
	ingressLink int32 // the kernel's numbers have 32 bits

	Retransmits uint32 // of both sides
	Direction   trace.Direction
	TTL         uint8 // the highest with which a packet left; 0: none did
	Followed    bool  // all packets are shown, where the source shows but some; the engine's own
	Quiet       bool  // none but the last are; the same
	heard       bool  // of both ends something was

	outElsewhere, inElse uint8 // packets in a row, no more than elsewhereLimit are counted
}

// LastSeen is when the newest packet was seen.
func (f *Flow) LastSeen() time.Time { return f.table.time(f.lastSeen) }

// Began is when the first packet was seen; of a TCP flow whose handshake was, when that ended.
func (f *Flow) Began() time.Time {
	if f.UDP != nil {
		return f.table.time(f.UDP.began)
	}
	return f.table.time(f.TCP.began)
}

// HalfOpen reports whether a handshake was begun, and has not ended.
func (f *Flow) HalfOpen() bool {
	t := f.TCP
	return t != nil && (t.SynOut || t.SynIn) && !t.Established
}

// Newest is when the newest packet left that a probe may copy, and when the newest came;
// zero: none did.
func (f *Flow) Newest() (out, in time.Time) {
	if f.UDP != nil {
		return f.table.time(f.UDP.Newest.at), f.table.time(f.UDP.Inbound.at)
	}
	return f.table.time(f.TCP.Newest.at), f.table.time(f.TCP.Inbound.at)
}

// DataOut is when payload last left in a TCP flow; zero: none did.
func (f *Flow) DataOut() time.Time { return f.table.time(f.TCP.dataOut) }

// OldOut is when what the peer answers though it is old last left in a TCP flow: a keepalive,
// a probe of the window. Zero: none did.
func (f *Flow) OldOut() time.Time { return f.table.time(f.TCP.oldOut) }

// Closed reports whether one side of a TCP flow ended it. Nothing tells that of a UDP flow.
func (f *Flow) Closed() bool { return f.TCP != nil && f.TCP.Closed }

// Stands reports whether both ends have spoken.
func (f *Flow) Stands() bool {
	if f.UDP != nil {
		return f.UDP.Exchanges > 0
	}
	return f.TCP.Established
}

// Egress is the link and next hop by which a flow leaves.
type Egress struct {
	Interface int
	NextHop   capture.HardwareAddr
	Known     bool
}

// sighting identifies a packet for a moment, to recognise it at the next tap.
type sighting struct {
	at       stamp
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
func (f *Flow) followOut(at stamp, p *capture.Packet, ip *wire.Packet, s *wire.TCP) bool {
	return f.followOutAt(p, sighting{at: at, seq: s.Seq, end: segmentEnd(s), ack: s.Ack, id: ip.ID})
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
		if again == seen && seen.at.since(f.lastOut.at) < sameMoment {
			f.Egress = Egress{p.Interface, p.NextHop, p.NextHopKnown}
			return false // its content was taken in at the tap before
		}
		f.outElsewhere = min(f.outElsewhere+1, elsewhereLimit)
		if f.outElsewhere < elsewhereLimit || seen.at.since(f.lastOut.at) < elsewhereFor {
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
func (f *Flow) followIn(at stamp, p *capture.Packet) bool {
	link := int32(p.Interface)
	if f.ingressAt != 0 && link != f.ingressLink {
		f.inElse = min(f.inElse+1, elsewhereLimit)
		if f.inElse < elsewhereLimit || at.since(f.ingressAt) < elsewhereFor {
			return false
		}
	}
	f.inElse = 0
	f.ingressAt, f.ingressLink = at, link
	return true
}

// observe takes in one segment that is followed here.
func (f *Flow) observe(at stamp, ip *wire.Packet, s *wire.TCP, outgoing bool) Observation {
	t := f.TCP
	var before *Flow
	if s.Flags&(wire.SYN|wire.ACK) == wire.SYN && (t.Established || t.Closed || t.otherStart(s, outgoing)) {
		before = f.left() // the tuple's next connection
		t.reset()
		f.Direction, f.BytesIn, f.BytesOut, f.Retransmits = 0, 0, 0, 0
	}
	var o Observation
	if outgoing {
		f.TTL = max(f.TTL, ip.TTL)
		have, nxt := t.HaveNxt, t.Nxt
		o = t.outgoing(at, ip, s)
		f.BytesOut += advance(have, nxt, t.Nxt, s)
	} else {
		have, nxt := t.HavePeer, t.PeerNxt
		o = t.incoming(at, ip, s)
		f.BytesIn += advance(have, nxt, t.PeerNxt, s)
	}
	o.Before = before
	t.joined(at, &o)
	if o.Retransmit {
		f.Retransmits++
	}
	f.orient(s, outgoing)
	f.lastSeen = at
	return o
}

// left is the flow as its connection leaves it to the tuple's next one, for those who have an
// attachment to it; else nil.
func (f *Flow) left() *Flow {
	if f.Attachment == nil {
		return nil
	}
	old, t := *f, *f.TCP
	old.TCP = &t
	old.older, old.newer, old.collision = nil, nil, nil // it is none of the table's
	return &old
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

// orient tells who opened the flow: a SYN does.
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
	case f.Direction == 0:
		f.Direction = Oriented(f.Key)
	}
}

// Oriented tells who opened a TCP flow of which no SYN was seen: the lower port is taken for the
// server's.
func Oriented(k trace.FlowKey) trace.Direction {
	if k.Src.Port() < k.Dst.Port() {
		return trace.In
	}
	return trace.Out
}
