package engine

import (
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

const (
	protoICMP   = 1
	protoTCP    = 6
	protoICMPv6 = 58
)

// packet takes in one captured packet. What cannot be decoded is counted.
func (e *Engine) packet(p *capture.Packet) {
	if p.Direction == capture.Foreign && !e.cfg.Replay {
		return
	}
	if err := e.ip.Decode(p.Data, p.Len); err != nil {
		e.stats.Packets.Malformed++
		return
	}
	switch {
	case e.ip.Fragment:
		return // TCP does not fragment, an ICMP error is small, and QUIC does not either
	case e.ip.Proto == protoTCP:
		if err := e.tcp.Decode(e.ip.Transport, e.ip.TransportLen); err != nil {
			e.stats.Packets.Malformed++
			return
		}
		if e.ignored(e.tcp.SrcPort, e.tcp.DstPort, p.Direction == capture.Outgoing) {
			return
		}
		if e.cfg.Replay {
			e.orient(p)
		}
		e.segment(p)
	case e.ip.Proto == protoUDP:
		if err := e.udp.Decode(e.ip.Transport, e.ip.TransportLen); err != nil {
			e.stats.Packets.Malformed++
			return
		}
		if e.ignored(e.udp.SrcPort, e.udp.DstPort, p.Direction == capture.Outgoing) {
			return
		}
		if e.cfg.Replay {
			e.orient(p)
		}
		e.datagram(p)
	case e.ip.Proto == protoICMP && e.ip.Version == 4, e.ip.Proto == protoICMPv6 && e.ip.Version == 6:
		if p.Direction == capture.Incoming || e.cfg.Replay {
			e.icmp(p)
		}
	}
}

// segment takes in one TCP segment: a copy of a probe of ours, which only tells
// when it left, or a packet of a flow.
func (e *Engine) segment(p *capture.Packet) {
	if s := e.sent.Own(&e.ip, &e.tcp); s != nil {
		if p.Direction == capture.Outgoing && !s.Stamped {
			s.Stamped, s.At = true, p.Time
			e.noteCopy(p, s)
			if r := s.Owner.(*run); s.Reaching {
				r.reach.Stamp(s.TTL, p.Time)
			}
		}
		if e.cfg.Replay {
			e.seenAgain(p, s)
		}
		return
	}
	outgoing := p.Direction == capture.Outgoing
	passing, followed := e.seenHere(p, flow.Key(&e.ip, &e.tcp, outgoing))
	if !followed || e.sent.OwnForwarded(&e.ip, &e.tcp) || e.cfg.Replay && e.replayedSegment(p) {
		return
	}
	if p.Brief && !e.beginUnseen(p, flow.Key(&e.ip, &e.tcp, outgoing)) {
		return
	}
	f, o, followed := e.table.Observe(p, &e.ip, &e.tcp)
	if f != nil && !followed && e.tcp.Flags&wire.SYN != 0 {
		e.reused(p.Time, f)
	}
	if f == nil || !followed || !e.locate(f, passing, outgoing) {
		return
	}
	if o.FirstSYN {
		f.Quiet = false // from here on all is shown
		if a, ok := f.Attachment.(*attachment); ok {
			a.gap = time.Time{}
		}
	}
	e.ownerOf(p.Time, f, &o)
	if e.cfg.Replay {
		e.renew(f, &o)
	}
	e.attend(p, f, &o)
	a := e.match(p.Time, f)
	if a == nil {
		return
	}
	if p.Brief && a.epoch == 0 {
		a.waits = true // for what leaves, which would not be shown
		e.showWhole(p.Time, f)
	}
	if o.FirstSYN { // of another connection, if one was there
		e.endSweep(a)
		delete(e.triggers, f)
		a.anew, a.refused, a.narrow, a.health = a.finished > 0, false, nil, nil
	}
	if a.watch == nil && a.run == nil {
		return
	}
	if o.Outside {
		e.stats.Replies.Unmatched++ // pretends to be the destination's
		return
	}
	if a.watch != nil {
		a.watch.lastSeen = p.Time
	}
	e.notePacket(p, a, e.tcp.PayloadLen)
	e.examine(p.Time, f, a, &e.tcp, &o)
	if a.run != nil {
		e.watchOver(p, a.run, &o)
	}
	if a.run == nil && o.LabelChanged {
		a.relabelled()
	}
	if a.run == nil || e.cfg.Replay {
		e.consider(p.Time, f)
		e.closedBefore(p.Time, f)
	}
}

// consider starts the trace of a selected flow when it may be probed, and says
// once why not when it may not.
func (e *Engine) consider(now time.Time, f *flow.Flow) {
	a := e.match(now, f)
	if a == nil {
		return
	}
	w := a.watch
	if e.cfg.Replay {
		if w != nil && shown(now, f) {
			e.identify(now, f, a)
		}
		return
	}
	if w == nil || a.run != nil || a.refused || !open(now, f) || !e.knowsPlace(f, a) {
		return
	}
	e.wonder(now, f, a)
	if a.finished > 0 {
		if !a.again(now) {
			return
		}
		if a.anew {
			a.anew, a.finished, a.told, a.path = false, 0, false, nil
		}
	}
	if w.late(now) || w.Single && w.begun {
		return
	}
	if reason := e.refusal(f); reason != 0 && !e.cfg.NoProbe {
		a.refused = true
		e.refuse(now, f, a, reason)
		return
	}
	if !a.told {
		a.told = true
		e.tell(now, f, a, trace.FlowMatched, 0)
	}
	if e.paused || e.cfg.NoProbe || !e.ready(now, f, a) {
		return
	}
	p := a.policy()
	if p.OnPayload && f.BytesIn+f.BytesOut == 0 || a.finished == 0 && !w.free(now, p, f) {
		return
	}
	if a.finished == 0 && a.waitsToHurt() {
		return
	}
	if len(e.runs) >= maxRuns {
		return // counted as live flows without a trace; the next packet asks again
	}
	e.begin(now, f, a)
}

// stands reports whether the flow is one that is worth a record.
func (e *Engine) stands(now time.Time, f *flow.Flow) bool {
	if e.cfg.Replay {
		return shown(now, f)
	}
	return open(now, f)
}

// open reports whether the flow is one, and has not ended: both ends have spoken, or, of
// UDP, only this one and for long. Nothing tells the end of a UDP flow: one that is silent
// counts again once it speaks.
func open(now time.Time, f *flow.Flow) bool {
	if f.Key.Proto == trace.UDP {
		return now.Sub(f.LastSeen()) < spokeWithin && (f.UDP.Exchanges > 0 || mute(now, f))
	}
	return f.TCP.Established && !f.TCP.Closed
}

// ready reports whether a flow may be probed now: both ends have shown what a probe
// needs. A UDP flow can still prove to be none that may; then it is refused.
func (e *Engine) ready(now time.Time, f *flow.Flow, a *attachment) bool {
	if f.Key.Proto != trace.UDP {
		return showsItself(f)
	}
	if mute(now, f) {
		a.refused, a.unanswered = true, true
		e.refuse(now, f, a, trace.ReasonNoInboundTTL)
		return false
	}
	if f.UDP.Exchanges < exchangesFirst || !f.UDP.Newest.Valid || !f.Egress.Known || !e.inquireHearing(f, a) {
		return false
	}
	if reason := e.udpRefusal(f, a); reason != 0 {
		if reason == trace.ReasonProtocol && f.UDP.Exchanges < exchangesTold {
			return false // a tunnel, or media, begins so, too
		}
		a.refused, a.asks = true, reason == trace.ReasonProtocol
		e.refuse(now, f, a, reason)
		return false
	}
	return true
}

// showsItself reports whether both ends of a TCP flow have shown what a probe needs.
func showsItself(f *flow.Flow) bool {
	return f.TCP.HaveUna && f.TCP.Newest.Valid && f.Egress.Known && f.TCP.Inbound.Valid()
}

// again reports whether a flow that was traced is to be traced once more: the same
// connection by Retrace, another one with the same addresses and ports by Every.
func (a *attachment) again(now time.Time) bool {
	since, p := now.Sub(a.ended), a.policy()
	prompted := a.path != nil && a.path.doubtTTL > 0 && !a.anew
	if a.hurt != "" {
		return true // it has cooled down
	}
	return p.Retrace > 0 && (since >= p.Retrace || prompted) || a.anew && p.Every >= 0 && since >= p.Every
}

// refusal says why a flow must not be probed; 0 if it may.
func (e *Engine) refusal(f *flow.Flow) trace.Reason {
	dst := f.Key.Dst.Addr()
	own := dst.IsLoopback() || f.Key.Src.Addr() == dst || (e.cfg.Local != nil && e.cfg.Local(dst))
	switch t := f.TCP; {
	case t != nil && t.MD5:
		return trace.ReasonMD5
	case t != nil && t.AO:
		return trace.ReasonAO
	case t != nil && t.BothMPTCP:
		return trace.ReasonMPTCP
	case own && !e.cfg.Loopback:
		return trace.ReasonLoopback
	case dst.IsMulticast() || dst.IsUnspecified():
		return trace.ReasonExcluded
	}
	for _, p := range e.cfg.Exclude {
		if p.Contains(dst) {
			return trace.ReasonExcluded
		}
	}
	if f.Direction == trace.Transit && !e.cfg.NoProbe && (attached(f).hearing == HearsErrors || e.cfg.CanDrop == nil || !e.cfg.CanDrop()) {
		return trace.ReasonCapability // the client would hear of each probe
	}
	return 0
}

// heardReason is why a flow is not probed any more whose end heard of an error about a
// probe.
func heardReason(f *flow.Flow) trace.Reason {
	if f.Direction == trace.Transit {
		return trace.ReasonCapability // the rule cannot do it here
	}
	return trace.ReasonRecvErr
}

// refuse writes the records of a flow that must not be probed.
func (e *Engine) refuse(now time.Time, f *flow.Flow, a *attachment, reason trace.Reason) {
	e.tell(now, f, a, trace.FlowRefused, reason)
	e.stats.Probes.Refused++
	e.ended(now, f, a, trace.StopRefused, reason)
}

// ended writes the record of a trace that ended before its first probe.
func (e *Engine) ended(now time.Time, f *flow.Flow, a *attachment, stop trace.Stop, reason trace.Reason) {
	e.stats.Traces.Started++
	e.stats.Traces.Done++
	e.stats.Traces.ByStop[stop]++
	service := a.service
	e.emit(a.watch, &trace.Trace{
		ID: e.newID(), Label: e.cfg.Label, Start: now, End: now, Algorithm: a.watch.policy(service.Name).Params.Algorithm,
		Flow: e.tuple(f), Service: &service, Process: a.whose(), Hops: []trace.Hop{}, Stop: stop, Reason: reason,
		Observed: observed(f, now),
	})
}

// tell writes a flow record.
func (e *Engine) tell(now time.Time, f *flow.Flow, a *attachment, state trace.FlowState, reason trace.Reason) {
	e.emit(a.watch, &trace.Flow{
		Tuple: e.tuple(f), Time: now, Label: e.cfg.Label, Service: &a.service, Process: a.whose(), State: state, Reason: reason,
	})
}

// watchOver tells a trace what its flow just did: whether it ended, whether the
// destination answered a probe, whether something looks like harm.
func (e *Engine) watchOver(p *capture.Packet, r *run, o *flow.Observation) {
	now := p.Time
	r.inSync(now, o.Outgoing)
	switch {
	case o.RST && !o.Outgoing:
		e.harmed(now, r, harmRST)
		e.finish(now, r, trace.StopFlowClosed)
		return
	case r.closed() && o.LabelChanged:
		e.finish(now, r, trace.StopFlowClosed)
		return
	case o.Closed:
		// A probe that comes to the peer after its close costs it a reset.
		if !e.outlives(now, r, o) {
			e.finish(now, r, trace.StopFlowClosed)
			return
		}
		e.outlive(now, r)
	case o.LabelChanged:
		// IPv6 hosts pick a new flow label after a timeout, and with it a new path.
		e.restart(now, r)
	}
	if r.closed() {
		e.heardClosed(now, r, o)
		return
	}
	if a := r.reach.Open(); a.TTL != 0 && o.Data && now.Sub(a.Sent) < r.rtt()*3/2+10*time.Millisecond {
		r.crossed = true
	}
	if o.Outgoing {
		if o.Keepalive || o.Retransmit || (o.Data && !r.flow.TCP.SACK) {
			r.noiseAt = now
		}
		if o.Data {
			r.dataOutAt = now
		}
	} else if o.PureAck && o.Repeated && o.NoSACKBlocks && plausible(o) {
		e.destinationReply(p, r)
	}
	if o.Retransmit {
		r.retransAt = now
		e.harmed(now, r, harmRetransmit)
	}
	r.before = now
}

// Distance of the destination by what the peer last sent.
func distance(f *flow.Flow) int {
	ttl, _ := f.InboundTTL()
	return probe.Distance(ttl)
}

// plausible reports whether a pure acknowledgement can be the destination's
// answer to a probe: in order, with the flow's usual TTL, with timestamps that
// continue the flow's and echo one that we sent.
func plausible(o *flow.Observation) bool { return o.InOrder && o.SameTTL && o.Timely }
