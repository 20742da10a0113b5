//go:build linux

package servicetraceroute_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/evaluate"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/sibling"
	"servicetraceroute/internal/simnet"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// internet is a drawn Internet in memory, with a tracer at each client. Like sim it is for
// the inside of a bubble.
type internet struct {
	t        *testing.T
	world    evaluate.World
	net      *simnet.Net
	vantages []*vantage
	answers  map[string]bool // routers that do, by name
}

// vantage is a client: its tracer, and a packet socket of its own for siblings.
type vantage struct {
	name    string
	tracer  *servicetraceroute.Tracer
	source  capture.Source
	sink    servicetraceroute.Sink
	ifindex int
	nextHop capture.HardwareAddr
}

// inMemory draws an Internet and starts it.
func inMemory(t *testing.T, shares evaluate.Shares, cfg servicetraceroute.Config) *internet {
	t.Helper()
	return inMemorySeeded(t, shares, shares.Seed, cfg)
}

// inMemorySeeded is inMemory with a seed for what is not drawn with the network: ports, and
// the routers' hashes.
func inMemorySeeded(t *testing.T, shares evaluate.Shares, hashes uint64, cfg servicetraceroute.Config) *internet {
	t.Helper()
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], shares.Seed+1)
	cfg = servicetraceroute.Seeded(cfg, seed)
	w, err := evaluate.Generate(shares)
	if err != nil {
		t.Fatal(err)
	}
	net, err := simnet.New(w.Network, simnet.Options{Seed: hashes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(net.Close)
	m := &internet{t: t, world: w, net: net, answers: map[string]bool{}}
	for _, n := range w.Network.Nodes {
		m.answers[n.Name] = n.Kind == scenario.Router && !n.Silent
	}
	for _, name := range w.Clients {
		v := &vantage{name: name}
		if cfg.Source, cfg.Sink, err = net.Tap(name); err != nil {
			t.Fatal(err)
		}
		if v.tracer, err = servicetraceroute.New(cfg); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := v.tracer.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
		if v.source, v.sink, err = net.Tap(name); err != nil {
			t.Fatal(err)
		}
		m.vantages = append(m.vantages, v)
	}
	return m
}

// watch traces flows from all clients to all servers.
func (m *internet) watch(sel servicetraceroute.Selection) (stop func() found) {
	for _, name := range m.world.Servers {
		sel.Hosts = append(sel.Hosts, m.net.Addr(name, false).String(), m.net.Addr(name, true).String())
	}
	var stops []func() found
	for _, v := range m.vantages {
		stops = append(stops, collect(m.t, v.tracer, sel))
	}
	return func() (all found) {
		for _, stop := range stops {
			one := stop()
			all.traces = append(all.traces, one.traces...)
			if all.stats == nil {
				all.stats = one.stats
				continue
			}
			all.stats.Probes.Sent += one.stats.Probes.Sent
		}
		slices.SortStableFunc(all.traces, func(a, b *trace.Trace) int { return a.Start.Compare(b.Start) })
		return all
	}
}

// journey is a flow and how long it took.
type journey struct {
	*simnet.Flow
	took time.Duration
	done chan struct{}
}

// start opens a flow from a client to a server, by number.
func (m *internet) start(client, server int, w scenario.Workload) *journey {
	m.t.Helper()
	w.Client, w.Server, w.Port = m.vantages[client].name, m.world.Servers[server], evaluate.Port
	f, err := m.net.Start(w)
	if err != nil {
		m.t.Fatal(err)
	}
	j := &journey{Flow: f, done: make(chan struct{})}
	began := time.Now()
	go func() {
		defer close(j.done)
		<-f.Done()
		j.took = time.Since(began)
	}()
	return j
}

// apart is the time between two flows of one client, at which routers that limit their
// answers have some left for each. No two clients begin at one instant.
const apart = 4*time.Second + 137*time.Nanosecond

// odd is the time between two requests of one flow. No sum of the tracer's own times is a
// multiple of it: a packet that came at the very instant at which the tracer wakes up by itself
// would be seen before or after, by chance.
const odd = 483_271_113 * time.Nanosecond

// rounds starts a flow from each client to each server, one after the other, and waits for
// all of them.
func (m *internet) rounds(load func(flow int) scenario.Workload) (all []*journey) {
	for server := range m.world.Servers {
		for client := range m.vantages {
			all = append(all, m.start(client, server, load(len(all))))
			time.Sleep(apart / time.Duration(len(m.vantages)))
		}
	}
	for _, j := range all {
		<-j.done
	}
	return all
}

// truth is the flow's own way as the nodes forwarded it: the routers, in order.
func (m *internet) truth(tr *trace.Trace) []string {
	ways := m.net.Truth().Path(simnet.Tuple{Proto: wire.ProtoTCP, Src: tr.Flow.Src, Dst: tr.Flow.Dst})
	if len(ways) == 0 {
		m.t.Fatalf("nothing of %v arrived", tr.Flow)
	}
	return ways[len(ways)-1].Nodes
}

// judge holds a trace against the truth; what is false is an error.
func (m *internet) judge(tr *trace.Trace) { (&sim{t: m.t, net: m.net}).judge(tr) }

// found counts the routers of the flow's own way that answer, and those of them that the
// trace shows. What it shows was judged before.
func (m *internet) found(tr *trace.Trace) (shown, all int) {
	for i, name := range m.truth(tr) {
		if !m.answers[name] {
			continue
		}
		all++
		if shows(tr.Hops, i+1) {
			shown++
		}
	}
	return shown, all
}

// shows reports whether a hop has an answer.
func shows(hops []trace.Hop, ttl int) bool {
	return slices.ContainsFunc(hops, func(h trace.Hop) bool {
		return h.TTL == ttl && len(h.Replies) > 0 && h.Replies[0].SharedFrom == ""
	})
}

// vantageOf is the client that a flow is from.
func (m *internet) vantageOf(tr *trace.Trace) *vantage {
	for _, v := range m.vantages {
		if m.net.Addr(v.name, tr.Flow.Src.Addr().Is6()) == tr.Flow.Src.Addr() {
			return v
		}
	}
	m.t.Fatalf("%v is nobody's", tr.Flow)
	return nil
}

// siblings traces so many siblings of a flow over each protocol, as a Comparer does, which
// has no packet socket in memory.
func (m *internet) siblings(tr *trace.Trace, n int, seed uint64) []trace.Sibling {
	m.t.Helper()
	v := m.vantageOf(tr)
	v.drain(m.t)
	cfg := sibling.Config{Src: tr.Flow.Src.Addr(), Dst: tr.Flow.Dst.Addr(), Port: tr.Flow.Dst.Port(), NotPort: tr.Flow.Src.Port(), Siblings: n, MaxSilent: 5}
	binary.BigEndian.PutUint64(cfg.Seed[:], seed)
	binary.BigEndian.PutUint64(cfg.Seed[8:], uint64(tr.Flow.Src.Port())<<32|uint64(m.world.Shares.Seed&0xffffffff))
	if tr.Reached {
		cfg.Distance = tr.Destination.TTL
	}
	s := sibling.New(cfg)
	for {
		packet, at, over := s.Next(time.Now())
		if over {
			return s.Siblings()
		}
		if packet == nil {
			v.listen(m.t, s, at)
			continue
		}
		if err := v.sink.Send(packet, v.ifindex, v.nextHop); err != nil {
			m.t.Fatal(err)
		}
	}
}

// listen hands a session what comes until a time; it returns with the first packets.
func (v *vantage) listen(t *testing.T, s *sibling.Session, until time.Time) {
	if err := v.source.SetReadDeadline(until); err != nil {
		t.Fatal(err)
	}
	packets, err := v.source.ReadBatch()
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	for _, p := range packets {
		var ip wire.Packet
		if p.Direction != capture.Incoming || ip.Decode(p.Data, len(p.Data)) != nil {
			continue
		}
		s.Take(sibling.Received{From: ip.Src, Proto: ip.Proto, TTL: ip.TTL, Transport: ip.Transport, Time: time.Now()})
	}
}

// drain throws away what was captured before, of which it learns where packets leave.
func (v *vantage) drain(t *testing.T) {
	for {
		if err := v.source.SetReadDeadline(time.Now()); err != nil {
			t.Fatal(err)
		}
		packets, err := v.source.ReadBatch()
		if err != nil {
			return
		}
		for _, p := range packets {
			if p.Direction == capture.Outgoing {
				v.ifindex, v.nextHop = p.Interface, p.NextHop
			}
		}
	}
}

// family of flows: both take turns.
func family(flow int) (ipv6 bool) { return flow%2 == 1 }

// addrOfHop is who answered at a TTL; invalid: nobody.
func addrOfHop(hops []trace.Hop, ttl int) netip.Addr {
	for _, h := range hops {
		if h.TTL == ttl && len(h.Replies) > 0 {
			return h.Replies[0].Addr
		}
	}
	return netip.Addr{}
}
