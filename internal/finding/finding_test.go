package finding

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"servicetraceroute/trace"
)

var (
	at   = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	addr = netip.MustParseAddr
	src  = netip.MustParseAddrPort("10.0.0.1:40000")
	dst  = netip.MustParseAddrPort("203.0.113.7:443")
)

// router is the address of the router at a TTL.
func router(ttl int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(ttl)}) }

// clean is a trace over routers that change nothing, with two answers of each, and the
// destination behind.
func clean(routers int) *trace.Trace {
	t := &trace.Trace{
		ID: "0123456789abcdef", Label: "l", Flow: trace.Tuple{FlowKey: trace.FlowKey{Proto: trace.TCP, Src: src, Dst: dst}},
		Reached: true, Destination: &trace.Destination{TTL: routers + 1, By: trace.DestinationByAck},
	}
	for ttl := 1; ttl <= routers; ttl++ {
		h := trace.Hop{TTL: ttl, Sent: 2}
		for n := range 2 {
			h.Replies = append(h.Replies, trace.Reply{
				Addr: router(ttl), Kind: trace.TimeExceeded, ReplyTTL: 65 - ttl,
				Exchange: &trace.Exchange{Sent: at.Add(time.Duration(ttl+10*n) * time.Millisecond), ProbeTOS: 0x28, QuoteTOS: 0x28, QuoteTTL: 1},
			})
		}
		t.Hops = append(t.Hops, h)
	}
	t.Hops = append(t.Hops, trace.Hop{TTL: routers + 1, Sent: 1, Replies: []trace.Reply{{
		Addr: dst.Addr(), Kind: trace.TCPAck, ReplyTTL: 64 - routers, Exchange: &trace.Exchange{Sent: at},
	}}})
	return t
}

// each changes the answers of routers from a TTL to another.
func each(t *trace.Trace, from, to int, change func(r *trace.Reply)) {
	for i := from - 1; i < to; i++ {
		for j := range t.Hops[i].Replies {
			change(&t.Hops[i].Replies[j])
		}
	}
}

func quoted(change func(q *trace.Quoted)) func(r *trace.Reply) {
	return func(r *trace.Reply) {
		r.Exchange.Quoted = &trace.Quoted{Src: src, Dst: dst}
		change(r.Exchange.Quoted)
	}
}

// want is a finding as far as a test says.
type want struct {
	kind       trace.FindingKind
	from, ttl  int
	value      string
	confidence float64
	evidence   string // contained in one line; empty: any
}

func check(t *testing.T, got []*trace.Finding, all ...want) {
	t.Helper()
	if len(got) != len(all) {
		t.Errorf("%d findings, want %d", len(got), len(all))
	}
	for i, f := range got {
		if i >= len(all) {
			t.Errorf("beside: %+v", *f)
			continue
		}
		w := all[i]
		said := w.evidence == "" || slices.ContainsFunc(f.Evidence, func(e string) bool { return strings.Contains(e, w.evidence) })
		if f.Kind != w.kind || f.TTLFrom != w.from || f.TTL != w.ttl || f.Value != w.value || f.Confidence != w.confidence || !said {
			t.Errorf("got  %+v\nwant %+v", *f, w)
		}
		if !f.Time.Equal(at) || f.Label != "l" || f.Trace != "0123456789abcdef" || f.Flow.Dst != dst || len(f.Evidence) == 0 {
			t.Errorf("its envelope: %+v", *f)
		}
	}
}

func TestNothingInACleanTrace(t *testing.T) {
	check(t, Of(at, clean(6), nil))
	check(t, Of(at, clean(0), nil))
	check(t, Of(at, &trace.Trace{}, nil))
}

// What is not a trace's own, or was read from a file, says nothing.
func TestNothingOfOthers(t *testing.T) {
	tr := clean(5)
	each(tr, 2, 5, func(r *trace.Reply) { r.Exchange.QuoteTOS = 0 })
	each(tr, 2, 3, func(r *trace.Reply) { r.SharedFrom = "fedcba9876543210" })
	check(t, Of(at, tr, nil), want{trace.DSCPChanged, 1, 4, "10 became 0", seen, "TTL 2 unknown: another flow's trace measured it"})
	each(tr, 1, 6, func(r *trace.Reply) { r.Exchange = nil })
	check(t, Of(at, tr, nil))
}

func TestQuotes(t *testing.T) {
	nat := netip.MustParseAddrPort("198.51.100.9:40000")
	port := netip.AddrPortFrom(src.Addr(), 61234)
	for name, test := range map[string]struct {
		change func(r *trace.Reply)
		want   want
	}{
		"source":      {quoted(func(q *trace.Quoted) { q.Src = nat }), want{trace.NATSrc, 2, 3, "10.0.0.1 became 198.51.100.9", seen, "the same at 2 farther TTLs"}},
		"put back":    {quoted(func(q *trace.Quoted) { q.Stale = true }), want{trace.NATSrc, 2, 3, "rewritten, and put back in the quotes without their checksum", guessed, ""}},
		"source port": {quoted(func(q *trace.Quoted) { q.Src = port }), want{trace.NATPort, 2, 3, "source 40000 became 61234", seen, ""}},
		"destination port": {
			quoted(func(q *trace.Quoted) { q.Dst = netip.AddrPortFrom(dst.Addr(), 8443) }),
			want{trace.NATPort, 2, 3, "destination 443 became 8443", seen, ""},
		},
		"destination": {
			quoted(func(q *trace.Quoted) { q.Dst = netip.AddrPortFrom(nat.Addr(), 443) }),
			want{trace.NATDst, 2, 3, "203.0.113.7 became 198.51.100.9", seen, ""},
		},
		"destination NAT": {
			func(r *trace.Reply) { r.Addr = dst.Addr() },
			want{trace.NATDst, 2, 3, "routers from here on answer as 203.0.113.7", seen, ""},
		},
		"sequence numbers": {quoted(func(q *trace.Quoted) { q.SeqShift = 7 }), want{trace.SeqRewritten, 2, 3, "shifted by 7", seen, ""}},
		"DSCP":             {func(r *trace.Reply) { r.Exchange.QuoteTOS = 46 << 2 }, want{trace.DSCPChanged, 2, 3, "10 became 46", seen, ""}},
		"CE":               {func(r *trace.Reply) { r.Exchange.QuoteTOS |= 3 }, want{trace.ECNSet, 2, 3, "CE", seen, ""}},
		"ECT(0)":           {func(r *trace.Reply) { r.Exchange.QuoteTOS |= 2 }, want{trace.ECNSet, 2, 3, "ECT(0)", seen, ""}},
		"TTL":              {func(r *trace.Reply) { r.Exchange.QuoteTTL = 9 }, want{trace.TTLMangled, 2, 3, "expired with a TTL of 9", guessed, ""}},
		"labels": {
			func(r *trace.Reply) {
				r.MPLS = []trace.Label{{Label: 16, TTL: 1}, {Label: 17, TC: 5, S: true, TTL: 254}}
			},
			want{trace.MPLS, 2, 3, "label 16 TC 0 TTL 1, label 17 TC 5 TTL 254", seen, ""},
		},
	} {
		t.Run(name, func(t *testing.T) {
			tr := clean(5)
			each(tr, 3, 5, test.change)
			check(t, Of(at, tr, nil), test.want)
		})
	}
}

// A router that counts before it quotes says 0; one in a tunnel that shows its labels need not count.
func TestQuotedTTLsThatSayNothing(t *testing.T) {
	tr := clean(5)
	each(tr, 2, 2, func(r *trace.Reply) { r.Exchange.QuoteTTL = 0 })
	each(tr, 3, 4, func(r *trace.Reply) { r.Exchange.QuoteTTL, r.MPLS = 5, []trace.Label{{Label: 16, S: true, TTL: 1}} })
	check(t, Of(at, tr, nil), want{trace.MPLS, 2, 3, "label 16 TC 0 TTL 1", seen, ""})
}

// Where it first appears, and where it becomes another; between, what cannot tell.
func TestPlaces(t *testing.T) {
	tr := clean(8)
	each(tr, 4, 5, func(r *trace.Reply) { r.Exchange.QuoteTOS = 0 })
	each(tr, 6, 8, func(r *trace.Reply) { r.Exchange.QuoteTOS = 8 << 2 })
	tr.Hops[2].Replies = nil
	check(t, Of(at, tr, nil),
		want{trace.DSCPChanged, 2, 4, "10 became 0", seen, "TTL 3 unknown: silent"},
		want{trace.DSCPChanged, 5, 6, "10 became 8", seen, ""})
}

// of are the findings of one kind.
func of(tr *trace.Trace, kind trace.FindingKind) []*trace.Finding {
	return slices.DeleteFunc(Of(at, tr, nil), func(f *trace.Finding) bool { return f.Kind != kind })
}

func TestTrust(t *testing.T) {
	bleach := func(r *trace.Reply) { r.Exchange.QuoteTOS = 0 }
	t.Run("one answer alone", func(t *testing.T) {
		tr := clean(3)
		tr.Hops[2].Replies = tr.Hops[2].Replies[:1]
		each(tr, 3, 3, bleach)
		check(t, Of(at, tr, nil), want{trace.DSCPChanged, 2, 3, "10 became 0", seenOnce, ""})
	})
	t.Run("a farther hop says otherwise", func(t *testing.T) {
		tr := clean(5)
		each(tr, 3, 3, bleach)
		check(t, Of(at, tr, nil), want{trace.DSCPChanged, 2, 3, "10 became 0", contradicts, "not at 2 farther TTLs"})
	})
	t.Run("answers of one TTL disagree", func(t *testing.T) {
		tr := clean(3)
		bleach(&tr.Hops[2].Replies[1])
		check(t, Of(at, tr, nil), want{trace.DSCPChanged, 2, 3, "10 became 0", contradicts, "not all answers"})
	})
	t.Run("who says so is named, and only who can tell counts", func(t *testing.T) {
		tr := clean(3)
		other := netip.MustParseAddr("198.51.100.66")
		bleach(&tr.Hops[2].Replies[1])
		tr.Hops[2].Replies[1].Addr = other
		check(t, of(tr, trace.DSCPChanged), want{trace.DSCPChanged, 2, 3, "10 became 0", contradicts, "TTL 3: " + other.String() + " quotes it so"})
		tr = clean(3)
		each(tr, 3, 3, func(r *trace.Reply) { r.MPLS = []trace.Label{{Label: 7, S: true, TTL: 1}} })
		tr.Hops[2].Replies[1].Kind = trace.HostUnreachable
		check(t, of(tr, trace.MPLS), want{trace.MPLS, 2, 3, "label 7 TC 0 TTL 1", seenOnce, ""})
	})
	t.Run("two paths in one trace", func(t *testing.T) {
		tr := clean(5)
		tr.Mixed = true
		each(tr, 3, 5, bleach)
		check(t, Of(at, tr, nil), want{trace.DSCPChanged, 2, 3, "10 became 0", contradicts, ""})
	})
}

// A quote without a checksum cannot tell of what is seen by checksums alone.
func TestShortQuotes(t *testing.T) {
	tr := clean(5)
	each(tr, 3, 3, func(r *trace.Reply) { r.Exchange.QuoteShort = true })
	check(t, Of(at, tr, nil))
	each(tr, 4, 5, quoted(func(q *trace.Quoted) { q.Stale = true }))
	check(t, Of(at, tr, nil), want{
		trace.NATSrc, 2, 4, "rewritten, and put back in the quotes without their checksum", guessed, "TTL 3 unknown: its quote is too short to tell",
	})
}

// Behind a NAT on this host, what is held against the quote is what was on the wire.
func TestTranslatedHere(t *testing.T) {
	tr := clean(4)
	wire := tr.Flow.FlowKey
	tr.Flow.NAT = &wire
	tr.Flow.Src = netip.MustParseAddrPort("10.9.9.9:1")
	each(tr, 2, 4, quoted(func(q *trace.Quoted) { q.SeqShift = 7 })) // something is quoted otherwise, but not these
	check(t, Of(at, tr, nil), want{trace.SeqRewritten, 1, 2, "shifted by 7", seen, ""})
}
