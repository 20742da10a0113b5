package engine

import (
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/names"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/service"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// gateway is a rig on a host that forwards the connection: each packet passes two taps.
// The rig's own end is the client as it is on the wire; it shows at link 2.
type gateway struct {
	*rig
	lan     netip.AddrPort // the client as it calls itself; at link 1
	tracked bool
}

var routerAddrs = []netip.Addr{netip.MustParseAddr("10.0.0.254"), netip.MustParseAddr("2001:db8:ff::1")}

// newGateway plays masquerading with translated, else plain forwarding.
func newGateway(t *testing.T, v6, translated, tracked bool, cfg Config) *gateway {
	g := &gateway{tracked: tracked}
	own := append([]netip.Addr(nil), routerAddrs...)
	cfg.Local = func(a netip.Addr) bool {
		for _, x := range own {
			if x == a {
				return true
			}
		}
		return false
	}
	cfg.Tracked = tracked
	peer := netip.MustParseAddrPort("203.0.113.7:443")
	if v6 {
		peer = netip.MustParseAddrPort("[2001:db8::7]:443")
	}
	g.rig = newRigOf(t, v6, 8, cfg, peer)
	g.w.Selector.Directions = []trace.Direction{trace.Transit}
	g.e.Replace(g.now, g.w, *g.w)
	g.lan = g.me
	if translated {
		own = append(own, g.me.Addr())
		g.lan = netip.MustParseAddrPort("192.168.1.5:51515")
		if v6 {
			g.lan = netip.MustParseAddrPort("[fd00::5]:51515")
		}
	}
	return g
}

// other shows a packet at the client's side, as the next rig.out or rig.in does at the
// other.
func (g *gateway) other(s segment, outgoing bool) {
	seg := wire.TCPSegment{TCPProbe: wire.TCPProbe{
		Src: g.lan, Dst: g.peer, TTL: 65, TOS: g.tos | 2, FlowLabel: g.label, ID: uint16(g.tsval + 1), Seq: g.seq, Ack: g.ack,
		Flags: s.flags, Window: g.window, Timestamp: true, TSVal: g.tsval + 1, TSEcr: g.ts2,
	}, Options: s.options, Payload: make([]byte, s.data)}
	d := capture.Incoming
	if !outgoing {
		// After the copy at the other side: its numbers are those before.
		end := uint32(s.data)
		if s.flags&(wire.SYN|wire.FIN) != 0 {
			end++
		}
		seg.TCPProbe = wire.TCPProbe{
			Src: g.peer, Dst: g.lan, TTL: g.ttl - 1, Seq: g.ack - end, Ack: g.seq, Flags: s.flags, Window: 501,
			Timestamp: true, TSVal: g.ts2, TSEcr: g.tsval,
		}
		d = capture.Outgoing
	}
	p := g.captured(seg.AppendTo(nil), d)
	p.Interface = 1
	g.step(&p)
}

func (g *gateway) out(s segment) { g.other(s, true); g.rig.out(s); g.tell() }
func (g *gateway) in(s segment)  { g.rig.in(s); g.other(s, false); g.tell() }

// tell answers what connection tracking knows of the connection, which its client opened.
func (g *gateway) tell() {
	first := trace.FlowKey{Proto: trace.TCP, Src: g.lan, Dst: g.peer}
	answers := trace.FlowKey{Proto: trace.TCP, Src: g.peer, Dst: g.me}
	for _, k := range g.e.Places() {
		if in := turned(k); in == first || in == answers {
			g.e.Place(g.now, k, first, answers)
		} else {
			g.e.Untracked(g.now, k)
		}
	}
	g.step(nil)
}

func (g *gateway) handshake() {
	g.out(segment{flags: wire.SYN, options: synOptions})
	g.now = g.now.Add(rtt)
	g.in(segment{flags: wire.SYN | wire.ACK, options: synOptions})
	g.out(segment{flags: wire.ACK})
}

func (g *gateway) exchange() {
	g.out(segment{flags: wire.ACK | wire.PSH, data: 100})
	g.now = g.now.Add(rtt)
	g.in(segment{flags: wire.ACK | wire.PSH, data: 300})
	g.out(segment{flags: wire.ACK})
}

// run lets the routers answer until the trace is over.
func (g *gateway) run() []*trace.Trace {
	for range 60 {
		g.routers(8)
		g.after(50 * time.Millisecond)
	}
	return g.traces()
}

// check holds the one trace of the connection against what is known of it.
func (g *gateway) check(name string, all []*trace.Trace) {
	g.t.Helper()
	if len(all) != 1 {
		g.t.Fatalf("%s: %d traces: %v", name, len(all), all)
	}
	tr := all[0]
	f := tr.Flow
	if f.Direction != trace.Transit || f.Src != g.lan || f.Dst != g.peer {
		g.t.Errorf("%s: the flow is %v", name, f)
	}
	if wire := f.Wire(); wire.Src != g.me || wire.Dst != g.peer || (f.NAT != nil) != (g.lan != g.me) {
		g.t.Errorf("%s: on the wire it is %v", name, f.NAT)
	}
	if tr.Stop != trace.StopFence || len(tr.Hops) != 6 || tr.Reached || tr.Complete || tr.Mixed {
		g.t.Errorf("%s: %v, %d hops", name, tr.Stop, len(tr.Hops))
	}
	if d := tr.Destination; d == nil || d.By != trace.DestinationByPassive {
		g.t.Errorf("%s: destination %+v", name, d)
	}
	for _, h := range tr.Hops {
		if len(h.Replies) == 0 {
			g.t.Errorf("%s: TTL %d is silent", name, h.TTL)
		}
	}
	if g.guarded != len(g.probes) {
		g.t.Errorf("%s: of %d probes the client would hear", name, len(g.probes)-g.guarded)
	}
	for _, p := range g.probes {
		if p.Src != g.me || p.Dst != g.peer || p.TTL > 6 {
			g.t.Errorf("%s: a probe %v to %v of TTL %d", name, p.Src, p.Dst, p.TTL)
		}
	}
}

// A connection that this host only forwards is traced once, from the interface where its
// client's packets leave, by the tuple that they have there; its record names the client.
// No probe comes near its destination, whose answer would come to the client.
func TestTransit(t *testing.T) {
	for _, test := range []struct {
		name                    string
		v6, translated, tracked bool
	}{
		{"IPv4, masqueraded", false, true, true},
		{"IPv6, masqueraded", true, true, true},
		{"IPv4, plain", false, false, true},
		{"IPv6, plain", true, false, true},
		{"IPv4, plain, not tracked", false, false, false},
		{"IPv6, plain, not tracked", true, false, false},
	} {
		g := newGateway(t, test.v6, test.translated, test.tracked, Config{CanDrop: func() bool { return true }})
		g.handshake()
		for range 3 {
			g.exchange()
		}
		g.check(test.name, g.run())
	}
}

// Of a connection that was there before, what connection tracking says tells the client,
// also when the server's packets were seen first; without it the lower port is the server's.
func TestTransitJoinedLate(t *testing.T) {
	for _, test := range []struct {
		name                string
		translated, tracked bool
	}{{"masqueraded", true, true}, {"plain", false, true}, {"plain, not tracked", false, false}} {
		g := newGateway(t, false, test.translated, test.tracked, Config{CanDrop: func() bool { return true }})
		g.ack, g.seq = g.ack+5000, g.seq+5000
		g.in(segment{flags: wire.ACK | wire.PSH, data: 300})
		for range 4 {
			g.exchange()
		}
		g.check(test.name, g.run())
	}
}

// Without a way to keep the errors from the client it is not probed.
func TestTransitUndroppable(t *testing.T) {
	g := newGateway(t, false, true, true, Config{})
	g.handshake()
	g.exchange()
	if all := g.run(); len(all) != 1 || all[0].Stop != trace.StopRefused || all[0].Reason != trace.ReasonCapability || len(g.probes) > 0 {
		t.Errorf("%v, %d probes", all, len(g.probes))
	}
}

// What this host opens itself is none of these, translated or not, and where all
// directions are wanted each flow is one.
func TestTransitBesideOwn(t *testing.T) {
	for _, own := range []bool{true, false} {
		g := newGateway(t, false, true, true, Config{CanDrop: func() bool { return true }})
		by := *g.w
		by.Selector.Directions = []trace.Direction{trace.Out, trace.In, trace.Transit}
		g.e.Replace(g.now, g.w, by)
		if own {
			g.lan = netip.AddrPortFrom(routerAddrs[0], 4242) // translated from another address of its own
			g.rig.handshake()
			g.tell()
			g.rig.exchange()
			all := g.run()
			if len(g.probes) == 0 || g.reaching(8) == 0 || g.flow().Direction != trace.Out || g.guarded > 0 {
				t.Errorf("%v, %d probes, %v", all, len(g.probes), g.flow().Direction)
			}
			continue
		}
		g.handshake()
		g.exchange()
		g.check("any", g.run())
		if g.w.Matched() != 1 {
			t.Errorf("matched %d times", g.w.Matched())
		}
	}
}

// A masqueraded connection is not taken for one of this host's own where forwarded ones are
// not wanted, as far as connection tracking tells.
func TestTransitNotWanted(t *testing.T) {
	for _, own := range []bool{true, false} {
		g := newGateway(t, false, true, true, Config{CanDrop: func() bool { return true }})
		by := *g.w
		by.Selector.Directions = nil
		g.e.Replace(g.now, g.w, by)
		if own {
			g.lan = g.me
			g.rig.handshake()
			g.tell()
			g.rig.exchange()
		} else {
			g.handshake()
			g.exchange()
		}
		all := g.run()
		if (len(g.probes) > 0) != own || g.w.Matched() != 0 != own || !own && len(all) > 0 {
			t.Errorf("own %v: %v, %d probes, %d matched", own, all, len(g.probes), g.w.Matched())
		}
	}
}

// A connection that is handed on to a server behind this host is followed where its
// client's packets leave, and is no accepted one beside.
func TestTransitPortForwarded(t *testing.T) {
	g := newGateway(t, false, true, true, Config{CanDrop: func() bool { return true }})
	by := *g.w
	by.Selector.Directions = []trace.Direction{trace.Out, trace.In, trace.Transit}
	by.Selector.Rules = []service.Rule{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Service: trace.Service{Name: "x", By: trace.ByPrefix, Value: "x"}}}
	g.e.Replace(g.now, g.w, by)
	client, public, server := netip.MustParseAddrPort("198.51.100.9:50000"), g.me, netip.MustParseAddrPort("192.168.1.80:8080")
	tell := func() {
		for _, k := range g.e.Places() {
			g.e.Place(g.now, k, trace.FlowKey{Proto: trace.TCP, Src: client, Dst: public}, trace.FlowKey{Proto: trace.TCP, Src: server, Dst: client})
		}
		g.step(nil)
	}
	seq, ack := uint32(100), uint32(900)
	both := func(fromClient bool, flags wire.TCPFlags, data int, options []byte) {
		for _, outside := range []bool{fromClient, !fromClient} {
			s := wire.TCPSegment{TCPProbe: wire.TCPProbe{Src: client, Dst: server, TTL: 60, Seq: seq, Ack: ack, Flags: flags, Window: 500}, Options: options, Payload: make([]byte, data)}
			if outside {
				s.Dst = public
			}
			d := capture.Incoming
			if !fromClient {
				s.Src, s.Dst, s.Seq, s.Ack = s.Dst, s.Src, ack, seq
			}
			if outside != fromClient {
				d = capture.Outgoing
			}
			p := g.captured(s.AppendTo(nil), d)
			p.Interface = 1
			if outside {
				p.Interface = 2
			}
			g.step(&p)
		}
		n := uint32(data)
		if flags&wire.SYN != 0 {
			n++
		}
		if fromClient {
			seq += n
		} else {
			ack += n
		}
		tell()
	}
	both(true, wire.SYN, 0, synOptions)
	both(false, wire.SYN|wire.ACK, 0, synOptions)
	both(true, wire.ACK, 0, nil)
	for range 3 {
		g.now = g.now.Add(rtt)
		both(true, wire.ACK|wire.PSH, 100, nil)
		both(false, wire.ACK|wire.PSH, 300, nil)
	}
	var flows []*trace.Flow
	for _, rec := range g.e.Records() {
		if f, ok := rec.Event.(*trace.Flow); ok {
			flows = append(flows, f)
		}
	}
	if len(flows) != 1 || flows[0].Direction != trace.Transit || flows[0].Src != client || flows[0].Dst != public || flows[0].Wire().Dst != server {
		t.Errorf("%v", flows)
	}
}

// The address of the client selects, too, before and after the translation is known.
func TestTransitByClient(t *testing.T) {
	for _, translated := range []bool{true, false} {
		g := newGateway(t, false, translated, true, Config{CanDrop: func() bool { return true }})
		by := *g.w
		by.Selector.Rules = []service.Rule{{Prefix: netip.PrefixFrom(g.lan.Addr(), 32), Service: trace.Service{Name: "laptop", By: trace.ByAddress, Value: "laptop"}}}
		g.e.Replace(g.now, g.w, by)
		g.handshake()
		g.exchange()
		all := g.run()
		g.check("by client", all)
		if all[0].Service.Name != "laptop" {
			t.Errorf("%+v", all[0].Service)
		}
	}
}

// Addresses and ports that another client has now bear its name.
func TestTransitTupleReused(t *testing.T) {
	g := newGateway(t, false, true, true, Config{CanDrop: func() bool { return true }})
	by := *g.w
	by.Every = time.Millisecond
	g.e.Replace(g.now, g.w, by)
	g.handshake()
	g.exchange()
	g.check("first", g.run())
	g.out(segment{flags: wire.ACK | wire.FIN})
	g.in(segment{flags: wire.ACK | wire.FIN})
	g.after(time.Minute)
	g.probes, g.packets, g.guarded = nil, nil, 0
	g.lan = netip.MustParseAddrPort("192.168.1.6:60606")
	g.seq, g.ack = g.seq+1<<20, g.ack+1<<20
	g.handshake()
	g.exchange()
	g.check("second", g.run())
}

// When nobody wants forwarded flows any more they are forgotten, and such packets count
// for nothing.
func TestTransitEnds(t *testing.T) {
	g := newGateway(t, false, false, true, Config{CanDrop: func() bool { return true }})
	g.handshake()
	g.exchange()
	g.e.Remove(g.now, g.w, trace.StopCancelled)
	if held := g.e.Held(g.now); held.Flows != 0 || held.Runs != 0 {
		t.Errorf("%+v", held)
	}
	g.exchange()
	if held := g.e.Held(g.now); held.Flows != 0 {
		t.Errorf("%+v", held)
	}
}

// What this host's own resolver tells its clients gives names: it need not ask for it.
func TestTransitNamesFromOwnResolver(t *testing.T) {
	g := newGateway(t, false, false, true, Config{CanDrop: func() bool { return true }})
	a := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA))
	a.Answer = append(a.Answer, &dns.A{Hdr: dns.RR_Header{Name: "www.example.com.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: g.peer.Addr().AsSlice()})
	msg, err := a.Pack()
	if err != nil {
		t.Fatal(err)
	}
	tell := func(from netip.AddrPort) {
		u := wire.UDPProbe{Src: from, Dst: netip.MustParseAddrPort("192.168.1.5:5353"), TTL: 64, Payload: msg}
		p := g.captured(u.AppendTo(nil), capture.Outgoing)
		g.step(&p)
	}
	known := func() []names.Name { return g.e.names.Of(g.now, g.peer.Addr()) }
	tell(netip.MustParseAddrPort("198.51.100.53:53"))
	if n := known(); len(n) > 0 {
		t.Errorf("a stranger's answer that nobody asked for is believed: %v", n)
	}
	tell(netip.AddrPortFrom(routerAddrs[0], 53))
	if n := known(); len(n) != 1 || n[0].Asked() != "www.example.com" {
		t.Errorf("%v", n)
	}
}

// datagram shows one at both taps and answers what is asked.
func (g *gateway) datagram(outgoing bool, payload []byte) {
	first := trace.FlowKey{Proto: trace.UDP, Src: g.lan, Dst: g.peer}
	answers := trace.FlowKey{Proto: trace.UDP, Src: g.peer, Dst: g.me}
	show := func(client netip.AddrPort, link int, outgoing, leaves bool) {
		u := wire.UDPProbe{Src: client, Dst: g.peer, TTL: 64, TOS: g.tos | 2, FlowLabel: g.label, ID: 9, Payload: payload}
		if !outgoing {
			u.Src, u.Dst, u.TTL = g.peer, client, g.ttl
		}
		d := capture.Incoming
		if leaves {
			d = capture.Outgoing
		}
		p := g.captured(u.AppendTo(nil), d)
		p.Interface = link
		g.step(&p)
	}
	if outgoing {
		show(g.lan, 1, true, false)
		show(g.me, 2, true, true)
	} else {
		show(g.me, 2, false, false)
		show(g.lan, 1, false, true)
	}
	for _, k := range g.e.Places() {
		if in := turned(k); in == first || in == answers {
			g.e.Place(g.now, k, first, answers)
		} else {
			g.e.Untracked(g.now, k)
		}
	}
	if n := len(g.e.Hearings()); n > 0 {
		g.t.Errorf("asked about %d sockets", n)
	}
	g.step(nil)
}

// talk is a question and its answer, so many times.
func (g *gateway) talk(times int) {
	for range times {
		g.datagram(true, make([]byte, 60))
		g.now = g.now.Add(rtt)
		g.datagram(false, make([]byte, 900))
	}
}

// Of UDP the first that is seen to speak is the client where nothing else tells. No socket
// is asked for what it hears: it is another host's.
func TestTransitUDP(t *testing.T) {
	for _, test := range []struct {
		name                    string
		v6, translated, tracked bool
	}{
		{"IPv4, masqueraded", false, true, true},
		{"IPv6, plain", true, false, true},
		{"IPv4, plain, not tracked", false, false, false},
	} {
		g := newGateway(t, test.v6, test.translated, test.tracked, Config{CanDrop: func() bool { return true }})
		g.w.Params.UDPProbe = probe.UDPAlways
		g.talk(8)
		all := g.run()
		if len(all) != 1 {
			t.Fatalf("%s: %v", test.name, all)
		}
		all[0].Destination = &trace.Destination{By: trace.DestinationByPassive} // TCP tells, UDP does not
		g.check(test.name, all)
	}
}

// A tuple of UDP that was silent may be another client's, which is asked for again.
func TestTransitUDPTupleReused(t *testing.T) {
	g := newGateway(t, false, true, true, Config{CanDrop: func() bool { return true }})
	g.w.Params.UDPProbe, g.w.Retrace = probe.UDPAlways, 10*time.Second
	g.talk(8)
	if all := g.run(); len(all) != 1 || all[0].Flow.Src != g.lan {
		t.Fatal(all)
	}
	g.after(40 * time.Second)
	g.lan = netip.MustParseAddrPort("192.168.1.6:60606")
	g.talk(3)
	if all := g.run(); len(all) != 1 || all[0].Flow.Src != g.lan {
		t.Fatal(all)
	}
}

// A flood of first packets is asked nothing about.
func TestTransitFlood(t *testing.T) {
	for _, translated := range []bool{true, false} {
		g := newGateway(t, false, translated, true, Config{})
		for range 100 {
			g.me = netip.AddrPortFrom(g.me.Addr(), g.me.Port()+1)
			g.rig.out(segment{flags: wire.SYN, options: synOptions})
		}
		if n := len(g.e.Places()); n > 0 {
			t.Errorf("%d questions", n)
		}
	}
}

// An error about a probe that the rule which drops them does not know comes to the client:
// its trace ends, and there is no other one of its flow.
func TestTransitHeardAnyway(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(quote []byte)
		ends   bool
	}{
		{"as sent", func([]byte) {}, false},
		{"bytes of the identification swapped", func(b []byte) { b[4], b[5] = b[5], b[4] }, false},
		{"another identification", func(b []byte) { b[4] ^= 1 }, true},
		{"another number", func(b []byte) { b[24] ^= 1 }, true},
		{"another source", func(b []byte) { b[15] ^= 1 }, false}, // connection tracking knows no such flow
		{"another length: a packet of the client's", func(b []byte) { b[3] += 100 }, false},
	} {
		g := newGateway(t, false, true, true, Config{CanDrop: func() bool { return true }})
		g.w.Retrace = time.Second
		g.handshake()
		g.exchange()
		if len(g.packets) == 0 {
			t.Fatal("no probe")
		}
		quote := append([]byte(nil), g.packets[0]...)
		test.change(quote)
		g.timeExceeded(1, quote)
		all := g.traces()
		ended := len(all) == 1 && all[0].Stop == trace.StopRefused && all[0].Reason == trace.ReasonCapability
		if ended != test.ends {
			t.Errorf("%s: %v", test.name, all)
		}
		if n := len(g.probes); test.ends {
			g.after(3 * time.Second)
			g.exchange()
			if len(g.probes) != n {
				t.Errorf("%s: probed again", test.name)
			}
		}
	}
}

// When the destination answers although it should be farther, nothing more goes that far,
// also when nearer routers answer later.
func TestTransitNearer(t *testing.T) {
	g := newGateway(t, false, true, true, Config{CanDrop: func() bool { return true }})
	g.handshake()
	g.exchange() // it seems to be at 8, and is at 4
	for range 2 {
		for i, p := range g.probes {
			if b := g.packets[i]; b != nil && (p.TTL == 2 || p.TTL == 3) {
				g.packets[i] = nil
				g.timeExceeded(int(p.TTL), b)
			}
		}
		g.after(rtt)
	}
	n := len(g.probes)
	if high := g.probes[n-1].TTL; high < 4 {
		t.Fatalf("no probe beyond TTL %d before", high)
	}
	g.in(segment{flags: wire.ACK})
	for range 100 {
		g.routers(4)
		g.after(50 * time.Millisecond)
	}
	for _, p := range g.probes[n:] {
		if p.TTL > 3 {
			t.Errorf("a probe of TTL %d", p.TTL)
		}
	}
	if all := g.traces(); len(all) != 1 || all[0].Stop != trace.StopFence || all[0].Reached {
		t.Errorf("%v", all)
	}
}
