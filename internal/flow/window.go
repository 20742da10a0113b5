package flow

import "servicetraceroute/internal/wire"

// ackSlack is how far beyond what was seen to leave, or below what is acknowledged
// already, an acknowledgement may at least lie: the capture may have missed
// something, and old segments come late.
const ackSlack = 1 << 20

// offered notes what the local end is ready to take.
func (t *TCP) offered(s *wire.TCP) {
	window := uint32(s.Window)
	switch {
	case s.Flags&wire.SYN != 0:
	case !t.WindowScaleKnown():
		window <<= maxScale
	case t.synScale[local] > 0 && t.synScale[peer] >= 0:
		window <<= uint(t.synScale[local])
	}
	if edge := s.Ack + window; t.window == 0 || wire.SeqLess(t.edge, edge) {
		t.edge = edge
	}
	t.window = max(t.window, window)
}

// outside reports whether a segment from the peer's address lies where the peer
// cannot be: such a segment is somebody else's, and one that were believed could
// move the flow's numbers away from the truth for good. The test is the receiver's
// own (RFC 9293 section 3.4, RFC 5961 section 5), wider by a window on either side
// because the capture may be behind. A SYN has numbers of its own.
func (t *TCP) outside(s *wire.TCP) bool {
	if !t.Established || !t.HavePeer || !t.HaveNxt || !t.HaveUna || !t.HaveAckd || s.Flags&wire.SYN != 0 {
		return false
	}
	window := max(t.window, 1<<16)
	if wire.SeqLess(segmentEnd(s), t.Acked-window) || wire.SeqLess(t.edge+window, s.Seq) {
		return true
	}
	if s.Flags&wire.ACK == 0 {
		return false
	}
	slack := max(t.MaxPeerWindow, ackSlack)
	return wire.SeqLess(s.Ack, t.Una-slack) || wire.SeqLess(t.Nxt+slack, s.Ack)
}

// timely reports whether a segment's timestamps can be the peer's next ones: there
// when the flow uses them (RFC 7323 section 3.2), no earlier than those before, and
// echoing nothing that is yet to leave.
func (t *TCP) timely(s *wire.TCP) bool {
	if !t.Newest.Timestamp {
		return true
	}
	o := &s.Options
	if !o.HasTimestamp || wire.SeqLess(t.Newest.TSVal, o.TSEcr) {
		return false
	}
	in := &t.Inbound
	return !in.timestamp || !wire.SeqLess(o.TSVal, in.tsval) && !wire.SeqLess(o.TSEcr, in.tsecr)
}
