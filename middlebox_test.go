//go:build linux

package servicetraceroute_test

import (
	"slices"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab/link"
	"servicetraceroute/internal/lab/observe"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// TestMiddlebox puts a box between the client and the first router that hides the
// client's sequence numbers from all beyond, or shows it quotes as old routers make
// them. No router's answer may be lost to it, and none be taken for another's.
func TestMiddlebox(t *testing.T) {
	t.Parallel()
	const shift = 0x89abcdef
	for _, c := range []struct {
		name     string
		box      scenario.Link
		families []bool
		// rewritten: the quotes show that the numbers are.
		rewritten bool
	}{
		{"sequence numbers", scenario.Link{SeqShift: shift}, []bool{false, true}, false},
		{"sequence numbers, not those in quotes", scenario.Link{SeqShift: shift, QuotesUntranslated: true}, []bool{false, true}, true},
		{"short quotes", scenario.Link{ShortQuotes: true}, []bool{false, true}, false},
		{"sequence numbers, not those in short quotes", scenario.Link{SeqShift: shift, QuotesUntranslated: true, ShortQuotes: true}, []bool{false}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := ladder(2, scenario.ICMPLimit{})
			c.box.A, c.box.B = n.Links[0].A, n.Links[0].B
			n.Links[0] = c.box
			f := newField(t, n, servicetraceroute.Config{})
			f.hidden = c.box.SeqShift
			stop := f.watch(servicetraceroute.Selection{})
			flows := 0
			for _, ipv6 := range c.families {
				w := chatty(ipv6)
				w.Duration = 6 * time.Second
				f.run(w, 3, 300*time.Millisecond)
				flows += 3
			}
			all := stop()
			v := f.judge(f.truth(), all.traces)
			t.Logf("%v; %d replies matched, %d unmatched", v, all.stats.Replies.Matched, all.stats.Replies.Unmatched)
			if len(all.traces) != flows {
				t.Errorf("%d traces of %d flows", len(all.traces), flows)
			}
			for _, tr := range all.traces {
				// Duplicate acknowledgements are not judged: now and then one answer of the
				// destination is taken for one on any link of a forwarder without delay,
				// whether it rewrites or not.
				if !tr.Complete || tr.Destination.TTL != 6 || tr.Impact.Retransmits > 0 || tr.Impact.Aborted {
					t.Errorf("want all of it, and the destination at TTL 6: %v", describe(tr))
				}
				f.changes(tr, c.rewritten)
				var want []spot
				if c.rewritten {
					want = []spot{{trace.SeqRewritten, 0, 1, "shifted by 2309737967"}}
				}
				if mine := all.about(tr); !agree(mine, want) {
					t.Errorf("want %v, got %s", want, told(mine))
				}
			}
			f.boxWorked(c.box)
		})
	}
}

// changes checks what the replies of routers say of the quotes.
func (f *field) changes(tr *trace.Trace, rewritten bool) {
	f.t.Helper()
	for _, h := range tr.Hops {
		for _, r := range h.Replies {
			if r.Kind == trace.TimeExceeded && slices.Contains(r.Changes, trace.SeqRewritten) != rewritten {
				f.t.Errorf("%v: %v at TTL %d has changes %v", tr.Flow, r.Addr, h.TTL, r.Changes)
			}
		}
	}
}

// boxWorked holds what the client sent against what came to the first router, so
// that a box which does nothing does not pass.
func (f *field) boxWorked(box scenario.Link) {
	f.t.Helper()
	seen := map[string]map[observe.Flow]map[uint32]bool{}
	for _, name := range []string{"client", "r0"} {
		log, err := observe.Fetch(f.t.Context(), f.lab.Node(name), false)
		if err != nil {
			f.t.Fatal(err)
		}
		seen[name] = map[observe.Flow]map[uint32]bool{}
		for _, p := range log.Packets {
			if seen[name][p.Flow] == nil {
				seen[name][p.Flow] = map[uint32]bool{}
			}
			if p.Dst.Port() == 443 && p.Flags&2 != 0 { // SYN: sent once, by one way
				seen[name][p.Flow][p.Seq] = true
			}
		}
	}
	syns := 0
	for flow, seqs := range seen["client"] {
		for seq := range seqs {
			syns++
			if !seen["r0"][flow][seq+box.SeqShift] {
				f.t.Errorf("%v: the SYN %d did not come to r0 as %d", flow, seq, seq+box.SeqShift)
			}
		}
	}
	stats, err := link.ReadStats(f.t.Context(), f.lab.Link("client-r0"), "a0", "b0")
	if err != nil || syns == 0 || stats.BA.Forwarded == 0 || stats.BA.Shortened > 0 != box.ShortQuotes {
		f.t.Errorf("%d SYNs, %+v, %v", syns, stats, err)
	}
}

// unhide gives what the client's observer saw the numbers that all others saw.
func unhide(log observe.Log, shift uint32) observe.Log {
	log.Packets = slices.Clone(log.Packets)
	for i := range log.Packets {
		p := &log.Packets[i]
		switch {
		case p.Outgoing:
			p.Seq += shift
		case p.Flags&0x10 != 0: // ACK
			p.Ack += shift
		}
	}
	return log
}
