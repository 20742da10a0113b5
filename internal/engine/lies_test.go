package engine

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// What outsiders may say about a traced flow, in memory: the same kinds as
// TestLies of the root package sends on real kernels. docs/false-accepts.md derives
// how often a guess is right.

const (
	liesDistance = 6
	silentTTL    = 3 // its probes stay outstanding, a guess's best chance
)

// outsider knows of the flow what each kind of lie is given.
type outsider struct {
	*rig
	rng *rand.Rand
}

// segment is what a packet of the flow looks like to somebody who knows its tuple,
// its window and its acknowledgement number, but sees none of its packets.
func (o *outsider) segment(seq uint32) wire.TCPSegment {
	return wire.TCPSegment{TCPProbe: wire.TCPProbe{
		Src: o.me, Dst: o.peer, TTL: 1, TOS: o.tos, FlowLabel: o.label, ID: uint16(o.rng.Uint32()), Seq: seq, Ack: o.ack, Flags: wire.ACK,
		Window: o.window, Timestamp: true, TSVal: o.rng.Uint32(), TSEcr: o.rng.Uint32(),
	}}
}

func (o *outsider) near() uint32 { return o.seq - 4096 + o.rng.Uint32N(8192) }

// say sends an ICMP error that quotes a segment, cut to max bytes; 0: whole.
func (o *outsider) say(s wire.TCPSegment, typ, code uint8, max int) {
	from := netip.AddrFrom4([4]byte{192, 0, 2, byte(200 + o.rng.IntN(50))})
	if o.me.Addr().Is6() {
		from = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0xba, 0xd, 15: byte(o.rng.Uint32())})
		if typ == 11 {
			typ = 3
		} else {
			typ, code = 1, 3
		}
	}
	o.error(from.String(), typ, code, s.AppendTo(nil), max)
}

// ack forges a pure acknowledgement of the peer.
func (o *outsider) pretend(change func(s *wire.TCPSegment)) {
	s := wire.TCPSegment{TCPProbe: wire.TCPProbe{
		Src: o.peer, Dst: o.me, TTL: o.ttl, Seq: o.ack, Ack: o.seq, Flags: wire.ACK, Window: 501,
	}}
	change(&s)
	p := o.captured(s.AppendTo(nil), capture.Incoming)
	o.step(&p)
}

// lies are the kinds. Each call tells one.
var lies = map[string]func(o *outsider){
	"random errors": func(o *outsider) {
		b := make([]byte, o.rng.IntN(120))
		for i := range b {
			b[i] = byte(o.rng.Uint32())
		}
		if len(b) > 0 && o.rng.IntN(2) == 0 {
			b[0] = 0x45
		}
		from := "192.0.2.250"
		if o.me.Addr().Is6() {
			from = "2001:db8:bad::1"
		}
		o.error(from, uint8(o.rng.IntN(13)), uint8(o.rng.IntN(4)), b, 0)
	},
	"quotes of every length": func(o *outsider) { o.say(o.segment(o.near()), 11, 0, 1+o.rng.IntN(80)) },
	"numbers around UNA":     func(o *outsider) { o.say(o.segment(o.near()), 11, 0, 0) },
	"numbers around UNA, no timestamp": func(o *outsider) {
		s := o.segment(o.near())
		o.say(s, 11, 0, len(s.AppendTo(nil))-12) // ends before the option
	},
	"numbers around UNA, unreachable": func(o *outsider) { o.say(o.segment(o.near()), 3, 1, 0) },
	"a few numbers a second": func(o *outsider) {
		if o.rng.IntN(60) == 0 {
			o.say(o.segment(o.near()), 11, 0, 28)
		}
	},
	"our identifications": func(o *outsider) { o.say(o.segment(o.near()), 11, 0, 28) },
	"answered probes once more": func(o *outsider) {
		i := o.rng.IntN(len(o.probes))
		if o.packets[i] == nil && int(o.probes[i].TTL) < liesDistance {
			o.say(wire.TCPSegment{TCPProbe: o.probes[i]}, 11, 0, 0)
		}
	},
	"the application's packets": func(o *outsider) {
		s := o.segment(o.seq)
		s.TSVal, s.TSEcr, s.ID, s.TOS = o.tsval, o.ts2, uint16(o.tsval), o.tos|2
		if o.rng.IntN(2) == 0 {
			s.Payload, s.Seq = make([]byte, 100), o.seq-100
		}
		o.say(s, 11, 0, 0)
	},
	"acknowledgements, numbers unknown": func(o *outsider) {
		o.pretend(func(s *wire.TCPSegment) {
			s.Seq, s.Ack, s.TTL = o.rng.Uint32(), o.rng.Uint32(), uint8(o.rng.Uint32())
			s.Timestamp, s.TSVal, s.TSEcr = true, o.rng.Uint32(), o.rng.Uint32()
		})
	},
	"acknowledgements, without a timestamp": func(o *outsider) { o.pretend(func(*wire.TCPSegment) {}) },
	"acknowledgements, echoing too early": func(o *outsider) {
		o.pretend(func(s *wire.TCPSegment) { s.Timestamp, s.TSVal, s.TSEcr = true, o.ts2, o.tsval-2000 })
	},
	"acknowledgements, another TTL": func(o *outsider) {
		o.pretend(func(s *wire.TCPSegment) {
			s.TTL, s.Timestamp, s.TSVal, s.TSEcr = o.ttl+uint8(1+o.rng.IntN(100)), true, o.ts2, o.tsval
		})
	},
	"data out of the window": func(o *outsider) {
		o.pretend(func(s *wire.TCPSegment) { s.Seq, s.Payload = o.ack+1<<27+o.rng.Uint32N(1<<27), make([]byte, 100) })
	},
	"resets out of the window": func(o *outsider) {
		o.pretend(func(s *wire.TCPSegment) { s.Seq, s.Flags = o.ack+1<<27+o.rng.Uint32N(1<<27), wire.RST })
	},
}

// talk lets routers, all but one, and the destination answer, and the flow speak now
// and then, while lies are told.
func (o *outsider) talk(d time.Duration, lie func(o *outsider)) {
	said := o.now
	for end := o.now.Add(d); o.now.Before(end); {
		n := o.reaching(liesDistance)
		o.after(10 * time.Millisecond)
		for range 20 {
			lie(o)
		}
		for i, p := range o.probes {
			if o.packets[i] != nil && p.TTL < liesDistance && p.TTL != silentTTL {
				o.timeExceeded(int(p.TTL), o.packets[i])
				o.packets[i] = nil
			}
		}
		for range 20 {
			lie(o)
		}
		if o.reaching(liesDistance) > n {
			o.now = o.now.Add(rtt)
			o.in(segment{flags: wire.ACK})
		} else if o.now.Sub(said) > 900*time.Millisecond {
			said = o.now
			o.exchange()
		}
	}
}

func TestLies(t *testing.T) {
	for name, lie := range lies {
		for _, family := range []string{"IPv4", "IPv6"} {
			t.Run(name+"/"+family, func(t *testing.T) {
				r := newRig(t, family == "IPv6", liesDistance)
				r.w.Retrace = 100 * time.Millisecond
				r.ack = 3 << 30 // the half of all numbers above it begins anew at zero
				r.handshake()
				r.exchange()
				r.after(10 * time.Millisecond)
				o := &outsider{rig: r, rng: rand.New(rand.NewPCG(1, 2))}
				o.talk(6*time.Second, lie)
				all := r.traces()
				if len(all) == 0 {
					t.Error("no trace came to its end")
				}
				for _, tr := range all {
					o.judge(t, tr)
				}
				s := r.e.Stats(r.now)
				t.Logf("%d traces; %+v, %d malformed", len(all), s.Replies, s.Packets.Malformed)
				if s.Replies.Unmatched+s.Replies.Duplicate+s.Packets.Malformed == 0 && name != "acknowledgements, without a timestamp" &&
					name != "acknowledgements, echoing too early" && name != "acknowledgements, another TTL" {
					t.Error("nothing was counted")
				}
				if n := r.e.sent.Len(); n > 200 {
					t.Errorf("%d probes remembered", n)
				}
				for _, run := range r.e.runs {
					if n := len(run.hops); n > 64 {
						t.Errorf("%d hops", n)
					}
				}
			})
		}
	}
}

// judge holds a trace against what the routers answered: all but the silent one is
// shown, nothing else is, and the destination is where it is.
func (o *outsider) judge(t *testing.T, tr *trace.Trace) {
	t.Helper()
	for _, h := range tr.Hops {
		for _, reply := range h.Replies {
			want := netip.AddrFrom4([4]byte{198, 51, 100, byte(h.TTL)})
			if o.me.Addr().Is6() {
				want = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 1, 15: byte(h.TTL)})
			}
			if h.TTL == liesDistance {
				want = o.peer.Addr()
			}
			if reply.Addr != want || h.TTL == silentTTL {
				t.Errorf("TTL %d shows %v", h.TTL, reply.Addr)
			}
		}
	}
	if tr.Stop != trace.StopDestination || !tr.Reached || tr.Destination.TTL != liesDistance {
		t.Errorf("%v, destination %+v, impact %+v", tr.Stop, tr.Destination, tr.Impact)
	}
}

// Somebody on the path who sees everything can say what the destination would say.
// Where routers answer, their answers are stronger; below, silent routers can be
// taken for the destination. No rule can tell: this test shows what the record then
// says, so that the documentation stays true.
func TestLiesFromThePath(t *testing.T) {
	r := newRig(t, false, liesDistance)
	r.handshake()
	r.exchange()
	o := &outsider{rig: r, rng: rand.New(rand.NewPCG(1, 2))}
	o.talk(6*time.Second, func(o *outsider) {
		o.pretend(func(s *wire.TCPSegment) { s.Timestamp, s.TSVal, s.TSEcr = true, o.ts2, o.tsval })
	})
	for _, tr := range r.traces() {
		for _, h := range tr.Hops {
			for _, reply := range h.Replies {
				if reply.Kind == trace.TimeExceeded && reply.Addr != netip.AddrFrom4([4]byte{198, 51, 100, byte(h.TTL)}) {
					t.Errorf("TTL %d shows %v", h.TTL, reply.Addr)
				}
			}
		}
		if tr.Reached && (tr.Destination.TTL > liesDistance || tr.Destination.TTL < liesDistance && !tr.Mixed && tr.Destination.TTL != silentTTL) {
			t.Errorf("%v, destination %+v", tr.Stop, tr.Destination)
		}
		t.Logf("%v, mixed %v, destination %+v, impact %+v", tr.Stop, tr.Mixed, tr.Destination, tr.Impact)
	}
}

// An acknowledgement without the flow's timestamps is not the destination's answer,
// whatever else is right; with them it is taken for it.
func TestForgedDestination(t *testing.T) {
	for name, timestamps := range map[string]bool{"without": false, "with": true} {
		r := newRig(t, false, liesDistance)
		r.handshake()
		r.exchange()
		o := &outsider{rig: r, rng: rand.New(rand.NewPCG(1, 2))}
		for range 300 {
			n := r.reaching(liesDistance)
			r.after(10 * time.Millisecond)
			r.routers(liesDistance)
			if r.reaching(liesDistance) > n {
				r.now = r.now.Add(rtt)
				o.pretend(func(s *wire.TCPSegment) { s.Timestamp, s.TSVal, s.TSEcr = timestamps, o.ts2, o.tsval })
			}
		}
		_, tr := r.shownOrEnded()
		if tr.Reached != timestamps {
			t.Errorf("%s timestamps: reached %v", name, tr.Reached)
		}
	}
}

// shownOrEnded is shown for a trace that may have ended before.
func (r *rig) shownOrEnded() (addrs int, tr *trace.Trace) {
	if all := r.traces(); len(all) == 1 {
		return 0, all[0]
	}
	return r.shown()
}

// An unreachable that the flow's own socket would not believe does not end the
// search for the destination; one that it would believe does.
func TestForgedUnreachables(t *testing.T) {
	for name, believed := range map[string]bool{"out of flight": false, "in flight": true} {
		r := newRig(t, false, liesDistance)
		r.handshake()
		r.exchange()
		for r.reaching(liesDistance) == 0 {
			r.after(10 * time.Millisecond)
			r.routers(liesDistance)
		}
		r.now = r.now.Add(rtt)
		o := &outsider{rig: r, rng: rand.New(rand.NewPCG(1, 2))}
		seq := o.seq + 5000
		if believed {
			seq = o.seq
		}
		o.say(o.segment(seq), 3, 1, 0)
		if _, tr := r.shown(); tr.Impact.Aborted != believed {
			t.Errorf("%s: %+v", name, tr.Impact)
		}
	}
}
