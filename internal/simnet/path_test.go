package simnet_test

import (
	"fmt"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
	"servicetraceroute/internal/wire"
)

// A probed flow and its twin in another network lose the same data and end alike.
func TestLossTwins(t *testing.T) {
	families(t, func(t *testing.T, ipv6 bool) {
		var results []simnet.Result
		for _, probing := range []bool{false, true, true} {
			n := line(nil)
			n.Links[2].Loss, n.Links[2].Delay = 0.01, 5*time.Millisecond
			s := start(t, n, simnet.Options{})
			f := flow(t, s, scenario.Workload{Client: "c", Server: "s", Port: 443, Traffic: scenario.Download, Bytes: 4 << 20, IPv6: ipv6})
			p := probe(t, s, "c", f.Tuple)
			for i := 0; !f.Closed(); i++ {
				p.listen(50 * time.Millisecond)
				if probing {
					p.send(uint8(1+i%3), p.old(uint32(i)))
				}
			}
			results = append(results, f.Result())
			s.Close()
		}
		twin, probed := results[0], results[1]
		if !twin.Intact || twin.Server.Counters.FastRetransmits == 0 {
			t.Errorf("%+v", twin.Server)
		}
		if probed.Client.Counters.OutOfWindowICMP == 0 {
			t.Errorf("%+v", probed.Client)
		}
		if !reflect.DeepEqual(results[1], results[2]) {
			t.Errorf("the same run twice:\n%+v\n%+v", results[1], results[2])
		}
		probed.Client.Counters.OutOfWindowICMP = 0
		if !reflect.DeepEqual(twin, probed) {
			t.Errorf("twin:\n%+v\nprobed:\n%+v", twin, probed)
		}
	})
}

// The truth follows a route change, and probes do too.
func TestRouteChange(t *testing.T) {
	families(t, func(t *testing.T, ipv6 bool) {
		s := start(t, diamond(), simnet.Options{})
		w := requests
		w.IPv6 = ipv6
		f := flow(t, s, w)
		p := probe(t, s, "c", f.Tuple)
		p.listen(2 * time.Second)
		way := s.Truth().Path(f.Tuple)[0].Nodes
		if len(way) != 4 {
			t.Fatalf("the way is %v", way)
		}
		if err := s.SetLink("r1-"+way[1], func(l *scenario.Link) { l.Down = true }); err != nil {
			t.Fatal(err)
		}
		changed := time.Now()
		p.listen(time.Second)
		sent := p.send(2, p.old(0))
		<-f.Done()
		path := s.Truth().Path(f.Tuple)
		if len(path) != 2 || path[1].Nodes[1] == way[1] || path[1].From.Before(changed) || path[0].To.After(changed) {
			t.Errorf("%+v", path)
		}
		if _, node, _ := s.Truth().Answered(sent); node != path[1].Nodes[1] {
			t.Errorf("%q answered", node)
		}
		if !f.Result().Intact {
			t.Errorf("%+v", f.Result())
		}
	})
}

// An IPv6 host changes its flow label after a timeout, and a balancer that hashes
// it may then choose another way.
func TestFlowLabel(t *testing.T) {
	for _, keep := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := diamond()
			for i := range n.Nodes {
				n.Nodes[i].Hash = scenario.HashFlowLabel
			}
			var cut atomic.Bool
			s := start(t, n, simnet.Options{
				Nodes: map[string]simnet.NodeOptions{"c": {KeepLabel: keep}},
				Drop:  func(c simnet.Crossing) bool { return cut.Load() && c.From == "c" },
			})
			w := requests
			w.IPv6, w.Duration = true, time.Minute
			f := flow(t, s, w)
			p := probe(t, s, "c", f.Tuple)
			ways, labels := map[string]bool{}, map[uint32]bool{}
			for range 16 {
				p.listen(time.Second)
				labels[p.newest.FlowLabel] = true
				cut.Store(true)
				p.listen(time.Second)
				cut.Store(false)
			}
			<-f.Done()
			for _, i := range s.Truth().Path(f.Tuple)[1:] {
				ways[i.Nodes[1]] = true
			}
			if (len(labels) == 1) != keep || !keep && len(ways) != 2 || f.Result().Client.Counters.Timeouts == 0 {
				t.Errorf("keep %v: labels %v, ways %v", keep, labels, ways)
			}
		})
	}
}

func TestBalancing(t *testing.T) {
	for _, hash := range []scenario.Hash{scenario.HashL4, scenario.HashFlowLabel, scenario.HashL3} {
		t.Run(fmt.Sprint(hash), func(t *testing.T) {
			families(t, func(t *testing.T, ipv6 bool) {
				n := diamond()
				for i := range n.Nodes {
					n.Nodes[i].Hash = hash
				}
				s := start(t, n, simnet.Options{})
				ways := map[string]bool{}
				for range 16 {
					w := idle
					w.IPv6, w.Duration = ipv6, 0
					f := flow(t, s, w)
					<-f.Done()
					path := s.Truth().Path(f.Tuple)
					ways[path[len(path)-1].Nodes[1]] = true
				}
				if (len(ways) == 2) != (hash != scenario.HashL3) {
					t.Errorf("ways %v", ways)
				}
			})
		})
	}
}

func TestPerPacket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, diamond(), simnet.Options{Nodes: map[string]simnet.NodeOptions{"r1": {PerPacket: true}}})
		f := flow(t, s, idle)
		p := probe(t, s, "c", f.Tuple)
		p.listen(time.Second)
		for i := range 4 {
			p.send(2, p.old(uint32(i)))
		}
		p.listen(time.Second)
		if hops := s.Truth().Hops(f.Tuple, 32); len(hops[2]) != 2 || len(p.errors) != 4 {
			t.Errorf("%+v", hops)
		}
	})
}

// Port routes and the costs of the two ways of a link part the ways of a flow.
func TestAsymmetry(t *testing.T) {
	families(t, func(t *testing.T, ipv6 bool) {
		n := network("c-r1", "c-r2", "r1-r3", "r2-r3", "r3-r4", "r3-r5", "r4-s", "r5-s")
		n.Links[6].CostBA = 10
		for i := range n.Nodes {
			if n.Nodes[i].Name == "c" {
				n.Nodes[i].Addrs = nil
				n.Nodes[i].PortRoutes = []scenario.PortRoute{{DstPort: 443, Via: "c-r2"}}
			}
		}
		s := start(t, n, simnet.Options{})
		w := idle
		w.Duration, w.IPv6 = 0, ipv6
		f := flow(t, s, w)
		<-f.Done()
		out, back := s.Truth().Path(f.Tuple), s.Truth().Path(f.Tuple.Reverse())
		if !f.Result().Intact || out[0].Nodes[0] != "r2" || slices.Contains(back[0].Nodes, "r4") {
			t.Errorf("out %v, back %v", out, back)
		}
	})
}

// A tap at a host with segmentation or receive offload sees packets longer than the
// link's, with BIG TCP longer than a header can tell.
func TestOffload(t *testing.T) {
	for name, test := range map[string]struct {
		opts     simnet.Options
		traffic  scenario.Traffic
		way      capture.Direction
		from, to int // how long the longest is
	}{
		"out":          {simnet.Options{GSO: true}, scenario.Upload, capture.Outgoing, 5000, 41 << 10},
		"in":           {simnet.Options{GRO: true}, scenario.Download, capture.Incoming, 5000, 41 << 10},
		"BIG TCP, out": {simnet.Options{GSO: true, OffloadSize: 180_000, Pace: 4e9, Snap: 128}, scenario.Upload, capture.Outgoing, 100_000, 180_100},
		"BIG TCP, in":  {simnet.Options{GRO: true, OffloadSize: 180_000, Pace: 4e9, Snap: 128}, scenario.Download, capture.Incoming, 100_000, 180_100},
	} {
		t.Run(name, func(t *testing.T) {
			families(t, func(t *testing.T, ipv6 bool) {
				n := line(nil)
				n.Links[2].Delay = 5 * time.Millisecond
				s := start(t, n, test.opts)
				f := flow(t, s, scenario.Workload{Client: "c", Server: "s", Port: 443, Traffic: test.traffic, Bytes: 8 << 20, IPv6: ipv6})
				longest := follow(t, s, test.way)
				<-f.Done()
				if longest < test.from || longest > test.to || !f.Result().Intact {
					t.Errorf("the longest is %d bytes; %+v", longest, f.Result())
				}
			})
		})
	}
}

// follow reads a tap at c until the end of a transfer whose every byte it must see
// once, in order. It returns how long the longest packet is.
func follow(t *testing.T, s *simnet.Net, way capture.Direction) (longest int) {
	t.Helper()
	source, _, err := s.Tap("c")
	if err != nil {
		t.Fatal(err)
	}
	var next uint32
	for {
		batch, err := source.ReadBatch()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range batch {
			var ip wire.Packet
			var tcp wire.TCP
			if ip.Decode(c.Data, c.Len) != nil || tcp.Decode(ip.Transport, ip.TransportLen) != nil {
				t.Fatal("not TCP")
			}
			if c.Direction != way || tcp.PayloadLen == 0 {
				continue
			}
			if next != 0 && tcp.Seq != next {
				t.Fatalf("%d follows %d", tcp.Seq, next)
			}
			next, longest = tcp.Seq+uint32(tcp.PayloadLen), max(longest, c.Len)
			if unknown := c.Data[2] == 0 && c.Data[3] == 0; ip.Version == 4 && unknown != (c.Len > 0xffff) {
				t.Errorf("%d bytes, the header's length is %x", c.Len, c.Data[2:4])
			}
			if jumbo := c.Data[6] == 0; ip.Version == 6 && jumbo != (c.Len-40 > 0xffff) {
				t.Errorf("%d bytes, the next header is %d", c.Len, c.Data[6])
			}
			if tcp.Flags&wire.FIN != 0 {
				return longest
			}
		}
	}
}

// Virtual time must be cheap, or nobody simulates.
func TestSpeed(t *testing.T) {
	began := time.Now()
	synctest.Test(t, func(t *testing.T) {
		n := diamond()
		n.Links[0].Delay, n.Links[7].Delay = 10*time.Millisecond, 10*time.Millisecond
		s := start(t, n, simnet.Options{})
		var flows []*simnet.Flow
		for range 100 {
			flows = append(flows, flow(t, s, requests))
		}
		for _, f := range flows {
			<-f.Done()
			if r := f.Result(); !r.Intact || r.Client.Exchanges < 99 {
				t.Errorf("%+v", r)
			}
		}
	})
	took := time.Since(began)
	t.Logf("100 flows of 10 s: %v", took)
	if took > 10*time.Second { // far more than it takes, for busy machines
		t.Errorf("100 flows of 10 s took %v", took)
	}
}

// Outside synctest a network runs in real time.
func TestRealTime(t *testing.T) {
	s := start(t, line(nil), simnet.Options{})
	f := flow(t, s, scenario.Workload{Client: "c", Server: "s", Port: 443, Traffic: scenario.OneByte, Bytes: 3})
	p := probe(t, s, "c", f.Tuple)
	p.listen(200 * time.Millisecond)
	<-f.Done()
	if r := f.Result(); !r.Intact || r.Client.Exchanges != 3 {
		t.Errorf("%+v", r)
	}
}
