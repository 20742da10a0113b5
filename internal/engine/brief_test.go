package engine

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/service"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// briefly plays the one packet that is shown of a flow that begins among very many.
func (r *rig) briefly(data []byte) {
	seg := wire.TCPSegment{TCPProbe: wire.TCPProbe{
		Src: r.me, Dst: r.peer, TTL: 64, Seq: r.seq, Ack: r.ack, Flags: wire.ACK | wire.PSH, Window: r.window,
		Timestamp: true, TSVal: r.tsval, TSEcr: r.ts2,
	}, Payload: data}
	r.seq += uint32(len(data))
	p := r.captured(seg.AppendTo(nil), capture.Outgoing)
	p.Brief = true
	r.step(&p)
}

// Of very many flows that begin those are known by their words that a watch wants, whatever a
// connection before said that had the same addresses and ports; nothing is kept of the others.
func TestBrief(t *testing.T) {
	r, s := followedRig(t)
	r.w.Selector = service.Selector{Domains: domains{"video.example"}}
	s.since = r.now
	key := trace.FlowKey{Proto: trace.TCP, Src: r.me, Dst: r.peer}
	named := r.e.stats.Services.SNI
	for _, said := range [][]byte{make([]byte, 100), []byte("GET / HTTP/1.1\r\nHost: www.other.example\r\n\r\n"), clientHello(t, "www.other.example")} {
		s.ignored[key] = false
		r.briefly(said)
		if s.on[key] || !s.ignored[key] || r.e.table.Len() != 0 || r.e.listening != 0 {
			t.Errorf("%.10q: followed %v, ignored %v, %d flows in the table, %d listened to", said, s.on[key], s.ignored[key], r.e.table.Len(), r.e.listening)
		}
	}
	if n := r.e.stats.Services.SNI - named; n != 2 {
		t.Errorf("%d flows named somebody, want 2", n)
	}
	r.handshake() // among fewer: it is known from now on, and its end will not be shown
	r.say([]byte("GET / HTTP/1.1\r\nHost: www.other.example\r\n\r\n"))
	if r.e.table.Len() != 1 || s.on[key] {
		t.Fatalf("%d flows, followed %v", r.e.table.Len(), s.on[key])
	}
	r.seq, r.ack, s.ignored[key] = r.seq-1<<30, r.ack-1<<30, false
	hello := clientHello(t, "www.video.example")
	r.briefly(hello[:100])
	if s.ignored[key] || r.e.listening != 1 {
		t.Errorf("half a hello: ignored %v, %d listened to", s.ignored[key], r.e.listening)
	}
	r.say(hello[100:])
	if !s.on[key] || r.e.listening != 0 {
		t.Fatalf("a hello in two segments: followed %v, %d listened to", s.on[key], r.e.listening)
	}
	r.now = r.now.Add(rtt)
	r.in(segment{flags: wire.ACK, data: 100})
	r.exchange()
	if una := r.flow().TCP.Una; r.seq-una > 1000 {
		t.Errorf("%d are not acknowledged, by what another connection did", r.seq-una)
	}
	r.answering(4, 5*time.Second)
	if tr := r.traces(); len(tr) != 1 || tr[0].Service.By != trace.BySNI || !tr[0].Reached {
		t.Fatalf("%+v", tr)
	}
}

// Half a hello is waited for as long as first words are.
func TestBriefHalf(t *testing.T) {
	r, s := followedRig(t)
	r.w.Selector = service.Selector{Domains: domains{"video.example"}}
	key := trace.FlowKey{Proto: trace.TCP, Src: r.me, Dst: r.peer}
	r.briefly(clientHello(t, "www.video.example")[:100])
	r.after(wordsWait + time.Second)
	if r.e.listening != 0 || len(r.e.expected) != 0 || s.on[key] {
		t.Errorf("%d listened to, %d awaited, followed %v", r.e.listening, len(r.e.expected), s.on[key])
	}
}

// Where the interface decides by which a flow leaves, one of which only what came was shown is
// followed, or it would never be known.
func TestBriefAccepted(t *testing.T) {
	r, s := followedRig(t)
	r.w.Selector = service.Selector{All: true, Interfaces: []string{"eth9"}}
	r.me, r.peer = netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("203.0.113.7:50000")
	seg := wire.TCPSegment{TCPProbe: wire.TCPProbe{
		Src: r.peer, Dst: r.me, TTL: 60, Seq: r.ack, Ack: r.seq, Flags: wire.ACK | wire.PSH, Window: r.window,
	}, Payload: []byte("GET / HTTP/1.1\r\nHost: www.other.example\r\n\r\n")}
	p := r.captured(seg.AppendTo(nil), capture.Incoming)
	p.Brief = true
	r.step(&p)
	if key := (trace.FlowKey{Proto: trace.TCP, Src: r.me, Dst: r.peer}); !s.on[key] || s.ignored[key] {
		t.Errorf("followed %v, ignored %v", s.on[key], s.ignored[key])
	}
}

// BenchmarkBrief is what one brief flow costs that nobody wants, of a batch of sixty.
func BenchmarkBrief(b *testing.B) {
	hello := clientHello(b, "www.somebody.example")
	for name, said := range map[string][]byte{"bytes": make([]byte, 100), "HTTP": words100, "TLS": hello} {
		b.Run(name, func(b *testing.B) {
			t := &testing.T{}
			r, _ := followedRig(t)
			r.w.Selector = service.Selector{Domains: nobody{}}
			r.e.cfg.Follow = deaf{}
			r.e.attune()
			var packets [60]capture.Packet
			bufs := make([][]byte, len(packets))
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				if n++; n%len(packets) != 0 {
					continue
				}
				b.StopTimer()
				for i := range packets {
					me := netip.AddrPortFrom(r.me.Addr(), uint16(20000+(n+i)%40000))
					s := wire.TCPSegment{TCPProbe: wire.TCPProbe{
						Src: me, Dst: r.peer, TTL: 64, Flags: wire.ACK | wire.PSH, Window: 500, Timestamp: true, TSVal: uint32(n), TSEcr: uint32(n),
						Seq: uint32(n) * 7919, Ack: uint32(n) * 104729,
					}, Payload: said}
					bufs[i] = s.AppendTo(bufs[i][:0])
					packets[i] = r.captured(bufs[i], capture.Outgoing)
					packets[i].Brief = true
				}
				r.now = r.now.Add(8 * time.Millisecond)
				b.StartTimer()
				r.e.Step(r.now, packets[:])
				r.e.Records()
			}
		})
	}
}

// deaf is a Follower that does nothing.
type deaf struct{}

func (deaf) Follow(trace.FlowKey, bool) (since time.Time) { return time.Time{} }
func (deaf) Unfollow(trace.FlowKey, bool) bool            { return true }
func (deaf) Ignore(trace.FlowKey, bool) bool              { return true }
func (deaf) FirstShown() bool                             { return true }
