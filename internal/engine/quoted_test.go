package engine

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/owner"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// events ends the flow and returns what was said, counters aside.
func (r *rig) events() (out []trace.Event) {
	r.in(segment{flags: wire.FIN | wire.ACK})
	for _, rec := range r.e.Records() {
		if _, ok := rec.Event.(*trace.Flow); !ok {
			out = append(out, rec.Event)
		}
	}
	return out
}

// answered has the routers below a distance answer what was sent so far, changed as the quote is.
func (r *rig) answered(distance int, change func(ttl int, quote []byte) []byte) {
	for i, b := range r.packets {
		if ttl := int(r.probes[i].TTL); b != nil && ttl < distance {
			r.packets[i] = nil
			r.timeExceeded(ttl, change(ttl, slices.Clone(b)))
		}
	}
}

// What a trace found is said right behind its record; nothing is where nothing was changed.
func TestFindingsFollowTheirTrace(t *testing.T) {
	for _, bleached := range []bool{false, true} {
		r := newRig(t, false, 6)
		r.handshake()
		r.exchange()
		r.after(10 * time.Millisecond)
		r.answered(6, func(ttl int, quote []byte) []byte {
			if bleached && ttl >= 3 {
				quote[1] = 0
			}
			quote[8] = 1 // as it expired
			return quote
		})
		all := r.events()
		if !bleached {
			if len(all) != 1 {
				t.Errorf("%d records of a clean path: %+v", len(all), all[1:])
			}
			continue
		}
		if len(all) != 2 {
			t.Fatalf("%d records", len(all))
		}
		tr, ok := all[0].(*trace.Trace)
		f, found := all[1].(*trace.Finding)
		if !ok || !found || f.Trace != tr.ID || f.Flow.FlowKey != tr.Flow.FlowKey || f.Kind != trace.DSCPChanged || f.TTLFrom != 2 || f.TTL != 3 {
			t.Errorf("%+v", all)
		}
	}
}

// A record that waits for its process has its findings behind it all the same.
func TestFindingsWaitWithTheirTrace(t *testing.T) {
	r := newRigOf(t, false, 6, Config{Finds: true}, netip.MustParseAddrPort("203.0.113.7:443"))
	r.handshake()
	r.exchange()
	r.after(10 * time.Millisecond)
	r.answered(6, func(_ int, quote []byte) []byte { quote[1], quote[8] = 0, 1; return quote })
	asked := r.e.Wonders()
	if len(asked) != 1 {
		t.Fatalf("%d questions", len(asked))
	}
	if early := r.events(); len(early) != 0 {
		t.Fatalf("said early: %+v", early)
	}
	r.e.Found(owner.Finding{Query: asked[0], Process: trace.Process{PID: 7, Name: "x"}})
	var kinds []string
	for _, rec := range r.e.Records() {
		switch ev := rec.Event.(type) {
		case *trace.Trace:
			kinds = append(kinds, "trace")
			if ev.Process == nil || ev.Process.PID != 7 {
				t.Errorf("process %+v", ev.Process)
			}
		case *trace.Finding:
			kinds = append(kinds, ev.Kind.String())
		}
	}
	if !slices.Equal(kinds, []string{"trace", "dscp-changed"}) {
		t.Errorf("%v", kinds)
	}
}

// A quote tells what else than TTL and TOS was changed, and what its checksum is worth.
func TestWhatQuotesHoldOtherwise(t *testing.T) {
	same := func(quote []byte) []byte { return quote }
	for name, test := range map[string]struct {
		change func(quote []byte) []byte
		max    int
		want   *trace.Quoted
		short  bool
	}{
		"nothing": {same, 0, nil, false},
		"short":   {same, 28, nil, true},
		"source": {
			func(q []byte) []byte { q[15]++; return q }, 28,
			&trace.Quoted{Src: netip.MustParseAddrPort("192.0.2.2:40000"), Dst: netip.MustParseAddrPort("203.0.113.7:443")}, true,
		},
		"source port": {
			func(q []byte) []byte { q[21]++; return q }, 28,
			&trace.Quoted{Src: netip.MustParseAddrPort("192.0.2.1:40001"), Dst: netip.MustParseAddrPort("203.0.113.7:443")}, true,
		},
		"checksum alone": {
			func(q []byte) []byte { q[36]++; return q }, 0,
			&trace.Quoted{Src: netip.MustParseAddrPort("192.0.2.1:40000"), Dst: netip.MustParseAddrPort("203.0.113.7:443"), Stale: true}, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, false, 6)
			r.handshake()
			r.after(10 * time.Millisecond)
			r.error("198.51.100.1", 11, 0, test.change(slices.Clone(r.packets[0])), test.max)
			_, tr := r.shown()
			for _, h := range tr.Hops {
				for _, reply := range h.Replies {
					got := reply.Exchange
					if got.QuoteShort != test.short || (got.Quoted == nil) != (test.want == nil) || test.want != nil && *got.Quoted != *test.want {
						t.Errorf("short %t, %+v", got.QuoteShort, got.Quoted)
					}
				}
			}
		})
	}
}

// A router's word about a segment of the flow's own counts if the segment is in flight, as its
// sender's kernel has it; and once.
func TestTooBig(t *testing.T) {
	for name, test := range map[string]struct {
		off  uint32 // of the quoted sequence number from the segment's
		mtu  uint32
		want int
	}{"in flight": {0, 1300, 1}, "beyond": {50_000, 1300, 0}, "acknowledged": {^uint32(1000), 1300, 0}, "an old router's, without an MTU": {0, 0, 0}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, false, 6)
			r.handshake()
			r.exchange()
			r.after(10 * time.Millisecond)
			seq := r.seq
			r.out(segment{flags: wire.ACK, data: 1400})
			quote := wire.TCPSegment{TCPProbe: wire.TCPProbe{Src: r.me, Dst: r.peer, TTL: 63, Seq: seq + test.off, Ack: r.ack, Flags: wire.ACK}, Payload: make([]byte, 1400)}
			e := wire.ICMPError{Src: netip.MustParseAddr("198.51.100.2"), Dst: r.me.Addr(), TTL: 63, Type: 3, Code: 4, MTU: test.mtu, Quote: quote.AppendTo(nil)}
			for range 3 {
				p := r.captured(e.AppendTo(nil), capture.Incoming)
				r.step(&p)
			}
			r.answered(6, func(_ int, quote []byte) []byte { quote[8] = 1; return quote })
			var got []*trace.Finding
			for _, ev := range r.events() {
				if f, ok := ev.(*trace.Finding); ok {
					got = append(got, f)
				}
			}
			if len(got) != test.want {
				t.Fatalf("%d findings", len(got))
			}
			if test.want == 1 && (got[0].Kind != trace.MTU || got[0].TTL != 2 || got[0].Value != "1300") {
				t.Errorf("%+v", *got[0])
			}
		})
	}
}
