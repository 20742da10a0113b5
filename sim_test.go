//go:build linux

package servicetraceroute_test

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
	"servicetraceroute/trace"
)

// sim is a network in memory, in virtual time, with a tracer at its client. It is
// for the inside of a bubble, whose end shows that no goroutine was left.
type sim struct {
	t      *testing.T
	net    *simnet.Net
	tracer *servicetraceroute.Tracer
	diary  *diary
}

// diary is a sink that notes when it was used, and for what last.
type diary struct {
	servicetraceroute.Sink
	mu      sync.Mutex
	sent    []time.Time
	last    []byte
	ifindex int
	nextHop servicetraceroute.HardwareAddr
}

// Send implements Sink.
func (d *diary) Send(packet []byte, ifindex int, nextHop servicetraceroute.HardwareAddr) error {
	d.mu.Lock()
	d.sent = append(d.sent, time.Now())
	d.last, d.ifindex, d.nextHop = append(d.last[:0], packet...), ifindex, nextHop
	d.mu.Unlock()
	return d.Sink.Send(packet, ifindex, nextHop)
}

// after counts the probes that were sent after some time.
func (d *diary) after(at time.Time) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, sent := range d.sent {
		if sent.After(at) {
			n++
		}
	}
	return n
}

// forget empties what the test itself keeps of a long run.
func (s *sim) forget() {
	s.diary.mu.Lock()
	s.diary.sent = nil
	s.diary.mu.Unlock()
	s.net.Forget()
}

func newSim(t *testing.T, n scenario.Network, opts simnet.Options, cfg servicetraceroute.Config) *sim {
	t.Helper()
	net, err := simnet.New(n, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(net.Close)
	s := &sim{t: t, net: net, diary: &diary{}}
	if cfg.Source, s.diary.Sink, err = net.Tap("client"); err != nil {
		t.Fatal(err)
	}
	cfg.Sink = s.diary
	if s.tracer, err = servicetraceroute.New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.tracer.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// watch traces flows to the server, see collect.
func (s *sim) watch(sel servicetraceroute.Selection) (stop func() found) {
	s.t.Helper()
	sel.Hosts = []string{s.net.Addr("server", false).String(), s.net.Addr("server", true).String()}
	return collect(s.t, s.tracer, sel)
}

// start opens a flow from the client to the server.
func (s *sim) start(w scenario.Workload) *simnet.Flow {
	s.t.Helper()
	w.Client, w.Server, w.Port = "client", "server", 443
	f, err := s.net.Start(w)
	if err != nil {
		s.t.Fatal(err)
	}
	return f
}

// chatty is a flow that lives long enough for any trace.
func chatty(ipv6 bool) scenario.Workload {
	return scenario.Workload{IPv6: ipv6, Traffic: scenario.RequestResponse, Bytes: 200, Every: 200 * time.Millisecond, Duration: 10 * time.Second}
}

// wires gives every link the same delay: the answer of the router at a TTL then
// takes exactly twice as many of them.
func wires(n scenario.Network, delay time.Duration) scenario.Network {
	for i := range n.Links {
		n.Links[i].Delay = delay
	}
	return n
}

// changed changes the nodes of these names, all of them when there are none.
func changed(n scenario.Network, change func(*scenario.Node), names ...string) scenario.Network {
	for i := range n.Nodes {
		if len(names) == 0 || slices.Contains(names, n.Nodes[i].Name) {
			change(&n.Nodes[i])
		}
	}
	return n
}

func silence(n *scenario.Node) { n.Silent = true }

// judge holds what a trace shows against the truth: every address at every TTL,
// the destination's distance, and the name of a complete path.
func (s *sim) judge(tr *trace.Trace) {
	s.t.Helper()
	tuple := simnet.Tuple{Proto: 6, Src: tr.Flow.Src, Dst: tr.Flow.Dst}
	truth := s.net.Truth()
	hops := truth.Hops(tuple, 255)
	// A SYN may go another way than what follows: its flow label is another.
	ways := slices.DeleteFunc(truth.Path(tuple), func(w simnet.Interval) bool { return w.To.Before(tr.Start) })
	if len(ways) == 0 {
		s.t.Fatalf("nothing of %v arrived", tuple)
	}
	for _, h := range tr.Hops {
		for _, r := range h.Replies {
			if r.Kind == trace.TCPAck || r.SharedFrom != "" { // sharing judges these
				continue
			}
			on := slices.IndexFunc(hops[uint8(h.TTL)], func(is simnet.Hop) bool {
				return is.Addr == r.Addr && slices.ContainsFunc(ways, func(w simnet.Interval) bool {
					return h.TTL <= len(w.Nodes) && w.Nodes[h.TTL-1] == is.Node
				})
			})
			if on < 0 {
				s.t.Errorf("TTL %d is not %v: truth %v, way %v", h.TTL, r.Addr, hops[uint8(h.TTL)], ways)
			}
		}
	}
	if tr.Mixed {
		return
	}
	if len(ways) != 1 {
		s.t.Fatalf("the flow took %v", ways)
	}
	way := ways[0].Nodes
	if tr.Reached && tr.Destination.TTL != len(way)+1 {
		s.t.Errorf("destination at TTL %d, the way is %v", tr.Destination.TTL, way)
	}
	if !tr.Complete {
		if tr.PathID != "" {
			s.t.Error("an incomplete path has a name")
		}
		return
	}
	end := len(tr.Hops)
	if tr.Reached {
		end = len(way)
	}
	var path []trace.Hop
	for ttl := 1; ttl <= end; ttl++ {
		h := trace.Hop{TTL: ttl}
		for _, is := range hops[uint8(ttl)] {
			if is.Node == way[ttl-1] {
				h.Replies = append(h.Replies, trace.Reply{Addr: is.Addr, Kind: trace.TimeExceeded})
			}
		}
		path = append(path, h)
	}
	if want := trace.PathID(path, end); tr.PathID != want {
		s.t.Errorf("path %s, want %s", tr.PathID, want)
	}
}

// exact checks that every router's round trip took twice so long for each link,
// and that its answer had as many routers behind it.
func (s *sim) exact(tr *trace.Trace, delay time.Duration) {
	s.t.Helper()
	for _, h := range tr.Hops {
		for _, r := range h.Replies {
			if want := 2 * time.Duration(h.TTL) * delay; r.RTT != want {
				s.t.Errorf("TTL %d: %v by %v, want %v", h.TTL, r.RTT, r.Kind, want)
			}
		}
	}
}

// rewritten checks that the routers' replies from one TTL to another, and no others,
// say that their quotes have other sequence numbers than the probes.
func (s *sim) rewritten(tr *trace.Trace, from, to int) {
	s.t.Helper()
	for _, h := range tr.Hops {
		for _, r := range h.Replies {
			if slices.Contains(r.Changes, trace.SeqRewritten) != (from <= h.TTL && h.TTL <= to) {
				s.t.Errorf("TTL %d, %v: %v", h.TTL, r.Kind, r.Changes)
			}
		}
	}
}

// silent are the TTLs that are shown without an answer.
func silent(tr *trace.Trace) (ttls []int) {
	for _, h := range tr.Hops {
		if len(h.Replies) == 0 {
			ttls = append(ttls, h.TTL)
		}
	}
	return ttls
}

// simCase is a trace of one flow, and what must come out.
type simCase struct {
	name   string
	net    scenario.Network
	opts   simnet.Options
	params servicetraceroute.Params
	load   func(ipv6 bool) scenario.Workload // nil: chatty
	only4  bool

	stop     trace.Stop
	complete bool
	hops     int
	silent   []int
	delay    time.Duration // of each link, when the round trips are to be exact
	within   time.Duration // of virtual time
	check    func(s *sim, tr *trace.Trace, st *trace.Stats)
}

func (c simCase) run(t *testing.T, ipv6 bool) {
	s := newSim(t, c.net, c.opts, servicetraceroute.Config{Defaults: c.params})
	stop := s.watch(servicetraceroute.Selection{})
	load := c.load
	if load == nil {
		load = chatty
	}
	f := s.start(load(ipv6))
	<-f.Done()
	if !f.Result().Intact {
		t.Errorf("the flow was damaged: %+v", f.Result())
	}
	all := stop()
	if len(all.traces) != 1 {
		t.Fatalf("%d traces", len(all.traces))
	}
	tr := all.traces[0]
	s.judge(tr)
	if c.delay > 0 {
		s.exact(tr, c.delay)
	}
	if tr.Stop != c.stop || tr.Complete != c.complete || len(tr.Hops) != c.hops || !slices.Equal(silent(tr), c.silent) {
		t.Errorf("want %v, complete=%v, %d hops, silent %v", c.stop, c.complete, c.hops, c.silent)
	}
	if tr.Complete != (tr.PathID != "") || tr.Mixed {
		t.Errorf("path %q", tr.PathID)
	}
	if took := tr.End.Sub(tr.Start); took > c.within {
		t.Errorf("took %v, more than %v", took, c.within)
	}
	if tr.Impact != (trace.Impact{}) {
		t.Errorf("impact %+v", tr.Impact)
	}
	if harm := f.Result().Client.Counters.Harm() + f.Result().Server.Counters.Harm(); harm != 0 {
		t.Errorf("harm: %+v", f.Result())
	}
	if c.check != nil {
		c.check(s, tr, all.stats)
	}
	if t.Failed() {
		t.Log(describe(tr))
	}
}

// way is a line of routers between which the two ways differ: forth and back are
// how many routers each has of its own.
func way(forth, back int) scenario.Network {
	n := scenario.Network{Name: "asymmetric", Nodes: []scenario.Node{
		{Name: "client", Kind: scenario.Host}, {Name: "server", Kind: scenario.Host},
		{Name: "r0", Kind: scenario.Router}, {Name: "r1", Kind: scenario.Router},
	}, Links: []scenario.Link{{A: "client", B: "r0"}, {A: "r1", B: "server"}}}
	branch := func(letter string, routers int, link scenario.Link) {
		at := "r0"
		for i := range routers {
			next := letter + string(rune('0'+i))
			n.Nodes = append(n.Nodes, scenario.Node{Name: next, Kind: scenario.Router})
			link.A, link.B = at, next
			n.Links = append(n.Links, link)
			at = next
		}
		link.A, link.B = at, "r1"
		n.Links = append(n.Links, link)
	}
	branch("f", forth, scenario.Link{CostBA: 20})
	branch("b", back, scenario.Link{CostAB: 20})
	return n
}

func TestSim(t *testing.T) {
	none := scenario.ICMPLimit{}
	const ms = time.Millisecond
	var cases []simCase
	for _, a := range []trace.Algorithm{trace.PacketByPacket, trace.HopByHop, trace.Concurrent, trace.Adaptive} {
		cases = append(cases, simCase{
			name: a.String(), net: wires(ladder(2, none), ms), params: servicetraceroute.Params{Algorithm: a},
			stop: trace.StopDestination, complete: true, hops: 6, delay: ms, within: 5 * time.Second,
		})
	}
	quotes := func(names ...string) simnet.Options {
		o := simnet.Options{Nodes: map[string]simnet.NodeOptions{}}
		for _, name := range names {
			o.Nodes[name] = simnet.NodeOptions{Quote: 28}
		}
		return o
	}
	border := ladder(2, none)
	for i := range border.Links {
		if l := &border.Links[i]; l.B == "r1" {
			l.Prefix4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(4 * i)}), 30)
			l.Prefix6 = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 7: byte(i)}), 64)
		}
	}
	cases = append(cases,
		simCase{name: "the way back is longer", net: wires(way(1, 3), 5*ms), stop: trace.StopDestination, complete: true, hops: 4, within: 8 * time.Second},
		simCase{name: "the way back is shorter", net: wires(way(3, 1), 5*ms), stop: trace.StopDestination, complete: true, hops: 6, within: 8 * time.Second},
		simCase{name: "two uplinks", net: wires(twoUplinks(false), ms), stop: trace.StopDestination, complete: true, hops: 5, delay: ms, within: 5 * time.Second},
		simCase{name: "a port rule", net: wires(twoUplinks(true), ms), stop: trace.StopDestination, complete: true, hops: 5, delay: ms, within: 5 * time.Second},
		simCase{name: "flow labels", net: wires(hashing(ladder(3, none), scenario.HashFlowLabel), ms), stop: trace.StopDestination, complete: true, hops: 8, delay: ms, within: 5 * time.Second},
		simCase{
			name: "three silent routers", net: changed(wires(ladder(2, none), ms), silence, "m0a", "m0b", "m0c", "r1", "m1a", "m1b", "m1c"),
			stop: trace.StopDestination, complete: true, hops: 6, silent: []int{2, 3, 4}, delay: ms, within: 6 * time.Second,
		},
		simCase{
			name:   "too many silent routers",
			net:    changed(ladder(3, none), silence, "m0a", "m0b", "m0c", "r1", "m1a", "m1b", "m1c", "r2"),
			params: servicetraceroute.Params{Algorithm: trace.PacketByPacket, Timeout: 200 * ms, MaxSilent: 3},
			stop:   trace.StopSilentHops, hops: 4, silent: []int{2, 3, 4}, within: 3 * time.Second,
		},
		simCase{
			name: "a firewall", net: wires(ladder(1, none), 10*ms), stop: trace.StopDestination, complete: true, hops: 4, delay: 10 * ms, within: 5 * time.Second,
			check: func(s *sim, _ *trace.Trace, _ *trace.Stats) {
				if c := s.net.Filtered("r1"); c.Dropped+c.Invalid > 0 || c.Established == 0 {
					s.t.Errorf("%+v", c)
				}
			},
		},
		simCase{name: "NAT", net: wires(behind(scenario.NAT{IPv6: true}), ms), stop: trace.StopDestination, complete: true, hops: 7, delay: ms, within: 5 * time.Second},
		simCase{
			name: "NAT, fully random, quotes untranslated", net: wires(behind(scenario.NAT{FullyRandom: true, IPv6: true}), ms),
			opts: simnet.Options{Nodes: map[string]simnet.NodeOptions{"gw": {QuotesUntranslated: true}}},
			stop: trace.StopDestination, complete: true, hops: 7, delay: ms, within: 8 * time.Second,
		},
		simCase{
			name: "shifted numbers, quotes untranslated", net: wires(ladder(2, none), ms),
			opts: simnet.Options{Nodes: map[string]simnet.NodeOptions{"r0": {SeqShift: 0x89abcdef, QuotesUntranslated: true}}},
			stop: trace.StopDestination, complete: true, hops: 6, delay: ms, within: 8 * time.Second,
			check: func(s *sim, tr *trace.Trace, stats *trace.Stats) {
				if stats.Replies.Unmatched > 0 {
					s.t.Errorf("believed in the end, and still unmatched: %+v", stats.Replies)
				}
				s.rewritten(tr, 2, 5) // r0 itself quotes what it got
			},
		},
		simCase{
			name: "shifted numbers, quotes translated", net: wires(ladder(2, none), ms),
			opts: simnet.Options{Nodes: map[string]simnet.NodeOptions{"r0": {SeqShift: 0x89abcdef}}},
			stop: trace.StopDestination, complete: true, hops: 6, delay: ms, within: 5 * time.Second,
			check: func(s *sim, tr *trace.Trace, stats *trace.Stats) {
				if stats.Replies.Unmatched > 0 {
					s.t.Errorf("%+v", stats.Replies)
				}
				s.rewritten(tr, 0, 0)
			},
		},
		simCase{
			name: "28 bytes quoted", net: wires(ladder(2, none), ms), opts: quotes("r0", "m0a", "m0b", "m0c", "r1", "m1a", "m1b", "m1c", "r2"),
			only4: true, stop: trace.StopDestination, complete: true, hops: 6, delay: ms, within: 5 * time.Second,
		},
		simCase{
			name: "a border", net: border,
			params: servicetraceroute.Params{Borders: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:ff00::/40")}},
			stop:   trace.StopBorder, complete: true, hops: 3, within: time.Second,
		},
		simCase{name: "a highest TTL", net: wires(ladder(2, none), ms), params: servicetraceroute.Params{MaxTTL: 3}, stop: trace.StopMaxTTL, complete: true, hops: 3, delay: ms, within: time.Second},
		simCase{name: "a lowest TTL", net: wires(ladder(2, none), ms), params: servicetraceroute.Params{FirstTTL: 3}, stop: trace.StopDestination, hops: 4, delay: ms, within: 5 * time.Second},
		simCase{
			name: "the flow closes", net: changed(wires(ladder(2, none), ms), silence, "r1"),
			load: func(ipv6 bool) scenario.Workload {
				w := chatty(ipv6)
				w.Duration = time.Second
				return w
			},
			stop: trace.StopFlowClosed, hops: 6, silent: []int{3}, delay: ms, within: 1100 * ms,
		},
	)
	for _, c := range cases {
		for _, family := range []string{"IPv4", "IPv6"} {
			if c.only4 && family != "IPv4" {
				continue
			}
			t.Run(c.name+"/"+family, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { c.run(t, family == "IPv6") })
			})
		}
	}
}

// Routers that limit their answers: nothing false is shown, and what is missing is
// put down to the limit.
func TestSimLimits(t *testing.T) {
	for _, limit := range []scenario.ICMPLimit{{Interval: 200 * time.Millisecond}, {Interval: time.Second}, {KernelDefaults: true}} {
		t.Run(limit.Interval.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSim(t, wires(ladder(2, limit), time.Millisecond), simnet.Options{}, servicetraceroute.Config{})
				stop := s.watch(servicetraceroute.Selection{})
				var flows []*simnet.Flow
				for i := range 24 {
					flows = append(flows, s.start(chatty(i%2 == 1)))
					time.Sleep(20 * time.Millisecond)
				}
				for _, f := range flows {
					<-f.Done()
				}
				all := stop()
				if len(all.traces) != len(flows) {
					t.Errorf("%d traces", len(all.traces))
				}
				complete := 0
				for _, tr := range all.traces {
					s.judge(tr)
					s.exact(tr, time.Millisecond)
					for _, h := range tr.Hops {
						if h.TTL >= 6 { // the server, asked before all routers are known
							continue
						}
						if h.Sent > 0 && len(h.Replies) == 0 && !h.Limited && h.Deferred == 0 {
							t.Errorf("TTL %d looks like a silent router: %v", h.TTL, describe(tr))
						}
					}
					if tr.Complete {
						complete++
					}
				}
				t.Logf("%d of %d complete", complete, len(flows))
			})
		})
	}
}

// A flow that changes its way while it is traced is marked.
func TestSimRouteChange(t *testing.T) {
	for _, family := range []string{"IPv4", "IPv6"} {
		t.Run(family, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := ladder(2, scenario.ICMPLimit{})
				for i := range n.Links { // one way at first: by m0a and m1a
					if l := &n.Links[i]; (l.A == "r0" && l.B != "m0a") || (l.A == "r1" && l.B != "m1a" && l.B != "server") {
						l.CostAB = 5
					}
				}
				s := newSim(t, n, simnet.Options{}, servicetraceroute.Config{Defaults: servicetraceroute.Params{
					Algorithm: trace.PacketByPacket, ProbeInterval: 60 * time.Millisecond,
				}})
				stop := s.watch(servicetraceroute.Selection{})
				f := s.start(chatty(family == "IPv6"))
				time.Sleep(700 * time.Millisecond)
				for name, cost := range map[string]int{"r0-m0a": 9, "r0-m0b": 1, "r1-m1a": 9, "r1-m1b": 1} {
					if err := s.net.SetLink(name, func(l *scenario.Link) { l.CostAB = cost }); err != nil {
						t.Fatal(err)
					}
				}
				<-f.Done()
				all := stop()
				if len(all.traces) != 1 {
					t.Fatalf("%d traces", len(all.traces))
				}
				tr := all.traces[0]
				s.judge(tr)
				if !tr.Mixed || tr.Complete || tr.PathID != "" {
					t.Errorf("a path that changed is not marked: %v", describe(tr))
				}
			})
		})
	}
}

// The end of the context, and of the tracer, end a trace at that very instant,
// with what it found.
func TestSimCancelled(t *testing.T) {
	for name, end := range map[string]func(s *sim, stop func() found) found{
		"context": func(_ *sim, stop func() found) found { return stop() },
		"tracer": func(s *sim, stop func() found) found {
			if err := s.tracer.Close(); err != nil {
				s.t.Error(err)
			}
			return stop()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := changed(wires(ladder(2, scenario.ICMPLimit{}), time.Millisecond), silence, "r1")
				s := newSim(t, n, simnet.Options{}, servicetraceroute.Config{})
				stop := s.watch(servicetraceroute.Selection{})
				f := s.start(chatty(false))
				time.Sleep(time.Second)
				now := time.Now()
				all := end(s, stop)
				if took := time.Since(now); took != 0 {
					t.Errorf("it took %v", took)
				}
				if len(all.traces) != 1 {
					t.Fatalf("%d traces", len(all.traces))
				}
				tr := all.traces[0]
				s.judge(tr)
				if tr.Stop != trace.StopCancelled || tr.Complete || !tr.End.Equal(now) || !slices.Contains(silent(tr), 3) || len(tr.Hops) < 5 {
					t.Errorf("%v", describe(tr))
				}
				<-f.Done()
				if !f.Result().Intact {
					t.Errorf("%+v", f.Result())
				}
			})
		})
	}
}

// Where the first answers are lost that have to agree, the later ones do, though they come as
// slowly as the destination is looked for.
func TestSimThreeAgreeAfterLosses(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		for _, losses := range []int64{0, 4, 8, 11} {
			t.Run(fmt.Sprint("IPv6 ", ipv6, " ", losses), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var lost atomic.Int64
					s := newSim(t, wires(chain(4), 50*time.Microsecond), simnet.Options{
						Nodes: map[string]simnet.NodeOptions{"r2": {SeqShift: 0x89abcdef, QuotesUntranslated: true}},
						Drop: func(c simnet.Crossing) bool {
							icmp := c.Packet[0]>>4 == 4 && c.Packet[9] == 1 || c.Packet[0]>>4 == 6 && c.Packet[6] == 58
							return icmp && c.From == "r3" && c.To == "r2" && lost.Add(1) <= losses
						},
					}, servicetraceroute.Config{})
					stop := s.watch(servicetraceroute.Selection{})
					w := chatty(ipv6)
					w.Every, w.Duration = 50*time.Millisecond, 15*time.Second
					<-s.start(w).Done()
					all := stop()
					if len(all.traces) != 1 {
						t.Fatalf("%d traces", len(all.traces))
					}
					tr := all.traces[0]
					s.judge(tr)
					s.rewritten(tr, 3, 4)
					if !tr.Complete || tr.Destination.TTL != 5 || len(silent(tr)) > 0 || all.stats.Replies.Unmatched > 0 {
						t.Errorf("%+v\n%s", all.stats.Replies, describe(tr))
					}
				})
			})
		}
	}
}

// A quote that was changed on the way is believed when three probes agree on the
// change, and not before.
func TestSimThreeAgree(t *testing.T) {
	before, after := 0, 0
	for at := 100 * time.Millisecond; at < 3*time.Second; at += 200 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			n := wires(way(0, 0), time.Millisecond)
			n.Links = n.Links[:len(n.Links)-1] // one of two equal ones between r0 and r1
			s := newSim(t, n, simnet.Options{Nodes: map[string]simnet.NodeOptions{
				"r0": {SeqShift: 0x1234567, QuotesUntranslated: true},
			}}, servicetraceroute.Config{})
			stop := s.watch(servicetraceroute.Selection{})
			f := s.start(chatty(false))
			time.Sleep(at)
			all := stop()
			if len(all.traces) != 1 || len(all.traces[0].Hops) < 2 {
				t.Fatalf("%v: %d traces", at, len(all.traces))
			}
			tr := all.traces[0]
			<-f.Done()
			s.judge(tr)
			switch h := tr.Hops[1]; {
			case h.Sent < 3 && len(h.Replies) == 0:
				before++
			case h.Sent == 3 && len(h.Replies) == 3:
				after++
			default:
				t.Errorf("after %v: %v", at, describe(tr))
			}
		})
	}
	if before == 0 || after == 0 {
		t.Errorf("%d traces ended before the third probe, %d after", before, after)
	}
}

// A flow in which probes travel ends as its twin without them: every byte, every
// counter that does not count the probes themselves, and within one per cent the
// time it took. What probes cost where bandwidth is scarce, TestNoHarm measures on
// real kernels.
func TestSimNoHarm(t *testing.T) {
	const second = time.Second
	loads := map[string]scenario.Workload{
		"download": {Traffic: scenario.Download, Bytes: 8 << 20},
		"upload":   {Traffic: scenario.Upload, Bytes: 8 << 20},
		"slow":     {Traffic: scenario.SlowReader, Bytes: 1 << 20},
		"requests": {Traffic: scenario.RequestResponse, Bytes: 3000, Every: 100 * time.Millisecond, Duration: 20 * second},
		"one byte": {Traffic: scenario.OneByte, Every: 50 * time.Millisecond, Duration: 20 * second},
		"idle":     {Traffic: scenario.Idle, Duration: 60 * second},
	}
	for name, w := range loads {
		for _, family := range []string{"IPv4", "IPv6"} {
			t.Run(name+"/"+family, func(t *testing.T) {
				w.IPv6 = family == "IPv6"
				var twins [2]simnet.Result
				var took [2]time.Duration
				for i := range twins {
					synctest.Test(t, func(t *testing.T) {
						n := narrow("narrow", 0.01)
						for i := range n.Links {
							n.Links[i].Rate = 0 // or a probe delays what is sent behind it by some microseconds
						}
						s := newSim(t, n, simnet.Options{Seed: 7}, servicetraceroute.Config{NoProbe: i == 0})
						stop := s.watch(servicetraceroute.Selection{Retrace: second})
						f := s.start(w)
						<-f.Done()
						twins[i], took[i] = f.Result(), time.Since(f.Started)
						all := stop()
						if sent := all.stats.Probes.Sent; (sent == 0) != (i == 0) {
							t.Errorf("%d probes sent", sent)
						}
						for _, tr := range all.traces {
							s.judge(tr)
						}
					})
				}
				alone, traced := twins[0], twins[1]
				for i, ends := range [][2]simnet.End{{alone.Client, traced.Client}, {alone.Server, traced.Server}} {
					a, b := ends[0], ends[1]
					if a.Sent != b.Sent || a.Received != b.Received || a.SHA256 != b.SHA256 || a.Exchanges != b.Exchanges {
						t.Errorf("end %d: %d/%d/%d bytes and exchanges alone, %d/%d/%d traced", i, a.Sent, a.Received, a.Exchanges, b.Sent, b.Received, b.Exchanges)
					}
					if a.Counters.Harm() != b.Counters.Harm() || unprobed(a.Counters) != unprobed(b.Counters) {
						t.Errorf("end %d: alone %+v\ntraced %+v", i, a.Counters, b.Counters)
					}
				}
				if (took[0] - took[1]).Abs() > took[0]/100 {
					t.Errorf("it took %v alone, %v traced", took[0], took[1])
				}
				if !alone.Intact || !traced.Intact {
					t.Errorf("intact: alone %v, traced %v", alone.Intact, traced.Intact)
				}
			})
		}
	}
}

// unprobed are the counters without those that harmless probes move.
func unprobed(c simnet.Counters) simnet.Counters {
	c.SegmentsIn, c.SegmentsOut, c.DupACKsReceived = 0, 0, 0
	c.OldSegments, c.OldAnswered, c.ACKsSkipped, c.PAWSOldACK, c.OutOfWindowICMP = 0, 0, 0, 0, 0
	return c
}
