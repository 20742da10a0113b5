package simnet

import (
	"net/netip"
	"slices"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/wire"
)

// node is a host or a router.
type node struct {
	net    *Net
	name   string
	layout *scenario.NodeLayout
	opts   NodeOptions
	seed   uint64 // of the load balancer's hash
	turn   int    // of the per-packet balancer
	ifaces []*iface
	own    map[netip.Addr]bool
	via    map[netip.Addr][]*iface // routes looked up so far
	errors limiter
	track  *conntrack // nil without firewall, NAT, Forward, SeqShift or DropInvalid
	stack  *stack     // TCP, of hosts
	taps   []*tap
	id     uint16 // of the last ICMP message

	offload *offload // of hosts with Options.GRO
}

func newNode(n *Net, i int, l *scenario.NodeLayout) *node {
	nd := &node{
		net: n, name: l.Node.Name, layout: l, opts: n.opts.Nodes[l.Node.Name],
		seed: mix(n.opts.Seed ^ uint64(i+1)<<32), own: map[netip.Addr]bool{}, via: map[netip.Addr][]*iface{},
	}
	if nd.opts.TTL == 0 {
		nd.opts.TTL = defaultTTL
	}
	for _, a := range l.Node.Addrs {
		nd.own[a] = true
	}
	nd.errors = newLimiter(l.Node.ICMP, nd.opts.ICMPBurst)
	if l.Node.Firewall != nil || l.Node.NAT != nil || nd.opts.Forward != "" || nd.opts.SeqShift != 0 || nd.opts.DropInvalid {
		nd.track = newConntrack(nd)
	}
	if l.Node.Kind == scenario.Host {
		nd.stack = newStack(nd)
		if n.opts.GRO {
			nd.offload = &offload{node: nd}
		}
	}
	return nd
}

// attach gives the node an end of link number i. Index 1 is the loopback, as
// everywhere.
func (nd *node) attach(l *scenario.Interface, i int, end byte) *iface {
	it := &iface{
		Interface: l, node: nd, index: len(nd.ifaces) + 2,
		mac: capture.HardwareAddr{Len: 6, Addr: [8]byte{0x02, 0x5e, 0, byte(i >> 8), byte(i), end}},
	}
	nd.ifaces = append(nd.ifaces, it)
	nd.own[l.Addr4.Addr()], nd.own[l.Addr6.Addr()] = true, true
	return it
}

// reroute forgets the routes looked up so far.
func (nd *node) reroute() { clear(nd.via) }

// routes returns the equal-cost ways to an address, nil if there is none.
func (nd *node) routes(dst netip.Addr) []*iface {
	via, ok := nd.via[dst]
	if !ok {
		via = nd.lookup(dst)
		nd.via[dst] = via
	}
	return via
}

func (nd *node) lookup(dst netip.Addr) (via []*iface) {
	best := -1
	for _, it := range nd.ifaces {
		own := it.Addr4
		if dst.Is6() {
			own = it.Addr6
		}
		if own.Contains(dst) && own.Bits() > best {
			via, best = []*iface{it}, own.Bits()
		}
	}
	for _, r := range nd.layout.Routes {
		if !r.Prefix.Contains(dst) || r.Prefix.Bits() <= best {
			continue
		}
		via, best = nil, r.Prefix.Bits()
		for _, l := range r.Via {
			i := slices.IndexFunc(nd.ifaces, func(it *iface) bool { return it.Interface == l })
			via = append(via, nd.ifaces[i])
		}
	}
	return via
}

// choose returns the way that a packet takes, nil if there is none.
func (nd *node) choose(p *packet) *iface {
	via := nd.routes(p.ip.Dst)
	switch len(via) {
	case 0:
		return nil
	case 1:
		return via[0]
	}
	if nd.opts.PerPacket {
		nd.turn++
		return via[nd.turn%len(via)]
	}
	return via[nd.hash(p)%uint64(len(via))]
}

// hash is what a load balancer picks by. Fragments and ICMP have no ports; of an
// echo the identifier does not count.
func (nd *node) hash(p *packet) uint64 {
	h := nd.seed
	for _, a := range [2]netip.Addr{p.ip.Src, p.ip.Dst} {
		b := a.As16()
		h = mix(h ^ be.Uint64(b[:8]))
		h = mix(h ^ be.Uint64(b[8:]))
	}
	how := nd.layout.Node.Hash
	if how == scenario.HashL3 {
		return h
	}
	h = mix(h ^ uint64(p.ip.Proto))
	if p.ip.Proto == wire.ProtoTCP || p.ip.Proto == wire.ProtoUDP {
		h = mix(h ^ uint64(p.tuple.Src.Port())<<16 ^ uint64(p.tuple.Dst.Port()))
	}
	if how == scenario.HashFlowLabel && p.ip.Version == 6 {
		h = mix(h ^ uint64(p.ip.FlowLabel))
	}
	return h
}

// send sends a packet that the node itself made.
func (nd *node) send(p *packet) {
	out := nd.egress(p)
	if out == nil || !nd.passes(p) {
		nd.net.release(p)
		return
	}
	nd.net.truth.left(p, nd, false)
	out.out.send(p)
}

// passes reports whether the host's own firewall lets a packet out or in.
func (nd *node) passes(p *packet) bool {
	if !nd.opts.DropInvalid {
		return true
	}
	seen := nd.track.classify(p)
	if seen.state == invalid {
		nd.track.count.Invalid++
		return false
	}
	if seen.state == fresh {
		nd.track.keep(seen.entry)
	}
	return true
}

// egress returns the interface by which the node's own packet leaves: port routes
// first, as rules come before the main table.
func (nd *node) egress(p *packet) *iface {
	if p.isTCP {
		for _, r := range nd.layout.Node.PortRoutes {
			if r.DstPort == p.tcp.DstPort {
				return nd.iface(r.Via)
			}
		}
	}
	return nd.choose(p)
}

// iface returns the node's end of a link.
func (nd *node) iface(link string) *iface {
	for _, it := range nd.ifaces {
		if it.Link == link {
			return it
		}
	}
	return nil
}

// receive takes a packet from a link.
func (nd *node) receive(p *packet, in *iface) {
	if nd.offload != nil {
		nd.offload.take(p, in)
		return
	}
	nd.captured(p.data, in, capture.Incoming)
	nd.accept(p, in)
}

// accept takes a packet that was captured.
func (nd *node) accept(p *packet, in *iface) {
	nd.net.truth.came(p, nd)
	if !nd.passes(p) {
		nd.net.release(p)
		return
	}
	var seen tracked
	if nd.track != nil && !nd.opts.DropInvalid {
		seen = nd.track.classify(p)
		nd.track.redirect(p, seen)
	}
	_, other := seen.destination()
	switch {
	case nd.own[p.ip.Dst] && !other:
		nd.net.truth.arrived(p)
		nd.local(p, in)
		nd.net.release(p)
	case nd.layout.Node.Kind != scenario.Router:
		nd.net.release(p)
	default:
		nd.forward(p, in, seen)
	}
}

// forward passes a packet on, in Linux's order: the TTL counts before the
// firewall does, and a packet that expires was tracked already and has its true
// destination.
func (nd *node) forward(p *packet, in *iface, seen tracked) {
	seen.comeIn(p)
	if p.ip.TTL <= 1 {
		nd.timeExceeded(p, in)
		return
	}
	out := nd.choose(p)
	switch {
	case out == nil:
		nd.unreachable(p, in)
		return
	case nd.layout.Node.Firewall != nil && !nd.track.allows(p, in, seen):
		nd.net.release(p)
		return
	case p.ip.Len > out.out.mtu():
		nd.tooBig(p, in, out.out.mtu())
		return
	}
	p.decrement()
	if nd.track != nil {
		nd.track.leave(p, in, out, seen)
	}
	if nd.opts.Mangle != nil {
		nd.opts.Mangle(p.data)
		p.decode()
		p.intact = false
	}
	out.out.send(p)
}
