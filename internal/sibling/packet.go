package sibling

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// udpPort is where classic and Paris traceroutes send: no application listens there, and
// the destination says so.
const udpPort = 33434

// probe is what is known of the packet under way. A zero at: there is none.
type probe struct {
	at     time.Time
	ttl    int
	id     uint16 // of IPv4
	seq    uint32 // of TCP; its low half is ICMP's
	cookie uint64 // in the payload of UDP and ICMP
	sum    uint16 // checksum of UDP
}

// craft appends the sibling's probe. What load balancers hash (addresses, protocol, the
// first four bytes of the transport, the flow label) is the same in all of one sibling;
// what tells probes apart lies behind that and is quoted by every router (RFC 792).
func (s *Session) craft(b []byte, x *sibling) []byte {
	p := &x.out
	payload := binary.BigEndian.AppendUint64(nil, p.cookie)
	ttl := uint8(p.ttl)
	switch x.Proto {
	case TCP:
		t := wire.TCPProbe{
			Src: netip.AddrPortFrom(s.cfg.Src, x.SourcePort), Dst: netip.AddrPortFrom(s.cfg.Dst, s.cfg.Port), FlowLabel: x.label,
			Seq: p.seq, ID: p.id, TTL: ttl, Flags: wire.SYN, Window: 5840,
		}
		return t.AppendTo(b)
	case UDP:
		u := wire.UDPProbe{
			Src: netip.AddrPortFrom(s.cfg.Src, x.SourcePort), Dst: netip.AddrPortFrom(s.cfg.Dst, udpPort), FlowLabel: x.label,
			ID: p.id, TTL: ttl, Payload: payload,
		}
		b = u.AppendTo(b)
		p.sum = binary.BigEndian.Uint16(b[len(b)-len(payload)-2:])
		return b
	}
	e := wire.ICMPEcho{
		Src: s.cfg.Src, Dst: s.cfg.Dst, TTL: ttl, FlowLabel: x.label, IPID: p.id, ID: x.SourcePort, Seq: uint16(p.seq),
		Payload: append(payload, 0, 0),
	}
	at := len(b)
	b = e.AppendTo(b)
	level(b[at:], len(e.Payload), x.checksum)
	return b
}

// level makes an echo request's checksum that of its sibling: load balancers hash it,
// since it lies where others have their ports. The payload's last two bytes make up for it.
func level(packet []byte, payload int, want uint16) {
	icmp := packet[len(packet)-payload-8:]
	have := binary.BigEndian.Uint16(icmp[2:])
	// One's complement: adding d to the data takes d off the checksum (RFC 1624).
	d := uint32(have) + uint32(^want)
	d = d&0xffff + d>>16
	binary.BigEndian.PutUint16(icmp[8+payload-2:], uint16(d))
	binary.BigEndian.PutUint16(icmp[2:], want)
}

// Received is one packet for this host, from its transport header on: raw sockets of IPv6
// show no more.
type Received struct {
	From      netip.Addr
	Proto     uint8 // of wire
	TTL       uint8 // or hop limit; 0: not known
	Transport []byte
	Time      time.Time
}

// Take takes in a packet. What is no answer to a sibling is ignored, what pretends to be
// one counted.
func (s *Session) Take(r Received) {
	switch r.Proto {
	case wire.ProtoTCP:
		s.segment(r)
	case wire.ProtoICMP, wire.ProtoICMPv6:
		version := uint8(4)
		if r.Proto == wire.ProtoICMPv6 {
			version = 6
		}
		var m wire.ICMP
		if m.Decode(version, r.Transport) != nil {
			return
		}
		switch m.Kind {
		case wire.EchoReply:
			s.echo(r, &m)
		case wire.EchoRequest, wire.OtherICMP:
		default:
			s.icmpError(r, &m)
		}
	}
}

// segment is the destination's answer to a SYN: SYN and ACK, or RST, that acknowledge it.
func (s *Session) segment(r Received) {
	var t wire.TCP
	if r.From != s.cfg.Dst || t.Decode(r.Transport, len(r.Transport)) != nil || t.SrcPort != s.cfg.Port {
		return
	}
	x := s.ports[t.DstPort]
	if x == nil || x.Proto != TCP {
		return
	}
	if x.out.at.IsZero() || t.Flags&wire.ACK == 0 || t.Flags&(wire.SYN|wire.RST) == 0 || t.Ack != x.out.seq+1 {
		s.doubt(x)
		return
	}
	kind := trace.TCPAck
	if t.Flags&wire.RST != 0 {
		kind = trace.TCPRst
	}
	s.take(x, answer{from: r.From, kind: kind, ttl: r.TTL, final: true, arrived: r.Time})
}

// echo is the destination's answer to an echo request.
func (s *Session) echo(r Received, m *wire.ICMP) {
	x := s.ports[m.ID]
	if x == nil || x.Proto != ICMP || r.From != s.cfg.Dst {
		return
	}
	body := r.Transport[8:]
	if x.out.at.IsZero() || m.Seq != uint16(x.out.seq) || len(body) < 8 || binary.BigEndian.Uint64(body) != x.out.cookie {
		s.doubt(x)
		return
	}
	s.take(x, answer{from: r.From, kind: trace.EchoReply, ttl: r.TTL, final: true, arrived: r.Time})
}

// icmpError is a router's answer, or the destination's to a datagram.
func (s *Session) icmpError(r Received, m *wire.ICMP) {
	var q wire.Quote
	if q.Decode(m.Quote) != nil || q.Dst != s.cfg.Dst || q.Src != s.cfg.Src {
		return
	}
	port := q.SrcPort
	if echoes(q.Proto) && len(q.Transport) >= 8 {
		port = binary.BigEndian.Uint16(q.Transport[4:])
	}
	x := s.ports[port]
	if x == nil {
		return
	}
	if x.out.at.IsZero() || !s.quotes(x, &q) {
		s.doubt(x)
		return
	}
	// Only routers say that a net or a host is out of reach, or that a packet is too big: behind
	// a destination NAT they bear its address.
	final := r.From == s.cfg.Dst && !slices.Contains([]wire.ICMPKind{wire.TimeExceeded, wire.NetUnreachable, wire.HostUnreachable, wire.PacketTooBig}, m.Kind)
	s.take(x, answer{from: r.From, kind: kinds[m.Kind], ttl: r.TTL, final: final, noFlow: m.Kind != wire.TimeExceeded, arrived: r.Time})
}

// doubt counts an answer that names a sibling but not the probe that is under way.
func (s *Session) doubt(x *sibling) {
	s.counters.Unmatched++
	x.doubted = x.doubted || !x.out.at.IsZero()
}

func echoes(proto uint8) bool { return proto == wire.ProtoICMP || proto == wire.ProtoICMPv6 }

// quotes reports whether a quote is that of the probe under way, by what it must hold and
// by all else that it does hold.
func (s *Session) quotes(x *sibling, q *wire.Quote) bool {
	if q.Version == 4 && q.ID != x.out.id && q.ID != x.out.id<<8|x.out.id>>8 {
		return false
	}
	switch x.Proto {
	case TCP:
		return q.Proto == wire.ProtoTCP && q.DstPort == s.cfg.Port && q.HasSeq && q.Seq == x.out.seq
	case UDP:
		return q.Proto == wire.ProtoUDP && q.DstPort == udpPort && q.HasUDP && q.Checksum == x.out.sum &&
			(q.UDPHeadLen < 8 || binary.BigEndian.Uint64(q.UDPHead[:]) == x.out.cookie)
	}
	b := q.Transport
	return echoes(q.Proto) && len(b) >= 8 && binary.BigEndian.Uint16(b[2:]) == x.checksum &&
		binary.BigEndian.Uint16(b[6:]) == uint16(x.out.seq) && (len(b) < 16 || binary.BigEndian.Uint64(b[8:]) == x.out.cookie)
}
