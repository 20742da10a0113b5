package engine

import (
	"net/netip"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// UDP flows. A probe must not reach the application, so none goes beyond the fence; and
// nothing tells that one did, so there is no search for the destination.

const (
	protoUDP = 17

	fenceMargin    = 2               // below the distance that the inbound TTL tells
	fenceAhead     = 2               // TTLs beyond the last that answered
	detourUnseen   = 2               // by how much the peer's way back may be longer and no answer tell it
	damagedFirst   = 2               // probes of a TTL before one that a host would take in
	maxDetour      = 8               // of a way back; a TTL that tells of more began with another number
	exchangesFirst = 2               // before the first probe
	exchangesTold  = 5               // before a flow is said to be questions and answers
	reflectFactor  = 3               // bytes of probes for each byte of the peer's
	unansweredFor  = 5 * time.Second // until a flow that only sends is refused
	udpFlowTimeout = 60 * time.Second
	spokeWithin    = time.Second // of a flow that is said to exist
	distanceLife   = 10 * time.Minute
	maxDistances   = 4096
)

// Hearing is what the socket of a UDP flow hears of ICMP errors.
type Hearing uint8

// What it may hear: none of those about our probes, unless a firewall refuses one; all of
// them; all but those about our probes, which a rule drops that knows each probe before it
// leaves (Probe.DropErrors). The zero value is not known.
const (
	HearsNothing Hearing = iota + 1
	HearsErrors
	HearsOthers
	hearingAsked
)

// datagram takes in one UDP datagram: a copy of a probe of ours, or a packet of a flow.
func (e *Engine) datagram(p *capture.Packet) {
	if s, translated := e.sent.OwnUDP(&e.ip, &e.udp); s != nil {
		if p.Direction == capture.Outgoing && !translated && !s.Stamped {
			s.Stamped, s.At = true, p.Time
			e.noteCopy(p, s)
		}
		if e.cfg.Replay {
			e.seenAgain(p, s)
		}
		return
	}
	if e.cfg.Replay && e.replayedDatagram(p) {
		return
	}
	e.resolve(p)
	if !unicast(e.ip.Dst) || !unicast(e.ip.Src) {
		return
	}
	outgoing := p.Direction == capture.Outgoing
	key := flow.KeyUDP(&e.ip, &e.udp, outgoing)
	passing, followed := e.seenHere(p, key)
	if !followed {
		return
	}
	e.reusable(p.Time, key)
	f, followed := e.table.ObserveUDP(p, &e.ip, &e.udp)
	if !followed || !e.locate(f, passing, outgoing) {
		return
	}
	if e.guessed && f.UDP.PacketsIn+f.UDP.PacketsOut == 1 {
		f.Direction = trace.Out // the near end was taken for the client
	}
	e.attendUDP(p, f)
	a := e.match(p.Time, f)
	if a == nil || a.watch == nil && a.run == nil {
		return
	}
	if a.watch != nil {
		a.watch.lastSeen = p.Time
	}
	if a.asks && harmless(f) {
		a.asks, a.refused = false, false // it is more than that
	}
	if a.unanswered && f.UDP.PacketsIn > 0 {
		a.unanswered, a.refused = false, false
	}
	e.notePacket(p, a, e.udp.PayloadLen)
	if r := a.run; r != nil {
		r.inSync(p.Time, p.Direction == capture.Outgoing)
		r.before = p.Time
		if !e.cfg.Replay {
			return
		}
	}
	e.consider(p.Time, f)
}

// unicast reports whether an address can be one end of a flow. The broadcast addresses
// of local networks are not known here; nobody answers from one, so such a flow is never
// probed.
func unicast(a netip.Addr) bool {
	return a.IsValid() && !a.IsMulticast() && !a.IsUnspecified() && a != limitedBroadcast
}

var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// harmless reports whether a stray datagram does a flow no harm. To protocols of question and
// answer it might, and to their ports however many questions follow each other.
func harmless(f *flow.Flow) bool {
	switch serverOf(f).Port() {
	case portDNS, 123, 161, 5353: // DNS, NTP, SNMP, multicast DNS
		return false
	}
	return f.UDP.Harmless()
}

// udpRefusal says why a UDP flow that is known well enough must not be probed; 0 if it
// may.
func (e *Engine) udpRefusal(f *flow.Flow, a *attachment) trace.Reason {
	switch mode := a.policy().Params.UDPProbe; {
	case mode == probe.UDPOff:
		return trace.ReasonUDPOff
	case mode != probe.UDPAlways && !harmless(f):
		return trace.ReasonProtocol
	case a.hearing == HearsErrors:
		return heardReason(f)
	}
	return 0
}

// mute reports whether the flow's own end alone has spoken, for so long that the peer's
// TTL will not be known.
func mute(now time.Time, f *flow.Flow) bool {
	return f.Mute(now, exchangesFirst, unansweredFor)
}

// inquireHearing asks once whether the flow's socket hears of ICMP errors; false while
// that is not known. That of a forwarded flow is not here to be asked; it hears of none,
// see Probe.DropErrors.
func (e *Engine) inquireHearing(f *flow.Flow, a *attachment) bool {
	if f.Direction == trace.Transit {
		return true
	}
	if a.hearing == 0 {
		a.hearing = hearingAsked
		e.hearings = append(e.hearings, Question{f.Key, f.Egress.Interface})
	}
	return a.hearing != hearingAsked
}

// Hearings hands out the UDP flows of which the engine wants to know whether their
// sockets hear of ICMP errors, since the last call; the answers come back by Hears, or
// never.
func (e *Engine) Hearings() []Question {
	out := e.hearings
	e.hearings = nil
	return out
}

// Hears tells what the socket of a UDP flow hears of the ICMP errors about it. One that
// is not to be found counts as one that hears all of them.
func (e *Engine) Hears(now time.Time, k trace.FlowKey, what Hearing) {
	f := e.table.Get(k)
	if f == nil {
		return
	}
	if a, ok := f.Attachment.(*attachment); ok && a.hearing == hearingAsked {
		a.hearing = what
		e.consider(now, f)
	}
}

// overheard reports whether somebody else would hear of errors about the trace's probes,
// so that these have to be dropped.
func (r *run) overheard() bool { return r.hearing == HearsOthers || r.flow.Direction == trace.Transit }

// heardAnyway ends a trace whose probes' errors are dropped, when one comes that may be
// about a probe and yet is none that the rule knows, since it was changed on its way: of a
// datagram one that is quoted without its payload, of a segment one with another number or
// identification. The application has heard of it, and would of the next one. s is the
// probe that the quote may be about, nil: none.
func (e *Engine) heardAnyway(r *run, s *probe.Sent, reply probe.Reply) {
	if r == nil || !r.overheard() {
		return
	}
	q := &reply.Quote
	escaped := int(q.UDPLen) == 8+probe.PayloadLen && q.UDPHeadLen < probe.PayloadLen && s == nil
	if !r.udp() {
		escaped = q.Src == r.flow.Key.Src.Addr() && q.SrcPort == r.flow.Key.Src.Port() && q.Len == r.probeLen && (s == nil || !s.Identified(q))
	}
	if escaped {
		r.at.hearing = HearsErrors
		e.finish(reply.At, r, trace.StopRefused)
	}
}

// longestAnswer bounds how long an answer is under way.
const longestAnswer = time.Second

// AnswersUntil is until when errors may come that have to be dropped (Probe.DropErrors): a
// while longer than the flows' round trips. It is zero when all probes were answered.
func (e *Engine) AnswersUntil() (until time.Time) {
	for s := range e.sent.Each {
		r, ok := s.Owner.(*run)
		if !ok || s.Answered || !r.overheard() {
			continue
		}
		if at := s.At.Add(min(2*r.rtt()+longestAnswer/10, longestAnswer)); at.After(until) {
			until = at
		}
	}
	return until
}

// fence is the highest TTL that the destination certainly does not see; proven tells that
// a TCP flow told how far that is, else its own packets do, which come by another way.
func (e *Engine) fence(now time.Time, f *flow.Flow) (ttl int, proven bool) {
	// In a file the probes tell, see probeSeen.
	if d, ok := e.distances[f.Key.Dst.Addr()]; ok && now.Sub(d.at) < distanceLife && !e.cfg.Replay {
		return d.ttl - 1, true
	}
	return distance(f) - fenceMargin, e.cfg.Replay
}

// knownDistance is a destination's distance as a TCP flow proved it.
type knownDistance struct {
	ttl int
	at  time.Time
}

// learnDistance keeps it for UDP flows to the same destination.
func (e *Engine) learnDistance(now time.Time, dst netip.Addr, ttl int) {
	if _, known := e.distances[dst]; !known && len(e.distances) >= maxDistances {
		for other, d := range e.distances {
			if now.Sub(d.at) >= distanceLife || len(e.distances) >= maxDistances {
				delete(e.distances, other)
			}
		}
	}
	e.distances[dst] = knownDistance{ttl, now}
}

// fenced reports whether no probe of the trace may come to the destination: there a UDP
// application would take it in, and what a host answers to a forwarded flow's comes to
// that flow's client.
func (r *run) fenced() bool { return r.udp() || r.flow.Direction == trace.Transit }

// advanceFence lets a fenced trace go on beyond the hop that answered, up to the fence.
// back is that hop's distance as its answer's TTL tells it. If it tells of a way back that
// is longer than the way there, the destination's packets most likely took a longer one,
// too: then the fence, which they told, is nearer.
func (r *run) advanceFence(answered, back int) {
	if answered >= r.answeredTTL {
		r.answeredTTL, r.detour = answered, 0
		if longer := back - answered; !r.fenceProven && longer > 0 && longer <= maxDetour {
			r.detour = longer
		}
	}
	r.plan.SetBoundary(min(r.fence-r.detour, r.answeredTTL+fenceAhead) + 1)
}

// damaged reports whether a probe of a UDP flow is one that no host takes in, in case the
// fence is wrong. Whole ones go only where even that does no harm, when damaged ones were not
// answered there; or up to the fence, once that showed that only whole ones come through.
func (r *run) damaged(ttl, attempt int) bool {
	certain := r.fence
	if !r.fenceProven {
		inbound, _ := r.flow.InboundTTL()
		certain = probe.LeastDistance(inbound) - fenceMargin - detourUnseen - r.detour
	}
	return !r.intact && !r.wholeOnly && (attempt < damagedFirst || ttl > certain || len(r.hop(ttl).replies) > 0)
}

// passed learns from an answer which datagrams the path lets through.
func (r *run) passed(s *probe.Sent) {
	if s.Damaged {
		r.damagedTTL = max(r.damagedTTL, s.TTL)
	} else if s.TTL > r.damagedTTL {
		r.wholeOnly = true
	}
}

// room reports whether the flow leaves room for a probe now.
func (r *run) room() bool {
	if r.udp() {
		return r.flow.UDP.ProbeBytes+uint64(probe.MaxDatagram) <= reflectFactor*r.flow.UDP.WireIn
	}
	return probe.Offsets(r.flow.TCP) > 0
}

func (r *run) udp() bool { return r.flow.Key.Proto == trace.UDP }

// craft fills in a probe of the flow; false when there is no room for one.
func (e *Engine) craft(r *run, s *probe.Sent, ttl int) bool {
	if !r.room() {
		return false
	}
	if r.udp() {
		s.Damaged = r.damaged(ttl, s.Attempt)
		probe.CraftUDP(s, r.flow, ttl, e.rng)
		return true
	}
	taken := func(seq uint32) bool { return seq == r.lastSeq || e.sent.Taken(r.flow.Key.Dst, seq) }
	return probe.Craft(&s.TCPProbe, r.flow, ttl, e.rng, taken)
}

// about is the key of the flow that a quoted packet belongs to.
func about(q *wire.Quote) (trace.FlowKey, bool) {
	k := trace.FlowKey{Proto: trace.TCP, Src: netip.AddrPortFrom(q.Src, q.SrcPort), Dst: netip.AddrPortFrom(q.Dst, q.DstPort)}
	if q.Proto == protoUDP {
		k.Proto = trace.UDP
	}
	return k, q.HasPorts && (q.Proto == protoTCP || q.Proto == protoUDP)
}
