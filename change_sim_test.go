//go:build linux

package servicetraceroute_test

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
)

// oneWay makes the first branch of each stage of a ladder the only way, at first.
func oneWay(n scenario.Network) scenario.Network {
	for i := range n.Links {
		if l := &n.Links[i]; l.A[0] == 'r' && l.B[0] == 'm' && l.B[len(l.B)-1] != 'a' {
			l.CostAB = 5
		}
	}
	return n
}

// otherBranch are the costs that lead to the second branch of the last of two stages.
var otherBranch = map[string]int{"r1-m1a": 9, "r1-m1b": 1}

// reroute changes the costs of links.
func (s *sim) reroute(costs map[string]int) {
	s.t.Helper()
	for name, cost := range costs {
		if err := s.net.SetLink(name, func(l *scenario.Link) { l.CostAB = cost }); err != nil {
			s.t.Fatal(err)
		}
	}
}

// download is a flow with data under way all the time.
func download(ipv6 bool) scenario.Workload {
	return scenario.Workload{IPv6: ipv6, Traffic: scenario.Download, Duration: 40 * time.Second}
}

// slow lets no more through than keeps the simulation small.
func slow(n scenario.Network) scenario.Network {
	n = wires(n, 5*time.Millisecond)
	for i := range n.Links {
		n.Links[i].Rate = 2_000_000
	}
	return n
}

// A download whose path changes is told of within h/2 + 2 s, with at most two probes a second
// in between, with both paths' names where the new one can be told.
func TestSimChange(t *testing.T) {
	for i := range 20 {
		ipv6, part := i%2 == 1, time.Duration(i)*137*time.Millisecond // of a sweep
		t.Run(fmt.Sprint("IPv6 ", ipv6, " ", part), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSim(t, slow(oneWay(ladder(2, scenario.ICMPLimit{KernelDefaults: true}))), simnet.Options{}, servicetraceroute.Config{})
				stop := s.watch(servicetraceroute.Selection{Retrace: time.Hour})
				f := s.start(download(ipv6))
				time.Sleep(15*time.Second + part)
				quiet := time.Now()
				before := s.diary.after(time.Time{})
				time.Sleep(5 * time.Second)
				if n := s.diary.after(quiet); n == 0 || n > 2*5+1 {
					t.Errorf("%d probes in 5 s between two traces (%d before)", n, before)
				}
				at := time.Now()
				s.reroute(otherBranch)
				<-f.Done()
				all := stop()
				if len(all.changes) != 1 {
					t.Fatalf("%d changes: %+v", len(all.changes), all.changes)
				}
				c := all.changes[0]
				const hops = 5
				if late := c.Time.Sub(at); late < 0 || late > hops*time.Second/2+2*time.Second {
					t.Errorf("told after %v", late)
				}
				t.Logf("told after %v", c.Time.Sub(at))
				if c.TTL != 4 || c.Cause != "route" || c.Old.Trace == c.New.Trace || c.Old.PathID == "" || c.Old.PathID == c.New.PathID {
					t.Errorf("%+v", c)
				}
				s.onLink("m1a", c.From)
				s.onLink("m1b", c.To)
				if !f.Result().Intact {
					t.Errorf("%+v", f.Result())
				}
			})
		})
	}
}

// onLink checks that the only address is one of a node's.
func (s *sim) onLink(node string, addrs []netip.Addr) {
	s.t.Helper()
	for _, n := range s.net.Layout().Nodes {
		if n.Node.Name != node {
			continue
		}
		for _, i := range n.Interfaces {
			if len(addrs) == 1 && (i.Addr4.Addr() == addrs[0] || i.Addr6.Addr() == addrs[0]) {
				return
			}
		}
	}
	s.t.Errorf("%v is not %s", addrs, node)
}

// Nothing is told where nothing changes: not of a router that falls silent, nor of one that
// spreads packets that the route changed.
func TestSimNoChange(t *testing.T) {
	for name, test := range map[string]struct {
		nodes   map[string]simnet.NodeOptions
		silence bool // a router falls silent
		unknown bool // changes may be told, if they do not claim to know why
	}{
		"nothing":               {},
		"silence":               {silence: true},
		"a balancer of packets": {nodes: map[string]simnet.NodeOptions{"r1": {PerPacket: true}}, unknown: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := slow(oneWay(ladder(2, scenario.ICMPLimit{})))
				if test.unknown {
					n = slow(ladder(2, scenario.ICMPLimit{}))
				}
				var mute atomic.Bool
				s := newSim(t, n, simnet.Options{Nodes: test.nodes, Drop: func(c simnet.Crossing) bool {
					return c.From == "m1a" && c.Packet[9] == 1 && mute.Load() // ICMP
				}}, servicetraceroute.Config{})
				stop := s.watch(servicetraceroute.Selection{Retrace: 10 * time.Second})
				f := s.start(chattyFor(40 * time.Second))
				time.Sleep(15 * time.Second)
				mute.Store(test.silence)
				<-f.Done()
				all := stop()
				for _, c := range all.changes {
					if !test.unknown || c.Cause != "unknown" {
						t.Errorf("%+v", c)
					}
				}
				if len(all.changes) > 2 {
					t.Errorf("%d changes", len(all.changes))
				}
				if n := len(all.traces); n < 3 || n > 8 {
					t.Errorf("%d traces", n)
				}
			})
		})
	}
}

func chattyFor(d time.Duration) scenario.Workload {
	w := chatty(false)
	w.Duration = d
	return w
}

// A flow that is silent is left alone: probes would keep it alive.
func TestSimSilentFlowIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, slow(oneWay(ladder(2, scenario.ICMPLimit{}))), simnet.Options{}, servicetraceroute.Config{})
		stop := s.watch(servicetraceroute.Selection{Retrace: time.Hour})
		f := s.start(scenario.Workload{Traffic: scenario.Idle, Bytes: 100, Duration: 40 * time.Second})
		time.Sleep(15 * time.Second)
		if n := s.diary.after(time.Time{}); n == 0 {
			t.Error("no trace")
		}
		quiet := time.Now()
		time.Sleep(20 * time.Second)
		if n := s.diary.after(quiet); n > 0 {
			t.Errorf("%d probes", n)
		}
		<-f.Done()
		stop()
	})
}
