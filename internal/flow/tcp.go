package flow

import (
	"time"

	"servicetraceroute/internal/wire"
)

// TCP is what is known of a TCP flow, seen from its local end. All sequence
// numbers are as on the wire.
type TCP struct {
	// Una is SND.UNA as far as it is certain: the highest acknowledgement seen
	// from the peer. Everything below it was received by the peer. Nxt is the end
	// of the highest segment seen leaving.
	Una, Nxt uint32
	// PeerNxt is the end of the highest segment seen from the peer, Acked the
	// highest acknowledgement seen leaving.
	PeerNxt, Acked     uint32
	HaveUna, HaveNxt   bool
	HavePeer, HaveAckd bool

	// Newest outgoing segment that is not a SYN: what a probe copies.
	Newest Template

	// Inbound is the newest segment from the peer.
	Inbound Inbound

	// Handshake.
	SynOut, SynIn      bool // a SYN left, came
	SynAcks            int  // SYN-ACKs seen, of either side
	Established        bool // the handshake's last ACK, or later traffic, was seen
	EstablishedAt      time.Time
	PeerSpoke          bool // the peer sent something after its SYN (or SYN-ACK)
	PeerData           bool // the peer sent payload
	Timestamps         bool // both ends use them (from the SYNs, or from a segment)
	SACK               bool // both SYNs permit it
	synSACK, synTS     [2]bool
	synScale           [2]int8 // window scale of the local and the peer's SYN, -1 none
	mptcp              [2]bool
	MD5, AO, BothMPTCP bool

	// MaxPeerWindow is the largest window the peer offered, scaled when both
	// scales are known, unscaled (a lower bound) otherwise.
	MaxPeerWindow uint32

	// Closed is set by a FIN or RST of either side.
	Closed bool
	RSTs   int // from either side

	rtt rttEstimate
}

// Template is what a probe copies from the flow's newest outgoing packet.
type Template struct {
	Time         time.Time
	Ack          uint32
	Window       uint16 // as on the wire, unscaled
	Timestamp    bool
	TSVal, TSEcr uint32
	TOS          uint8 // ECN bits included; a probe clears them
	FlowLabel    uint32
	Valid        bool
}

// Inbound is what the destination's own answer to a probe is compared with.
type Inbound struct {
	Time   time.Time
	Ack    uint32
	Window uint16
	TTL    uint8
	Valid  bool
}

// Observation says what one segment did, for those who watch for harm.
type Observation struct {
	Outgoing bool
	// Retransmit: payload or SYN that was seen before. Probing the window or
	// keeping alive (at most one byte below Nxt) is told apart as Keepalive.
	Retransmit bool
	Keepalive  bool
	Data       bool // carries payload
	// PureAck: flags exactly ACK, no payload. Repeated: its acknowledgement and
	// window are those of the segment before from the same side. InOrder: its
	// sequence number is the next one expected.
	PureAck, Repeated, InOrder bool
	NoSACKBlocks               bool
	SameTTL                    bool // arrived with the TTL of the segment before
	FirstSYN                   bool // opens a (new) connection: SYN without ACK
	Established                bool // this very segment ended the handshake
	Closed                     bool // FIN or RST
	RST                        bool
	LabelChanged               bool // outgoing flow label differs from the segment before
}

const (
	local = 0
	peer  = 1
)

// reset forgets all but nothing: a SYN begins a new connection of the tuple.
func (t *TCP) reset() { *t = TCP{synScale: [2]int8{-1, -1}} }

// outgoing updates the state with a segment that left. at is its time.
func (t *TCP) outgoing(at time.Time, p *wire.Packet, s *wire.TCP) Observation {
	o := observe(s)
	o.Outgoing = true
	end := segmentEnd(s)
	if s.Flags&wire.SYN != 0 {
		t.syn(local, s, &o)
	}
	switch {
	case !t.HaveNxt:
		t.Nxt, t.HaveNxt = end, true
		if t.HaveUna && wire.SeqLess(t.Nxt, t.Una) {
			t.HaveUna = false // heard before anything was seen to leave: not certain
		}
		if !t.HaveUna && s.Flags&wire.SYN == 0 {
			// Joined late: nothing below this segment's start is certain to have
			// arrived, so Una waits for the peer's first acknowledgement.
			o.Retransmit = false
		}
	case wire.SeqLess(t.Nxt, end):
		t.Nxt = end
		t.rtt.sent(at, end)
	case end != s.Seq:
		if s.PayloadLen <= 1 && end == t.Nxt {
			o.Keepalive = true
		} else {
			o.Retransmit = true
			t.rtt.forget()
		}
	case wire.SeqLess(s.Seq, t.Nxt) && s.Flags&(wire.SYN|wire.FIN|wire.RST) == 0 && s.Seq == t.Nxt-1:
		o.Keepalive = true
	}
	if s.Flags&wire.ACK != 0 {
		if !t.HaveAckd || wire.SeqLess(t.Acked, s.Ack) {
			t.Acked, t.HaveAckd = s.Ack, true
		}
		if s.Flags&(wire.SYN|wire.RST) == 0 {
			t.copyTemplate(at, p, s, &o)
			if !t.Established && t.SynOut && t.HavePeer {
				t.establish(at, &o)
			}
		}
	}
	t.close(s, &o)
	return o
}

// copyTemplate keeps what probes copy. A retransmission or a keepalive has an
// old sequence number, yet its acknowledgement and timestamps are the newest.
func (t *TCP) copyTemplate(at time.Time, p *wire.Packet, s *wire.TCP, o *Observation) {
	o.LabelChanged = t.Newest.Valid && p.FlowLabel != t.Newest.FlowLabel
	t.Newest = Template{
		Time: at, Ack: s.Ack, Window: s.Window,
		Timestamp: s.Options.HasTimestamp, TSVal: s.Options.TSVal, TSEcr: s.Options.TSEcr,
		TOS: p.TOS, FlowLabel: p.FlowLabel, Valid: true,
	}
	t.Timestamps = s.Options.HasTimestamp
}

// incoming updates the state with a segment from the peer.
func (t *TCP) incoming(at time.Time, p *wire.Packet, s *wire.TCP) Observation {
	o := observe(s)
	end := segmentEnd(s)
	if s.Flags&wire.SYN != 0 {
		t.syn(peer, s, &o)
	} else if s.Flags&wire.RST == 0 {
		t.PeerSpoke = true
		t.PeerData = t.PeerData || s.PayloadLen > 0
	}
	o.InOrder = t.HavePeer && s.Seq == t.PeerNxt
	o.SameTTL = t.Inbound.Valid && t.Inbound.TTL == p.TTL
	switch {
	case !t.HavePeer:
		t.PeerNxt, t.HavePeer = end, true
	case wire.SeqLess(t.PeerNxt, end):
		t.PeerNxt = end
	case end != s.Seq:
		if s.PayloadLen <= 1 && end == t.PeerNxt && s.Flags&(wire.SYN|wire.FIN) == 0 {
			o.Keepalive = true
		} else {
			o.Retransmit = true
		}
	}
	if s.Flags&wire.ACK != 0 && s.Flags&wire.RST == 0 {
		t.acknowledged(at, s, &o)
	}
	if s.Flags&wire.RST == 0 {
		t.Inbound = Inbound{Time: at, Ack: s.Ack, Window: s.Window, TTL: p.TTL, Valid: true}
	}
	t.close(s, &o)
	return o
}

// acknowledged takes in the peer's acknowledgement and window.
func (t *TCP) acknowledged(at time.Time, s *wire.TCP, o *Observation) {
	o.Repeated = t.Inbound.Valid && s.Ack == t.Inbound.Ack && s.Window == t.Inbound.Window
	if t.HaveNxt && wire.SeqLess(t.Nxt, s.Ack) {
		// Of what was never seen to leave: the capture missed it, or somebody forged
		// this. Believed, it could lift a probe above SND.NXT; not believed, Una is
		// lower than it might be, which is safe.
		return
	}
	if !t.HaveUna || wire.SeqLess(t.Una, s.Ack) {
		t.Una, t.HaveUna = s.Ack, true
		t.rtt.acked(at, s.Ack)
	}
	window := uint32(s.Window)
	if s.Flags&wire.SYN == 0 && t.synScale[local] >= 0 && t.synScale[peer] > 0 {
		window <<= uint(min(t.synScale[peer], 14)) // RFC 7323 section 2.3: at most 14
	}
	t.MaxPeerWindow = max(t.MaxPeerWindow, window)
	if !t.Established && s.Flags&wire.SYN == 0 && t.SynIn && !t.SynOut {
		// Not an accepted flow's own handshake: the SYN-ACK was missed.
		t.establish(at, o)
	} else if !t.Established && s.Flags&wire.SYN == 0 && t.SynIn && t.SynOut && t.HaveNxt {
		t.establish(at, o) // accepted: this is the third ACK
	}
}

// joined marks a flow whose handshake was not seen as established once both
// sides were.
func (t *TCP) joined(at time.Time, o *Observation) {
	if !t.Established && !t.SynOut && !t.SynIn && t.HaveUna && t.Newest.Valid {
		t.establish(at, o)
		t.PeerSpoke, t.PeerData = true, true
	}
}

func (t *TCP) establish(at time.Time, o *Observation) {
	t.Established, t.EstablishedAt = true, at
	o.Established = true
}

// syn takes in the options of a SYN or SYN-ACK of one side.
func (t *TCP) syn(side int, s *wire.TCP, o *Observation) {
	o.FirstSYN = s.Flags&wire.ACK == 0
	if s.Flags&wire.ACK != 0 {
		t.SynAcks++
	}
	if side == local {
		t.SynOut = true
	} else {
		t.SynIn = true
	}
	opt := &s.Options
	t.synSACK[side], t.synTS[side], t.mptcp[side] = opt.SACKPermitted, opt.HasTimestamp, opt.MPTCP
	t.synScale[side] = -1
	if opt.HasWindowScale {
		t.synScale[side] = int8(min(opt.WindowScale, 14))
	}
	t.MD5, t.AO = t.MD5 || opt.MD5, t.AO || opt.AO
	t.BothMPTCP = t.mptcp[local] && t.mptcp[peer]
	t.SACK = t.synSACK[local] && t.synSACK[peer]
	t.Timestamps = t.synTS[local] && t.synTS[peer]
}

func (t *TCP) close(s *wire.TCP, o *Observation) {
	if s.Flags&(wire.FIN|wire.RST) != 0 {
		t.Closed, o.Closed = true, true
	}
	if s.Flags&wire.RST != 0 {
		t.RSTs++
		o.RST = true
	}
	if s.Options.MD5 {
		t.MD5 = true
	}
	if s.Options.AO {
		t.AO = true
	}
}

func observe(s *wire.TCP) Observation {
	return Observation{
		Data:         s.PayloadLen > 0,
		PureAck:      s.PayloadLen == 0 && s.Flags&^(wire.ECE|wire.CWR) == wire.ACK,
		NoSACKBlocks: s.Options.SACKBlocks == 0,
	}
}

// segmentEnd is the sequence number after the segment: SYN and FIN count as one
// each (RFC 9293 section 3.4).
func segmentEnd(s *wire.TCP) uint32 {
	end := s.Seq + uint32(s.PayloadLen)
	if s.Flags&wire.SYN != 0 {
		end++
	}
	if s.Flags&wire.FIN != 0 {
		end++
	}
	return end
}

// RTT returns the smoothed and the least round-trip time seen in the flow
// itself; ok is false before the first sample.
func (t *TCP) RTT() (smoothed, least time.Duration, ok bool) {
	return t.rtt.smoothed, t.rtt.least, t.rtt.samples > 0
}

// WindowScaleKnown reports whether MaxPeerWindow is scaled.
func (t *TCP) WindowScaleKnown() bool { return t.SynOut && t.SynIn }
