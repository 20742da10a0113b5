package probe

import (
	"math/rand/v2"
	"net/netip"

	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/wire"
)

// Nonce is what makes the payload of a datagram ours: 64 random bits.
type Nonce [8]byte

// The payload of a probe, in case it reaches the application after all: a first byte
// that is no QUIC packet's (its fixed bit is 0, and 21 bytes are the least of a stateless
// reset, RFC 9000 sections 17.2 and 10.3.3), none of those that share a port with RTP
// (RFC 7983), no message type of WireGuard (1 to 4) and no opcode of OpenVPN; then the
// nonce.
const (
	payloadFirst = 0x05
	PayloadLen   = 1 + len(Nonce{})
)

// AppendPayload appends the payload of a probe.
func (n Nonce) AppendPayload(b []byte) []byte { return append(append(b, payloadFirst), n[:]...) }

// nonceOf reads a payload; ok is false if it is none of a probe.
func nonceOf(b []byte) (n Nonce, ok bool) {
	if len(b) != PayloadLen || b[0] != payloadFirst {
		return n, false
	}
	return Nonce(b[1:]), true
}

// surplus is how many bytes follow the datagram of a damaged probe over IPv4.
const surplus = 3

// MaxDatagram is the length of the longest probe in a UDP flow, over IPv6.
const MaxDatagram = 40 + 8 + PayloadLen

// CraftUDP fills in a probe of the flow, damaged or not as s says: a datagram with the
// flow's ends and with DSCP and flow label of its newest packet. ECN is zero: what answers
// to its marking is the application's congestion control, which knows nothing of this packet.
//
// A damaged one expires and is quoted like any other and passes firewalls that follow
// connections, but should it come to a host, that drops it. Over IPv6 it has no checksum
// (RFC 8200 section 8.1), over IPv4 one that is right for the packet's length and wrong
// for the datagram's (RFC 768; RFC 9868 section 5 calls what is between them the surplus
// area, and leaves it zero where there is nothing to say).
func CraftUDP(s *Sent, f *flow.Flow, ttl int, rng *rand.Rand) {
	s.UDP = true
	s.TCPProbe = wire.TCPProbe{
		Src: f.Key.Src, Dst: f.Key.Dst, TTL: uint8(ttl), TOS: f.UDP.Newest.TOS &^ ecnMask, FlowLabel: f.UDP.Newest.FlowLabel,
	}
	for i := range s.Nonce {
		s.Nonce[i] = byte(rng.Uint32())
	}
}

// AppendTo appends the whole IP packet.
func (s *Sent) AppendTo(b []byte) []byte {
	if !s.UDP {
		return s.TCPProbe.AppendTo(b)
	}
	var room [PayloadLen]byte
	u := s.datagram(room[:0])
	return u.AppendTo(b)
}

func (s *Sent) datagram(payload []byte) wire.UDPProbe {
	u := wire.UDPProbe{
		Src: s.Src, Dst: s.Dst, TTL: s.TCPProbe.TTL, TOS: s.TOS, FlowLabel: s.FlowLabel, ID: s.ID, Payload: s.Nonce.AppendPayload(payload),
	}
	switch {
	case !s.Damaged:
	case s.Dst.Addr().Is4():
		u.Surplus = surplus
	default:
		u.NoChecksum = true
	}
	return u
}

// damaged reports whether a datagram is what CraftUDP says of a damaged one.
func damaged(ip *wire.Packet, u *wire.UDP) bool {
	if ip.Version == 4 {
		return ip.TransportLen == u.Len+surplus
	}
	return u.Checksum == 0
}

// OwnUDP returns the probe that this captured datagram is a copy of, or nil.
// forwarded tells that its source was translated on its way out.
func (t *Table) OwnUDP(ip *wire.Packet, u *wire.UDP) (s *Sent, forwarded bool) {
	n, ok := nonceOf(u.Payload)
	if !ok {
		return nil, false
	}
	s = t.byNonce[n]
	if s == nil || s.Dst != netip.AddrPortFrom(ip.Dst, u.DstPort) {
		return nil, false
	}
	return s, s.Src != netip.AddrPortFrom(ip.Src, u.SrcPort)
}

// matchUDP finds the probe that a quoted datagram is about: by the nonce where the
// quote reaches that far, else (IPv4) by identification and checksum. The checksum covers
// the nonce, and what it has to be between the quoted ends can be computed, so also one
// that was translated proves the probe.
func (t *Table) matchUDP(q *wire.Quote) (*Sent, Verdict) {
	if !q.HasUDP {
		return nil, NoMatch
	}
	if q.UDPHeadLen > 0 {
		n, ok := nonceOf(q.UDPHead[:q.UDPHeadLen])
		if s := t.byNonce[n]; ok && s != nil && s.about(q) {
			return s, Exact
		}
		if q.UDPHeadLen >= PayloadLen {
			return nil, NoMatch
		}
	}
	if q.Version != 4 {
		return nil, NoMatch // RFC 4443 section 2.4 quotes all that fits
	}
	for _, id := range [2]uint16{q.ID, swap16(q.ID)} {
		s := t.ids[id]
		if s == nil || !s.UDP || !s.about(q) {
			continue
		}
		var room [PayloadLen]byte
		u := s.datagram(room[:0])
		if u.ChecksumBetween(netip.AddrPortFrom(q.Src, q.SrcPort), netip.AddrPortFrom(q.Dst, q.DstPort)) == q.Checksum {
			return s, Exact
		}
	}
	return nil, NoMatch
}

// about reports whether a quote has the probe's destination and lengths.
func (s *Sent) about(q *wire.Quote) bool {
	return s.Dst == netip.AddrPortFrom(q.Dst, q.DstPort) && s.lengthFits(q) && int(q.UDPLen) == 8+PayloadLen
}
