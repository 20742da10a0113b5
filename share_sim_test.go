//go:build linux

package servicetraceroute_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
	"servicetraceroute/trace"
)

// tree is a client behind four routers, then a router of its own before each server.
func tree(servers int, limit scenario.ICMPLimit) scenario.Network {
	n := scenario.Network{Name: "tree", Nodes: []scenario.Node{{Name: "client", Kind: scenario.Host}}}
	at := "client"
	for i := range trunk {
		next := fmt.Sprintf("r%d", i)
		n.Nodes = append(n.Nodes, scenario.Node{Name: next, Kind: scenario.Router, ICMP: limit})
		n.Links = append(n.Links, scenario.Link{A: at, B: next})
		at = next
	}
	for i := range servers {
		leaf, server := fmt.Sprintf("l%d", i), fmt.Sprintf("server%d", i)
		n.Nodes = append(n.Nodes, scenario.Node{Name: leaf, Kind: scenario.Router, ICMP: limit}, scenario.Node{Name: server, Kind: scenario.Host})
		n.Links = append(n.Links, scenario.Link{A: at, B: leaf}, scenario.Link{A: leaf, B: server})
	}
	return n
}

// trunk is the number of routers that all ways through a tree have in common.
const trunk = 4

// sharing holds every reply that a trace has from another one against the truth: that one
// measured it, and the router stands at that place on this flow's own way.
// A trace that began within the time after an event, of which stale is the number, may
// show what was there before.
func (s *sim) sharing(traces []*trace.Trace, event time.Time, within time.Duration) (replies, stale int) {
	s.t.Helper()
	byID := byID(traces)
	truth := s.net.Truth()
	for _, tr := range traces {
		tuple := simnet.Tuple{Proto: 6, Src: tr.Flow.Src, Dst: tr.Flow.Dst}
		ways := slices.DeleteFunc(truth.Path(tuple), func(w simnet.Interval) bool { return w.To.Before(tr.Start) })
		for _, h := range tr.Hops {
			i := slices.IndexFunc(h.Replies, func(r trace.Reply) bool { return r.SharedFrom != "" })
			if i < 0 {
				continue
			}
			replies++
			r := h.Replies[i]
			if h.Sent != 0 || len(h.Replies) != 1 || tr.Complete || tr.PathID != "" || r.Kind != trace.TimeExceeded {
				s.t.Errorf("TTL %d is shared: %v", h.TTL, describe(tr))
			}
			if sent := truth.Sent(tuple, 255); slices.ContainsFunc(sent, func(p simnet.Probe) bool { return int(p.TTL) == h.TTL }) {
				s.t.Errorf("TTL %d is shared and was probed: %v", h.TTL, describe(tr))
			}
			from := byID[r.SharedFrom]
			if from == nil || !measured(from, h.TTL, r) {
				s.t.Errorf("TTL %d: %v did not measure %+v", h.TTL, r.SharedFrom, r)
				continue
			}
			hops := truth.Hops(simnet.Tuple{Proto: 6, Src: from.Flow.Src, Dst: from.Flow.Dst}, 255)[uint8(h.TTL)]
			if !slices.ContainsFunc(ways, func(w simnet.Interval) bool {
				return h.TTL <= len(w.Nodes) && slices.Contains(hops, simnet.Hop{Addr: r.Addr, Node: w.Nodes[h.TTL-1]})
			}) {
				if since := tr.Start.Sub(event); since >= 0 && since < within {
					stale++
					continue
				}
				s.t.Errorf("TTL %d: %v is not on the way: %v, %v", h.TTL, r.Addr, ways, hops)
			}
		}
	}
	return replies, stale
}

// measured reports whether a trace has that reply by a probe of its own.
func measured(tr *trace.Trace, ttl int, like trace.Reply) bool {
	return slices.ContainsFunc(tr.Hops, func(h trace.Hop) bool {
		return h.TTL == ttl && h.Sent > 0 && slices.ContainsFunc(h.Replies, func(r trace.Reply) bool {
			return r.SharedFrom == "" && r.Addr == like.Addr && r.RTT == like.RTT && r.ReplyTTL == like.ReplyTTL
		})
	})
}

// near counts the probes of TTLs up to one, and what became of them.
type near struct {
	sent, withheld, deferred, shown, shared int
	reached                                 int
	half, last                              time.Duration // until half of the traces were over, and the last
}

// trees opens 200 flows at once to 20 servers behind four routers at Linux's limits.
func trees(t *testing.T, ipv6, share bool) near {
	const servers = 20
	s := newSim(t, wires(tree(servers, scenario.ICMPLimit{KernelDefaults: true}), time.Millisecond), simnet.Options{},
		servicetraceroute.Config{Defaults: servicetraceroute.Params{Share: share}})
	sel := servicetraceroute.Selection{Ports: []string{"443"}}
	for i := range servers {
		sel.Hosts = append(sel.Hosts, s.net.Addr(fmt.Sprintf("server%d", i), ipv6).String())
	}
	began := time.Now()
	stop := collect(t, s.tracer, sel)
	var flows []*simnet.Flow
	for i := range 200 {
		w := chatty(ipv6)
		w.Client, w.Server, w.Port, w.Duration = "client", fmt.Sprintf("server%d", i%servers), 443, 40*time.Second
		f, err := s.net.Start(w)
		if err != nil {
			t.Fatal(err)
		}
		flows = append(flows, f)
	}
	for _, f := range flows {
		<-f.Done()
	}
	all := stop()
	n := near{withheld: s.net.Withheld()}
	var ends []time.Duration
	if len(all.traces) != len(flows) {
		t.Errorf("%d traces", len(all.traces))
	}
	for _, tr := range all.traces {
		s.judge(tr)
		ends = append(ends, tr.End.Sub(began))
		if tr.Reached {
			n.reached++
		}
		for _, h := range tr.Hops {
			if h.TTL > trunk {
				continue
			}
			n.sent += h.Sent
			n.deferred += h.Deferred
			if len(h.Replies) > 0 {
				n.shown++
			}
		}
	}
	slices.Sort(ends)
	n.half, n.last = ends[len(ends)/2], ends[len(ends)-1]
	n.shared, _ = s.sharing(all.traces, time.Time{}, 0)
	return n
}

// TestSimShare: of flows at once that have near hops in common, what these cost and what is
// known of them, with and without sharing.
func TestSimShare(t *testing.T) {
	for _, family := range []string{"IPv4", "IPv6"} {
		t.Run(family, func(t *testing.T) {
			var alone, shared near
			synctest.Test(t, func(t *testing.T) { alone = trees(t, family == "IPv6", false) })
			synctest.Test(t, func(t *testing.T) { shared = trees(t, family == "IPv6", true) })
			t.Logf("alone %+v", alone)
			t.Logf("share %+v", shared)
			// Of 200 flows 20 are the first to their servers.
			if alone.shared != 0 || shared.shared < 160*trunk || shared.shown != 200*trunk || shared.deferred != 0 {
				t.Errorf("of %d hops %d are shared, %d shown", 200*trunk, shared.shared, shared.shown)
			}
			if shared.reached != 200 || shared.half*4 > alone.half*3 || alone.deferred == 0 && shared.last > alone.last/2 || shared.sent > alone.sent || shared.withheld*20 > shared.sent {
				t.Error("nothing was won")
			}
		})
	}
}

// each opens flows to the servers in turn, one every so often, and returns when all are over.
func (s *sim) each(flows int, every time.Duration, ipv6 bool, servers ...string) {
	s.t.Helper()
	var all []*simnet.Flow
	for i := range flows {
		w := chatty(ipv6)
		w.Client, w.Server, w.Port, w.Duration = "client", servers[i%len(servers)], 443, 40*time.Second
		f, err := s.net.Start(w)
		if err != nil {
			s.t.Fatal(err)
		}
		all = append(all, f)
		time.Sleep(every)
	}
	for _, f := range all {
		<-f.Done()
	}
}

// sharedAt counts the shared replies of each TTL.
func sharedAt(traces []*trace.Trace) map[int]int {
	at := map[int]int{}
	for _, tr := range traces {
		for _, h := range tr.Hops {
			for _, r := range h.Replies {
				if r.SharedFrom != "" {
					at[h.TTL]++
				}
			}
		}
	}
	return at
}

// A hop that is balanced by ports is not shared, nor is what lies behind it, though it is one
// router.
func TestSimShareBalanced(t *testing.T) {
	for _, family := range []string{"IPv4", "IPv6"} {
		t.Run(family, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSim(t, wires(ladder(2, scenario.ICMPLimit{}), time.Millisecond), simnet.Options{},
					servicetraceroute.Config{Defaults: servicetraceroute.Params{Share: true}})
				stop := s.watch(servicetraceroute.Selection{})
				s.each(200, 100*time.Millisecond, family == "IPv6", "server")
				all := stop()
				s.sharing(all.traces, time.Time{}, 0)
				for _, tr := range all.traces {
					s.judge(tr)
				}
				if at := sharedAt(all.traces); len(at) != 1 || at[1] < 150 {
					t.Errorf("shared at each TTL: %v of %d traces", at, len(all.traces))
				}
			})
		})
	}
}

// fork is two servers to which the ways part behind the first router; the second way has a
// router less.
func fork() scenario.Network {
	n := scenario.Network{Name: "fork", Nodes: []scenario.Node{
		{Name: "client", Kind: scenario.Host}, {Name: "near", Kind: scenario.Host}, {Name: "far", Kind: scenario.Host},
	}, Links: []scenario.Link{{A: "client", B: "r0"}, {A: "r0", B: "a0"}, {A: "a0", B: "a1"}, {A: "a1", B: "a2"}, {A: "a2", B: "far"}, {A: "r0", B: "b0"}, {A: "b0", B: "b1"}, {A: "b1", B: "near"}}}
	for _, name := range []string{"r0", "a0", "a1", "a2", "b0", "b1"} {
		n.Nodes = append(n.Nodes, scenario.Node{Name: name, Kind: scenario.Router})
	}
	return n
}

// What many flows to one server agree upon says nothing of the way to another.
func TestSimShareFork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, wires(fork(), time.Millisecond), simnet.Options{}, servicetraceroute.Config{Defaults: servicetraceroute.Params{Share: true}})
		stop := collect(t, s.tracer, servicetraceroute.Selection{Hosts: []string{s.net.Addr("near", false).String(), s.net.Addr("far", false).String()}})
		s.each(30, 200*time.Millisecond, false, "far")
		s.each(30, 200*time.Millisecond, false, "near", "far")
		all := stop()
		s.sharing(all.traces, time.Time{}, 0)
		for _, tr := range all.traces {
			s.judge(tr)
		}
		if at := sharedAt(all.traces); at[1] == 0 || at[2] == 0 || at[3] == 0 || at[4] != 0 {
			t.Errorf("shared at each TTL: %v of %d traces", at, len(all.traces))
		}
	})
}

// A way that changes is noticed, and nothing shared any more: by what a trace measures behind
// what it left out, and where that stays as it was by the next that looks.
func TestSimShareRouteChange(t *testing.T) {
	for _, family := range []string{"IPv4", "IPv6"} {
		t.Run(family, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := wires(ladder(2, scenario.ICMPLimit{}), time.Millisecond)
				for i := range n.Links { // one way at first: by m0a and m1a
					if l := &n.Links[i]; (l.A == "r0" && l.B != "m0a") || (l.A == "r1" && l.B != "m1a") {
						l.CostAB = 5
					}
				}
				s := newSim(t, n, simnet.Options{}, servicetraceroute.Config{Defaults: servicetraceroute.Params{Share: true}})
				stop := s.watch(servicetraceroute.Selection{})
				s.each(60, 100*time.Millisecond, family == "IPv6", "server")
				for name, cost := range map[string]int{"r0-m0a": 9, "r0-m0b": 1} {
					if err := s.net.SetLink(name, func(l *scenario.Link) { l.CostAB = cost }); err != nil {
						t.Fatal(err)
					}
				}
				change := time.Now()
				s.each(100, 100*time.Millisecond, family == "IPv6", "server")
				all := stop()
				shared, stale := s.sharing(all.traces, change, 4*time.Second)
				before, after := map[int]int{}, map[int]int{}
				for _, tr := range all.traces {
					s.judge(tr)
					to := before
					if tr.Start.After(change.Add(4 * time.Second)) {
						to = after
					}
					for ttl, n := range sharedAt([]*trace.Trace{tr}) {
						to[ttl] += n
					}
				}
				t.Logf("%d shared, %d of them stale; before %v, after %v", shared, stale, before, after)
				if before[2] == 0 || before[4] == 0 || after[1] == 0 || after[2]+after[3]+after[4] != 0 {
					t.Errorf("shared at each TTL: before %v, after %v", before, after)
				}
			})
		})
	}
}

// Where the way back is longer the last hop may be left out before it is known to be the
// last; the destination is proven all the same, and the proof is the flow's own.
func TestSimShareDetour(t *testing.T) {
	for name, n := range map[string]scenario.Network{"longer": way(1, 3), "shorter": way(3, 1)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSim(t, wires(n, 5*time.Millisecond), simnet.Options{}, servicetraceroute.Config{Defaults: servicetraceroute.Params{Share: true}})
				stop := s.watch(servicetraceroute.Selection{})
				s.each(40, 500*time.Millisecond, false, "server")
				all := stop()
				s.sharing(all.traces, time.Time{}, 0)
				held := 0 // the TTLs behind the destination are one responder's, at one probe a second
				for _, tr := range all.traces {
					s.judge(tr)
					d := tr.Destination
					if tr.Stop == trace.StopRateLimited && held < 3 {
						held++
						continue
					}
					if !tr.Reached || d.TTL < 2 || tr.Hops[d.TTL-2].Sent == 0 {
						t.Errorf("not proven: %v", describe(tr))
					}
				}
				if at := sharedAt(all.traces); at[1] < 10 {
					t.Errorf("shared at each TTL: %v", at)
				}
			})
		})
	}
}
