package engine

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/service"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// crowd is many flows of one host, each with a request and its response, 16 of them to each
// server.
type crowd struct {
	e     *Engine
	w     *Watch
	now   time.Time
	batch []capture.Packet
	buf   []byte

	due   []due // errors on their way, a ring
	first int
	count int
	sent  int // probes
}

// due is an error that the engine gets at a time.
type due struct {
	at time.Time
	n  int
	b  [128]byte
}

const (
	crowdEach     = 16
	crowdPause    = 100 * time.Microsecond // between the beginnings of two flows
	crowdDistance = 11
)

var crowdNet = netip.MustParsePrefix("198.18.0.0/15")

// newCrowd returns a host without flows yet, of which a watch selects all or none.
func newCrowd(selected bool, params probe.Params, rates ...int) *crowd {
	rate, hops := 10_000, 200
	if len(rates) == 2 {
		rate, hops = rates[0], rates[1]
	}
	c := &crowd{now: time.Unix(1_800_000_000, 0), batch: make([]capture.Packet, 1)}
	c.e = New(c.now, Config{Rate: rate, HopRate: hops, Seed: [32]byte{1}})
	net := crowdNet
	if !selected {
		net = netip.MustParsePrefix("192.88.99.0/24")
	}
	c.w = &Watch{Policy: Policy{Params: params, Every: time.Hour}, Selector: service.Selector{Rules: []service.Rule{{
		Prefix: net, Service: trace.Service{Name: "x", By: trace.ByAddress, Value: "x"},
	}}}}
	c.e.Add(c.now, c.w)
	return c
}

// ends are those of flow i.
func (c *crowd) ends(i int) (me, peer netip.AddrPort) {
	server := uint32(i / crowdEach)
	me = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(32768+i%crowdEach))
	return me, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18 | byte(server>>16), byte(server >> 8), byte(server)}), 443)
}

// step gives the engine one segment of flow i.
func (c *crowd) step(i int, out bool, s wire.TCPSegment) *Actions {
	me, peer := c.ends(i)
	c.buf = c.segment(c.buf[:0], me, peer, out, s)
	return c.give(c.buf, out)
}

func (c *crowd) segment(b []byte, me, peer netip.AddrPort, out bool, s wire.TCPSegment) []byte {
	s.Src, s.Dst, s.TTL, s.Window, s.ID = me, peer, 64, 500, 1
	if !out {
		s.Src, s.Dst, s.TTL = peer, me, 64-crowdDistance+1
	}
	return s.AppendTo(b)
}

func (c *crowd) give(b []byte, out bool) *Actions {
	d := capture.Outgoing
	if !out {
		d = capture.Incoming
	}
	c.batch[0] = capture.Packet{
		Time: c.now, Interface: 2, Direction: d, NextHop: capture.HardwareAddr{Len: 6}, NextHopKnown: true, Data: b, Len: len(b),
	}
	a := c.e.Step(c.now, c.batch)
	c.take(a)
	return a
}

// take sends off probes, to be answered where somebody waits for answers.
func (c *crowd) take(a *Actions) {
	c.sent += len(a.Probes)
	for i := 0; i < len(a.Probes) && c.due != nil; i++ {
		c.answer(a.Probes[i].Packet)
	}
}

const crowdSeq, crowdAck = 1000, 5000

// open lets flow i begin, ask and be answered.
func (c *crowd) open(i int) {
	seg := func(flags wire.TCPFlags, seq, ack uint32, data int) wire.TCPSegment {
		s := wire.TCPSegment{TCPProbe: wire.TCPProbe{Flags: flags, Seq: seq, Ack: ack}, Payload: words100[:data]}
		if flags&wire.SYN != 0 {
			s.Options = synOptions
		}
		return s
	}
	c.step(i, true, seg(wire.SYN, crowdSeq-101, 0, 0))
	c.step(i, false, seg(wire.SYN|wire.ACK, crowdAck-101, crowdSeq-100, 0))
	c.step(i, true, seg(wire.ACK|wire.PSH, crowdSeq-100, crowdAck-100, 100))
	c.step(i, false, seg(wire.ACK|wire.PSH, crowdAck-100, crowdSeq, 100))
	c.step(i, true, seg(wire.ACK, crowdSeq, crowdAck, 0))
}

// talk is a question and its answer in UDP flow i.
func (c *crowd) talk(i int) {
	me, peer := c.ends(i)
	for _, out := range []bool{true, false, true, false} {
		u := wire.UDPProbe{Src: me, Dst: peer, TTL: 64, ID: 9, Payload: make([]byte, 100)}
		if !out {
			u.Src, u.Dst = peer, me
		}
		c.buf = u.AppendTo(c.buf[:0])
		c.give(c.buf, out)
	}
}

// converse prepares requests and responses of n flows, and returns what gives the engine the
// next packet, of one flow after the other, after so much time each.
func (c *crowd) converse(n int, pause time.Duration) func() {
	packets := make([][]byte, 2*n)
	for i := range n {
		me, peer := c.ends(i)
		s := wire.TCPSegment{TCPProbe: wire.TCPProbe{Flags: wire.ACK | wire.PSH}, Payload: make([]byte, 100)}
		packets[2*i], packets[2*i+1] = c.segment(nil, me, peer, true, s), c.segment(nil, me, peer, false, s)
	}
	const seqAt, ackAt = 20 + 4, 20 + 8
	i, sent := 0, uint32(0)
	return func() {
		b, out := packets[i], i%2 == 0
		seq, ack := crowdSeq+sent, crowdAck+sent
		if !out {
			seq, ack = ack, seq+100
		}
		binary.BigEndian.PutUint32(b[seqAt:], seq)
		binary.BigEndian.PutUint32(b[ackAt:], ack)
		c.now = c.now.Add(pause)
		c.give(b, out)
		if i++; i == len(packets) {
			i, sent = 0, sent+100
		}
	}
}

// settle lets what waits for a time of its own come to its end.
func (c *crowd) settle() {
	for range 5 {
		c.now = c.now.Add(time.Second)
		c.e.Step(c.now, nil)
	}
}

// trace lets the time pass until then.
func (c *crowd) trace(until time.Time) {
	c.pass(func() bool { return !c.now.Before(until) })
}

// probes lets it pass until so many probes more were sent.
func (c *crowd) probes(n int) {
	end := c.sent + n
	c.pass(func() bool { return c.sent >= end })
}

func (c *crowd) pass(over func() bool) {
	var batch []capture.Packet
	for !over() {
		a := c.e.Step(c.now, batch)
		c.take(a)
		if batch = c.batch[:0]; c.count == 0 || c.due[c.first].at.After(a.Wake) {
			c.now = a.Wake
			continue
		}
		d := &c.due[c.first]
		c.first, c.count = (c.first+1)%len(c.due), c.count-1
		if d.at.After(c.now) {
			c.now = d.at
		}
		batch = append(batch, capture.Packet{
			Time: c.now, Interface: 2, Direction: capture.Incoming, NextHop: capture.HardwareAddr{Len: 6}, NextHopKnown: true,
			Data: d.b[:d.n], Len: d.n,
		})
	}
}

// answered has routers answer the probes that come to them; those of a TTL are one router's.
func (c *crowd) answered() *crowd {
	c.due = make([]due, 1<<16)
	return c
}

// answer sends an error about a probe on its way.
func (c *crowd) answer(probe []byte) {
	ttl := probe[8]
	if ttl >= crowdDistance || c.count == len(c.due) {
		return
	}
	d := &c.due[(c.first+c.count)%len(c.due)]
	c.count++
	e := wire.ICMPError{
		Src: netip.AddrFrom4([4]byte{198, 51, 100, ttl}), Dst: netip.AddrFrom4([4]byte{192, 0, 2, 1}), TTL: 65 - ttl, Type: 11, Quote: probe,
	}
	d.at, d.n = c.now.Add(rtt), len(e.AppendTo(d.b[:0]))
}

// inUse is what is in use, without what nobody needs any more.
func inUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// grow begins n flows and returns what memory each takes.
func (c *crowd) grow(n int, begin func(i int)) (each float64) {
	before := inUse()
	for i := range n {
		begin(i)
		c.now = c.now.Add(crowdPause)
	}
	c.e.Records()
	c.e.Wonders()
	return (float64(inUse()) - float64(before)) / float64(n)
}

// idle are n flows that no watch selects, silent long enough for nothing to be awaited.
func idle(n int, begin func(*crowd, int)) (c *crowd, each float64) {
	c = newCrowd(false, probe.Defaults())
	each = c.grow(n, func(i int) {
		begin(c, i)
		if i == n-1 {
			c.settle()
		}
	})
	return c, each
}

// A flow that nobody wants takes little: there are hundreds of thousands on a busy host.
func TestIdleFlowIsSmall(t *testing.T) {
	const n, most = 20_000, 512
	c, tcp := idle(n, (*crowd).open)
	if got := c.e.table.Len(); got != n || tcp > most {
		t.Errorf("each of %d TCP flows takes %.0f bytes", got, tcp)
	}
	c, udp := idle(n, (*crowd).talk)
	if got := c.e.table.Len(); got != n || udp > most {
		t.Errorf("each of %d UDP flows takes %.0f bytes", got, udp)
	}
	t.Logf("%.0f bytes a TCP flow, %.0f a UDP flow", tcp, udp)
}

// A flow under trace takes more, until its trace is written: here ten thousand at once, with the
// default allowance per router and ten times the default rate, as long as they are all under way.
func TestTracedFlowIsSmall(t *testing.T) {
	const n, most = 10_000, 8 << 10
	c := newCrowd(true, probe.Defaults()).answered()
	each := c.grow(n, func(i int) {
		c.open(i)
		c.trace(c.now.Add(crowdPause))
	})
	for range 2 {
		before := inUse()
		c.trace(c.now.Add(5 * time.Second))
		c.e.Records()
		each += (float64(inUse()) - float64(before)) / n
		t.Logf("%.0f bytes a flow, %d traces, %d probes remembered, %d replies", each, len(c.e.runs), c.e.sent.Len(), c.e.stats.Replies.Matched)
		if each > most || len(c.e.runs) < n*95/100 { // one or another has asked often enough
			t.Errorf("%+v", c.e.Stats(c.now))
		}
	}
}

// asking is a crowd all of whose traces ask again and again, and are answered.
func asking(n int) *crowd {
	p := probe.Defaults()
	p.Algorithm, p.Probes, p.MaxTTL, p.ProbeInterval = trace.Concurrent, 1<<20, crowdDistance-1, time.Second
	c := newCrowd(true, p, 1_000_000, 100_000).answered()
	c.grow(n, func(i int) {
		c.open(i)
		c.trace(c.now.Add(crowdPause))
	})
	c.trace(c.now.Add(20 * time.Second)) // until the routers' allowances suffice
	return c
}

// A packet of a flow that is known, and a probe with its answer, cost no allocation; what goes
// into a trace's record is made in pieces of a dozen.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	for _, selected := range []bool{false, true} {
		c := newCrowd(selected, probe.Defaults())
		c.grow(100, c.open)
		c.e.cfg.NoProbe = true
		next := c.converse(100, time.Microsecond)
		if n := testing.AllocsPerRun(1000, next); n != 0 {
			t.Errorf("selected %t: %v allocations a packet", selected, n)
		}
	}
	c := asking(100)
	const each = 1000
	if n := testing.AllocsPerRun(10, func() { c.probes(each) }) / each; n > 0.25 {
		t.Errorf("%v allocations a probe", n)
	}
}

// BenchmarkGrowth shows how what a packet, a probe and a flow cost grows with the flows.
func BenchmarkGrowth(b *testing.B) {
	for _, n := range []int{10, 100, 1000, 10_000, 100_000, 200_000} {
		b.Run(fmt.Sprintf("idle/flows=%d", n), func(b *testing.B) {
			c, each := idle(n, (*crowd).open)
			next := c.converse(n, time.Microsecond)
			b.ReportAllocs()
			for b.Loop() {
				next()
			}
			b.ReportMetric(each, "B/flow")
			b.ReportMetric(float64(c.e.table.Len()), "flows")
		})
	}
	for _, n := range []int{10, 100, 1000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("traced/flows=%d", n), func(b *testing.B) {
			c := newCrowd(true, probe.Defaults())
			each := c.grow(n, c.open)
			next := c.converse(n, time.Microsecond)
			b.ReportAllocs()
			for b.Loop() {
				next()
			}
			b.ReportMetric(each, "B/flow")
			b.ReportMetric(float64(len(c.e.runs)), "traces")
		})
	}
	for _, n := range []int{10, 100, 1000, 10_000} {
		b.Run(fmt.Sprintf("probes/flows=%d", n), func(b *testing.B) {
			c := asking(n)
			b.ReportAllocs()
			for b.Loop() {
				c.probes(1)
			}
		})
	}
}
