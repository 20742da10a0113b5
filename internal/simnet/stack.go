package simnet

import (
	"math/rand/v2"
	"net/netip"

	"servicetraceroute/internal/wire"
)

// stack is a host's TCP.
type stack struct {
	node      *node
	conns     map[Tuple]*conn // by the tuple of what comes in
	listeners map[uint16]*listener
	port      uint16 // last one given to a client
	rng       *rand.Rand
	secret    uint64 // of SYN cookies
}

type listener struct {
	accept func(*conn) app
	// cookies holds what a real host finds again in the timestamp that comes back
	// (RFC 7323 section 5.4, tcp_cookie in Linux): the options of a SYN.
	cookies map[Tuple]wire.TCPOptions
}

const firstPort = 32768 // net.ipv4.ip_local_port_range

func newStack(nd *node) *stack {
	rng := nd.net.random("stack " + nd.name)
	return &stack{
		node: nd, conns: map[Tuple]*conn{}, listeners: map[uint16]*listener{}, rng: rng, secret: rng.Uint64(),
		port: firstPort + uint16(rng.IntN(16384)),
	}
}

func (s *stack) listen(port uint16, accept func(*conn) app) {
	s.listeners[port] = &listener{accept: accept, cookies: map[Tuple]wire.TCPOptions{}}
}

// iss chooses a connection's initial sequence number.
func (s *stack) iss() uint32 {
	if iss := s.node.opts.ISS; iss != 0 {
		return iss
	}
	return s.rng.Uint32()
}

// input takes a segment addressed to this host.
func (s *stack) input(p *packet) {
	if c := s.conns[p.tuple]; c != nil {
		if !c.over(p) {
			c.input(p)
			return
		}
		c.forget()
	}
	l := s.listeners[p.tcp.DstPort]
	switch flags := p.tcp.Flags & (wire.SYN | wire.ACK | wire.RST | wire.FIN); {
	case flags&wire.RST != 0:
	case l == nil || flags&wire.SYN != 0 && flags != wire.SYN:
		s.node.reset(p)
	case flags == wire.SYN && s.node.opts.SYNCookies:
		s.offerCookie(l, p)
	case flags == wire.SYN:
		s.open(l, p, s.iss(), &p.tcp.Options).answerSYN(p)
	case s.node.opts.SYNCookies:
		s.redeemCookie(l, p)
	default:
		s.node.reset(p)
	}
}

// open makes the server's end of a connection from a SYN, or what came with it.
func (s *stack) open(l *listener, p *packet, iss uint32, o *wire.TCPOptions) *conn {
	c := s.newConn(p.tuple.Reverse(), iss)
	c.agree(o)
	c.app = l.accept(c)
	return c
}

// cookie is the initial sequence number that only this host can have chosen for a
// SYN. Linux has the client's sequence number in it too: that is why a segment
// below it is answered with a reset.
func (s *stack) cookie(t Tuple, isn uint32) uint32 {
	h := s.secret
	for _, a := range [2]netip.AddrPort{t.Src, t.Dst} {
		b := a.Addr().As16()
		h = mix(h ^ be.Uint64(b[:8]))
		h = mix(h ^ be.Uint64(b[8:]))
		h = mix(h ^ uint64(a.Port()))
	}
	return uint32(mix(h ^ uint64(isn)))
}

func (s *stack) offerCookie(l *listener, p *packet) {
	l.cookies[p.tuple] = p.tcp.Options
	c := s.open(&listener{accept: func(*conn) app { return nil }}, p, s.cookie(p.tuple, p.tcp.Seq), &p.tcp.Options)
	c.answerSYN(p)
	c.timers, c.state = timers{armed: c.armed}, closed // no state: the client alone repeats itself
	c.forget()
}

func (s *stack) redeemCookie(l *listener, p *packet) {
	o, known := l.cookies[p.tuple]
	iss := s.cookie(p.tuple, p.tcp.Seq-1)
	if p.tcp.Ack != iss+1 || !known {
		s.node.reset(p)
		return
	}
	delete(l.cookies, p.tuple)
	c := s.open(l, p, iss, &o)
	c.irs, c.rcvNxt, c.rcvWup, c.nxt = p.tcp.Seq-1, 1, 1, 1
	c.offer()
	c.state = synReceived
	c.input(p)
}

// reset answers a segment of no connection (RFC 9293 section 3.10.7.1).
func (nd *node) reset(p *packet) {
	t := &p.tcp
	if t.Flags&wire.RST != 0 {
		return
	}
	nd.id++
	r := wire.TCPProbe{
		Src: p.tuple.Dst, Dst: p.tuple.Src, TTL: nd.opts.TTL, ID: max(nd.id, 1),
		FlowLabel: uint32(mix(nd.seed^uint64(nd.id))) & 0xfffff, Seq: t.Ack, Flags: wire.RST,
	}
	if t.Flags&wire.ACK == 0 {
		r.Seq, r.Ack, r.Flags = 0, segmentEnd(t), wire.RST|wire.ACK
	}
	nd.send(nd.net.segment(&wire.TCPSegment{TCPProbe: r}))
}

// icmp takes an ICMP error addressed to this host. Linux believes one about a
// connection when the sequence number that it quotes is in flight
// (tcp_v4_err): the reason why a probe at SND.NXT kills and one below does not.
func (s *stack) icmp(p *packet) {
	var q wire.Quote
	if q.Decode(p.icmp.Quote) != nil || q.Proto != wire.ProtoTCP || !q.HasSeq {
		return
	}
	c := s.conns[Tuple{wire.ProtoTCP, netip.AddrPortFrom(q.Dst, q.DstPort), netip.AddrPortFrom(q.Src, q.SrcPort)}]
	if c == nil || c.state == closed || c.state == timeWait {
		return
	}
	if at := c.sndOff(q.Seq); at < c.una || at > c.nxt {
		c.count.OutOfWindowICMP++
		return
	}
	switch kind := p.icmp.Kind; {
	case kind == wire.PacketTooBig:
		c.shrink(int(p.icmp.MTU))
	case c.state == synSent && kind != wire.TimeExceeded || s.node.opts.RecvErr:
		c.abort(icmpError(kind))
	default:
		c.count.SoftErrors++
	}
}

// sourceOf returns the address that the host's packets to dst carry: its own, or
// that of the interface by which they leave.
func (s *stack) sourceOf(dst netip.AddrPort) (netip.Addr, bool) {
	for _, a := range s.node.layout.Node.Addrs {
		if a.Is6() == dst.Addr().Is6() {
			return a, true
		}
	}
	for _, r := range s.node.layout.Node.PortRoutes {
		if r.DstPort == dst.Port() {
			return s.node.iface(r.Via).addr(dst.Addr().Is6()), true
		}
	}
	via := s.node.routes(dst.Addr())
	if len(via) == 0 {
		return netip.Addr{}, false
	}
	return via[0].addr(dst.Addr().Is6()), true
}

func (it *iface) addr(ipv6 bool) netip.Addr {
	if ipv6 {
		return it.Addr6.Addr()
	}
	return it.Addr4.Addr()
}

// freePort returns a port for a client's connection.
func (s *stack) freePort(local netip.Addr, remote netip.AddrPort) uint16 {
	for {
		s.port++
		if s.port < firstPort {
			s.port = firstPort
		}
		if s.conns[Tuple{wire.ProtoTCP, remote, netip.AddrPortFrom(local, s.port)}] == nil {
			return s.port
		}
	}
}
