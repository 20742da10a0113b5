package simnet

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/inject"
)

// tap is a packet socket at a node: a capture.Source.
type tap struct {
	node *node

	mu       sync.Mutex
	deadline time.Time
	wake     chan struct{} // capacity 1: look again
	closed   bool
	gathered batch // not yet visible
	ready    batch // visible
	armed    bool  // gathered becomes visible soon
	stats    capture.Stats

	lent  batch       // what the last ReadBatch returned
	timer *time.Timer // of ReadBatch
}

// batch is packets with their bytes in one piece.
type batch struct {
	packets []capture.Packet
	ends    []int // of the packets' bytes
	bytes   []byte
}

func (b *batch) reset() { b.packets, b.ends, b.bytes = b.packets[:0], b.ends[:0], b.bytes[:0] }

// join moves the packets of another batch to the end of this one.
func (b *batch) join(o *batch) {
	at := len(b.bytes)
	b.packets = append(b.packets, o.packets...)
	b.bytes = append(b.bytes, o.bytes...)
	for _, e := range o.ends {
		b.ends = append(b.ends, at+e)
	}
	o.reset()
}

// view lets the packets refer to the bytes, which must not move any more.
func (b *batch) view() []capture.Packet {
	from := 0
	for i, end := range b.ends {
		b.packets[i].Data = b.bytes[from:end:end]
		from = end
	}
	return b.packets
}

// Tap opens a packet socket at a node. The source sees every packet that comes to
// the node or leaves it, before the node's own firewall and after its NAT; what
// the sink sends too. It also tells the node's addresses, by LocalAddrs.
func (n *Net) Tap(name string) (capture.Source, inject.Sink, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	nd := n.nodes[name]
	if nd == nil {
		return nil, nil, fmt.Errorf("simnet: tap: no node %q", name)
	}
	if n.closed {
		return nil, nil, fmt.Errorf("simnet: tap: %w", net.ErrClosed)
	}
	t := &tap{node: nd, wake: make(chan struct{}, 1)}
	nd.taps = append(nd.taps, t)
	return t, &sink{node: nd}, nil
}

// captured shows the node's taps a packet.
func (nd *node) captured(data []byte, it *iface, d capture.Direction) {
	for _, t := range nd.taps {
		t.take(data, it, d)
	}
}

// capturing reports whether anybody looks.
func (nd *node) capturing() bool { return len(nd.taps) > 0 }

func (t *tap) take(data []byte, it *iface, d capture.Direction) {
	n := t.node.net
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.stats.Seen++
	if len(t.gathered.packets)+len(t.ready.packets) >= n.opts.Buffer {
		t.stats.Dropped++
		return
	}
	p := capture.Packet{Time: n.time(n.now), Interface: it.index, Direction: d, NextHopKnown: true, Len: len(data)}
	p.NextHop = it.mac
	if d == capture.Outgoing {
		p.NextHop = it.out.to.mac
	}
	if n.opts.Snap > 0 {
		data = data[:min(len(data), n.opts.Snap)]
	}
	g := &t.gathered
	g.packets = append(g.packets, p)
	g.bytes = append(g.bytes, data...)
	g.ends = append(g.ends, len(g.bytes))
	if !t.armed {
		t.armed = true
		n.at(n.now+int64(n.opts.CaptureDelay), t.show)
	}
}

// show makes visible what was gathered.
func (t *tap) show() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.armed = false
	t.ready.join(&t.gathered)
	t.signal()
}

func (t *tap) signal() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// ReadBatch implements capture.Source.
func (t *tap) ReadBatch() ([]capture.Packet, error) {
	for {
		packets, wait, err := t.poll()
		if packets != nil || err != nil {
			return packets, err
		}
		var late <-chan time.Time
		if wait > 0 {
			late = t.after(wait)
		}
		select {
		case <-t.wake:
		case <-late:
		}
	}
}

func (t *tap) after(wait time.Duration) <-chan time.Time {
	if t.timer == nil {
		t.timer = time.NewTimer(wait)
	} else {
		t.timer.Reset(wait)
	}
	return t.timer.C
}

// poll returns what is there, or how long to wait for it; 0 is for ever.
func (t *tap) poll() (packets []capture.Packet, wait time.Duration, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return nil, 0, net.ErrClosed
	case len(t.ready.packets) > 0:
		t.lent.reset()
		t.lent, t.ready = t.ready, t.lent
		return t.lent.view(), 0, nil
	case t.deadline.IsZero():
		return nil, 0, nil
	}
	if wait = time.Until(t.deadline); wait <= 0 {
		return nil, 0, os.ErrDeadlineExceeded
	}
	return nil, wait, nil
}

// SetReadDeadline implements capture.Source.
func (t *tap) SetReadDeadline(at time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return net.ErrClosed
	}
	t.deadline = at
	t.signal()
	return nil
}

// InterfaceName implements capture.Source.
func (t *tap) InterfaceName(index int) string {
	if index == 1 {
		return "lo"
	}
	if i := index - 2; i >= 0 && i < len(t.node.ifaces) {
		return t.node.ifaces[i].Name
	}
	return ""
}

// LocalAddrs returns the node's own addresses.
func (t *tap) LocalAddrs() (addrs []netip.Addr, err error) {
	for a := range t.node.own { // does not change once the network is built
		addrs = append(addrs, a)
	}
	return addrs, nil
}

// Stats implements capture.Source.
func (t *tap) Stats() capture.Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stats
}

// Close implements capture.Source.
func (t *tap) Close() error {
	t.shut()
	return nil
}

func (t *tap) shut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.signal()
}

// sink is an inject.Sink at a node.
type sink struct {
	node   *node
	mu     sync.Mutex
	closed bool
}

// Send implements inject.Sink.
func (s *sink) Send(data []byte, ifindex int, nextHop capture.HardwareAddr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.node.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.closed || n.closed {
		return fmt.Errorf("simnet: send: %w", net.ErrClosed)
	}
	if i := ifindex - 2; i < 0 || i >= len(s.node.ifaces) {
		return fmt.Errorf("simnet: send: no interface %d", ifindex)
	}
	it := s.node.ifaces[ifindex-2]
	p := n.packet()
	p.data = append(p.data[:0], data...)
	if !p.decode() {
		n.release(p)
		return fmt.Errorf("simnet: send: not an IP packet")
	}
	n.outside(func() {
		if !s.node.passes(p) {
			n.release(p)
			return
		}
		n.truth.left(p, s.node, true)
		// Nobody takes a frame that is addressed to somebody else, but it leaves.
		if nextHop != it.out.to.mac {
			s.node.captured(p.data, it, capture.Outgoing)
			n.release(p)
			return
		}
		it.out.send(p)
	})
	return nil
}

// Close implements inject.Sink.
func (s *sink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}
