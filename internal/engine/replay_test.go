package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/service"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// again is what a file of these packets gives.
type again struct {
	traces []*trace.Trace
	flows  []*trace.Flow
	e      *Engine
}

// replay plays packets to an engine as Replay does; of what they say of their ways
// nothing is left when blind.
func replay(packets []capture.Packet, blind bool, sel service.Selector, local ...netip.Prefix) (out again) {
	w := &Watch{Policy: Policy{Params: ReplayParams(probe.Defaults()), Every: -1}, Selector: sel}
	now := packets[0].Time
	out.e = New(now, Config{Rate: 1000, HopRate: 200, Replay: true, Local: Local(local), Seed: [32]byte{2}})
	out.e.Add(now, w)
	due := func(until time.Time) {
		for at, ok := out.e.Due(); ok && !at.After(until); at, ok = out.e.Due() {
			if at.After(now) {
				now = at
			}
			out.e.Step(now, nil)
		}
		if until.After(now) {
			now = until
		}
	}
	for _, p := range packets {
		if blind {
			p.Direction = 0
		}
		due(p.Time)
		out.e.Step(now, []capture.Packet{p})
	}
	out.e.Remove(now, w, trace.StopCancelled)
	for _, rec := range out.e.Records() {
		switch ev := rec.Event.(type) {
		case *trace.Trace:
			out.traces = append(out.traces, ev)
		case *trace.Flow:
			out.flows = append(out.flows, ev)
		}
	}
	return out
}

// shape is what a trace found, in one line.
func shape(tr *trace.Trace) string {
	s := fmt.Sprintf("%v %v %v", tr.Flow.FlowKey, tr.Stop, tr.Complete)
	if tr.Destination != nil {
		s += fmt.Sprintf(" %d by %v", tr.Destination.TTL, tr.Destination.By)
	}
	for _, h := range tr.Hops {
		s += fmt.Sprintf("; %d:%d", h.TTL, h.Sent)
		for _, r := range h.Replies {
			s += fmt.Sprintf(" %v %v", r.Addr, r.RTT)
		}
	}
	return s
}

func shapes(all []*trace.Trace) (out []string) {
	for _, tr := range all {
		out = append(out, shape(tr))
	}
	return out
}

var everything = service.Selector{All: true}

// traced is a file of one traced TCP flow of four hops, and what was found in it then.
func traced(t *testing.T, v6 bool) (*rig, []*trace.Trace) {
	r := newRig(t, v6, 4)
	r.handshake()
	r.exchange()
	for range 200 {
		r.after(5 * time.Millisecond)
		r.routers(4)
		r.after(45 * time.Millisecond)
		for i, b := range r.packets {
			if b != nil && int(r.probes[i].TTL) >= 4 {
				r.packets[i] = nil
				r.in(segment{flags: wire.ACK})
			}
		}
		if n := len(r.e.runs); n == 0 {
			break
		}
	}
	live := r.traces()
	if len(live) != 1 || live[0].Stop != trace.StopDestination || !live[0].Complete {
		t.Fatalf("%v", shapes(live))
	}
	r.after(time.Second)
	r.out(segment{flags: wire.ACK | wire.FIN})
	return r, live
}

// What a file of a trace gives is what was found then, whether or not it tells the ways.
func TestReplay(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		r, live := traced(t, v6)
		for _, blind := range []bool{false, true} {
			got := replay(r.log, blind, r.w.Selector)
			if !slices.Equal(shapes(got.traces), shapes(live)) {
				t.Errorf("blind %v: %v, want %v", blind, shapes(got.traces), shapes(live))
			}
			if len(got.flows) != 1 || got.flows[0].State != trace.FlowMatched || got.flows[0].Tuple.Direction != trace.Out {
				t.Errorf("%+v", got.flows)
			}
			if len(got.e.runs)+len(got.e.runsTo)+len(got.e.Questions())+len(got.e.Scales())+len(got.e.Hearings()) != 0 {
				t.Error("something is left")
			}
		}
	}
}

// tcpOf decodes a packet of the log.
func tcpOf(p capture.Packet) (ip wire.Packet, s wire.TCP, ok bool) {
	if ip.Decode(p.Data, p.Len) != nil || ip.Proto != protoTCP || s.Decode(ip.Transport, ip.TransportLen) != nil {
		return ip, s, false
	}
	return ip, s, true
}

// edited is the log with each probe as change leaves it; nil takes it out.
func edited(r *rig, change func(p *wire.TCPSegment) bool) []capture.Packet {
	var out []capture.Packet
	for _, p := range r.log {
		ip, s, ok := tcpOf(p)
		if ok && p.Direction == capture.Outgoing && ip.TTL < 64 {
			seg := wire.TCPSegment{TCPProbe: wire.TCPProbe{
				Src: r.me, Dst: r.peer, TTL: ip.TTL, TOS: ip.TOS, FlowLabel: ip.FlowLabel, ID: ip.ID, Seq: s.Seq, Ack: s.Ack,
				Flags: s.Flags, Window: s.Window, Timestamp: true, TSVal: s.Options.TSVal, TSEcr: s.Options.TSEcr,
			}}
			if !change(&seg) {
				continue
			}
			p.Data = seg.AppendTo(nil)
			p.Len = len(p.Data)
		}
		out = append(out, p)
	}
	return out
}

// Nothing but a probe that is in the file makes a hop.
func TestReplayNeedsProbes(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		r, _ := traced(t, v6)
		for name, change := range map[string]func(p *wire.TCPSegment) bool{
			"not in the file":    func(*wire.TCPSegment) bool { return false },
			"the flow's own TTL": func(p *wire.TCPSegment) bool { p.TTL = 64; return true },
			"with payload":       func(p *wire.TCPSegment) bool { p.Payload = []byte{1}; return true },
			"a FIN":              func(p *wire.TCPSegment) bool { p.Flags |= wire.FIN; return true },
			"another number":     func(p *wire.TCPSegment) bool { p.Seq -= 5000 + p.Seq%997; return true },
			"another length":     func(p *wire.TCPSegment) bool { p.Options = []byte{1, 1, 1, 1}; return true },
		} {
			for _, tr := range replay(edited(r, change), false, r.w.Selector).traces {
				if !strings.HasPrefix(name, "another") {
					t.Errorf("%s: %s", name, shape(tr))
				}
				for _, h := range tr.Hops {
					for _, reply := range h.Replies {
						if reply.Kind != trace.TCPAck {
							t.Errorf("%s: %s", name, shape(tr))
						}
					}
				}
			}
		}
	}
}

// The flow's own acknowledgements may come with other TTLs where they are captured far from
// who sent them. They are no probes, and neither is what is just as new.
func TestReplayOtherWay(t *testing.T) {
	r := newRig(t, false, 4)
	r.handshake()
	r.exchange()
	for i := range 5 {
		r.now = r.now.Add(2 * time.Second)
		r.exchange()
		last := len(r.log) - 1
		r.log[last].Data = slices.Clone(r.log[last].Data)
		r.log[last].Data[8] = byte(63 - i) // the TTL
	}
	packets := slices.DeleteFunc(r.log, func(p capture.Packet) bool {
		ip, _, _ := tcpOf(p)
		return p.Direction == capture.Outgoing && ip.TTL < 50
	})
	if got := replay(packets, false, everything); len(got.flows) != 1 || len(got.traces) != 0 {
		t.Errorf("%d flows, %v", len(got.flows), shapes(got.traces))
	}
}

// Of two probes with one sequence number nobody knows which one a quote is about.
func TestReplayTwins(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, newID := range []bool{false, true} {
			r, _ := traced(t, v6)
			var packets []capture.Packet
			for _, p := range edited(r, func(p *wire.TCPSegment) bool { return true }) {
				packets = append(packets, p)
				if ip, _, ok := tcpOf(p); ok && p.Direction == capture.Outgoing && ip.TTL < 64 {
					twin := edited(&rig{me: r.me, peer: r.peer, log: []capture.Packet{p}}, func(p *wire.TCPSegment) bool {
						p.TTL += 20
						if newID {
							p.ID++
						}
						return true
					})[0]
					packets = append(packets, twin)
				}
			}
			for _, tr := range replay(packets, false, r.w.Selector).traces {
				t.Errorf("IPv6 %v, other ID %v: %s", v6, newID, shape(tr))
			}
		}
	}
}

// A capture of all interfaces shows a packet wherever it passes. That is no answer, no
// retransmission and no probe.
func TestReplayCopies(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		r, live := traced(t, v6)
		var packets []capture.Packet
		for _, p := range r.log {
			again := p
			again.Time = p.Time.Add(30 * time.Microsecond)
			packets = append(packets, p, again)
		}
		got := replay(packets, true, r.w.Selector)
		if !slices.Equal(shapes(got.traces), shapes(live)) {
			t.Errorf("%v, want %v", shapes(got.traces), shapes(live))
		}
		if o := got.traces[0].Observed; o.Retransmits != 0 || o.BytesOut != live[0].Observed.BytesOut {
			t.Errorf("%+v, want %+v", o, live[0].Observed)
		}
	}
}

// An application's repeated acknowledgements, copied, prove no destination.
func TestReplayCopiesProveNothing(t *testing.T) {
	r, _ := traced(t, false)
	var packets []capture.Packet
	for _, p := range r.log {
		if p.Direction == capture.Incoming {
			if _, s, ok := tcpOf(p); ok && s.PayloadLen == 0 && s.Flags == wire.ACK {
				continue // without the destination's answers
			}
		}
		packets = append(packets, p)
	}
	// Beside each probe that may reach an acknowledgement of the flow passes, at two taps.
	for i := 0; i < len(packets); i++ {
		if ip, _, ok := tcpOf(packets[i]); ok && packets[i].Direction == capture.Outgoing && ip.TTL >= 4 && ip.TTL < 64 {
			ack := wire.TCPSegment{TCPProbe: wire.TCPProbe{
				Src: r.peer, Dst: r.me, TTL: r.ttl, Seq: r.ack, Ack: r.seq - 1, Flags: wire.ACK, Window: uint16(600 + i),
				Timestamp: true, TSVal: r.ts2 + uint32(i), TSEcr: r.tsval - 1, ID: uint16(i),
			}}
			p := packets[i]
			p.Direction, p.Data = capture.Incoming, ack.AppendTo(nil)
			p.Len, p.Time = len(p.Data), p.Time.Add(rtt)
			q := p
			q.Time = p.Time.Add(50 * time.Microsecond)
			packets = slices.Insert(packets, i+1, p, q)
		}
	}
	for _, tr := range replay(packets, false, r.w.Selector).traces {
		if tr.Reached {
			t.Error(shape(tr))
		}
	}
}

// The near end is the one that is said to be, else the client.
func TestReplayWays(t *testing.T) {
	r, _ := traced(t, false)
	server := netip.PrefixFrom(r.peer.Addr(), 32)
	got := replay(r.log, true, everything, server)
	if len(got.flows) != 1 || got.flows[0].Tuple.Src != r.peer || got.flows[0].Tuple.Direction != trace.In || len(got.traces) != 0 {
		t.Errorf("%+v, %v", got.flows, shapes(got.traces))
	}
	if got := replay(r.log, true, everything, netip.MustParsePrefix("10.0.0.0/8")); len(got.flows) != 0 {
		t.Errorf("%+v", got.flows)
	}
	if got := replay(r.log, true, everything, netip.PrefixFrom(r.me.Addr(), 32)); len(got.traces) != 1 {
		t.Errorf("%v", shapes(got.traces))
	}
	// Joined late, at a packet of the server's.
	first := slices.IndexFunc(r.log, func(p capture.Packet) bool {
		_, s, ok := tcpOf(p)
		return ok && p.Direction == capture.Incoming && s.PayloadLen > 0
	})
	got = replay(r.log[first:], true, everything)
	if len(got.flows) != 1 || got.flows[0].Tuple.Src != r.me || got.flows[0].Tuple.Direction != trace.Out {
		t.Errorf("%+v", got.flows)
	}
	// For somebody else, past whoever captured.
	var past []capture.Packet
	for _, p := range r.log {
		p.Direction = capture.Foreign
		past = append(past, p)
	}
	if got := replay(past, false, everything); len(got.traces) != 1 || got.flows[0].Tuple.Src != r.me {
		t.Errorf("%+v, %v", got.flows, shapes(got.traces))
	}
}

// The same addresses and ports once more are another flow.
func TestReplayNextConnection(t *testing.T) {
	r, live := traced(t, false)
	packets := slices.Clone(r.log)
	for _, p := range r.log {
		p.Time = p.Time.Add(time.Minute)
		packets = append(packets, p)
	}
	got := replay(packets, true, everything)
	if len(got.flows) != 2 || len(got.traces) != 2 || got.e.stats.Flows.Matched != 2 {
		t.Fatalf("%d flows, %v", len(got.flows), shapes(got.traces))
	}
	if a, b := shape(got.traces[0]), shape(got.traces[1]); a != b || a != shape(live[0]) {
		t.Errorf("%s and %s", a, b)
	}
}

// A probe at a flow's end that was not seen for long counts, though its number is beyond
// what is known.
func TestReplayAfterSilence(t *testing.T) {
	r, _ := traced(t, false)
	var packets []capture.Packet
	for _, p := range edited(r, func(p *wire.TCPSegment) bool { p.Seq += 1 << 20; return true }) {
		ip, _, ok := tcpOf(p)
		if late := p.Time.Sub(r.log[0].Time) > 2*rtt+time.Millisecond; late && (!ok || p.Direction == capture.Incoming || ip.TTL == 64) {
			continue
		} else if ok && ip.TTL < 64 && p.Direction == capture.Outgoing {
			p.Time = p.Time.Add(time.Minute)
		}
		packets = append(packets, p)
	}
	slices.SortStableFunc(packets, func(a, b capture.Packet) int { return a.Time.Compare(b.Time) })
	got := replay(packets, false, everything)
	if len(got.traces) != 1 || len(got.traces[0].Hops) < 3 {
		t.Errorf("%v", shapes(got.traces))
	}
}

// A UDP flow's probes are told by their payload and TTL.
func TestReplayUDP(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		r := newUDPRig(t, v6, 9)
		r.quic()
		r.talk(2, 100, 1200)
		r.hears(false)
		for range 30 {
			r.after(20 * time.Millisecond)
			r.routers(9)
		}
		r.after(3 * time.Second)
		live := r.traces()
		if len(live) != 1 || live[0].Stop != trace.StopFence || len(live[0].Hops) != 7 {
			t.Fatalf("%v", shapes(live))
		}
		for _, blind := range []bool{false, true} {
			got := replay(r.log, blind, r.w.Selector)
			if !slices.Equal(shapes(got.traces), shapes(live)) {
				t.Errorf("blind %v: %v, want %v", blind, shapes(got.traces), shapes(live))
			}
		}
		own := slices.Clone(r.log)
		for i := range own {
			own[i].Data = slices.Clone(own[i].Data)
			if own[i].Direction == capture.Outgoing {
				own[i].Data[ttlAt(v6)] = 64 // the application's own, then
			}
		}
		for _, tr := range replay(own, false, r.w.Selector).traces {
			t.Errorf("the flow's own TTL: %s", shape(tr))
		}
	}
}

func ttlAt(v6 bool) int {
	if v6 {
		return 7
	}
	return 8
}

// A file that goes back in time is another capture; traces end where it does.
func TestReplayRewind(t *testing.T) {
	r, _ := traced(t, false)
	half := slices.IndexFunc(r.log, func(p capture.Packet) bool {
		ip, _, ok := tcpOf(p)
		return ok && ip.TTL == 3
	}) + 1
	w := &Watch{Policy: Policy{Params: ReplayParams(probe.Defaults()), Every: -1}, Selector: r.w.Selector}
	now := r.log[0].Time
	e := New(now, Config{Rate: 1000, HopRate: 200, Replay: true})
	e.Add(now, w)
	for _, p := range r.log[:half] {
		now = p.Time
		e.Step(now, []capture.Packet{p})
	}
	e.Rewind(now, now.Add(-time.Hour))
	tr, _ := e.Records()[1].Event.(*trace.Trace)
	if tr == nil || tr.Stop != trace.StopLostSync || e.Held(now) != (Held{}) || len(e.expected)+e.listening != 0 {
		t.Errorf("%+v, %+v", tr, e.Held(now))
	}
	if up := e.Stats(now.Add(-time.Hour)).Uptime; up < 0 || up > time.Minute {
		t.Errorf("up for %v", up)
	}
}

// How a flow of one side, or that only began, is reported.
func TestReplayShown(t *testing.T) {
	r, _ := traced(t, false)
	var packets []capture.Packet
	for _, p := range r.log {
		if p.Direction == capture.Outgoing {
			packets = append(packets, p)
		}
	}
	if got := replay(packets, true, everything); len(got.flows) != 1 || len(got.traces) != 0 {
		t.Errorf("one side: %+v, %v", got.flows, shapes(got.traces))
	}
	if got := replay(packets[:1], true, everything); len(got.flows) != 0 {
		t.Errorf("a SYN alone: %+v", got.flows)
	}
}

// Probes that come before it is known whether their flow is selected count as soon as it
// is, and not at all when it is not.
func TestReplayUndecided(t *testing.T) {
	r, live := traced(t, false)
	if got := replay(r.log, false, everything); !slices.Equal(shapes(got.traces), shapes(live)) || len(got.flows) != 1 {
		t.Errorf("%v and %d flows, want %v", shapes(got.traces), len(got.flows), shapes(live))
	}
	got := replay(r.log, false, service.Selector{Domains: nobody{}})
	if s := got.e.stats; len(got.traces)+len(got.flows) != 0 || s.Probes.Sent+s.Replies.Matched+s.Traces.Done+s.Traces.Started != 0 || len(s.Traces.ByStop) != 0 {
		t.Errorf("%v, %+v", shapes(got.traces), s)
	}
}

// nobody is a name that no flow has.
type nobody struct{}

// Match implements service.Domains.
func (nobody) Match(string) (string, bool) { return "", false }

// However long probes follow each other, no trace gets longer than a live one, and what
// is held is given back.
func TestReplayBounds(t *testing.T) {
	r, _ := traced(t, false)
	probes := slices.DeleteFunc(edited(r, func(p *wire.TCPSegment) bool { return p.TTL == 3 }), func(p capture.Packet) bool {
		ip, _, ok := tcpOf(p)
		return !ok || p.Direction != capture.Outgoing || ip.TTL != 3
	})
	last := len(r.log) - 1 // the FIN
	packets := slices.Clone(r.log[:last])
	for i := range 6000 {
		p := edited(&rig{me: r.me, peer: r.peer, log: probes[:1]}, func(p *wire.TCPSegment) bool {
			p.Seq, p.ID, p.TTL = r.seq-10-uint32(i%3000), uint16(i), uint8(1+i%3)
			return true
		})[0]
		p.Time = packets[last-1].Time.Add(time.Duration(i) * 100 * time.Millisecond)
		packets = append(packets, p)
	}
	got := replay(packets, false, r.w.Selector)
	if len(got.traces) < 3 || got.e.replayed != 0 || got.e.stats.Probes.Sent < 6000 {
		t.Fatalf("%d traces, %d held, %d probes", len(got.traces), got.e.replayed, got.e.stats.Probes.Sent)
	}
	for _, tr := range got.traces {
		sent := 0
		for _, h := range tr.Hops {
			sent += h.Sent
		}
		if tr.End.Sub(tr.Start) > hardLimit+patience || sent > maxSeen {
			t.Errorf("%d probes in %v", sent, tr.End.Sub(tr.Start))
		}
	}
}

// Where no time passes, what is awaited stays bounded.
func TestReplayFrozen(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	e := New(at, Config{Rate: 1000, HopRate: 200, Replay: true})
	e.Add(at, &Watch{Policy: Policy{Params: ReplayParams(probe.Defaults())}, Selector: everything})
	e.table = flow.NewTable(8, flowIdle)
	e.table.OnRemove = e.removed
	r := rig{me: netip.MustParseAddrPort("192.0.2.1:40000"), peer: netip.MustParseAddrPort("203.0.113.7:443")}
	for i := range 3 * maxExpected {
		seg := func(out bool, flags wire.TCPFlags) {
			s := wire.TCPSegment{TCPProbe: wire.TCPProbe{Src: r.peer, Dst: r.me, TTL: 60, Seq: 5, Ack: 9, Flags: flags, Window: 9}}
			client := netip.AddrPortFrom(r.me.Addr(), uint16(1024+i))
			s.Dst = client
			if out {
				s.Src, s.Dst = client, r.peer
			}
			b := s.AppendTo(nil)
			e.Step(at, []capture.Packet{{Time: at, Interface: 1, Data: b, Len: len(b)}})
		}
		seg(true, wire.SYN)
		seg(false, wire.SYN|wire.ACK)
		seg(true, wire.ACK)
	}
	if len(e.expected) > maxExpected+maxWords || e.listening > 8 {
		t.Errorf("%d are expected, %d heard", len(e.expected), e.listening)
	}
}
