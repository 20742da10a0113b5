package engine

import (
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/wire"
)

// FuzzStep gives an engine with a trace in progress packets of any bytes, from any side:
// it goes on, and what it shows and sends stays within its bounds.
func FuzzStep(f *testing.F) {
	segment := wire.TCPSegment{TCPProbe: wire.TCPProbe{TTL: 60, Seq: 1001, Ack: 5001, Flags: wire.ACK, Window: 9}}
	for _, v6 := range []bool{false, true} {
		seed := newRig(nil, v6, 5) // whose test has nothing to say
		segment.Src, segment.Dst = seed.me, seed.peer
		out := segment.AppendTo(nil)
		segment.Src, segment.Dst = seed.peer, seed.me
		in := segment.AppendTo(nil)
		udp := wire.UDPProbe{Src: seed.me, Dst: seed.peer, TTL: 64, Payload: []byte("\xc0\x00\x00\x00\x01words")}
		fault := wire.ICMPError{Src: seed.peer.Addr(), Dst: seed.me.Addr(), TTL: 60, Type: 11, Quote: out}
		if v6 {
			fault.Type = 3
		}
		f.Add(v6, out, true, in, false)
		f.Add(v6, fault.AppendTo(nil), false, udp.AppendTo(nil), true)
	}
	f.Fuzz(func(t *testing.T, v6 bool, first []byte, firstOut bool, second []byte, secondOut bool) {
		r := newRig(t, v6, 5)
		r.handshake()
		r.after(100 * time.Millisecond)
		for range 2 {
			for _, p := range []struct {
				b   []byte
				out bool
			}{{first, firstOut}, {second, secondOut}} {
				d := capture.Incoming
				if p.out {
					d = capture.Outgoing
				}
				packet := r.captured(p.b, d)
				r.step(&packet)
			}
			r.routers(5)
			r.exchange()
			r.after(5 * time.Second)
		}
		if n := len(r.probes); n > 2000 {
			t.Errorf("%d probes in ten seconds", n)
		}
		for _, tr := range r.traces() {
			if len(tr.Hops) > 32 {
				t.Errorf("%d hops", len(tr.Hops))
			}
		}
	})
}
