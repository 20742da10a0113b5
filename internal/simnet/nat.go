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

// snat and dnat report whether the flow was given another source, or destination.
func (e *entry) snat() bool { return e.orig.Src != e.reply.Dst }
func (e *entry) dnat() bool { return e.orig.Dst != e.reply.Src }

// redirect has a new flow to the node's own address go to the host that it serves.
func (c *conntrack) redirect(p *packet, seen tracked) {
	to := c.node.opts.Forward
	if to == "" || seen.state != fresh || !p.isTCP || !slices.Contains(c.node.layout.Node.Addrs, p.ip.Dst) {
		return
	}
	addr := c.node.net.nodes[to].layout.Addr(p.ip.Version == 6)
	seen.entry.reply.Src = netip.AddrPortFrom(addr, p.tuple.Dst.Port())
}

// destination is where a packet goes on to, and source what it leaves as, when
// that is not what it says.
func (s tracked) destination() (to netip.AddrPort, other bool) {
	switch {
	case s.entry == nil:
		return to, false
	case s.dir == original:
		return s.entry.reply.Src, s.entry.dnat()
	}
	return s.entry.orig.Src, s.entry.snat()
}

func (s tracked) source() (from netip.AddrPort, other bool) {
	switch {
	case s.entry == nil:
		return from, false
	case s.dir == original:
		return s.entry.reply.Dst, s.entry.snat()
	}
	return s.entry.orig.Dst, s.entry.dnat()
}

// comeIn gives a packet its true destination. Of an error it is the source of what
// that quotes.
func (s tracked) comeIn(p *packet) {
	to, other := s.destination()
	if !other {
		return
	}
	e := edit(p.data)
	e.dst(to, s.state != related && p.ports())
	if s.state == related && s.quote {
		q := quote(p.data)
		q.src(to, s.entry.ports())
	}
	p.decode()
	p.intact = false
}

// goOut gives a packet the source that the other side knows. An error, whoever made
// it, is the work of that source too (nf_nat_icmp_reply_translation).
func (s tracked) goOut(p *packet) {
	from, other := s.source()
	if !other {
		return
	}
	e := edit(p.data)
	e.src(from, s.state != related && p.ports())
	if s.state == related && s.quote {
		q := quote(p.data)
		q.dst(from, s.entry.ports())
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
		c.keep(e)
	}
	seen.goOut(p)
	if e.shift != 0 {
		c.shift(p, seen)
	}
}

// keep puts a flow into the table.
func (c *conntrack) keep(e *entry) { c.table[e.orig], c.table[e.reply] = e, e }

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
