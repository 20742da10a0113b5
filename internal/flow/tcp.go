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

	// Handshake.
	SynOut, SynIn      bool // a SYN left, came
	Established        bool // the handshake's last ACK, or later traffic, was seen
	PeerSpoke          bool // the peer sent something after its SYN (or SYN-ACK)
	PeerData           bool // the peer sent payload
	Timestamps         bool // both ends use them (from the SYNs, or from a segment)
	SACK               bool // both SYNs permit it, or a block was seen
	synSACK, synTS     [2]bool
	synScale           [2]int8 // window scale of the local and the peer's SYN, -1 none
	mptcp              [2]bool
	told               bool // by the local socket: the scales
	MD5, AO, BothMPTCP bool
	Closed             bool // by a FIN or RST of either side

	// edge is the highest sequence number the local end has offered to take, window
	// the largest it offered.
	edge, window uint32

	// MaxPeerWindow is the largest window the peer offered, scaled when both
	// scales are known, unscaled (a lower bound) otherwise.
	MaxPeerWindow uint32

	// Newest outgoing segment that is not a SYN: what a probe copies.
	Newest Template

	// Inbound is the newest segment from the peer.
	Inbound Inbound

	began   stamp // see Flow.Began
	dataOut stamp // when payload last left
	oldOut  stamp // see Flow.OldOut

	rtt  rttEstimate
	gaps *[2]gap // what was jumped over, of local's and of the peer's numbers; nil: nothing yet
}

// Template is what a probe copies from the flow's newest outgoing packet.
type Template struct {
	Ack          uint32
	TSVal, TSEcr uint32
	FlowLabel    uint32
	Window       uint16 // as on the wire, unscaled
	Timestamp    bool
	TOS          uint8 // ECN bits included; a probe clears them
	Valid        bool

	at stamp
}

// Inbound is what the destination's own answer to a probe is compared with.
type Inbound struct {
	Ack    uint32
	Window uint16
	TTL    uint8

	timestamp    bool
	tsval, tsecr uint32
	at           stamp
}

// Valid reports whether there was one.
func (i *Inbound) Valid() bool { return i.at != 0 }

// Observation says what one segment did, for those who watch for harm.
type Observation struct {
	Outgoing bool
	// Retransmit: payload or SYN that was seen before. Probing the window or keeping
	// alive (at most one byte below Nxt, or empty and old) is told apart as Keepalive.
	Retransmit bool
	Keepalive  bool
	Data       bool // carries payload
	// PureAck: flags exactly ACK, no payload. Repeated: its acknowledgement and
	// window are those of the segment before from the same side. InOrder: its
	// sequence number is the next one expected.
	PureAck, Repeated, InOrder bool
	NoSACKBlocks               bool
	SameTTL                    bool // arrived with the TTL of the segment before
	Timely                     bool // its timestamps continue those before, and echo one that left
	// Outside: from the peer's address, yet not where the peer can be in its
	// numbers. Nothing of it was believed.
	Outside      bool
	FirstSYN     bool // opens a (new) connection: SYN without ACK
	Established  bool // this very segment ended the handshake
	Closed       bool // FIN or RST
	RST          bool
	LabelChanged bool // outgoing flow label differs from the segment before
	// Before is the connection that the tuple had until this SYN, if it is another one and
	// somebody attached something to the flow; it belongs to the reader.
	Before *Flow
}

const (
	local = 0
	peer  = 1
)

// reset forgets all but nothing: a SYN begins a new connection of the tuple.
func (t *TCP) reset() { *t = TCP{began: t.began, synScale: [2]int8{-1, -1}} }

// otherStart reports whether a SYN has another sequence number than the one before
// it: the first attempt was given up.
func (t *TCP) otherStart(s *wire.TCP, outgoing bool) bool {
	if outgoing {
		return t.SynOut && segmentEnd(s) != t.Nxt
	}
	return t.SynIn && segmentEnd(s) != t.PeerNxt
}

// outgoing updates the state with a segment that left. at is its time.
func (t *TCP) outgoing(at stamp, p *wire.Packet, s *wire.TCP) Observation {
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
		t.jumped(local, at, t.Nxt, s.Seq)
		t.Nxt = end
		t.rtt.sent(at, end)
	case end != s.Seq:
		switch {
		case s.PayloadLen <= 1 && end == t.Nxt:
			o.Keepalive = true
		case !t.overtaken(local, at, s.Seq, end):
			o.Retransmit = true
			t.rtt.forget()
		}
	case s.Flags&(wire.SYN|wire.FIN|wire.RST) == 0 && (s.Seq == t.Nxt-1 || t.HaveUna && wire.SeqLess(s.Seq, t.Una)):
		// Also a probe of somebody else's, like ours: the peer answers what is old.
		o.Keepalive = true
	}
	if o.Keepalive {
		t.oldOut = at
	}
	if s.Flags&wire.ACK != 0 {
		if !t.HaveAckd || wire.SeqLess(t.Acked, s.Ack) {
			t.Acked, t.HaveAckd = s.Ack, true
		}
		t.offered(s)
		if s.Flags&(wire.SYN|wire.RST) == 0 {
			t.copyTemplate(at, p, s, &o)
			if !t.Established && t.SynOut && t.HavePeer {
				t.establish(at, &o)
			}
		}
	}
	if s.PayloadLen > 0 {
		t.dataOut = at
	}
	t.close(s, &o)
	return o
}

// gap is the newest stretch of sequence numbers that was jumped over.
type gap struct {
	from, to uint32
	at       stamp // zero: there was none
}

// jumped notes that a segment begins beyond the end of those before. Most flows never lose
// one.
func (t *TCP) jumped(side int, at stamp, from, to uint32) {
	if !wire.SeqLess(from, to) {
		return
	}
	if t.gaps == nil {
		t.gaps = new([2]gap)
	}
	t.gaps[side] = gap{from, to, at}
}

// overtaken reports whether a segment fills a gap sooner than its retransmission
// could: then it was overtaken on the way, or in a capture that gathers the packets
// of several processors. (RFC 8985 waits a quarter of the round trip for such.)
func (t *TCP) overtaken(side int, at stamp, from, to uint32) bool {
	if t.gaps == nil {
		return false
	}
	g := &t.gaps[side]
	if g.at == 0 || wire.SeqLess(from, g.from) || wire.SeqLess(g.to, to) {
		return false
	}
	return at.since(g.at) < max(t.rtt.least/2, time.Millisecond)
}

// copyTemplate keeps what probes copy. A retransmission or a keepalive has an
// old sequence number, yet its acknowledgement and timestamps are the newest.
func (t *TCP) copyTemplate(at stamp, p *wire.Packet, s *wire.TCP, o *Observation) {
	o.LabelChanged = t.Newest.Valid && p.FlowLabel != t.Newest.FlowLabel
	t.Newest = Template{
		at: at, Ack: s.Ack, Window: s.Window,
		Timestamp: s.Options.HasTimestamp, TSVal: s.Options.TSVal, TSEcr: s.Options.TSEcr,
		TOS: p.TOS, FlowLabel: p.FlowLabel, Valid: true,
	}
	t.Timestamps = s.Options.HasTimestamp
}

// incoming updates the state with a segment from the peer.
func (t *TCP) incoming(at stamp, p *wire.Packet, s *wire.TCP) Observation {
	o := observe(s)
	end := segmentEnd(s)
	if s.Flags&wire.SYN != 0 {
		t.syn(peer, s, &o)
	} else if s.Flags&wire.RST == 0 {
		t.PeerSpoke = true
		t.PeerData = t.PeerData || s.PayloadLen > 0
	}
	o.InOrder = t.HavePeer && s.Seq == t.PeerNxt
	o.SameTTL = t.Inbound.Valid() && t.Inbound.TTL == p.TTL
	o.Timely = t.timely(s)
	nxt, una := t.PeerNxt, t.Una
	switch {
	case !t.HavePeer:
		t.PeerNxt, t.HavePeer = end, true
	case wire.SeqLess(t.PeerNxt, end):
		t.jumped(peer, at, t.PeerNxt, s.Seq)
		t.PeerNxt = end
	case end != s.Seq:
		if s.PayloadLen <= 1 && end == t.PeerNxt && s.Flags&(wire.SYN|wire.FIN) == 0 {
			o.Keepalive = true
		} else {
			o.Retransmit = !t.overtaken(peer, at, s.Seq, end)
		}
	}
	if s.Flags&wire.ACK != 0 && s.Flags&wire.RST == 0 {
		t.acknowledged(at, s, &o)
	}
	// What cannot be the peer's next must not become what the next is compared with;
	// and only what moves the flow on tells how far the peer is.
	if first := !t.Inbound.Valid(); s.Flags&wire.RST == 0 && (first || o.Timely) {
		ttl := t.Inbound.TTL
		if first || t.PeerNxt != nxt || t.Una != una {
			ttl = p.TTL
		}
		t.Inbound = Inbound{
			at: at, Ack: s.Ack, Window: s.Window, TTL: ttl,
			timestamp: s.Options.HasTimestamp, tsval: s.Options.TSVal, tsecr: s.Options.TSEcr,
		}
	}
	t.close(s, &o)
	return o
}

// acknowledged takes in the peer's acknowledgement and window.
func (t *TCP) acknowledged(at stamp, s *wire.TCP, o *Observation) {
	o.Repeated = t.Inbound.Valid() && s.Ack == t.Inbound.Ack && s.Window == t.Inbound.Window
	if t.HaveNxt && wire.SeqLess(t.Nxt, s.Ack) {
		// Of what was never seen to leave: the capture missed it, or somebody forged
		// this. Believed, it could lift a probe above SND.NXT; not believed, Una is
		// lower than it might be, which is safe.
		if t.HaveUna || t.SynOut || t.SynIn || s.Ack != t.Nxt+1 {
			return
		}
		// The first that was seen of an idle flow is a keepalive, which stands one below
		// SND.NXT. What lies below it is acknowledged in any case.
		t.Una, t.HaveUna, t.Nxt = t.Nxt, true, s.Ack
	} else if !t.HaveUna || wire.SeqLess(t.Una, s.Ack) {
		t.Una, t.HaveUna = s.Ack, true
		t.rtt.acked(at, s.Ack)
	}
	window := uint32(s.Window)
	if s.Flags&wire.SYN == 0 && t.synScale[local] >= 0 && t.synScale[peer] > 0 {
		window <<= uint(t.synScale[peer])
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
func (t *TCP) joined(at stamp, o *Observation) {
	if !t.Established && !t.SynOut && !t.SynIn && t.HaveUna && t.Newest.Valid {
		t.establish(at, o)
		t.PeerSpoke, t.PeerData = true, true
	}
}

func (t *TCP) establish(at stamp, o *Observation) {
	t.Established, o.Established = true, true
	if t.SynOut && t.SynIn {
		t.began = at
	}
}

// syn takes in the options of a SYN or SYN-ACK of one side.
func (t *TCP) syn(side int, s *wire.TCP, o *Observation) {
	o.FirstSYN = s.Flags&wire.ACK == 0
	if side == local {
		t.SynOut = true
	} else {
		t.SynIn = true
	}
	opt := &s.Options
	t.synSACK[side], t.synTS[side], t.mptcp[side] = opt.SACKPermitted, opt.HasTimestamp, opt.MPTCP
	t.synScale[side] = -1
	if opt.HasWindowScale {
		t.synScale[side] = int8(min(opt.WindowScale, maxScale))
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
		o.RST = true
	}
	if s.Options.SACKBlocks > 0 {
		t.SACK = true
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

// NoSACK reports whether the flow is known to go without selective acknowledgements.
func (t *TCP) NoSACK() bool { return !t.SACK && t.WindowScaleKnown() }

// WindowScaleKnown reports whether MaxPeerWindow is scaled.
func (t *TCP) WindowScaleKnown() bool { return t.SynOut && t.SynIn || t.told }

// Told takes in what the local socket knows of a handshake that was not seen: how far
// each side's windows are to be shifted, and whether SACK is permitted.
func (t *TCP) Told(localScale, peerScale uint8, sack bool) {
	if t.WindowScaleKnown() {
		return
	}
	t.told, t.SACK = true, t.SACK || sack
	t.synScale = [2]int8{int8(min(localScale, maxScale)), int8(min(peerScale, maxScale))}
	if t.Inbound.Valid() {
		t.MaxPeerWindow = max(t.MaxPeerWindow, uint32(t.Inbound.Window)<<t.synScale[peer])
	}
	t.window, t.edge = 0, 0 // were too large, for want of the scale
	if t.Newest.Valid {
		t.window = uint32(t.Newest.Window) << t.synScale[local]
		t.edge = t.Newest.Ack + t.window
	}
}

// maxScale is the most that a window is shifted (RFC 7323 section 2.3).
const maxScale = 14
