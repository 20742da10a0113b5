package probe

import (
	"net/netip"

	"servicetraceroute/internal/wire"
)

// SeenTCP is the probe that a captured segment is, when it is one.
func SeenTCP(ip *wire.Packet, s *wire.TCP) *Sent {
	return &Sent{
		TCPProbe: wire.TCPProbe{
			Src: netip.AddrPortFrom(ip.Src, s.SrcPort), Dst: netip.AddrPortFrom(ip.Dst, s.DstPort),
			TTL: ip.TTL, TOS: ip.TOS, FlowLabel: ip.FlowLabel, ID: ip.ID,
			Seq: s.Seq, Ack: s.Ack, Flags: s.Flags, Window: s.Window,
			Timestamp: s.Options.HasTimestamp, TSVal: s.Options.TSVal, TSEcr: s.Options.TSEcr,
		},
		Len: ip.Len, TTL: int(ip.TTL), Stamped: true,
	}
}

// SeenUDP is the same of a datagram; ok is false when its payload is not a probe's.
func SeenUDP(ip *wire.Packet, u *wire.UDP) (s *Sent, ok bool) {
	n, ok := nonceOf(u.Payload)
	if !ok {
		return nil, false
	}
	return &Sent{
		TCPProbe: wire.TCPProbe{
			Src: netip.AddrPortFrom(ip.Src, u.SrcPort), Dst: netip.AddrPortFrom(ip.Dst, u.DstPort),
			TTL: ip.TTL, TOS: ip.TOS, FlowLabel: ip.FlowLabel, ID: ip.ID,
		},
		UDP: true, Damaged: damaged(ip, u), Nonce: n, Len: ip.Len, TTL: int(ip.TTL), Stamped: true,
	}, true
}

// Same returns the remembered probe with the identifiers of s by which a quote would be
// found to be about either, nil if there is none.
func (t *Table) Same(s *Sent) *Sent {
	if s.UDP {
		return t.byNonce[s.Nonce]
	}
	return t.segment(s.Dst, s.Seq)
}
