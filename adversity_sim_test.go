//go:build linux

package servicetraceroute_test

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// adverse is a bad day in memory. Every hop shown must be true, the flow must carry
// its bytes, and the trace must end in time with one of the stops.
type adverse struct {
	name   string
	net    scenario.Network
	opts   simnet.Options
	load   func(ipv6 bool) scenario.Workload // nil: chatty
	stops  []trace.Stop
	within time.Duration
	broken bool // the flow itself does not end in order
	hops   int  // at least so many are shown
	during func(s *sim)
	check  func(s *sim, f *simnet.Flow, tr *trace.Trace)
}

func transfer(kind scenario.Traffic, bytes int64) func(bool) scenario.Workload {
	return func(ipv6 bool) scenario.Workload {
		return scenario.Workload{IPv6: ipv6, Traffic: kind, Bytes: bytes}
	}
}

// losing loses a share of everything, both ways, in the middle of the path.
func losing(n scenario.Network, share float64) scenario.Network {
	for i := range n.Links {
		if l := &n.Links[i]; l.A == "client" {
			l.Loss = share
		}
	}
	return n
}

// resetting sends a reset in the server's name once the flow has carried so many
// packets back.
func resetting(after int) func([]byte) {
	seen := 0
	return func(packet []byte) {
		tcp := 20
		if packet[0]>>4 == 6 {
			tcp = 40
		}
		if len(packet) < tcp+20 || packet[0]>>4 == 4 && packet[9] != 6 || packet[0]>>4 == 6 && packet[6] != 6 {
			return
		}
		h := packet[tcp:]
		if binary.BigEndian.Uint16(h) != 443 {
			return
		}
		if seen++; seen != after {
			return
		}
		before := binary.BigEndian.Uint16(h[12:])
		h[13] |= 4 // RST; the checksum changes by what the word changes (RFC 1624)
		sum := uint32(^binary.BigEndian.Uint16(h[16:])) + uint32(^before) + uint32(binary.BigEndian.Uint16(h[12:]))
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(h[16:], ^uint16(sum))
	}
}

// offloaded is a transfer whose segments the client's taps see joined, as they leave
// and as they come.
func offloaded(name string, load func(bool) scenario.Workload, opts simnet.Options) adverse {
	opts.GSO, opts.GRO = true, true
	var longest func() int
	return adverse{
		name: name, net: wires(ladder(2, scenario.ICMPLimit{}), 2*time.Millisecond), opts: opts, load: load,
		stops:  []trace.Stop{trace.StopDestination, trace.StopUnknown, trace.StopFlowClosed},
		within: 25 * time.Second, hops: 5,
		during: func(s *sim) {
			longest = s.longest()
			s.tracer.Pause()
			time.Sleep(300 * time.Millisecond) // packets grow long with the window
			s.tracer.Resume()
		},
		check: func(s *sim, f *simnet.Flow, tr *trace.Trace) {
			least := 5 * 1500
			if opts.OffloadSize > 0 {
				least = 1 << 16
			}
			if n := longest(); n <= least {
				s.t.Errorf("the longest packet has %d bytes", n)
			}
			if st := s.tracer.Stats(); st.Packets.Malformed > 0 || tr.Impact != (trace.Impact{}) {
				s.t.Errorf("%+v, impact %+v", st.Packets, tr.Impact)
			}
			unharmed(s.t, f)
		},
	}
}

// longest looks at all that is captured at the client from now on; what it returns
// tells how long the longest packet was.
func (s *sim) longest() func() int {
	source, _, err := s.net.Tap("client")
	if err != nil {
		s.t.Fatal(err)
	}
	most := make(chan int, 1)
	go func() {
		n := 0
		for {
			batch, err := source.ReadBatch()
			if err != nil {
				most <- n
				return
			}
			for _, p := range batch {
				n = max(n, p.Len)
			}
		}
	}()
	return func() int {
		_ = source.Close()
		return <-most
	}
}

// fullWindow is an upload whose window is full most of the time, so that the flow's
// next segments leave while a probe is on its way out.
func fullWindow(ipv6 bool) scenario.Workload {
	return scenario.Workload{IPv6: ipv6, Traffic: scenario.Upload, Bytes: 8_000_000, NoWindowScale: true}
}

// guarded is a flow of a host that drops what its own conntrack calls invalid. No
// probe may be, no answer to one, and nothing of the flow for their sake.
func guarded(name string, load func(bool) scenario.Workload, stops []trace.Stop, old bool) adverse {
	return adverse{
		name: name, net: wires(ladder(2, scenario.ICMPLimit{}), 2*time.Millisecond), load: load, stops: stops, within: 25 * time.Second, hops: 5,
		opts: simnet.Options{Nodes: map[string]simnet.NodeOptions{"client": {DropInvalid: true, OldConntrack: old}}},
		check: func(s *sim, f *simnet.Flow, tr *trace.Trace) {
			dropped, allowed := s.net.Filtered("client").Invalid, 0
			if f.Workload.NoWindowScale && old {
				// Known: a probe that was made below a full window is out of it when the flow
				// sends more before it leaves. It is silent then, and does no harm.
				allowed = reaching(tr)
			}
			if dropped > uint64(allowed) || len(s.net.Conntrack("client")) != 1 {
				s.t.Errorf("%d packets dropped, tracked %+v", dropped, s.net.Conntrack("client"))
			}
			unharmed(s.t, f)
		},
	}
}

// reaching are the probes of a ladder of two stages that may reach its server.
func reaching(tr *trace.Trace) (sent int) {
	for _, h := range tr.Hops {
		if h.TTL >= 6 {
			sent += h.Sent
		}
	}
	return sent
}

// wrapping is a flow both of whose streams wrap so many bytes after their SYNs. A
// silent router lets its trace take some seconds.
func wrapping(name string, after uint32) adverse {
	iss := simnet.NodeOptions{ISS: -after}
	return adverse{
		name: name, net: wires(changed(ladder(2, scenario.ICMPLimit{}), silence, "r1"), 2*time.Millisecond),
		opts: simnet.Options{Nodes: map[string]simnet.NodeOptions{"client": iss, "server": iss}},
		load: func(ipv6 bool) scenario.Workload {
			w := chatty(ipv6)
			w.Bytes = 3000
			return w
		},
		stops: []trace.Stop{trace.StopDestination}, within: 7 * time.Second, hops: 5,
		check: func(s *sim, f *simnet.Flow, tr *trace.Trace) {
			// Probes lie up to 4096 below what is acknowledged.
			var below, above int
			for _, p := range s.net.Truth().Sent(f.Tuple, 32) {
				if p.Seq>>31 == 1 {
					below++
				} else {
					above++
				}
			}
			if r := f.Result(); below == 0 || above == 0 || r.Client.Sent < 2*int64(after) || r.Server.Sent < 2*int64(after) {
				s.t.Errorf("%d probes below the wrap, %d above; %d and %d bytes sent", below, above, r.Client.Sent, r.Server.Sent)
			}
			if tr.Impact != (trace.Impact{}) {
				s.t.Errorf("impact %+v", tr.Impact)
			}
			unharmed(s.t, f)
		},
	}
}

func adverseCases() []adverse {
	none := scenario.ICMPLimit{}
	const ms = time.Millisecond
	slow := func(n scenario.Network) scenario.Network { return wires(n, 2*ms) }
	narrowed := slow(ladder(2, none))
	for i := range narrowed.Links {
		if l := &narrowed.Links[i]; l.A == "r1" {
			l.MTU = 1280
		}
	}
	blackHole := func(s *sim) {
		time.Sleep(150 * ms)
		for _, name := range []string{"r0-m0a", "r0-m0b", "r0-m0c"} {
			if err := s.net.SetLink(name, func(l *scenario.Link) { l.Loss = 1 }); err != nil {
				s.t.Error(err)
			}
		}
	}
	// As long as ip-link(8) lets gso_max_size be, and cut as our own ring cuts them.
	bigger := simnet.Options{OffloadSize: 180_000, Pace: 4e9, Snap: 256}
	found := []trace.Stop{trace.StopDestination}
	maybe := []trace.Stop{trace.StopDestination, trace.StopUnknown, trace.StopFlowClosed}
	return []adverse{
		{name: "ICMP limited to 1/s", net: slow(ladder(2, scenario.ICMPLimit{Interval: time.Second})), stops: found, within: 8 * time.Second, hops: 6},
		{name: "MTU 1280", net: narrowed, load: transfer(scenario.Upload, 20_000_000), stops: maybe, within: 25 * time.Second, hops: 5},
		offloaded("super-packets out", transfer(scenario.Upload, 40_000_000), simnet.Options{}),
		offloaded("super-packets in", transfer(scenario.Download, 40_000_000), simnet.Options{}),
		offloaded("BIG TCP out", transfer(scenario.Upload, 80_000_000), bigger),
		offloaded("BIG TCP in", transfer(scenario.Download, 80_000_000), bigger),
		{name: "zero window", net: slow(ladder(2, none)), load: transfer(scenario.SlowReader, 3_000_000), stops: maybe, within: 25 * time.Second, hops: 5},
		{name: "a destination one hop away", net: slow(scenario.Network{Name: "near", Nodes: []scenario.Node{
			{Name: "client", Kind: scenario.Host}, {Name: "server", Kind: scenario.Host},
		}, Links: []scenario.Link{{A: "client", B: "server"}}}), stops: found, within: 5 * time.Second, hops: 1},
		{
			name: "a reset", net: slow(changed(ladder(2, none), silence, "r1")), broken: true, hops: 2,
			opts:  simnet.Options{Nodes: map[string]simnet.NodeOptions{"r0": {Mangle: resetting(6)}}},
			stops: []trace.Stop{trace.StopFlowClosed}, within: 2 * time.Second,
		},
		{
			name: "the way ends in a black hole", net: slow(changed(ladder(2, none), silence, "r1")), during: blackHole, broken: true, hops: 3,
			stops: []trace.Stop{trace.StopUnknown, trace.StopSilentHops, trace.StopCancelled, trace.StopDestination}, within: 25 * time.Second,
		},
		{
			name: "a flow of 30 ms", net: slow(ladder(2, none)), stops: []trace.Stop{trace.StopFlowClosed}, within: 100 * ms, hops: 5,
			load: func(ipv6 bool) scenario.Workload {
				return scenario.Workload{IPv6: ipv6, Traffic: scenario.RequestResponse, Bytes: 100, Every: 10 * ms, Duration: 30 * ms}
			},
		},
		{
			// The flow goes on for seconds, and nothing more is asked of it.
			name: "half-close", net: slow(changed(ladder(2, none), silence, "r1")), load: transfer(scenario.Download, 3_000_000),
			opts:  simnet.Options{Pace: 8e6, Nodes: map[string]simnet.NodeOptions{"client": {HalfClose: 300 * ms}}},
			stops: []trace.Stop{trace.StopFlowClosed}, within: 300*ms + time.Millisecond, hops: 4,
			check: func(s *sim, f *simnet.Flow, tr *trace.Trace) {
				if rest := time.Since(tr.End); rest < 2*time.Second || tr.Complete || !slices.Contains(silent(tr), 3) {
					s.t.Errorf("the flow went on for %v; complete %v, silent %v", rest, tr.Complete, silent(tr))
				}
				unharmed(s.t, f)
			},
		},
		guarded("a local firewall", nil, found, false),
		guarded("a local firewall before Linux 6.1", nil, found, true),
		guarded("a local firewall, upload", transfer(scenario.Upload, 20_000_000), maybe, true),
		guarded("a local firewall, slow reader", transfer(scenario.SlowReader, 3_000_000), maybe, true),
		guarded("a local firewall, a full window", fullWindow, maybe, false),
		guarded("a local firewall before Linux 6.1, a full window", fullWindow, maybe, true),
		wrapping("sequence numbers wrap in the handshake", 1),
		wrapping("sequence numbers wrap in the first messages", 2_000),
		wrapping("sequence numbers wrap in the midst of a trace", 12_000),
		{
			name: "balanced packet by packet", net: slow(ladder(1, none)), opts: simnet.Options{Nodes: map[string]simnet.NodeOptions{"r0": {PerPacket: true}}},
			stops: []trace.Stop{trace.StopDestination, trace.StopUnknown}, within: 25 * time.Second, hops: 3,
		},
	}
}

// TestSimAdversity runs bad days in memory, over both families.
func TestSimAdversity(t *testing.T) {
	for _, family := range []string{"IPv4", "IPv6"} {
		for _, c := range adverseCases() {
			t.Run(c.name+"/"+family, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { c.run(t, family == "IPv6") })
			})
		}
	}
}

func (c adverse) run(t *testing.T, ipv6 bool) {
	s := newSim(t, c.net, c.opts, servicetraceroute.Config{})
	stop := s.watch(servicetraceroute.Selection{})
	load := c.load
	if load == nil {
		load = chatty
	}
	f := s.start(load(ipv6))
	if c.during != nil {
		c.during(s)
	}
	select {
	case <-f.Done():
	case <-time.After(2 * time.Minute):
	}
	time.Sleep(10 * time.Millisecond) // what was on its way to the tap
	if f.Result().Intact == c.broken {
		t.Errorf("the flow: %+v", f.Result())
	}
	all := stop()
	if len(all.traces) != 1 {
		t.Fatalf("%d traces", len(all.traces))
	}
	tr := all.traces[0]
	s.trueHops(tr)
	shown := 0
	for _, h := range tr.Hops {
		if len(h.Replies) > 0 {
			shown++
		}
	}
	if !slices.Contains(c.stops, tr.Stop) || shown < c.hops {
		t.Errorf("stop %v, want %v; %d hops answered, want %d", tr.Stop, c.stops, shown, c.hops)
	}
	if took := tr.End.Sub(tr.Start); took > c.within {
		t.Errorf("took %v, more than %v", took, c.within)
	}
	if late := s.diary.after(tr.End); late > 0 {
		t.Errorf("%d probes after the end", late)
	}
	if tr.Impact.RSTs+tr.Impact.DupAcks > 0 || tr.Impact.Aborted {
		t.Errorf("impact %+v", tr.Impact)
	}
	if c.check != nil {
		c.check(s, f, tr)
	}
	t.Logf("%v after %v: %d of %d hops answered, complete %v", tr.Stop, tr.End.Sub(tr.Start), shown, len(tr.Hops), tr.Complete)
	if t.Failed() {
		t.Log(describe(tr))
	}
}

// unharmed checks that neither end of a flow met anything that a probe may cause.
func unharmed(t *testing.T, f *simnet.Flow) {
	t.Helper()
	if r := f.Result(); r.Client.Counters.Harm()+r.Server.Counters.Harm() > 0 {
		t.Errorf("harm: client %+v, server %+v", r.Client.Counters, r.Server.Counters)
	}
}

// trueHops holds every shown address against what answered, whichever way the
// flow's packets took meanwhile, and the destination's distance against the ways.
func (s *sim) trueHops(tr *trace.Trace) {
	s.t.Helper()
	tuple := simnet.Tuple{Proto: 6, Src: tr.Flow.Src, Dst: tr.Flow.Dst}
	truth := s.net.Truth()
	hops := truth.Hops(tuple, 255)
	for _, h := range tr.Hops {
		for _, r := range h.Replies {
			if r.Kind != trace.TCPAck && !slices.ContainsFunc(hops[uint8(h.TTL)], func(is simnet.Hop) bool { return is.Addr == r.Addr }) {
				s.t.Errorf("TTL %d was never answered by %v: %v", h.TTL, r.Addr, hops[uint8(h.TTL)])
			}
		}
	}
	if !tr.Reached {
		return
	}
	for _, w := range truth.Path(tuple) {
		if len(w.Nodes)+1 == tr.Destination.TTL {
			return
		}
	}
	s.t.Errorf("destination at TTL %d, the ways are %v", tr.Destination.TTL, truth.Path(tuple))
}

// TestSimLoss traces many flows over a link that loses one packet in twenty each
// way: lost probes are sent again, at a rate that loss alone does not lower.
func TestSimLoss(t *testing.T) {
	var asked, answered, again int
	for seed := range uint64(5) { // one alone is a matter of luck: which of the first answers are lost
		synctest.Test(t, func(t *testing.T) {
			s := newSim(t, losing(wires(ladder(2, scenario.ICMPLimit{}), 2*time.Millisecond), 0.05), simnet.Options{Seed: seed, LoseAll: true}, servicetraceroute.Config{})
			stop := s.watch(servicetraceroute.Selection{})
			var flows []*simnet.Flow
			for i := range 60 {
				flows = append(flows, s.start(chatty(i%2 == 1)))
				time.Sleep(300 * time.Millisecond)
			}
			for _, f := range flows {
				<-f.Done()
			}
			all := stop()
			stops, hops := map[trace.Stop]int{}, 0
			for _, tr := range all.traces {
				s.trueHops(tr)
				stops[tr.Stop]++
				for _, h := range tr.Hops {
					if h.TTL >= 6 {
						continue // the server: a retransmission beside a probe ends the asking
					}
					hops++
					if len(h.Replies) > 0 {
						answered++
					}
					if h.Sent > 1 {
						again++
					}
				}
			}
			t.Logf("%d traces, %v", len(all.traces), stops)
			if len(all.traces) != len(flows) || hops != 5*len(flows) {
				t.Errorf("%d flows, %d hops", len(flows), hops)
			}
			asked += hops
		})
	}
	t.Logf("%d of %d routers answered, %d asked again", answered, asked, again)
	if answered*10 < asked*9 || again < 50 {
		t.Error("that is too little")
	}
}

// TestSimForwarded traces flows to an address that a router in the midst of the path
// exchanges for the server's. Linux lets the errors of all beyond it bear that
// address: they are shown as what they are, and marked.
func TestSimForwarded(t *testing.T) {
	public := []netip.Addr{netip.MustParseAddr("203.0.113.80"), netip.MustParseAddr("2001:db8:ff::80")}
	const box, server = 3, 6 // TTLs
	for family, ipv6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(family, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := changed(wires(ladder(2, scenario.ICMPLimit{}), time.Millisecond), func(n *scenario.Node) { n.Addrs = public }, "r1")
				s := newSim(t, n, simnet.Options{Nodes: map[string]simnet.NodeOptions{"r1": {Forward: "server"}}}, servicetraceroute.Config{})
				stop := collect(t, s.tracer, servicetraceroute.Selection{Hosts: []string{public[0].String(), public[1].String()}})
				w := chatty(ipv6)
				w.Client, w.Server, w.Port = "client", "r1", 443
				f, err := s.net.Start(w)
				if err != nil {
					t.Fatal(err)
				}
				<-f.Done()
				all := stop()
				if len(all.traces) != 1 || !f.Result().Intact {
					t.Fatalf("%d traces; %+v", len(all.traces), f.Result())
				}
				tr := all.traces[0]
				truth := s.net.Truth()
				answered, ways := truth.Hops(f.Tuple, 255), truth.Path(f.Tuple)
				way := ways[len(ways)-1].Nodes
				for i, h := range tr.Hops {
					for _, r := range h.Replies {
						// Who answered is in the truth with the address that it left the node with.
						by := slices.IndexFunc(answered[uint8(h.TTL)], func(is simnet.Hop) bool {
							return h.TTL < server && is.Node == way[h.TTL-1] && (h.TTL > box || is.Addr == r.Addr)
						})
						if (by < 0) != (h.TTL == server) || (r.Addr == f.Tuple.Dst.Addr()) != (h.TTL >= box) ||
							slices.Contains(r.Changes, trace.NATDst) != (h.TTL >= box && h.TTL < server) {
							t.Errorf("TTL %d: %v, %v; truth %v, way %v", h.TTL, r.Addr, r.Changes, answered[uint8(h.TTL)], way)
						}
					}
					if h.TTL != i+1 || len(h.Replies) == 0 {
						t.Errorf("TTL %d is missing", i+1)
					}
				}
				if tr.Stop != trace.StopDestination || !tr.Complete || tr.Destination.TTL != server || tr.Impact != (trace.Impact{}) {
					t.Error("not all of it was found")
				}
				s.exact(tr, time.Millisecond)
				unharmed(t, f)
				if t.Failed() {
					t.Log(describe(tr))
				}
			})
		})
	}
}

// TestSimLocalFirewall: the firewall of the bad days above drops probes that are not
// as ours are. Each is a probe that was sent, with one thing changed.
func TestSimLocalFirewall(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(p *wire.TCPSegment)
		old     bool // conntrack
		dropped bool
	}{
		"as it was":                    {func(p *wire.TCPSegment) { p.Seq-- }, false, false},
		"as it was, old":               {func(p *wire.TCPSegment) { p.Seq-- }, true, false},
		"beyond the window":            {func(p *wire.TCPSegment) { p.Seq += 5 << 20 }, false, true},
		"far below the window":         {func(p *wire.TCPSegment) { p.Seq -= 5 << 20 }, false, false},
		"far below the window, old":    {func(p *wire.TCPSegment) { p.Seq -= 5 << 20 }, true, true},
		"acknowledges what never came": {func(p *wire.TCPSegment) { p.Ack += 5 << 20 }, false, true},
		"no flags":                     {func(p *wire.TCPSegment) { p.Flags = 0 }, false, true},
	} {
		for family, ipv6 := range map[string]bool{"IPv4": false, "IPv6": true} {
			t.Run(name+"/"+family, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newSim(t, ladder(1, scenario.ICMPLimit{}), simnet.Options{Nodes: map[string]simnet.NodeOptions{
						"client": {DropInvalid: true, OldConntrack: c.old},
					}}, servicetraceroute.Config{})
					stop := s.watch(servicetraceroute.Selection{})
					f := s.start(chatty(ipv6))
					time.Sleep(5 * time.Second)
					if all := stop(); len(all.traces) != 1 || s.net.Filtered("client").Invalid > 0 {
						t.Fatalf("%d traces, %+v", len(all.traces), s.net.Filtered("client"))
					}
					sent := s.diary.again(t, c.change)
					time.Sleep(time.Second)
					dropped := s.net.Filtered("client").Invalid == 1
					if left := s.net.Truth().Judge(sent).Sent; dropped != c.dropped || left == c.dropped {
						t.Errorf("dropped %v, left %v: %+v", dropped, left, s.net.Filtered("client"))
					}
					<-f.Done()
				})
			})
		}
	}
}

// again sends the last probe once more, changed.
func (d *diary) again(t *testing.T, change func(*wire.TCPSegment)) simnet.Probe {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	var ip wire.Packet
	var tcp wire.TCP
	if err := ip.Decode(d.last, len(d.last)); err != nil {
		t.Fatal(err)
	}
	if err := tcp.Decode(ip.Transport, ip.TransportLen); err != nil {
		t.Fatal(err)
	}
	p := wire.TCPSegment{TCPProbe: wire.TCPProbe{
		Src: netip.AddrPortFrom(ip.Src, tcp.SrcPort), Dst: netip.AddrPortFrom(ip.Dst, tcp.DstPort), TTL: 1, ID: ip.ID + 1, FlowLabel: ip.FlowLabel,
		Seq: tcp.Seq, Ack: tcp.Ack, Flags: tcp.Flags, Window: tcp.Window,
		Timestamp: tcp.Options.HasTimestamp, TSVal: tcp.Options.TSVal, TSEcr: tcp.Options.TSEcr,
	}}
	change(&p)
	if err := d.Sink.Send(p.AppendTo(nil), d.ifindex, d.nextHop); err != nil {
		t.Fatal(err)
	}
	sent := simnet.Probe{Tuple: simnet.Tuple{Proto: wire.ProtoTCP, Src: p.Src, Dst: p.Dst}, Seq: p.Seq, TTL: p.TTL}
	if ip.Version == 4 {
		sent.ID = p.ID
	}
	return sent
}
