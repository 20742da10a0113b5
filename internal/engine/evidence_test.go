package engine

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// kept collects what the engine says of packets.
func (r *rig) kept() (all []Evidence) {
	for _, ev := range r.e.Evidence() {
		ev.Packet.Data = append([]byte(nil), ev.Packet.Data...)
		all = append(all, ev)
	}
	return all
}

func newEvidenceRig(t *testing.T, v6 bool, distance int) *rig {
	r := newRig(t, v6, distance)
	r.e.cfg.Evidence = true
	return r
}

func of(all []Evidence, kind EvidenceKind) (some []Evidence) {
	for _, ev := range all {
		if ev.Kind == kind {
			some = append(some, ev)
		}
	}
	return some
}

// A whole trace: each probe is there once as sent and once as seen, each with a
// verdict; each reply has the verdict of its probe.
func TestEvidenceOfATrace(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprint("v6 ", v6), func(t *testing.T) {
			r := newEvidenceRig(t, v6, 4)
			var all []Evidence
			r.handshake()
			all = append(all, r.kept()...)
			for _, ev := range all[:3] {
				if ev.Kind != FlowPacket || ev.Keep != len(ev.Packet.Data) {
					t.Fatalf("of the handshake: %+v", ev)
				}
			}
			r.exchange()
			for range 100 {
				r.after(50 * time.Millisecond)
				r.routers(3) // the router at TTL 3 is silent
				all = append(all, r.kept()...)
				if len(r.traces()) > 0 {
					break
				}
			}
			r.after(3 * time.Second)
			r.e.Remove(r.now, r.w, trace.StopCancelled)
			all = append(all, r.kept()...)
			verdicts := map[uint64]Evidence{}
			for _, ev := range of(all, ProbeVerdict) {
				if old, ok := verdicts[ev.Serial]; ok {
					t.Errorf("two verdicts: %+v, %+v", old, ev)
				}
				verdicts[ev.Serial] = ev
			}
			sent, seen := of(all, ProbeSent), of(all, ProbeSeen)
			if len(sent) != len(r.probes) || len(seen) != len(sent) {
				t.Errorf("%d probes, %d sent, %d seen", len(r.probes), len(sent), len(seen))
			}
			words := map[Verdict]int{}
			for _, p := range sent {
				v := verdicts[p.Serial]
				words[v.Verdict]++
				if v.TTL != p.TTL || v.Attempt != p.Attempt || v.Trace != p.Trace || p.Trace == "" {
					t.Errorf("sent %+v, verdict %+v", p, v)
				}
				answered := p.TTL < 3
				if answered != (v.Verdict == Answered) {
					t.Errorf("TTL %d: %+v", p.TTL, v)
				}
			}
			if words[Answered] < 2 || words[Silent]+words[Limited]+words[CutShort] < 2 {
				t.Errorf("%v", words)
			}
			replies := map[uint64]bool{}
			for _, ev := range of(all, ReplyVerdict) {
				replies[ev.Serial] = ev.Verdict == Answered && ev.Reply == trace.TimeExceeded
			}
			for _, ev := range of(all, ReplyPacket) {
				if !replies[ev.Serial] {
					t.Errorf("no verdict on %+v", ev)
				}
			}
			if len(replies) != words[Answered] {
				t.Errorf("%d replies to %d probes", len(replies), words[Answered])
			}
			for _, ev := range of(all, FlowPacket) {
				if headers := ev.Packet.Data[:ev.Keep]; strings.Contains(string(headers), "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00") {
					t.Errorf("payload of zeros is left: %x", headers)
				}
			}
		})
	}
}

// Errors that fit no probe are kept, headers only, and an outsider cannot have
// more written than the ration.
func TestEvidenceOfForeignErrors(t *testing.T) {
	r := newEvidenceRig(t, false, 4)
	r.handshake()
	r.exchange()
	r.kept()
	secret := "the application's own words"
	app := wire.TCPSegment{TCPProbe: wire.TCPProbe{
		Src: r.me, Dst: r.peer, TTL: 1, ID: 7, Seq: r.seq - 50, Ack: r.ack, Flags: wire.ACK, Window: 5,
	}, Payload: []byte(secret)}
	quote := app.AppendTo(nil)
	r.error("198.51.100.9", 11, 0, quote, 0)
	replies := of(r.kept(), ReplyPacket)
	if len(replies) != 1 || replies[0].Verdict != 0 || replies[0].Trace == "" {
		t.Fatalf("%+v", replies)
	}
	data, keep := replies[0].Packet.Data, replies[0].Keep
	if !strings.Contains(string(data), secret) || strings.Contains(string(data[:keep]), secret[:1]) && keep > 20+8+20+20 {
		t.Errorf("%d of %d bytes are kept: %q", keep, len(data), data[:keep])
	}
	if keep != 20+8+20+20 {
		t.Errorf("%d bytes are kept", keep)
	}
	for range 3 * rationPerSec {
		r.error("198.51.100.9", 11, 0, quote, 0)
	}
	all := r.kept()
	if n := len(of(all, ReplyPacket)); n >= rationPerSec || r.e.EvidenceRefused() == 0 {
		t.Errorf("%d of a flood were kept, %d refused", n, r.e.EvidenceRefused())
	}
	if n := len(of(all, ReplyVerdict)); n < rationPerSec/2 {
		t.Errorf("only %d were called unmatched while they came", n)
	}
}

// While connection tracking is asked who the flow's ends are, errors about its packets are
// kept as those of the trace that will begin.
func TestEvidenceBeforeATrace(t *testing.T) {
	peer := netip.MustParseAddrPort("203.0.113.7:443")
	me := netip.MustParseAddr("192.0.2.1")
	r := newRigOf(t, false, 4, Config{Evidence: true, Tracked: true, Local: func(a netip.Addr) bool { return a == me }}, peer)
	r.handshake()
	app := wire.TCPSegment{TCPProbe: wire.TCPProbe{Src: r.me, Dst: r.peer, TTL: 60, ID: 7, Seq: r.seq, Ack: r.ack, Flags: wire.ACK, Window: 5}, Payload: make([]byte, 1400)}
	r.error("198.51.100.2", 3, 4, app.AppendTo(nil), 0)
	replies := of(r.e.Evidence(), ReplyPacket)
	if len(replies) != 1 || replies[0].Trace == "" {
		t.Fatalf("%+v", replies)
	}
	id := replies[0].Trace // the slice is used again
	for _, key := range r.e.Places() {
		r.e.Untracked(r.now, key)
	}
	r.after(time.Second)
	r.e.Remove(r.now, r.w, trace.StopCancelled)
	if all := r.traces(); len(all) != 1 || all[0].ID != id {
		t.Errorf("of %v: %v", id, all)
	}
}

// A reply that comes twice, and one that comes too late, say so.
func TestEvidenceOfLateAndDuplicate(t *testing.T) {
	r := newEvidenceRig(t, false, 4)
	r.handshake()
	r.exchange()
	r.after(10 * time.Millisecond)
	first, ttl := r.packets[0], int(r.probes[0].TTL)
	r.timeExceeded(ttl, first)
	r.timeExceeded(ttl, first)
	late, at := r.packets[1], int(r.probes[1].TTL)
	r.kept()
	r.after(2100 * time.Millisecond)
	r.timeExceeded(at, late)
	var words []string
	for _, ev := range of(r.kept(), ReplyVerdict) {
		words = append(words, fmt.Sprint(ev.Verdict == Answered, ev.Late, ev.TTL == at))
	}
	if strings.Join(words, ",") != "true true true" {
		t.Errorf("%v", words)
	}
}

// Packets of flows that nobody wants traced, or that were refused or are done, are
// not kept.
func TestEvidenceOfOtherFlows(t *testing.T) {
	r := newEvidenceRig(t, false, 4)
	r.peer = netip.MustParseAddrPort("203.0.113.8:443")
	r.handshake()
	r.exchange()
	if all := r.kept(); len(all) != 0 {
		t.Errorf("%+v", all)
	}
	r = newEvidenceRig(t, false, 4)
	r.handshake(19, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) // MD5
	r.kept()
	r.exchange()
	if all := r.kept(); len(all) != 0 {
		t.Errorf("of a refused flow: %+v", all)
	}
	r = newEvidenceRig(t, false, 4)
	r.handshake()
	r.e.cfg.NoProbe = true
	r.exchange()
	if all := r.kept(); len(all) < 3 {
		t.Errorf("without probes: %+v", all)
	}
}

// What is not asked for costs nothing.
func TestNoEvidenceCostsNothing(t *testing.T) {
	busy := func(on bool) float64 {
		r := newRig(t, false, 4)
		r.e.cfg.Evidence, r.e.cfg.NoProbe = on, true
		r.handshake()
		seg := wire.TCPSegment{TCPProbe: wire.TCPProbe{
			Src: r.me, Dst: r.peer, TTL: 64, ID: 1, Seq: r.seq, Ack: r.ack, Flags: wire.ACK, Window: 500,
		}, Payload: make([]byte, 100)}
		batch := []capture.Packet{r.captured(seg.AppendTo(nil), capture.Outgoing)}
		r.e.Step(r.now, batch)
		r.e.Evidence()
		if n := testing.AllocsPerRun(100, func() { r.e.Step(r.now, batch) }); n > 0 {
			return n
		}
		if !on && r.e.evidence != nil {
			t.Error("evidence was made")
		}
		return 0
	}
	if n := busy(false); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
}

func BenchmarkStep(b *testing.B) {
	for _, on := range []bool{false, true} {
		b.Run(fmt.Sprint("evidence ", on), func(b *testing.B) {
			r := newRig(&testing.T{}, false, 4)
			r.e.cfg.Evidence, r.e.cfg.NoProbe = on, true
			r.handshake()
			seg := wire.TCPSegment{TCPProbe: wire.TCPProbe{
				Src: r.me, Dst: r.peer, TTL: 64, ID: 1, Seq: r.seq, Ack: r.ack, Flags: wire.ACK, Window: 500,
			}, Payload: make([]byte, 100)}
			batch := []capture.Packet{r.captured(seg.AppendTo(nil), capture.Outgoing)}
			b.ReportAllocs()
			for b.Loop() {
				r.e.Step(r.now, batch)
				r.e.Evidence()
			}
		})
	}
}
