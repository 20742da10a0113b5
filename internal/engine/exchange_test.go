package engine

import (
	"reflect"
	"testing"
	"time"

	"servicetraceroute/trace"
)

// A reply tells of its two packets: what the error was, what it quotes, when the
// probe left and which one it was.
func TestRepliesTellOfTheirPackets(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		r := newRig(t, v6, 6)
		from, kind := "198.51.100.1", uint8(11)
		if v6 {
			from, kind = "2001:db8:1::1", 3
		}
		r.handshake()
		sent := r.now
		r.after(10 * time.Millisecond)
		r.error(from, kind, 0, r.packets[0], 0)
		n, tr := r.shown()
		if n != 1 {
			t.Fatalf("%d replies", n)
		}
		for _, h := range tr.Hops {
			for _, reply := range h.Replies {
				x := reply.Exchange
				if x == nil {
					t.Fatalf("%+v tells nothing", reply)
				}
				got := *x
				if got.Sent.Before(sent) || got.Sent.Add(reply.RTT).After(r.now) {
					t.Errorf("sent at %v", got.Sent)
				}
				if v6 && got.ReplyID != 0 || got.ReplyLen <= got.QuoteLen {
					t.Errorf("%+v", got)
				}
				got.Sent, got.ReplyID, got.ReplyLen = time.Time{}, 0, 0
				want := trace.Exchange{
					Attempt: 1, ProbeLen: len(r.packets[0]), ProbeTOS: r.probes[0].TOS, ReplyTOS: got.ReplyTOS,
					ICMPType: kind, QuoteTTL: r.probes[0].TTL, QuoteTOS: r.probes[0].TOS, QuoteLen: len(r.packets[0]),
				}
				if !reflect.DeepEqual(got, want) {
					t.Errorf("got  %+v\nwant %+v", got, want)
				}
			}
		}
	}
}
