package capture_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// fewPair is a pair with connections, and a ring that shows few flows as soon as it may.
type fewPair struct{ *pair }

// connection is one from the ring's side.
type connection struct {
	client, server net.Conn
	key            trace.FlowKey
}

func (p *fewPair) connect(addr string) *connection {
	p.t.Helper()
	c := &connection{}
	var l net.Listener
	p.b.Must(p.t, func() (err error) { l, err = net.Listen("tcp", addr); return err })
	defer l.Close()
	p.a.Must(p.t, func() (err error) { c.client, err = net.Dial("tcp", addr); return err })
	var err error
	if c.server, err = l.Accept(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.client.Close(); c.server.Close() })
	c.key = trace.FlowKey{
		Proto: trace.TCP, Src: c.client.LocalAddr().(*net.TCPAddr).AddrPort(), Dst: c.client.RemoteAddr().(*net.TCPAddr).AddrPort(),
	}
	return c
}

// say sends a word each way.
func (c *connection) say(t *testing.T) {
	t.Helper()
	for _, way := range [][2]net.Conn{{c.client, c.server}, {c.server, c.client}} {
		if _, err := way[0].Write([]byte("a word")); err != nil {
			t.Fatal(err)
		}
		if _, err := way[1].Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
}

// shown counts what is shown of a flow in a while.
func (p *fewPair) shown(c *connection, d time.Duration) int {
	p.t.Helper()
	return c.among(p.seen(d))
}

// among counts the packets of a flow.
func (c *connection) among(all []capture.Packet) (n int) {
	for _, q := range all {
		var ip wire.Packet
		var tcp wire.TCP
		if ip.Decode(q.Data, q.Len) == nil && ip.Proto == wire.ProtoTCP && tcp.Decode(ip.Transport, ip.TransportLen) == nil &&
			(tcp.SrcPort == c.key.Src.Port() || tcp.DstPort == c.key.Src.Port()) {
			n++
		}
	}
	return n
}

// narrowed lets time pass until the ring shows few flows.
func (p *fewPair) narrowed(c *connection) {
	p.t.Helper()
	for end := time.Now().Add(fewTakes); time.Now().Before(end); {
		p.shown(c, 60*time.Millisecond)
		c.say(p.t)
		if p.shown(c, 60*time.Millisecond) == 0 {
			return
		}
	}
	p.t.Fatal("the ring goes on to show a flow that nobody follows")
}

// fewTakes is more than it takes until few flows are shown again.
const fewTakes = 15 * time.Second

// A ring shows whole flows only where they are followed, begins to show one at once, looks around
// for others, and shows all when it cannot tell those that are followed.
func TestRingShowsFew(t *testing.T) {
	p := &fewPair{newPair(t, capture.Config{UDP: true, Names: true})}
	for i, addr := range []string{"10.9.0.2:443", "[fd09::2]:443"} {
		c := p.connect(addr)
		if since := p.ring.Follow(c.key, false); i == 0 && !since.IsZero() {
			t.Errorf("all was shown since %v", since)
		}
		p.ring.Unfollow(c.key, false)
		for range 3 {
			c.say(t)
			if n := p.shown(c, 100*time.Millisecond); n < 2 {
				t.Errorf("nobody ignores a flow, and of one %d packets are shown", n)
			}
		}
		p.ring.Ignore(c.key, false)
		p.narrowed(c)
		next := p.connect(addr) // what begins it is shown
		if n := p.shown(next, 20*time.Millisecond); n < 2 {
			t.Errorf("of a flow that begins %d packets are shown", n)
		}
		before := time.Now()
		since := p.ring.Follow(next.key, false)
		if since.Before(before) || since.After(time.Now()) {
			t.Errorf("shown since %v", since.Sub(before))
		}
		c.say(t)
		next.say(t)
		found := p.seen(50 * time.Millisecond)
		if n := next.among(found); n < 4 {
			t.Errorf("of a flow that is followed %d packets are shown", n)
		}
		if n := c.among(found); n > 0 {
			t.Errorf("of another one %d", n)
		}
		c.client.(*net.TCPConn).SetLinger(0)
		c.client.Close()
		if n := p.shown(c, 50*time.Millisecond); n == 0 {
			t.Error("the end of a flow is not shown")
		}
		p.ring.Unfollow(next.key, false)
		for end := time.Now().Add(4 * time.Second); ; { // it looks around
			next.say(t)
			if p.shown(next, 20*time.Millisecond) > 0 {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the ring does not look around")
			}
		}
		p.narrowed(next)
		if err := p.ring.SetFilter(capture.Config{UDP: true, Names: true}); err != nil { // another wish
			t.Fatal(err)
		}
		next.say(t)
		if n := p.shown(next, 50*time.Millisecond); n < 2 {
			t.Errorf("anew, %d packets are shown", n)
		}
	}
	if s := p.ring.Stats(); s.Dropped != 0 {
		t.Errorf("%+v", s)
	}
}

// More flows than the filter tells, or too many of them at once, have all shown; also those that
// are followed twice.
func TestRingShowsAll(t *testing.T) {
	for _, many := range []bool{false, true} {
		p := &fewPair{newPair(t, capture.Config{})}
		c := p.connect("10.9.0.2:443")
		key := func(i int) trace.FlowKey {
			return trace.FlowKey{Proto: trace.TCP, Src: netip.AddrPortFrom(netip.MustParseAddr("10.9.0.1"), uint16(1000+i)), Dst: netip.MustParseAddrPort("10.9.0.9:9")}
		}
		n := 250
		if many { // before: no filter is made for each
			n = 2000
			for i := range n {
				p.ring.Follow(key(i), false)
			}
		}
		p.ring.Ignore(c.key, false)
		if !many {
			p.narrowed(c)
			for i := range n {
				p.ring.Follow(key(i), true)
			}
		}
		for range 4 {
			c.say(t)
			if n := p.shown(c, 100*time.Millisecond); n < 2 {
				t.Errorf("many: %t; of a flow %d packets are shown", many, n)
			}
		}
		for i := range n {
			p.ring.Unfollow(key(i), true)
			p.ring.Unfollow(key(n+i), true) // none of them
		}
		p.narrowed(c)
	}
}

// A closed ring takes no harm from what it is told of flows, nor from its next look around.
func TestRingShowsFewAndCloses(t *testing.T) {
	ns := nstest.New(t)
	var ring *capture.Ring
	ns.Must(t, func() (err error) { ring, err = capture.Open(capture.Config{}); return err })
	k := trace.FlowKey{Src: netip.MustParseAddrPort("10.9.0.1:1"), Dst: netip.MustParseAddrPort("10.9.0.2:2")}
	ring.Ignore(k, false)
	for range 3 {
		seen(t, ring, 60*time.Millisecond)
	}
	ring.Close()
	ring.Follow(k, false)
	ring.Unfollow(k, false)
	ring.Ignore(k, false)
	if _, err := ring.ReadBatch(); err == nil {
		t.Error("a closed ring shows packets")
	}
}
