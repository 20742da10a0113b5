package simnet

import (
	"net/netip"
	"slices"

	"servicetraceroute/internal/wire"
)

// allows is the firewall of what a node forwards.
func (c *conntrack) allows(p *packet, in *iface, seen tracked) bool {
	fw := c.node.layout.Node.Firewall
	switch {
	case seen.state == established || seen.state == related:
		c.count.Established++
	case seen.state == invalid:
		c.count.Invalid++
		return false
	case fw.Inside != "" && in.Link == fw.Inside:
		c.count.Inside++
	case p.isTCP && p.tcp.Flags&(wire.SYN|wire.ACK) == wire.SYN && slices.Contains(fw.AllowTCP, p.tcp.DstPort):
		c.count.Allowed++
	default:
		c.count.Dropped++
		return false
	}
	return true
}

// nat reports whether the flow was given another source.
func (e *entry) nat() bool { return e.orig.Src != e.reply.Dst }

// translated reports whether the packet goes on to another node although its
// destination is this one.
func (s tracked) translated() bool {
	return s.entry != nil && s.entry.nat() && s.dir == replying
}

// toInside gives an answer back its true destination.
func (s tracked) toInside(p *packet) {
	if !s.translated() {
		return
	}
	inside := s.entry.orig.Src
	e := edit(p.data)
	e.dst(inside, s.state != related && p.ports())
	if s.state == related && s.quote {
		q := quote(p.data)
		q.src(inside, s.entry.ports())
	}
	p.decode()
	p.intact = false
}

// ports reports whether addresses go with ports.
func (p *packet) ports() bool { return p.ip.Proto == wire.ProtoTCP || p.ip.Proto == wire.ProtoUDP }

func (e *entry) ports() bool { return e.orig.Proto == wire.ProtoTCP || e.orig.Proto == wire.ProtoUDP }

// leave changes a packet on its way out and keeps the flow that it began.
func (c *conntrack) leave(p *packet, in, out *iface, seen tracked) {
	if seen.entry == nil {
		return
	}
	e := seen.entry
	if seen.state == fresh {
		if n := c.node.layout.Node.NAT; n != nil && out.Link == n.Outside && in != out && (p.ip.Version == 4 || n.IPv6) {
			c.masquerade(e, out)
		}
		c.table[e.orig], c.table[e.reply] = e, e
	}
	if e.nat() && seen.dir == original {
		c.toOutside(p, seen)
	}
	if e.shift != 0 {
		c.shift(p, seen)
	}
}

// masquerade chooses a flow's source as the outside sees it: the same port unless
// it is taken, or any.
func (c *conntrack) masquerade(e *entry, out *iface) {
	addr := out.Addr4.Addr()
	if e.orig.Src.Addr().Is6() {
		addr = out.Addr6.Addr()
	}
	c.count.Masquerade++
	port := e.orig.Src.Port()
	if c.node.layout.Node.NAT.FullyRandom && e.ports() {
		port = c.port()
	}
	for range 1 << 16 {
		if e.orig.Proto == wire.ProtoICMP || e.orig.Proto == wire.ProtoICMPv6 {
			port = e.orig.Src.Port() // the identifier stays; two pingers with one are not in our scenarios
		}
		e.reply.Dst = netip.AddrPortFrom(addr, port)
		if other, _ := c.find(e.reply); other == nil || !e.ports() {
			return
		}
		port = c.port()
	}
}

func (c *conntrack) port() uint16 { return uint16(1024 + c.rng.IntN(64512)) }

// toOutside gives a packet of the inside the source that the outside knows.
func (c *conntrack) toOutside(p *packet, s tracked) {
	outside := s.entry.reply.Dst
	e := edit(p.data)
	e.src(outside, s.state != related && p.ports())
	if s.state == related && s.quote {
		q := quote(p.data)
		q.dst(outside, s.entry.ports())
	}
	p.decode()
	p.intact = false
}

// shift adds to the opener's sequence numbers, and takes it off the answers.
func (c *conntrack) shift(p *packet, s tracked) {
	const seq, ack = 4, 8
	delta := s.entry.shift
	switch {
	case s.state == related && s.quote && s.dir == replying:
		q := quote(p.data)
		q.shift(seq, -delta)
	case s.state == related:
	case s.dir == original:
		e := edit(p.data)
		e.shift(seq, delta)
	case p.tcp.Flags&wire.ACK != 0:
		e := edit(p.data)
		e.shift(ack, -delta)
		e.shiftSACK(-delta)
	}
	p.decode()
	p.intact = false
}
