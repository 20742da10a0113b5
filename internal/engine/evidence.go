package engine

import (
	"net/netip"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// EvidenceKind says what a piece of evidence is. The zero value is invalid.
type EvidenceKind uint8

// The kinds of evidence.
const (
	FlowPacket   EvidenceKind = iota + 1 // a packet of a flow that is or may be traced
	ProbeSent                            // a probe, as crafted, when it is handed out
	ProbeSeen                            // its copy at the tap, with the kernel's time
	ProbeUnsent                          // it did not leave after all
	ReplyPacket                          // what may be an answer to a probe
	ProbeVerdict                         // what became of a probe
	ReplyVerdict                         // what a reply turned out to be
)

// Verdict is what became of a probe, or what a reply is worth. The zero value is
// not yet known.
type Verdict uint8

// The verdicts.
const (
	Answered    Verdict = iota + 1
	Silent              // no answer in time
	Limited             // silent within a second of its responder's own miss
	CutShort            // the trace ended first
	Restarted           // the flow took another path first
	Duplicate           // reply: the probe was answered before
	Unmatched           // reply: it fits no probe
	Unexplained         // reply: the destination's, but which probe caused it cannot be told
)

// Evidence is a packet worth keeping, or news about one. Packet.Data is valid
// until the next Step.
type Evidence struct {
	Kind   EvidenceKind
	Packet capture.Packet // its Len is that of the IP packet, without padding
	Keep   int            // bytes of Packet.Data that hold no payload
	Serial uint64         // names a probe or a reply; 0: the packet has no verdict to come

	// What is known, as far as it is.
	Verdict Verdict
	Trace   string // id; empty: no trace of ours
	TTL     int
	Attempt int // of the probe, from 1 on
	Reply   trace.ReplyKind
	From    netip.Addr
	RTT     time.Duration
	Late    bool // after the timeout, or after the end of the trace
}

// Evidence hands out what was seen since the last call. The slice is used again.
func (e *Engine) Evidence() []Evidence {
	out := e.evidence
	e.evidence = e.evidence[:0]
	return out
}

// note adds evidence. Callers ask cfg.Evidence first, so that without it nothing
// is computed.
func (e *Engine) note(ev Evidence) { e.evidence = append(e.evidence, ev) }

// captured is the packet at hand, with its true length.
func (e *Engine) captured(p *capture.Packet) capture.Packet {
	c := *p
	c.Len = max(e.ip.Len, 0)
	c.Data = c.Data[:min(len(c.Data), c.Len)] // without a short frame's padding
	return c
}

// notePacket keeps a packet of a flow that is traced, or was just met and may be, without
// its payload.
func (e *Engine) notePacket(p *capture.Packet, a *attachment, payload int) {
	e.segmentAt = -1
	if !e.cfg.Evidence || a.refused {
		return
	}
	if a.run == nil && a.finished > 0 && !a.again(p.Time) {
		return
	}
	e.segmentAt = len(e.evidence)
	e.note(Evidence{Kind: FlowPacket, Packet: e.captured(p), Keep: e.ip.Len - payload})
}

// noteAcknowledgement tells that the flow's packet at hand is the destination's
// answer: to a probe, or to one that cannot be told (s is nil).
func (e *Engine) noteAcknowledgement(r *run, s *probe.Sent, at time.Time) {
	if e.segmentAt < 0 || e.segmentAt >= len(e.evidence) {
		return
	}
	ev := &e.evidence[e.segmentAt]
	ev.Kind, ev.Trace, ev.Reply, ev.From = ReplyPacket, r.id, trace.TCPAck, r.flow.Key.Dst.Addr()
	if s == nil {
		ev.Verdict = Unexplained
		return
	}
	ev.Verdict, ev.TTL, ev.Attempt, ev.RTT = Answered, s.TTL, s.Attempt+1, max(at.Sub(s.At), 0)
	verdict := *ev // the append in note may move what ev points to
	verdict.Kind, verdict.Packet, verdict.Serial = ProbeVerdict, capture.Packet{}, s.Serial
	e.note(verdict)
}

// noteError keeps an ICMP error about a probe or a traced flow; what it is worth
// is said by noteAnswer, or not at all. first tells the first answer to a probe
// from the rest, which is rationed. It returns the reply's serial number. Without an id it
// is about no trace, and not kept.
func (e *Engine) noteError(p *capture.Packet, m *wire.ICMP, q *wire.Quote, id string, first bool) uint64 {
	if !e.cfg.Evidence || id == "" || !first && !e.ration.take(p.Time) {
		return 0
	}
	keep := e.ip.Len - e.ip.TransportLen + 8 + quotedHeaders(m.Quote, q)
	if first && m.Extensions != nil {
		keep = e.ip.Len
	}
	e.serial++
	e.note(Evidence{
		Kind: ReplyPacket, Packet: e.captured(p), Keep: keep, Serial: e.serial, Trace: id, From: e.ip.Src,
	})
	return e.serial
}

// noteUnmatched tells that a reply will fit no probe.
func (e *Engine) noteUnmatched(serial uint64) {
	if serial != 0 {
		e.note(Evidence{Kind: ReplyVerdict, Serial: serial, Verdict: Unmatched})
	}
}

// ration bounds what an outsider can have written: errors that answer no probe, or
// one that was answered before.
type ration struct {
	second  int64
	taken   int
	refused uint64
}

const rationPerSec = 1000

func (n *ration) take(at time.Time) bool {
	if s := at.Unix(); s != n.second {
		n.second, n.taken = s, 0
	}
	if n.taken++; n.taken > rationPerSec {
		n.refused++
		return false
	}
	return true
}

// EvidenceRefused is the number of errors that were not kept because too many came
// that answer no probe.
func (e *Engine) EvidenceRefused() uint64 { return e.ration.refused }

// quotedHeaders is how much of a quote is headers: all of it when there is no
// telling where payload would begin.
func quotedHeaders(quote []byte, q *wire.Quote) int {
	before := len(quote) - len(q.Transport)
	if q.Transport == nil { // a later fragment
		before = min(len(quote), 40)
	}
	n := 8
	if q.Proto == protoTCP && len(q.Transport) > 12 {
		n = max(int(q.Transport[12]>>4)*4, 20)
	}
	return before + min(n, len(q.Transport))
}

// noteAnswer tells what a reply is, and what that makes of its probe.
func (e *Engine) noteAnswer(s *probe.Sent, r *probe.Reply, verdict Verdict, late bool) {
	if !e.cfg.Evidence || r.Serial == 0 {
		return
	}
	t, ok := s.Owner.(*run)
	if !ok {
		return // the probe is forgotten
	}
	kind, _ := replyKind(r.Kind)
	ev := Evidence{
		Kind: ReplyVerdict, Serial: r.Serial, Verdict: verdict, Trace: t.id, TTL: s.TTL, Attempt: s.Attempt + 1,
		Reply: kind, From: r.From, RTT: max(r.At.Sub(s.At), 0), Late: late,
	}
	e.note(ev)
	if verdict == Answered {
		ev.Kind, ev.Serial = ProbeVerdict, s.Serial
		e.note(ev)
	}
}

// noteProbe keeps a probe that is handed out.
func (e *Engine) noteProbe(r *run, s *probe.Sent, packet []byte) {
	if !e.cfg.Evidence {
		return
	}
	e.serial++
	s.Serial = e.serial
	e.note(Evidence{
		Kind: ProbeSent, Serial: s.Serial, Keep: len(packet), Trace: r.id, TTL: s.TTL, Attempt: s.Attempt + 1,
		Packet: capture.Packet{
			Time: s.At, Interface: r.flow.Egress.Interface, Direction: capture.Outgoing, Data: packet, Len: len(packet),
		},
	})
}

// noteCopy keeps the copy of a probe that the tap showed.
func (e *Engine) noteCopy(p *capture.Packet, s *probe.Sent) {
	if e.cfg.Evidence {
		e.note(Evidence{Kind: ProbeSeen, Serial: s.Serial, Packet: e.captured(p), Keep: e.ip.Len})
	}
}

// noteFate tells what became of a probe that nobody answered.
func (e *Engine) noteFate(s *probe.Sent, verdict Verdict) {
	if r, ok := s.Owner.(*run); ok && e.cfg.Evidence && !s.Answered {
		e.note(Evidence{
			Kind: ProbeVerdict, Serial: s.Serial, Verdict: verdict, Trace: r.id, TTL: s.TTL, Attempt: s.Attempt + 1,
		})
	}
}

// noteUnsent tells that a probe did not leave.
func (e *Engine) noteUnsent(s *probe.Sent) {
	if e.cfg.Evidence {
		e.note(Evidence{Kind: ProbeUnsent, Serial: s.Serial})
	}
}
