package servicetraceroute_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"servicetraceroute"
	"servicetraceroute/trace"
)

// memory is a Source and a Sink: a host with one TCP flow to a server behind two
// routers, all of it in memory. Each hop takes a millisecond there and one back.
type memory struct {
	mu       sync.Mutex
	packets  []servicetraceroute.Packet
	seen     uint64
	deadline time.Time
	closed   bool
	wake     chan struct{} // capacity 1
}

var (
	client  = netip.MustParseAddrPort("192.0.2.1:40000")
	server  = netip.MustParseAddrPort("203.0.113.9:443")
	routers = []netip.Addr{netip.MustParseAddr("192.0.2.254"), netip.MustParseAddr("198.51.100.1")}
)

// hop is the time to the first router and back.
const hop = 2 * time.Millisecond

// newMemory opens the flow: a handshake, one request, its answer.
func newMemory() *memory {
	const syn, ack, psh = 0x02, 0x10, 0x08
	m := &memory{wake: make(chan struct{}, 1)}
	m.show(servicetraceroute.Outgoing, segment(client, server, 64, 1000, 0, syn, 0))
	time.Sleep(3 * hop)
	m.show(servicetraceroute.Incoming, segment(server, client, 62, 5000, 1001, syn|ack, 0))
	m.show(servicetraceroute.Outgoing, segment(client, server, 64, 1001, 5001, ack, 0))
	m.show(servicetraceroute.Outgoing, segment(client, server, 64, 1001, 5001, ack|psh, 100))
	time.Sleep(3 * hop)
	m.show(servicetraceroute.Incoming, segment(server, client, 62, 5001, 1101, ack|psh, 200))
	m.show(servicetraceroute.Outgoing, segment(client, server, 64, 1101, 5201, ack, 0))
	return m
}

// Send answers a probe as the network would. It implements Sink.
func (m *memory) Send(probe []byte, _ int, _ servicetraceroute.HardwareAddr) error {
	probe = append([]byte(nil), probe...) // the caller may reuse it
	m.show(servicetraceroute.Outgoing, probe)
	ttl := int(probe[8])
	if ttl > len(routers) {
		time.AfterFunc(3*hop, func() { // an old segment: the server repeats its acknowledgement
			m.show(servicetraceroute.Incoming, segment(server, client, 62, 5201, 1101, 0x10, 0))
		})
		return nil
	}
	time.AfterFunc(time.Duration(ttl)*hop, func() {
		m.show(servicetraceroute.Incoming, timeExceeded(routers[ttl-1], byte(65-ttl), probe))
	})
	return nil
}

func (m *memory) show(way servicetraceroute.PacketDirection, data []byte) {
	m.mu.Lock()
	m.seen++
	m.packets = append(m.packets, servicetraceroute.Packet{
		Time: time.Now(), Interface: 1, Direction: way, NextHopKnown: true, Data: data, Len: len(data),
	})
	m.mu.Unlock()
	m.signal()
}

// ReadBatch and what follows implement Source.
func (m *memory) ReadBatch() ([]servicetraceroute.Packet, error) {
	for {
		m.mu.Lock()
		packets, deadline, closed := m.packets, m.deadline, m.closed
		m.packets = nil
		m.mu.Unlock()
		wait := time.Until(deadline)
		switch {
		case closed:
			return nil, net.ErrClosed
		case len(packets) > 0:
			return packets, nil
		case deadline.IsZero():
			wait = time.Hour
		case wait <= 0:
			return nil, os.ErrDeadlineExceeded
		}
		select {
		case <-m.wake:
		case <-time.After(wait):
		}
	}
}

func (m *memory) SetReadDeadline(t time.Time) error {
	m.mu.Lock()
	m.deadline = t
	m.mu.Unlock()
	m.signal()
	return nil
}

func (m *memory) Close() error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.signal()
	return nil
}

func (m *memory) signal() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *memory) InterfaceName(int) string { return "mem0" }

func (m *memory) Stats() servicetraceroute.SourceStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return servicetraceroute.SourceStats{Seen: m.seen}
}

// segment is a TCP segment in IPv4 (RFC 9293 section 3.1, RFC 791 section 3.1).
func segment(src, dst netip.AddrPort, ttl byte, seq, ack uint32, flags byte, payload int) []byte {
	tcp := make([]byte, 20+payload)
	binary.BigEndian.PutUint16(tcp[0:], src.Port())
	binary.BigEndian.PutUint16(tcp[2:], dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], seq)
	binary.BigEndian.PutUint32(tcp[8:], ack)
	tcp[12], tcp[13] = 5<<4, flags
	binary.BigEndian.PutUint16(tcp[14:], 64000) // window
	return packet4(src.Addr(), dst.Addr(), ttl, 6, tcp)
}

// timeExceeded is a router's answer, which quotes the probe (RFC 792).
func timeExceeded(router netip.Addr, ttl byte, probe []byte) []byte {
	icmp := append([]byte{11, 0, 0, 0, 0, 0, 0, 0}, probe...)
	return packet4(router, client.Addr(), ttl, 1, icmp)
}

// packet4 puts a header before the payload; nobody on this network looks at checksums.
func packet4(src, dst netip.Addr, ttl, proto byte, payload []byte) []byte {
	b := make([]byte, 20, 20+len(payload))
	b[0], b[6], b[8], b[9] = 0x45, 0x40, ttl, proto // no options, DF
	binary.BigEndian.PutUint16(b[2:], uint16(cap(b)))
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	return append(b, payload...)
}

// A caller's own packets in, and probes out through its own sender.
func ExampleSource() {
	network := newMemory()
	tracer, err := servicetraceroute.New(servicetraceroute.Config{Source: network, Sink: network})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer tracer.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	flow := trace.Flow{Tuple: trace.Tuple{FlowKey: trace.FlowKey{Proto: trace.TCP, Src: client, Dst: server}}}
	tr, err := tracer.Trace(ctx, flow)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(tr)
	// Output:
	// tcp 192.0.2.1:40000 > 203.0.113.9:443: 1 192.0.2.254, 2 198.51.100.1, 3 203.0.113.9 (destination, complete)
}
