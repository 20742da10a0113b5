package flow

import (
	"net/netip"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// UDP is what is known of a UDP flow, seen from its local end.
type UDP struct {
	// Newest outgoing packet: of it a probe copies TOS and flow label alone.
	Newest Template
	// Inbound is the newest packet from the peer: of it TTL and Valid count.
	Inbound Inbound

	PacketsOut, PacketsIn uint64
	// Exchanges are how often the peer spoke after this end had.
	Exchanges uint32
	// Streams: more than one packet in a row came or went, so the protocol is not one
	// of question and answer.
	Streams bool
	// QUIC: a packet with the long header of QUIC version 1 or 2 was seen.
	QUIC bool
	// WireIn are the bytes that the peer sent, IP headers included.
	WireIn uint64
	// ProbeBytes are those of the probes sent in this flow; whoever sends them counts.
	ProbeBytes uint64

	lastOut   bool  // whether the newest packet was an outgoing one
	row       uint8 // of packets in the same direction, no more than streamRow are counted
	began     stamp
	askedAt   stamp
	leastRTT  time.Duration
	smoothRTT time.Duration
}

// streamRow is how many packets in a row make a stream: a question that was repeated
// once does not.
const streamRow = 3

// ObserveUDP takes in one datagram; see Observe. Of what is seen at a second tap
// nothing counts.
func (t *Table) ObserveUDP(p *capture.Packet, ip *wire.Packet, u *wire.UDP) (f *Flow, followed bool) {
	outgoing := p.Direction == capture.Outgoing
	key := KeyUDP(ip, u, outgoing)
	at := t.stamp(p.Time)
	f = t.Get(key)
	if f == nil {
		f = t.add(key, at)
		f.Direction = trace.Out
		if !outgoing && t.accepted(at, key, u.Payload) {
			f.Direction = trace.In
		}
	} else {
		t.touch(f)
	}
	if outgoing {
		followed = f.followOutAt(p, sighting{at: at, seq: uint32(u.Checksum), end: uint32(u.Len), id: ip.ID})
	} else {
		followed = f.followIn(at, p)
	}
	if followed {
		f.datagram(at, p, ip, u, outgoing)
		t.hear(f)
	}
	return f, followed
}

// Of a datagram without a flow nothing tells whether it is the first of one.
const (
	wellKnown = 1024             // ports below are servers'
	joining   = 10 * time.Second // in which the flows show themselves that were there before the table was
)

// accepted reports whether a flow whose first packet that was seen came in was opened by the
// peer, as it looks. Else this end did before anybody looked.
func (t *Table) accepted(now stamp, k trace.FlowKey, payload []byte) bool {
	near, far := k.Src.Port(), k.Dst.Port()
	switch {
	case longHeader(payload): // QUIC begins so
		return true
	case far < wellKnown:
		return near < wellKnown
	default:
		return far >= capture.ClientPorts || near < capture.ClientPorts || now.since(t.began) >= joining
	}
}

// KeyUDP is the flow's key of a datagram that leaves (outgoing) or comes.
func KeyUDP(ip *wire.Packet, u *wire.UDP, outgoing bool) trace.FlowKey {
	k := trace.FlowKey{
		Proto: trace.UDP, Src: netip.AddrPortFrom(ip.Src, u.SrcPort), Dst: netip.AddrPortFrom(ip.Dst, u.DstPort),
	}
	if !outgoing {
		k.Src, k.Dst = k.Dst, k.Src
	}
	return k
}

func (f *Flow) datagram(at stamp, p *capture.Packet, ip *wire.Packet, u *wire.UDP, outgoing bool) {
	s := f.UDP
	f.lastSeen = at
	if s.row = min(s.row+1, streamRow); outgoing != s.lastOut {
		s.row = 1
	}
	s.Streams = s.Streams || s.row >= streamRow
	s.QUIC = s.QUIC || longHeader(u.Payload)
	if outgoing {
		f.TTL = max(f.TTL, ip.TTL)
		s.PacketsOut++
		f.BytesOut += uint64(u.PayloadLen)
		s.Newest = Template{at: at, TOS: ip.TOS, FlowLabel: ip.FlowLabel, Valid: true}
		if !s.lastOut || s.askedAt == 0 {
			s.askedAt = at
		}
		s.lastOut = true
		return
	}
	s.PacketsIn++
	f.BytesIn += uint64(u.PayloadLen)
	s.WireIn += uint64(p.Len)
	s.Inbound = Inbound{at: at, TTL: ip.TTL}
	if s.lastOut && s.PacketsOut > 0 {
		s.Exchanges++
		s.measure(at.since(s.askedAt))
	}
	s.lastOut = false
}

// longHeader reports whether a datagram begins with a QUIC packet with a long header
// (RFC 8999 section 5.1) of version 1 or 2 (RFC 9369).
func longHeader(b []byte) bool {
	if len(b) < 5 || b[0]&0x80 == 0 {
		return false
	}
	version := uint32(b[1])<<24 | uint32(b[2])<<16 | uint32(b[3])<<8 | uint32(b[4])
	return version == 1 || version == 0x6b3343cf
}

// Harmless reports whether a flow is of a kind that a stray datagram does not harm: QUIC,
// which drops what it cannot decrypt, or a stream. A protocol of question and answer
// could take it for either.
func (s *UDP) Harmless() bool { return s.QUIC || s.Streams }

// measure takes in how long the peer took to speak after this end had: never less than
// the round trip, and often more, since nothing says that it was the answer.
func (s *UDP) measure(rtt time.Duration) {
	if rtt <= 0 {
		return
	}
	if s.leastRTT == 0 || rtt < s.leastRTT {
		s.leastRTT = rtt
	}
	if s.smoothRTT == 0 {
		s.smoothRTT = rtt
	}
	s.smoothRTT += (rtt - s.smoothRTT) / 8 // RFC 6298 section 2
}

// RTT returns the smoothed and the least time between a packet and the next one from
// the peer, an upper bound of the round trip; ok is false before the first.
func (s *UDP) RTT() (smoothed, least time.Duration, ok bool) {
	return s.smoothRTT, s.leastRTT, s.leastRTT > 0
}

// RTT returns the smoothed and the least round-trip time seen in the flow itself; ok is
// false before the first sample.
func (f *Flow) RTT() (smoothed, least time.Duration, ok bool) {
	if f.UDP != nil {
		return f.UDP.RTT()
	}
	return f.TCP.RTT()
}

// InboundTTL is the TTL with which the peer's newest packet came; ok is false before the
// first.
func (f *Flow) InboundTTL() (ttl uint8, ok bool) {
	if f.UDP != nil {
		return f.UDP.Inbound.TTL, f.UDP.Inbound.Valid()
	}
	return f.TCP.Inbound.TTL, f.TCP.Inbound.Valid()
}

// Mute reports whether this end of a UDP flow alone has spoken, for so long and more packets
// than that.
func (f *Flow) Mute(now time.Time, packets uint64, long time.Duration) bool {
	u := f.UDP
	return u.PacketsIn == 0 && u.PacketsOut > packets && f.table.stamp(now).since(u.began) > long
}
