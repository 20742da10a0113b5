package simnet_test

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
	"servicetraceroute/internal/wire"
)

// line is client, three routers and server; the router in the middle is changed.
func line(change func(*scenario.Node)) scenario.Network {
	n := network("c-r1", "r1-fw", "fw-r3", "r3-s")
	for i := range n.Nodes {
		if n.Nodes[i].Name == "fw" && change != nil {
			change(&n.Nodes[i])
		}
	}
	return n
}

var idle = scenario.Workload{Client: "c", Server: "s", Port: 443, Traffic: scenario.Idle, Duration: time.Hour}

func TestFirewall(t *testing.T) {
	families(t, func(t *testing.T, ipv6 bool) {
		s := start(t, line(func(n *scenario.Node) {
			n.Firewall = &scenario.Firewall{AllowTCP: []uint16{443}, Inside: "r1-fw"}
		}), simnet.Options{})
		for _, w := range []scenario.Workload{
			{Client: "c", Server: "s", Port: 80}, {Client: "s", Server: "c", Port: 443}, {Client: "s", Server: "c", Port: 80},
		} {
			w.Traffic, w.IPv6 = scenario.Idle, ipv6
			f := flow(t, s, w)
			<-f.Done()
			if r := f.Result(); r.Intact != (w.Port == 443 || w.Client == "c") {
				t.Errorf("%s to %d: %v", w.Client, w.Port, r.Client.Err)
			}
		}
		if c := s.Filtered("fw"); c.Inside != 1 || c.Allowed != 1 || c.Dropped < 3 || c.Invalid != 0 {
			t.Errorf("%+v", c)
		}
	})
}

// Conntrack lets probes below the window pass and drops those above it. Probes
// that are all alike make it forget an idle flow early.
func TestConntrack(t *testing.T) {
	for _, test := range []struct {
		name    string
		seq     func(p *prober, i int) uint32
		old     bool
		passed  bool
		timeout time.Duration
	}{
		{"below", func(p *prober, i int) uint32 { return p.una - 1 - uint32(i) }, false, true, 5 * 24 * time.Hour},
		{"all alike", func(p *prober, _ int) uint32 { return p.una - 1 }, false, true, 5 * time.Minute},
		{"far below", func(p *prober, _ int) uint32 { return p.una - 5<<20 }, false, true, 5 * 24 * time.Hour},
		{"far below, before Linux 6.1", func(p *prober, _ int) uint32 { return p.una - 5<<20 }, true, false, 5 * 24 * time.Hour},
		{"above", func(p *prober, _ int) uint32 { return p.end + 5<<20 }, false, false, 5 * 24 * time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			families(t, func(t *testing.T, ipv6 bool) {
				s := start(t, line(func(n *scenario.Node) { n.Firewall = &scenario.Firewall{Inside: "r1-fw"} }),
					simnet.Options{Nodes: map[string]simnet.NodeOptions{"fw": {OldConntrack: test.old}}})
				w := idle
				w.IPv6 = ipv6
				f := flow(t, s, w)
				p := probe(t, s, "c", f.Tuple)
				p.listen(time.Second)
				for i := range 6 {
					p.send(3, func(s *wire.TCPSegment) { s.Seq = test.seq(p, i) })
					p.listen(time.Second)
				}
				if (len(p.errors) == 6) != test.passed || (s.Filtered("fw").Invalid == 6) == test.passed {
					t.Errorf("%d errors, %+v", len(p.errors), s.Filtered("fw"))
				}
				all := s.Conntrack("fw")
				if len(all) != 1 || all[0].Timeout < test.timeout-10*time.Second || all[0].Timeout > test.timeout {
					t.Errorf("%+v", all)
				}
			})
		})
	}
}

// A hop behind NAT quotes what it saw; the client sees what it sent, unless the NAT
// leaves quotes alone.
func TestNAT(t *testing.T) {
	for _, test := range []struct {
		name string
		nat  scenario.NAT
		opts simnet.NodeOptions
	}{
		{"plain", scenario.NAT{IPv6: true}, simnet.NodeOptions{}},
		{"fully random", scenario.NAT{IPv6: true, FullyRandom: true}, simnet.NodeOptions{}},
		{"quotes untranslated", scenario.NAT{IPv6: true, FullyRandom: true}, simnet.NodeOptions{QuotesUntranslated: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			families(t, func(t *testing.T, ipv6 bool) {
				s := start(t, line(func(n *scenario.Node) {
					test.nat.Outside = "fw-r3"
					n.NAT = &test.nat
				}), simnet.Options{Nodes: map[string]simnet.NodeOptions{"fw": test.opts}})
				w := requests
				w.IPv6, w.Bytes = ipv6, 20000
				f := flow(t, s, w)
				twin := flow(t, s, w)
				p := probe(t, s, "c", f.Tuple)
				p.listen(time.Second)
				sent := p.send(3, p.old(0))
				p.listen(time.Second)
				<-f.Done()
				<-twin.Done()
				if !f.Result().Intact || !twin.Result().Intact {
					t.Fatalf("%+v", f.Result())
				}
				seen := s.Conntrack("fw")[0].ReplyDst
				if it := s.Layout().Nodes["fw"].Interface("fw-r3"); seen.Addr() != it.Addr4.Addr() && seen.Addr() != it.Addr6.Addr() {
					t.Errorf("the source is %v outside", seen)
				}
				if (seen.Port() == f.Tuple.Src.Port()) == test.nat.FullyRandom {
					t.Errorf("%v outside is %v", f.Tuple.Src, seen)
				}
				if len(p.errors) != 1 {
					t.Fatalf("%d errors", len(p.errors))
				}
				want := f.Tuple.Src
				if test.opts.QuotesUntranslated {
					want = seen
				}
				q := p.errors[0].quote
				if got := netip.AddrPortFrom(q.Src, q.SrcPort); got != want || q.Seq != sent.Seq {
					t.Errorf("the quote is of %v, want %v", got, want)
				}
				if _, node, _ := s.Truth().Answered(sent); node != "r3" {
					t.Errorf("%q answered", node)
				}
			})
		})
	}
}

// A box that hands flows to an address of its own on to a host lets the errors of all
// behind it, and its own, bear that address, and quote what the client sent.
func TestForward(t *testing.T) {
	for _, forgets := range []bool{false, true} {
		families(t, func(t *testing.T, ipv6 bool) {
			public := map[bool]netip.Addr{false: netip.MustParseAddr("203.0.113.80"), true: netip.MustParseAddr("2001:db8:ff::80")}
			s := start(t, line(func(n *scenario.Node) { n.Addrs = []netip.Addr{public[false], public[true]} }), simnet.Options{
				Nodes: map[string]simnet.NodeOptions{"fw": {Forward: "s", QuotesUntranslated: forgets}},
			})
			w := requests
			w.Client, w.Server, w.Port, w.IPv6 = "c", "fw", 443, ipv6
			f := flow(t, s, w)
			if f.Tuple.Dst.Addr() != public[ipv6] {
				t.Fatalf("the flow goes to %v", f.Tuple.Dst)
			}
			p := probe(t, s, "c", f.Tuple)
			p.listen(time.Second)
			var sent []simnet.Probe
			for ttl := range uint8(3) {
				sent = append(sent, p.send(1+ttl, p.old(uint32(ttl))))
				p.listen(100 * time.Millisecond)
			}
			<-f.Done()
			if r := f.Result(); !r.Intact || r.Server.Local.Addr() != s.Addr("s", ipv6) {
				t.Fatalf("%+v", r)
			}
			if len(p.errors) != 3 {
				t.Fatalf("%d errors", len(p.errors))
			}
			for i, node := range []string{"r1", "fw", "r3"} {
				e, v := p.errors[i], s.Truth().Judge(sent[i])
				if len(v.Answers) != 1 || v.Answers[0].Node != node || (e.from == public[ipv6]) != (i > 0) {
					t.Errorf("TTL %d: from %v, truth %+v", i+1, e.from, v)
				}
				want := f.Tuple.Dst
				if forgets && i > 0 {
					want = netip.AddrPortFrom(s.Addr("s", ipv6), 443)
				}
				if got := netip.AddrPortFrom(e.quote.Dst, e.quote.DstPort); got != want || e.quote.Seq != sent[i].Seq {
					t.Errorf("TTL %d: the quote is of %v, want %v", i+1, got, want)
				}
			}
			if ways := s.Truth().Path(f.Tuple); len(ways) != 1 || len(ways[0].Nodes) != 3 {
				t.Errorf("the way is %v", ways)
			}
		})
	}
}

// A box that shifts sequence numbers shifts SACK blocks and quotes as well, unless
// it forgets the latter.
func TestSeqShift(t *testing.T) {
	for _, forgets := range []bool{false, true} {
		families(t, func(t *testing.T, ipv6 bool) {
			n := line(nil)
			n.Links[3].Loss, n.Links[3].Delay = 0.01, 5*time.Millisecond
			s := start(t, n, simnet.Options{Nodes: map[string]simnet.NodeOptions{
				"fw": {SeqShift: 1e9, QuotesUntranslated: forgets}, "r3": {Quote: 48},
			}})
			f := flow(t, s, scenario.Workload{Client: "c", Server: "s", Port: 443, Traffic: scenario.Upload, Bytes: 3 << 20, IPv6: ipv6})
			p := probe(t, s, "c", f.Tuple)
			p.listen(100 * time.Millisecond)
			sent := p.send(3, p.old(0))
			p.listen(time.Second)
			<-f.Done()
			if r := f.Result(); !r.Intact || r.Client.Counters.FastRetransmits == 0 || r.Client.Counters.Timeouts > 2 {
				t.Errorf("%+v", r.Client)
			}
			if len(p.errors) != 1 {
				t.Fatalf("%d errors", len(p.errors))
			}
			want := sent.Seq
			if forgets {
				want += 1e9
			}
			if q := p.errors[0].quote; q.Seq != want {
				t.Errorf("quoted %d, want %d", q.Seq, want)
			}
		})
	}
}

func TestICMPLimit(t *testing.T) {
	for _, test := range []struct {
		name         string
		limit        scenario.ICMPLimit
		burst        int
		want4, want6 int
	}{
		{"none", scenario.ICMPLimit{}, 0, 40, 40},
		{"kernel", scenario.ICMPLimit{KernelDefaults: true}, 0, 6 + 3, 6 + 33},
		{"interval", scenario.ICMPLimit{Interval: 500 * time.Millisecond}, 0, 6 + 7, 6 + 7},
		{"no burst", scenario.ICMPLimit{Interval: time.Second}, 1, 4, 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			families(t, func(t *testing.T, ipv6 bool) {
				s := start(t, line(func(n *scenario.Node) { n.ICMP = test.limit }),
					simnet.Options{Nodes: map[string]simnet.NodeOptions{"fw": {ICMPBurst: test.burst}}})
				w := idle
				w.IPv6 = ipv6
				f := flow(t, s, w)
				p := probe(t, s, "c", f.Tuple)
				p.listen(time.Second)
				for i := range 40 { // almost 4 seconds
					if p.send(2, p.old(uint32(i))); i < 39 {
						p.listen(99 * time.Millisecond)
					}
				}
				p.listen(time.Millisecond)
				want := test.want4
				if ipv6 {
					want = test.want6
				}
				if len(p.errors) < want-1 || len(p.errors) > want+1 {
					t.Errorf("%d of 40 were answered, want about %d", len(p.errors), want)
				}
			})
		})
	}
}

func TestSilentAndShortQuotes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := line(func(n *scenario.Node) { n.Silent = true })
		s := start(t, n, simnet.Options{Nodes: map[string]simnet.NodeOptions{"r1": {Quote: 28, TTL: 255}}})
		f := flow(t, s, idle)
		p := probe(t, s, "c", f.Tuple)
		p.listen(time.Second)
		v := p.send(2, p.old(0))
		p.send(1, p.old(1))
		p.listen(time.Second)
		if len(p.errors) != 1 || !p.errors[0].quote.HasSeq || p.errors[0].quote.HasTCPHeader {
			t.Errorf("%+v", p.errors)
		}
		if v := s.Truth().Judge(v); !v.Sent || len(v.Answers) > 0 || v.Reached || v.Nodes[1] != "fw" {
			t.Errorf("%+v", v)
		}
	})
}

func TestMTU(t *testing.T) {
	families(t, func(t *testing.T, ipv6 bool) {
		n := line(nil)
		n.Links[2].MTU = 1300
		s := start(t, n, simnet.Options{})
		f := flow(t, s, scenario.Workload{Client: "c", Server: "s", Port: 443, Traffic: scenario.Upload, Bytes: 1 << 20, IPv6: ipv6})
		<-f.Done()
		if r := f.Result(); !r.Intact || r.Client.Counters.SoftErrors == 0 {
			t.Errorf("%+v", r.Client)
		}
	})
}
