package simnet

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"

	"servicetraceroute/internal/wire"
)

var be = binary.BigEndian

// Tuple is one way of a flow, as it stands on a wire. Of ICMP echoes the ports are
// the identifier.
type Tuple struct {
	Proto    uint8
	Src, Dst netip.AddrPort
}

// Reverse returns the other way.
func (t Tuple) Reverse() Tuple { return Tuple{t.Proto, t.Dst, t.Src} }

// hash tells flows apart; a flow's two ways differ too.
func (t Tuple) hash() uint64 {
	h := fnv.New64a()
	h.Write([]byte{t.Proto})
	for _, end := range []netip.AddrPort{t.Src, t.Dst} {
		addr := end.Addr().As16()
		h.Write(addr[:])
		h.Write(be.AppendUint16(nil, end.Port()))
	}
	return h.Sum64()
}

// packet is one packet. It has one owner at a time, who passes it on or releases
// it.
type packet struct {
	data []byte
	ip   wire.Packet // of data, as it is now
	tcp  wire.TCP
	icmp wire.ICMP
	// isTCP, isICMP: tcp or icmp is valid.
	isTCP, isICMP bool
	tuple         Tuple
	// intact segments come from a stack of ours as they are; the checksum of any
	// other is verified before it is believed.
	intact bool
	hidden bool // taps see it as part of a larger packet
	trip   trip
}

// packet returns an empty packet. Most are small: data grows to what is needed.
func (n *Net) packet() *packet {
	if last := len(n.free) - 1; last >= 0 {
		p := n.free[last]
		n.free = n.free[:last]
		return p
	}
	return &packet{}
}

// release ends a packet's life.
func (n *Net) release(p *packet) {
	data := p.data[:0]
	*p = packet{data: data}
	n.free = append(n.free, p)
}

// decode reads data again after it was set or changed. ok is false for what no
// node of ours can handle.
func (p *packet) decode() (ok bool) {
	p.isTCP, p.isICMP = false, false
	if err := p.ip.Decode(p.data, len(p.data)); err != nil {
		return false
	}
	p.tuple = Tuple{Proto: p.ip.Proto}
	var sport, dport uint16
	switch t := p.ip.Transport; p.ip.Proto {
	case wire.ProtoTCP:
		if p.tcp.Decode(t, p.ip.TransportLen) == nil {
			p.isTCP = true
			sport, dport = p.tcp.SrcPort, p.tcp.DstPort
		}
	case wire.ProtoUDP:
		if len(t) >= 8 {
			sport, dport = be.Uint16(t), be.Uint16(t[2:])
		}
	case wire.ProtoICMP, wire.ProtoICMPv6:
		if p.icmp.Decode(p.ip.Version, t) == nil {
			p.isICMP = true
			sport, dport = p.icmp.ID, p.icmp.ID
		}
	}
	p.tuple.Src, p.tuple.Dst = netip.AddrPortFrom(p.ip.Src, sport), netip.AddrPortFrom(p.ip.Dst, dport)
	return true
}

// icmpError reports whether the packet is an ICMP error: never answered with
// another one (RFC 1122 section 3.2.2).
func (p *packet) icmpError() bool { return p.isICMP && p.icmp.Quote != nil }

// decrement takes one off the TTL.
func (p *packet) decrement() {
	p.ip.TTL--
	if p.ip.Version == 4 {
		old := [2]byte{p.data[8], p.data[9]}
		p.data[8]--
		patch(p.data[10:], old[:], p.data[8:10])
		return
	}
	p.data[7]--
}

// segment makes a packet of a TCP segment.
func (n *Net) segment(s *wire.TCPSegment) *packet {
	p := n.packet()
	p.data = s.AppendTo(p.data[:0])
	p.decode()
	p.intact = true
	return p
}

// sackBlocks appends the blocks of a segment's SACK option: pairs of sequence
// numbers.
func sackBlocks(dst [][2]uint32, transport []byte) [][2]uint32 {
	eachBlock(transport, func(b []byte) {
		dst = append(dst, [2]uint32{be.Uint32(b), be.Uint32(b[4:])})
	})
	return dst
}

// eachBlock calls f with every SACK block in a segment.
func eachBlock(transport []byte, f func(block []byte)) {
	if len(transport) < 20 {
		return
	}
	header := min(int(transport[12]>>4)*4, len(transport))
	for o := transport[min(20, header):header]; len(o) > 0; {
		switch {
		case o[0] == 0:
			return
		case o[0] == 1:
			o = o[1:]
			continue
		case len(o) < 2 || o[1] < 2 || int(o[1]) > len(o):
			return
		}
		if o[0] == 5 {
			for b := o[2:o[1]]; len(b) >= 8; b = b[8:] {
				f(b[:8])
			}
		}
		o = o[o[1]:]
	}
}
