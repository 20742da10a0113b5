package socket

import (
	"net/netip"
	"sync"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/errqueue"
	"servicetraceroute/internal/wire"
)

// flow is the socket's flow, as its packets are shown.
type flow struct {
	local, remote netip.AddrPort // without zones
	ifindex       int            // positive
}

// maxDatagram is how many bytes of payload are taken in at most; QUIC has below 1500.
const maxDatagram = 2048

// systemTTL is shown of the flow's own packets. The kernel does not tell it, and nothing
// depends on it.
const systemTTL = 64

// sent is a datagram of the application, or a probe with its TTL.
func (f flow) sent(at time.Time, ttl uint8, payload []byte) capture.Packet {
	u := wire.UDPProbe{Src: f.local, Dst: f.remote, TTL: ttl, Payload: payload}
	p := f.packet(at, capture.Outgoing, u.AppendTo(nil))
	p.NextHopKnown = true // whoever has it: the kernel sends probes as it sends the flow
	return p
}

// received is a datagram of the peer's, with the TTL it came with.
func (f flow) received(at time.Time, ttl uint8, payload []byte) capture.Packet {
	u := wire.UDPProbe{Src: f.remote, Dst: f.local, TTL: ttl, Payload: payload}
	return f.packet(at, capture.Incoming, u.AppendTo(nil))
}

// leastQuote is how much of a packet an ICMP error quotes in front of extensions, padded
// with zeros if need be (RFC 4884 section 4).
const leastQuote = 128

// complaint is an ICMP error. quoted is what it quotes from the datagram's payload on, and
// probeLen the length of a probe's payload: what follows that in a quote is padding or
// extensions. The kernel has compared the quoted ends with the socket's. It tells nothing
// of the quoted IP header; TOS is shown as it was sent, TTL as zero.
func (f flow) complaint(e errqueue.Error, quoted []byte, probeLen int) capture.Packet {
	u := wire.UDPProbe{Src: f.local, Dst: f.remote, Payload: quoted[:min(len(quoted), probeLen)]}
	m := wire.ICMPError{
		Src: e.From, Dst: f.local.Addr(), TTL: uint8(e.TTL), Type: e.Type, Code: e.Code, MTU: e.MTU, Quote: u.AppendTo(nil),
	}
	if padded := leastQuote - (len(m.Quote) - len(u.Payload)); len(quoted) > padded && e.Kind != wire.PacketTooBig {
		m.Extensions = quoted[padded:] // should they be none their checksum tells
	}
	at := e.At
	if at.IsZero() {
		at = time.Now()
	}
	return f.packet(at, capture.Incoming, m.AppendTo(nil))
}

func (f flow) packet(at time.Time, d capture.Direction, data []byte) capture.Packet {
	return capture.Packet{Time: at, Interface: f.ifindex, Direction: d, Data: data, Len: len(data)}
}

// maxQueued bounds the packets that wait to be read; newer ones are dropped and counted.
const maxQueued = 4096

// queue holds packets until they are read. Its methods may be called from any goroutine.
type queue struct {
	mu      sync.Mutex
	waiting []capture.Packet
	stats   capture.Stats
	ready   chan struct{} // capacity 1: something waits
}

func newQueue() *queue { return &queue{ready: make(chan struct{}, 1)} }

func (q *queue) put(p capture.Packet) {
	q.mu.Lock()
	q.stats.Seen++
	if len(q.waiting) < maxQueued {
		q.waiting = append(q.waiting, p)
	} else {
		q.stats.Dropped++
	}
	q.mu.Unlock()
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// lose counts a packet that was not taken in.
func (q *queue) lose() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stats.Seen++
	q.stats.Dropped++
}

// take hands out all that waits. The packets are the caller's.
func (q *queue) take() []capture.Packet {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := q.waiting
	q.waiting = nil
	return all
}

func (q *queue) counted() capture.Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.stats
}
