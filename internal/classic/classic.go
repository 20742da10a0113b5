package classic

import (
	"context"
	"net/netip"
	"time"

	"servicetraceroute/internal/wire"
)

// Proto is what the probes are. The zero value is invalid.
type Proto uint8

// The protocols of classic traceroutes.
const (
	UDP Proto = iota + 1
	TCP
)

// Config of one traceroute.
type Config struct {
	Proto    Proto
	Src, Dst netip.Addr
	Port     uint16        // TCP's destination port; UDP has its own
	MaxTTL   int           // 0: 30
	Timeout  time.Duration // after the last probe; 0: 1 s
}

// Hop is what one TTL answered; an invalid Addr is silence.
type Hop struct {
	TTL     int
	Addr    netip.Addr
	RTT     time.Duration
	Reached bool // it was the destination
}

const (
	basePort   = 33434 // of traceroute(8)
	sourcePort = 40000
	gap        = 2 * time.Millisecond // between two probes
)

// probe is one outstanding packet.
type probe struct {
	ttl  int
	sent time.Time
	src  uint16
	dst  uint16
	seq  uint32
}

// packet writes the probe of a TTL; every TTL is a flow of its own.
func (c Config) packet(ttl int) (probe, []byte) {
	p := probe{ttl: ttl, src: sourcePort + uint16(ttl)}
	if c.Proto == UDP {
		p.dst = basePort + uint16(ttl)
		u := wire.UDPProbe{
			Src: netip.AddrPortFrom(c.Src, p.src), Dst: netip.AddrPortFrom(c.Dst, p.dst), TTL: uint8(ttl), ID: uint16(ttl),
			Payload: []byte("classic traceroute, for comparison"),
		}
		return p, u.AppendTo(nil)
	}
	p.dst, p.seq = c.Port, 0x53540000+uint32(ttl)
	t := wire.TCPProbe{
		Src: netip.AddrPortFrom(c.Src, p.src), Dst: netip.AddrPortFrom(c.Dst, p.dst), TTL: uint8(ttl), ID: uint16(ttl),
		Seq: p.seq, Flags: wire.SYN, Window: 5840,
	}
	return p, t.AppendTo(nil)
}

// run sends the probes and collects their answers. Send and receive are the only
// I/O; receive returns nil when the deadline has passed.
func run(ctx context.Context, c Config, send func([]byte) error, receive func(deadline time.Time) []byte) ([]Hop, error) {
	if c.MaxTTL == 0 {
		c.MaxTTL = 30
	}
	if c.Timeout == 0 {
		c.Timeout = time.Second
	}
	hops := make([]Hop, c.MaxTTL)
	probes := make([]probe, 0, c.MaxTTL)
	for ttl := 1; ttl <= c.MaxTTL; ttl++ {
		hops[ttl-1].TTL = ttl
		p, b := c.packet(ttl)
		p.sent = time.Now()
		if err := send(b); err != nil {
			return nil, err
		}
		probes = append(probes, p)
		for until := time.Now().Add(gap); time.Now().Before(until); {
			c.answer(hops, probes, receive(until))
		}
	}
	for until := time.Now().Add(c.Timeout); time.Now().Before(until) && ctx.Err() == nil; {
		c.answer(hops, probes, receive(until))
	}
	return cut(hops), ctx.Err()
}

// answer credits a received packet to the probe it is about.
func (c Config) answer(hops []Hop, probes []probe, b []byte) {
	var ip wire.Packet
	if len(b) == 0 || ip.Decode(b, len(b)) != nil {
		return
	}
	now := time.Now()
	hit := func(p probe, reached bool) {
		h := &hops[p.ttl-1]
		if !h.Addr.IsValid() {
			h.Addr, h.RTT, h.Reached = ip.Src, now.Sub(p.sent), reached
		}
	}
	switch ip.Proto {
	case wire.ProtoTCP:
		var t wire.TCP
		if c.Proto != TCP || ip.Src != c.Dst || t.Decode(ip.Transport, ip.TransportLen) != nil || t.Flags&wire.ACK == 0 {
			return
		}
		for _, p := range probes {
			if t.DstPort == p.src && t.SrcPort == p.dst && t.Ack == p.seq+1 {
				hit(p, true)
			}
		}
	case wire.ProtoICMP:
		var m wire.ICMP
		var q wire.Quote
		if m.Decode(4, ip.Transport) != nil || q.Decode(m.Quote) != nil || q.Dst != c.Dst {
			return
		}
		for _, p := range probes {
			if q.HasPorts && q.SrcPort == p.src && q.DstPort == p.dst && (q.Proto == wire.ProtoUDP) == (c.Proto == UDP) {
				hit(p, ip.Src == c.Dst)
			}
		}
	}
}

// cut ends the list at the destination, or behind the last answer.
func cut(hops []Hop) []Hop {
	last := 0
	for i, h := range hops {
		if h.Addr.IsValid() {
			last = i + 1
		}
		if h.Reached {
			return hops[:i+1]
		}
	}
	return hops[:last]
}
