//go:build linux

package servicetraceroute_test

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

const (
	longPath   = 12 // the TTL of the server
	longRTT    = 60 * time.Millisecond
	expectedIn = 3500 * time.Millisecond
)

// longWay is a path of 12 hops and 60 ms with three silent routers, among them
// one before the last; the way back is that many routers longer (or shorter).
func longWay(back int) scenario.Network {
	n := scenario.Network{Name: fmt.Sprintf("long%+d", back), Nodes: []scenario.Node{
		{Name: "client", Kind: scenario.Host}, {Name: "server", Kind: scenario.Host},
	}}
	var chain []string
	for i := 1; i < longPath+min(back, 0); i++ {
		chain = append(chain, fmt.Sprintf("r%d", i))
	}
	forward := chain
	if back < 0 {
		forward = slices.Insert(slices.Clone(chain), 2, "x1", "x2")
	}
	for i, name := range forward {
		n.Nodes = append(n.Nodes, scenario.Node{Name: name, Kind: scenario.Router, Silent: silentAt(i + 1)})
	}
	if back > 0 {
		n.Nodes = append(n.Nodes, scenario.Node{Name: "x1", Kind: scenario.Router}, scenario.Node{Name: "x2", Kind: scenario.Router})
	}
	last := "client"
	for _, name := range append(slices.Clone(chain), "server") {
		k := scenario.Link{A: last, B: name}
		switch name {
		case "r3":
			if back > 0 {
				k.CostBA = 10
			} else if back < 0 {
				k.CostAB = 10
			}
		case "r5", "r6", "r7":
			k.Delay = longRTT / 6
			k.Rate = 20_000_000
		}
		n.Links = append(n.Links, k)
		last = name
	}
	if back != 0 {
		there, home := 1, 10
		if back > 0 {
			there, home = 10, 1
		}
		for _, ends := range [][2]string{{"r2", "x1"}, {"x1", "x2"}, {"x2", "r3"}} {
			n.Links = append(n.Links, scenario.Link{A: ends[0], B: ends[1], CostAB: there, CostBA: home})
		}
	}
	return n
}

func silentAt(ttl int) bool { return ttl == 6 || ttl == 8 || ttl == 10 }

// stopwatch notes from the wire when a handshake ended and when routers first
// answered.
type stopwatch struct {
	ring *capture.Ring
	done chan struct{}

	mu       sync.Mutex
	lastACK  time.Time
	answered map[netip.Addr]time.Time
	sent     [64]time.Time // by TTL, the newest packet with so small a one
}

func startWatch(t testing.TB, at *lab.Node) *stopwatch {
	t.Helper()
	s := &stopwatch{done: make(chan struct{}), answered: map[netip.Addr]time.Time{}}
	err := at.Do(func() (err error) {
		s.ring, err = capture.Open(capture.Config{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.done)
		for {
			batch, err := s.ring.ReadBatch()
			if err != nil {
				return
			}
			for i := range batch {
				s.packet(&batch[i])
			}
		}
	}()
	return s
}

func (s *stopwatch) packet(p *capture.Packet) {
	var ip wire.Packet
	var seg wire.TCP
	if ip.Decode(p.Data, p.Len) != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case ip.Proto == wire.ProtoTCP && p.Direction == capture.Outgoing:
		if int(ip.TTL) < len(s.sent) {
			s.sent[ip.TTL] = p.Time
		}
		if seg.Decode(ip.Transport, ip.TransportLen) == nil && seg.Flags&(wire.SYN|wire.ACK) == wire.ACK && s.lastACK.IsZero() {
			s.lastACK = p.Time
		}
	case ip.Proto != wire.ProtoTCP && p.Direction == capture.Incoming:
		if _, ok := s.answered[ip.Src]; !ok {
			s.answered[ip.Src] = p.Time
		}
	}
}

// stop ends it; after that its notes may be read.
func (s *stopwatch) stop() {
	_ = s.ring.Close()
	<-s.done
}

// speedCase is one cell of the table.
type speedCase struct {
	algorithm trace.Algorithm
	busy      bool
	back      int
}

// timing is how long one trace took, from the end of the handshake on.
type timing struct {
	speedCase
	routers     time.Duration // until every router below the expected distance that answers had done so
	allRouters  time.Duration // until every router had
	destination time.Duration // until the answer that proved it, 0 if it never was
	whole       time.Duration // until the trace was over
	trace       *trace.Trace
}

// measure traces one flow and ends it when its trace has ended.
func measure(t testing.TB, l *lab.Lab, server peer.Server, c speedCase, ipv6 bool) timing {
	client := l.Node("client")
	watch := startWatch(t, client)
	var tracer *servicetraceroute.Tracer
	err := client.Do(func() (err error) {
		tracer, err = servicetraceroute.New(servicetraceroute.Config{Defaults: servicetraceroute.Params{Algorithm: c.algorithm}})
		return err
	})
	if err != nil {
		t.Error(err)
		return timing{speedCase: c}
	}
	defer tracer.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 45*time.Second)
	defer cancel()
	w := scenario.Workload{IPv6: ipv6, Traffic: scenario.RequestResponse, Bytes: 200, Every: 500 * time.Millisecond, Duration: time.Minute}
	if c.busy {
		w = scenario.Workload{IPv6: ipv6, Traffic: scenario.Download, Duration: time.Minute}
	}
	remote := netip.AddrPortFrom(l.Node("server").Addr(ipv6), server.Addr.Port())
	var flow sync.WaitGroup
	ready := make(chan struct{})
	flow.Go(func() {
		select {
		case <-ready:
		case <-ctx.Done():
		}
		_, _ = peer.Run(ctx, client, peer.RunConfig{Workload: w, Server: remote}) // it is cut short
	})
	m := timing{speedCase: c}
	for ev, err := range tracer.Watch(ctx, servicetraceroute.Selection{
		Hosts: []string{remote.Addr().String()}, Every: -1, Ready: func() { close(ready) },
	}) {
		if err != nil {
			t.Error(err)
			break
		}
		if tr, ok := ev.(*trace.Trace); ok {
			m.trace = tr
			break
		}
	}
	cancel()
	flow.Wait()
	watch.stop()
	m.read(t, watch)
	return m
}

// read takes the times from the notes.
func (m *timing) read(t testing.TB, w *stopwatch) {
	if m.trace == nil || w.lastACK.IsZero() {
		t.Errorf("%+v: no trace", m.speedCase)
		return
	}
	for ttl := 1; ttl < longPath; ttl++ {
		if silentAt(ttl) {
			continue
		}
		i := slices.IndexFunc(m.trace.Hops, func(h trace.Hop) bool { return h.TTL == ttl && len(h.Replies) > 0 })
		if i < 0 {
			continue
		}
		at := w.answered[m.trace.Hops[i].Replies[0].Addr].Sub(w.lastACK)
		if ttl < longPath+m.back {
			m.routers = max(m.routers, at)
		}
		m.allRouters = max(m.allRouters, at)
	}
	m.whole = m.trace.End.Sub(w.lastACK)
	if m.trace.Reached {
		m.destination = w.sent[longPath].Sub(w.lastACK) + m.trace.Destination.RTT
	}
}

// missing are the answering routers that a trace does not show, wrong the hops
// beyond them.
func (m *timing) missing() (n int) {
	for ttl := 1; ttl < longPath; ttl++ {
		found := slices.ContainsFunc(m.trace.Hops, func(h trace.Hop) bool { return h.TTL == ttl && len(h.Replies) > 0 })
		if !found && !silentAt(ttl) {
			n++
		}
	}
	return n
}

// TestSpeed measures how soon a trace knows its path.
func TestSpeed(t *testing.T) {
	long(t)
	var mu sync.Mutex
	var all []timing
	var labs sync.WaitGroup
	for _, back := range []int{2, 0, -2} {
		l := labtest.Start(t, longWay(back))
		server, err := peer.ServeTCP(t.Context(), l.Node("server"), peer.TCPConfig{Port: 443})
		if err != nil {
			t.Fatal(err)
		}
		labs.Go(func() {
			for _, c := range speedCases(back) {
				for i := range repeats(c) {
					m := measure(t, l, server, c, i%2 == 1)
					mu.Lock()
					all = append(all, m)
					mu.Unlock()
				}
			}
		})
	}
	labs.Wait()
	all = slices.DeleteFunc(all, func(m timing) bool { return m.trace == nil })
	evidence(t, "speed", speedTable(all))
	for _, m := range all {
		if m.trace.Reached && m.trace.Destination.TTL != longPath {
			t.Errorf("destination at TTL %d: %v", m.trace.Destination.TTL, describe(m.trace))
		}
		if m.algorithm == trace.Adaptive {
			m.check(t)
		}
	}
}

func speedCases(back int) []speedCase {
	if !full() {
		return []speedCase{{trace.Adaptive, false, back}}
	}
	var all []speedCase
	for _, a := range []trace.Algorithm{trace.Adaptive, trace.Concurrent, trace.HopByHop, trace.PacketByPacket} {
		all = append(all, speedCase{a, false, back}, speedCase{a, true, back})
	}
	return all
}

func repeats(c speedCase) int {
	switch {
	case !full():
		return 2
	case c.algorithm == trace.Adaptive:
		return 10
	}
	return 2
}

// check holds the default algorithm against what it promises.
func (m *timing) check(t *testing.T) {
	routers, whole := longRTT*3/2, expectedIn
	if !full() { // the machine may be busy
		routers, whole = 2*time.Second, 10*time.Second
	}
	name := fmt.Sprintf("busy %v, way back %+d", m.busy, m.back)
	if m.routers > routers {
		t.Errorf("%s: the routers took %v: %v", name, m.routers, describe(m.trace))
	}
	if m.busy {
		return
	}
	if m.destination == 0 || m.destination > whole || m.missing() > 0 {
		t.Errorf("%s: destination after %v, %d routers missing: %v", name, m.destination, m.missing(), describe(m.trace))
	}
}

// speedTable sums up.
func speedTable(all []timing) string {
	cells := map[speedCase][]timing{}
	var order []speedCase
	for _, m := range all {
		if cells[m.speedCase] == nil {
			order = append(order, m.speedCase)
		}
		cells[m.speedCase] = append(cells[m.speedCase], m)
	}
	slices.SortStableFunc(order, func(a, b speedCase) int {
		busy := func(c speedCase) int {
			if c.busy {
				return 1
			}
			return 0
		}
		return cmp.Or(-cmp.Compare(a.algorithm, b.algorithm), busy(a)-busy(b), b.back-a.back)
	})
	var b strings.Builder
	fmt.Fprintf(&b, "# Speed of a trace\n\n12 hops, 60 ms, routers 6, 8 and 10 silent. Times from the handshake's last ACK, as captured. "+
		"\"Routers\": the last of those that answer below the distance which the server's TTL tells (12 and the difference of the way back, at most 12). "+
		"\"Quiet\": a request and a response every 500 ms. \"Busy\": a download that fills 20 Mbit/s.\n\n"+
		"| algorithm | flow | way back | traces | routers, median | routers, worst | all routers, worst | destination proven | median | worst | trace over, median | worst | stops |\n"+
		"|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, c := range order {
		row(&b, c, cells[c])
	}
	return b.String()
}

func row(b *strings.Builder, c speedCase, all []timing) {
	var routers, every, told, over []time.Duration
	stops := map[string]int{}
	for _, m := range all {
		routers, every = append(routers, m.routers), append(every, m.allRouters)
		over = append(over, m.whole)
		if m.destination > 0 {
			told = append(told, m.destination)
		}
		stops[m.trace.Stop.String()]++
	}
	flow := "quiet"
	if c.busy {
		flow = "busy"
	}
	ms := func(d []time.Duration, q float64) string {
		if len(d) == 0 {
			return "-"
		}
		slices.Sort(d)
		return fmt.Sprintf("%.0f ms", d[int(q*float64(len(d)-1))].Seconds()*1000)
	}
	fmt.Fprintf(b, "| %v | %s | %+d | %d | %s | %s | %s | %d of %d | %s | %s | %s | %s | %v |\n", c.algorithm, flow, c.back, len(all),
		ms(routers, 0.5), ms(routers, 1), ms(every, 1), len(told), len(all), ms(told, 0.5), ms(told, 1), ms(over, 0.5), ms(over, 1), strings.TrimPrefix(fmt.Sprint(stops), "map"))
}
