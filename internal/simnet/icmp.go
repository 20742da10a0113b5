package simnet

import (
	"net/netip"
	"time"

	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/wire"
)

// ICMP types and codes (RFC 792, RFC 4443).
const (
	unreachable4, expired4       = 3, 11
	unreachable6, tooBig6, gone6 = 1, 2, 3
	net4, port4, fragment4       = 0, 3, 4
	port6                        = 4
)

// timeExceeded answers a packet whose TTL ended here, and ends it.
func (nd *node) timeExceeded(p *packet, in *iface) {
	nd.fail(p, in, expired4, 0, gone6, 0, 0)
}

func (nd *node) unreachable(p *packet, in *iface) {
	nd.fail(p, in, unreachable4, net4, unreachable6, 0, 0)
}

func (nd *node) tooBig(p *packet, in *iface, mtu int) {
	nd.fail(p, in, unreachable4, fragment4, tooBig6, 0, mtu)
}

// fail ends a packet with an ICMP error from the address of the interface by
// which it came, unless the node is silent.
func (nd *node) fail(p *packet, in *iface, typ4, code4, typ6, code6 uint8, mtu int) {
	defer nd.net.release(p)
	if nd.layout.Node.Silent || p.icmpError() {
		return
	}
	if !nd.errors.allow(p.ip.Src, nd.net.now) {
		nd.net.withheld++
		return
	}
	e := wire.ICMPError{
		Src: in.Addr4.Addr(), Dst: p.ip.Src, TTL: nd.opts.TTL, Type: typ4, Code: code4, MTU: uint32(mtu),
		Quote: p.data, MaxQuote: nd.opts.Quote, Extensions: nd.opts.Extensions,
	}
	if p.ip.Version == 6 {
		e.Src, e.Type, e.Code = in.Addr6.Addr(), typ6, code6
		if mtu > 0 {
			e.Extensions = nil // RFC 4884 section 4.6 does not extend Packet Too Big
		}
	}
	m := nd.message(e.AppendTo)
	if nd.track != nil { // the flow that it is about may be translated here
		nd.track.classify(m).goOut(m)
	}
	nd.net.truth.answered(p, nd, m.ip.Src, e.Type, e.Code)
	nd.send(m)
}

// message makes an ICMP message.
func (nd *node) message(appendTo func([]byte) []byte) *packet {
	m := nd.net.packet()
	m.data = appendTo(m.data[:0])
	m.decode()
	return m
}

// local takes a packet addressed to this node.
func (nd *node) local(p *packet, in *iface) {
	switch {
	case p.isICMP && p.icmp.Kind == wire.EchoRequest:
		nd.id++
		e := wire.ICMPEcho{
			Src: p.ip.Dst, Dst: p.ip.Src, TTL: nd.opts.TTL, TOS: p.ip.TOS, IPID: nd.id, Reply: true,
			ID: p.icmp.ID, Seq: p.icmp.Seq, Payload: p.ip.Transport[8:],
		}
		nd.send(nd.message(e.AppendTo))
	case p.icmpError():
		if nd.stack != nil {
			nd.stack.icmp(p)
		}
	case p.ip.Proto == wire.ProtoUDP:
		q := nd.net.packet() // the error ends a packet, the caller this one
		q.data = append(q.data[:0], p.data...)
		q.decode()
		q.trip = p.trip
		nd.fail(q, in, unreachable4, port4, unreachable6, port6, 0)
	case p.isTCP && (p.intact || validChecksum(&p.ip)):
		if nd.stack != nil {
			nd.stack.input(p)
		} else {
			nd.reset(p)
		}
	}
}

// limiter is Linux's limit of ICMP errors: a bucket of tokens for each target
// (xrlim_allow), then one for all.
type limiter struct {
	interval4, interval6 time.Duration // 0: no limit
	burst                int
	global               bool
	targets              map[netip.Addr]*bucket
	all                  bucket
}

type bucket struct {
	tokens time.Duration // as in the kernel: time saved up
	last   int64
}

const (
	kernelInterval4 = time.Second
	kernelInterval6 = 100 * time.Millisecond
	kernelBurst     = 6                        // XRLIM_BURST_FACTOR
	globalInterval  = time.Second / 1000       // icmp_msgs_per_sec
	globalBurst     = 50                       // icmp_msgs_burst
	longBefore      = -int64(1000 * time.Hour) // every bucket begins full
)

func newLimiter(l scenario.ICMPLimit, burst int) limiter {
	m := limiter{interval4: l.Interval, interval6: l.Interval, burst: kernelBurst, targets: map[netip.Addr]*bucket{}}
	if burst > 0 {
		m.burst = burst
	}
	if l.KernelDefaults {
		m.interval4, m.interval6, m.global = kernelInterval4, kernelInterval6, true
		m.all.last = longBefore
	}
	return m
}

// allow reports whether an error to the target may be sent now, and counts it.
func (m *limiter) allow(target netip.Addr, now int64) bool {
	if m.global && !m.all.has(now, globalInterval, globalBurst) {
		return false
	}
	interval := m.interval4
	if target.Is6() {
		interval = m.interval6
	}
	if interval > 0 {
		b := m.targets[target]
		if b == nil {
			b = &bucket{last: longBefore}
			m.targets[target] = b
		}
		if !b.has(now, interval, m.burst) {
			return false
		}
		b.tokens -= interval
	}
	if m.global {
		m.all.tokens -= globalInterval
	}
	return true
}

// has adds the tokens of the time since it was last asked.
func (b *bucket) has(now int64, interval time.Duration, burst int) bool {
	b.tokens = min(b.tokens+time.Duration(now-b.last), time.Duration(burst)*interval)
	b.last = now
	return b.tokens >= interval
}
