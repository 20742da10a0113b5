package engine

import (
	"testing"
	"time"

	"net/netip"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// decodeUDP is what of a probe in a UDP flow can be held against that flow's packets.
func decodeUDP(t *testing.T, ip *wire.Packet) wire.TCPProbe {
	t.Helper()
	var u wire.UDP
	if err := u.Decode(ip.Transport, ip.TransportLen); err != nil {
		t.Fatal(err)
	}
	if u.PayloadLen >= 21 || u.PayloadLen == 0 || u.Payload[0] != 5 {
		t.Errorf("a probe's payload is % x", u.Payload)
	}
	return wire.TCPProbe{
		Src: netip.AddrPortFrom(ip.Src, u.SrcPort), Dst: netip.AddrPortFrom(ip.Dst, u.DstPort), TTL: ip.TTL, TOS: ip.TOS,
		FlowLabel: ip.FlowLabel, ID: ip.ID,
	}
}

// udpRig is a rig whose flow is a UDP one.
type udpRig struct{ *rig }

func newUDPRig(t *testing.T, v6 bool, distance int) udpRig {
	r := udpRig{newRig(t, v6, distance)}
	r.w.Params.MaxSilent = 0
	return r
}

func (r udpRig) send(outgoing bool, payload []byte) {
	u := wire.UDPProbe{Src: r.me, Dst: r.peer, TTL: 64, TOS: r.tos | 2, FlowLabel: r.label, ID: 9, Payload: payload}
	d := capture.Outgoing
	if !outgoing {
		u.Src, u.Dst, u.TTL, d = r.peer, r.me, r.ttl, capture.Incoming
	}
	p := r.captured(u.AppendTo(nil), d)
	r.step(&p)
}

// talk is a question and its answer, so many times.
func (r udpRig) talk(times, question, answer int) {
	for range times {
		r.send(true, make([]byte, question))
		r.now = r.now.Add(rtt)
		r.send(false, make([]byte, answer))
	}
}

// quic is a first exchange that looks like QUIC's.
func (r udpRig) quic() {
	initial := make([]byte, 1200)
	copy(initial, []byte{0xc3, 0, 0, 0, 1, 8})
	r.send(true, initial)
	r.now = r.now.Add(rtt)
	r.send(false, initial)
	r.talk(1, 60, 1200)
}

func (r udpRig) hears(yes bool) {
	what := HearsNothing
	if yes {
		what = HearsErrors
	}
	r.hearsWhat(what)
}

func (r udpRig) hearsWhat(what Hearing) {
	for _, q := range r.e.Hearings() {
		r.e.Hears(r.now, q.Key, what)
	}
	r.step(nil)
}

func (r udpRig) highest() (ttl int) {
	for _, p := range r.probes {
		ttl = max(ttl, int(p.TTL))
	}
	return ttl
}

// The path of a QUIC flow is found up to two hops before where its peer seems to be,
// no probe goes farther, and each bears the flow's ends, DSCP and label.
func TestUDPPath(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		r := newUDPRig(t, v6, 9)
		r.quic()
		if len(r.probes) != 0 {
			t.Fatal("probed before it is known whether the socket hears of it")
		}
		r.hears(false)
		for range 40 {
			r.routers(9)
			r.after(50 * time.Millisecond)
		}
		all := r.traces()
		if len(all) != 1 || all[0].Stop != trace.StopFence || len(all[0].Hops) != 7 || all[0].Reached || all[0].Complete || all[0].Mixed {
			t.Fatalf("%+v", all)
		}
		for _, h := range all[0].Hops {
			if len(h.Replies) == 0 || len(h.Replies[0].Changes) > 0 {
				t.Errorf("TTL %d: %+v", h.TTL, h)
			}
		}
		if r.highest() != 7 {
			t.Errorf("probed up to TTL %d", r.highest())
		}
		for _, p := range r.probes {
			if p.Src != r.me || p.Dst != r.peer || p.TOS != 0x28 || p.FlowLabel != r.label {
				t.Errorf("%+v", p)
			}
		}
	}
}

// damaged reports whether the n-th probe is one that no host takes in.
func (r udpRig) damaged(n int) bool {
	var ip wire.Packet
	var u wire.UDP
	b := r.packets[n]
	if b == nil || ip.Decode(b, len(b)) != nil || u.Decode(ip.Transport, ip.TransportLen) != nil {
		r.t.Fatalf("% x", b)
	}
	return u.Checksum == 0 || ip.TransportLen > u.Len
}

// answer is routers for a path on which damaged probes do not come beyond a TTL.
func (r udpRig) answer(distance, damagedUpTo int) {
	for i, b := range r.packets {
		if ttl := int(r.probes[i].TTL); b != nil && ttl < distance && (ttl <= damagedUpTo || !r.damaged(i)) {
			r.packets[i] = nil
			r.timeExceeded(ttl, b)
		}
	}
}

// The peer's TTL tells of a distance that is too long by what an uncommon initial value, or
// a longer way back of which no router's answer tells, makes of it. Then the probes that come
// to the peer are ones that it does not take in.
func TestUDPMisled(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for ttl, distance := range map[uint8]int{
			54: 7, // 60 when it began
			52: 7, // the same, and two routers more on its way
			59: 2,
			95: 6, // 100
			27: 4, // 30
			61: 2, // 64, and two routers more
			57: 6,
		} {
			r := newUDPRig(t, v6, 64-int(ttl)+1)
			r.quic()
			r.hears(false)
			came := 0
			for range 100 {
				for i, b := range r.packets {
					if b == nil || int(r.probes[i].TTL) < distance {
						continue
					}
					if came++; !r.damaged(i) {
						t.Errorf("TTL %d at first sight: a probe of TTL %d comes to the application at %d", ttl, r.probes[i].TTL, distance)
					}
					r.packets[i], r.probes[i].TTL = nil, 0
				}
				r.answer(distance, 99)
				r.after(50 * time.Millisecond)
			}
			all := r.traces()
			if len(all) != 1 || all[0].Stop != trace.StopFence || came == 0 {
				t.Errorf("TTL %d at first sight: %d probes came to the peer, %+v", ttl, came, all)
			}
		}
	}
}

// Where damaged probes do not come through, whole ones show the path; one loss more or less
// does not bring those about.
func TestUDPWholeOnly(t *testing.T) {
	const distance, fence = 12, 10
	for _, test := range []struct{ upTo, hops, whole int }{
		{99, fence, 0},        // they do
		{2, fence, fence - 2}, // they do not from the third router on
		{0, fence, fence},
		{fence - 2, fence - 2, 0}, // where a whole one might come to the peer
	} {
		r := newUDPRig(t, false, distance)
		r.ttl = 128 - distance + 1
		r.quic()
		r.hears(false)
		for range 300 {
			r.answer(distance, test.upTo)
			r.after(50 * time.Millisecond)
		}
		all := r.traces()
		if len(all) != 1 {
			t.Fatalf("%+v", all)
		}
		hops, whole := 0, 0
		for _, h := range all[0].Hops {
			if len(h.Replies) == 0 {
				continue
			}
			hops++
			if h.Replies[0].Exchange.ProbeLen == 20+8+probe.PayloadLen {
				whole++
			}
		}
		if hops != test.hops || whole != test.whole || r.highest() > fence {
			t.Errorf("damaged up to %d: %d hops, %d of them by whole probes, up to TTL %d", test.upTo, hops, whole, r.highest())
		}
	}
}

// Where hops are silent no probe goes more than two beyond the last that answered: what
// the peer's TTL says may be wrong.
func TestUDPFenceFollowsAnswers(t *testing.T) {
	r := newUDPRig(t, false, 20)
	r.quic()
	r.hears(false)
	for range 200 {
		r.routers(4) // 1 to 3 answer
		r.after(50 * time.Millisecond)
	}
	if r.highest() != 5 {
		t.Errorf("probed up to TTL %d, the last that answered was 3", r.highest())
	}
	if all := r.traces(); len(all) != 1 || all[0].Stop != trace.StopFence {
		t.Errorf("%+v", all)
	}
}

// The way back is longer than the way there: the peer's TTL tells of a distance at which
// it would see probes. The routers' answers tell of the same detour. More than one is likely
// to make says that a router began with another number.
func TestUDPFenceOfALongerWayBack(t *testing.T) {
	for _, test := range []struct{ detour, highest int }{{0, 7}, {1, 6}, {2, 5}, {4, 3}, {30, 7}} {
		r := newUDPRig(t, false, 9) // by its TTL
		r.quic()
		r.hears(false)
		r.detour = test.detour
		for range 60 {
			r.routers(9 - test.detour%30)
			r.after(50 * time.Millisecond)
		}
		if all := r.traces(); len(all) != 1 || all[0].Stop != trace.StopFence || r.highest() != test.highest {
			t.Errorf("%d hops longer: probed up to TTL %d, want %d; %+v", test.detour, r.highest(), test.highest, all)
		}
	}
}

// A distance that TCP has proved says more than an inbound TTL.
func TestUDPFenceFromTCP(t *testing.T) {
	r := newUDPRig(t, false, 20)
	r.e.learnDistance(r.now, r.peer.Addr(), 4)
	r.quic()
	r.hears(false)
	for range 100 {
		r.routers(10)
		r.after(50 * time.Millisecond)
	}
	if r.highest() != 3 {
		t.Errorf("probed up to TTL %d, the destination is at 4", r.highest())
	}
}

func TestUDPRefusals(t *testing.T) {
	const waits = 255
	for name, test := range map[string]struct {
		change func(r udpRig)
		play   func(r udpRig)
		want   trace.Reason // 0: probed; waits: neither
	}{
		"QUIC":                    {nil, func(r udpRig) { r.quic(); r.hears(false) }, 0},
		"its socket hears errors": {nil, func(r udpRig) { r.quic(); r.hears(true) }, trace.ReasonRecvErr},
		"question and answer":     {nil, func(r udpRig) { r.talk(9, 40, 100); r.hears(false) }, trace.ReasonProtocol},
		"the same, always":        {func(r udpRig) { r.w.Params.UDPProbe = probe.UDPAlways }, func(r udpRig) { r.talk(2, 40, 100); r.hears(false) }, 0},
		"QUIC, off":               {func(r udpRig) { r.w.Params.UDPProbe = probe.UDPOff }, func(r udpRig) { r.quic(); r.hears(false) }, trace.ReasonUDPOff},
		"a stream": {nil, func(r udpRig) {
			r.send(true, make([]byte, 99))
			r.send(true, make([]byte, 99))
			r.talk(3, 99, 99)
			r.hears(false)
		}, 0},
		"only this end speaks":    {nil, func(r udpRig) { r.mutter() }, trace.ReasonNoInboundTTL},
		"and is answered at last": {nil, func(r udpRig) { r.mutter(); _ = r.traces(); r.quic(); r.talk(3, 99, 99); r.hears(false) }, 0},
		"questions in a row to a DNS server": {func(r udpRig) { *r.rig = *newRigOf(r.t, false, 9, Config{}, netip.MustParseAddrPort("203.0.113.7:53")) }, func(r udpRig) {
			for range 6 {
				r.send(true, make([]byte, 40))
				r.send(true, make([]byte, 40))
				r.talk(1, 40, 100)
			}
			r.hears(false)
		}, trace.ReasonProtocol},
		"one exchange":            {func(r udpRig) { r.w.Params.UDPProbe = probe.UDPAlways }, func(r udpRig) { r.talk(1, 99, 99); r.hears(false) }, waits},
		"little came":             {func(r udpRig) { r.w.Params.UDPProbe = probe.UDPAlways }, func(r udpRig) { r.talk(2, 99, 0); r.hears(false) }, 0},
		"not asked, not answered": {nil, func(r udpRig) { r.quic() }, waits},
	} {
		t.Run(name, func(t *testing.T) {
			r := newUDPRig(t, false, 9)
			if test.change != nil {
				test.change(r)
			}
			test.play(r)
			r.after(300 * time.Millisecond)
			var reason trace.Reason
			for _, tr := range r.traces() {
				reason = tr.Reason
			}
			want := test.want
			if want == waits {
				want = 0
			}
			if reason != want || (len(r.probes) > 0) != (test.want == 0) {
				t.Errorf("reason %v, %d probes", reason, len(r.probes))
			}
		})
	}
}

// Answers about a forwarded flow's probes are awaited, too: its client would hear of them.
func TestTransitAnswersUntil(t *testing.T) {
	r := newUDPRig(t, false, 9)
	r.quic()
	r.hears(false)
	f := r.e.table.Get(trace.FlowKey{Proto: trace.UDP, Src: r.me, Dst: r.peer})
	if f.Direction = trace.Transit; len(r.probes) == 0 || r.e.AnswersUntil().IsZero() {
		t.Errorf("%d probes, awaited until %v", len(r.probes), r.e.AnswersUntil())
	}
}

// Where nobody wants probes, none is refused.
func TestNoProbeRefusesNone(t *testing.T) {
	for _, no := range []bool{false, true} {
		r := newRigOf(t, false, 4, Config{NoProbe: no, Exclude: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}, netip.MustParseAddrPort("203.0.113.7:443"))
		r.handshake()
		r.exchange()
		flows, traces := r.told()
		state, traced := trace.FlowRefused, 1
		if no {
			state, traced = trace.FlowMatched, 0
		}
		if len(flows) != 1 || flows[0].State != state || len(traces) != traced || int(r.e.stats.Probes.Refused) != traced {
			t.Errorf("no probes %t: %+v %+v", no, flows, traces)
		}
	}
}

// What begins with questions and answers may become a stream, soon or after it was refused.
func TestUDPBecomesStream(t *testing.T) {
	for _, test := range []struct {
		exchanges int
		refused   bool
	}{{4, false}, {9, true}} {
		r := newUDPRig(t, false, 9)
		r.talk(test.exchanges, 40, 100)
		r.hears(false)
		all := r.traces()
		if (len(all) == 1 && all[0].Reason == trace.ReasonProtocol) != test.refused || len(r.probes) > 0 {
			t.Errorf("after %d exchanges: %d probes, %+v", test.exchanges, len(r.probes), all)
		}
		r.send(true, make([]byte, 99))
		r.send(true, make([]byte, 99))
		r.talk(1, 99, 99)
		r.hears(false)
		for range 40 {
			r.routers(9)
			r.after(50 * time.Millisecond)
		}
		if all := r.traces(); len(all) != 1 || all[0].Stop != trace.StopFence || len(all[0].Hops) != 7 {
			t.Errorf("after %d exchanges and a stream: %+v", test.exchanges, all)
		}
	}
}

// mutter sends for six seconds and hears nothing.
func (r udpRig) mutter() {
	for range 60 {
		r.send(true, make([]byte, 99))
		r.now = r.now.Add(100 * time.Millisecond)
	}
}

// All probes together are never more than three times what the peer sent: its address
// may be forged, and whoever has it must not be flooded by us.
func TestUDPReflects(t *testing.T) {
	r := newUDPRig(t, false, 30)
	r.w.Params.UDPProbe = probe.UDPAlways
	r.talk(2, 99, 10) // 2 x 38 bytes with headers
	r.hears(false)
	for range 100 {
		r.routers(40)
		r.after(20 * time.Millisecond)
	}
	sent := 0
	for _, b := range r.packets {
		if b != nil {
			sent += len(b)
		}
	}
	f := r.e.table.Get(trace.FlowKey{Proto: trace.UDP, Src: r.me, Dst: r.peer})
	if f.UDP.WireIn != 76 || f.UDP.ProbeBytes == 0 || f.UDP.ProbeBytes > 3*76 {
		t.Errorf("%d bytes of probes for %d from the peer", f.UDP.ProbeBytes, f.UDP.WireIn)
	}
	before := len(r.probes)
	r.talk(3, 99, 400)
	r.after(100 * time.Millisecond)
	if len(r.probes) == before {
		t.Error("no more probes after the peer sent more")
	}
}

// Copies of our own probes, also those seen after translation, are no packets of the flow.
func TestUDPOwnCopies(t *testing.T) {
	r := newUDPRig(t, false, 9)
	r.quic()
	r.hears(false)
	f := r.e.table.Get(trace.FlowKey{Proto: trace.UDP, Src: r.me, Dst: r.peer})
	out := f.UDP.PacketsOut
	if len(r.packets) == 0 {
		t.Fatal("nothing was probed")
	}
	flows := r.e.table.Len()
	translated := append([]byte(nil), r.packets[0]...)
	translated[12] = 100 // the source
	p := r.captured(translated, capture.Outgoing)
	r.step(&p)
	if f.UDP.PacketsOut != out || r.e.table.Len() != flows {
		t.Errorf("%d packets out instead of %d, %d flows instead of %d", f.UDP.PacketsOut, out, r.e.table.Len(), flows)
	}
}

// A flow that falls silent ends its trace after a minute, without an idle timeout too.
func TestUDPIdle(t *testing.T) {
	r := newUDPRig(t, false, 30)
	r.w.Params.Timeout = 50 * time.Second
	r.w.Params.Probes = 20
	r.quic()
	r.hears(false)
	r.after(70 * time.Second)
	if all := r.traces(); len(all) != 1 || all[0].Stop != trace.StopFlowIdle && all[0].Stop != trace.StopRateLimited {
		t.Errorf("%+v", all)
	}
}

// Where a rule can drop the errors about probes before the application hears of them, the
// flow is traced, and every probe says that it needs the rule; elsewhere none does.
func TestUDPDropErrors(t *testing.T) {
	for _, what := range []Hearing{HearsNothing, HearsOthers} {
		r := newUDPRig(t, false, 9)
		r.quic()
		r.hearsWhat(what)
		for range 40 {
			r.routers(9)
			r.after(50 * time.Millisecond)
		}
		want := 0
		if what == HearsOthers {
			want = len(r.probes)
		}
		if all := r.traces(); len(all) != 1 || all[0].Stop != trace.StopFence || len(all[0].Hops) != 7 || r.guarded != want {
			t.Errorf("%d of %d probes, %+v", r.guarded, len(r.probes), all)
		}
		if until := r.e.AnswersUntil(); !until.IsZero() {
			t.Errorf("more answers until %v", until)
		}
	}
}

// Answers that have to be dropped are awaited for a while longer than the round trip.
func TestUDPAnswersUntil(t *testing.T) {
	for _, what := range []Hearing{HearsNothing, HearsOthers} {
		r := newUDPRig(t, false, 9)
		r.quic()
		r.hearsWhat(what)
		if len(r.probes) == 0 {
			t.Fatal("nothing was probed")
		}
		var want time.Time
		if what == HearsOthers {
			want = r.now.Add(2*rtt + 100*time.Millisecond)
		}
		if until := r.e.AnswersUntil(); !until.Equal(want) {
			t.Errorf("%v, want %v", until, want)
		}
	}
}

// An error about a probe that no rule knows any more, because the path changed what little it
// quotes, came to the application: the trace ends, and there is no other one.
func TestUDPHeardAnyway(t *testing.T) {
	for name, test := range map[string]struct {
		what  Hearing
		quote func(b []byte) []byte
		ends  bool
	}{
		"nobody hears":           {HearsNothing, func(b []byte) []byte { b[5]++; return b[:28] }, false},
		"another identification": {HearsOthers, func(b []byte) []byte { b[5]++; return b[:28] }, true},
		"another checksum":       {HearsOthers, func(b []byte) []byte { b[27]++; return b[:28] }, true},
		"as it was sent":         {HearsOthers, func(b []byte) []byte { return b[:28] }, false},
		"its payload tells":      {HearsOthers, func(b []byte) []byte { b[5]++; return b }, false},
		"another payload":        {HearsOthers, func(b []byte) []byte { b[30]++; b[5]++; return b }, false}, // the application's
	} {
		r := newUDPRig(t, false, 9)
		r.w.Every = time.Millisecond
		r.quic()
		r.hearsWhat(test.what)
		r.after(10 * time.Millisecond)
		if len(r.packets) == 0 {
			t.Fatal("nothing was probed")
		}
		r.timeExceeded(1, test.quote(append([]byte(nil), r.packets[0]...)))
		sent := len(r.probes)
		r.talk(2, 60, 1200)
		r.after(time.Second)
		all := r.traces()
		ended := len(all) == 1 && all[0].Stop == trace.StopRefused && all[0].Reason == trace.ReasonRecvErr && len(r.probes) == sent
		if ended != test.ends || !test.ends && len(all) > 0 {
			t.Errorf("%s: %d probes more, %+v", name, len(r.probes)-sent, all)
		}
	}
}

// What a socket hears is asked before each trace: by then it may be another one.
func TestUDPHearingAgain(t *testing.T) {
	r := newUDPRig(t, false, 9)
	r.w.Retrace = time.Second
	r.quic()
	r.hears(false)
	for range 40 {
		r.routers(9)
		r.after(50 * time.Millisecond)
	}
	first := r.traces()
	sent := len(r.probes)
	r.talk(2, 60, 1200)
	r.hears(true)
	r.talk(2, 60, 1200)
	again := r.traces()
	if len(first) != 1 || len(again) != 1 || again[0].Reason != trace.ReasonRecvErr || len(r.probes) > sent {
		t.Errorf("%d probes more: %+v, then %+v", len(r.probes)-sent, first, again)
	}
}
