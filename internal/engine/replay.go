package engine

import (
	"net/netip"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/names"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/quic"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// Packets of a file. Nothing is sent: the probes are those that somebody sent while the
// file was captured, told by what they are on the wire. From there on all is as with
// probes of our own: the same table, the same matching, the same search for the
// destination, which is here only watched. docs/decisions/0038-replay.md has the reasons.

const (
	maxReplayed  = 4096            // traces in progress
	replayMaxTTL = 64              // of a probe
	staleAfter   = time.Second     // a flow that was not seen for so long may be farther than is known
	farBelow     = 16              // so much lower than the flow's own TTL is no other way to here
	settledFor   = 5 * time.Second // after which a trace that has all it needs is over
	// A trace that goes on with what it knew already is the next one of its flow.
	restartWithin = time.Second
	copyWithin    = time.Millisecond
	firstOfOwn    = 32768 // ports from here on are given to clients
)

// ReplayParams are the parameters of traces that are found in a file.
func ReplayParams(p probe.Params) probe.Params {
	p.FirstTTL, p.MaxTTL = 1, replayMaxTTL
	return p
}

// Due is when Step has to be called although no packet comes; ok is false while nothing
// waits for a time.
func (e *Engine) Due() (at time.Time, ok bool) {
	if len(e.runs) > 0 {
		at = e.runs[0].wake
	}
	if len(e.expected) > 0 {
		at = earliest(at, e.expected[0].words.until)
	}
	return at, !at.IsZero()
}

// Counted tells how many packets the file held so far, and how many its capture lost.
func (e *Engine) Counted(seen, lost uint64) {
	e.stats.Packets.Seen, e.stats.Packets.Dropped = seen, lost
}

// Rewind begins anew at an earlier time, which the file went back to. What is known of
// flows and names does not count any more.
func (e *Engine) Rewind(was, now time.Time) {
	for len(e.runs) > 0 {
		e.finish(was, e.runs[0], trace.StopLostSync)
	}
	e.table.Forget(func(*flow.Flow) bool { return true })
	e.sent, e.buckets = probe.NewTable(), probe.NewBuckets(e.cfg.HopRate)
	e.names, e.quic, e.expected = names.New(names.Limits{}), quic.NewDecoder(quic.Limits{}), nil
	e.breaker = breaker{}
	clear(e.distances)
	e.start = now.Add(-was.Sub(e.start))
}

// orient decides on the way of a packet: by the addresses that are said to be near, else
// as the file tells. Where it does not, and for what went past whoever captured, the near
// end of a flow is its client: who sends the first SYN; of a flow that was there before,
// and of datagrams, the end whose port is one of those that systems give to clients; else
// who speaks first.
func (e *Engine) orient(p *capture.Packet) {
	p.Tagged = false // where a probe would have to leave does not matter
	src, dst := false, false
	if e.cfg.Local != nil {
		src, dst = e.cfg.Local(e.ip.Src), e.cfg.Local(e.ip.Dst)
	}
	told := p.Direction == capture.Incoming || p.Direction == capture.Outgoing
	e.guessed = e.cfg.Local == nil && !told
	if e.cfg.Local == nil && told {
		return
	}
	outgoing := true
	switch {
	case src != dst:
		outgoing = src
	case e.table.Get(e.key(true)) != nil:
	case e.table.Get(e.key(false)) != nil:
		outgoing = false
	default:
		outgoing = e.byClient()
	}
	p.Direction = capture.Incoming
	if outgoing {
		p.Direction = capture.Outgoing
	}
}

// key is that of the packet's flow.
func (e *Engine) key(outgoing bool) trace.FlowKey {
	if e.ip.Proto == protoUDP {
		return flow.KeyUDP(&e.ip, &e.udp, outgoing)
	}
	return flow.Key(&e.ip, &e.tcp, outgoing)
}

// byClient reports whether the sender of a flow's first packet is its client.
func (e *Engine) byClient() bool {
	from, to := e.udp.SrcPort, e.udp.DstPort
	if e.ip.Proto == protoTCP {
		if e.tcp.Flags&wire.SYN != 0 {
			return e.tcp.Flags&wire.ACK == 0
		}
		from, to = e.tcp.SrcPort, e.tcp.DstPort
	}
	return from >= firstOfOwn || to < firstOfOwn
}

// print tells one packet of a flow from another.
type print struct {
	at        time.Time
	link      int
	id        uint16
	seq, ack  uint32
	sum       uint32 // flags and window, or the checksum
	len       int
	val, echo uint32 // timestamps
}

// twice reports whether the packet was just seen, at the same interface: a capture of all
// interfaces shows it wherever it passes, and the copy of an acknowledgement would look
// like the answer to a probe.
func (e *Engine) twice(p *capture.Packet, a *attachment) bool {
	now := print{at: p.Time, link: p.Interface, id: e.ip.ID, len: e.ip.Len}
	if e.ip.Proto == protoUDP {
		now.sum = uint32(e.udp.Checksum)
	} else {
		now.seq, now.ack, now.sum = e.tcp.Seq, e.tcp.Ack, uint32(e.tcp.Flags)<<16|uint32(e.tcp.Window)
		now.val, now.echo = e.tcp.Options.TSVal, e.tcp.Options.TSEcr
	}
	last := &a.newest[0]
	if p.Direction == capture.Incoming {
		last = &a.newest[1]
	}
	before := *last
	*last = now
	since := now.at.Sub(before.at)
	before.at = now.at
	return before == now && since.Abs() < copyWithin
}

// replayed is what is known of the flow of the packet at hand; nil: it is new.
func (e *Engine) replayed(p *capture.Packet) (*flow.Flow, *attachment) {
	f := e.table.Get(e.key(p.Direction == capture.Outgoing))
	if f == nil {
		return nil, nil
	}
	a, _ := f.Attachment.(*attachment)
	return f, a
}

// replayedSegment takes in what a file shows and a tap of ours never does: copies, and
// probes that are not in the table yet. It returns false for all else.
//
// A probe is an empty acknowledgement of what the peer has acknowledged long ago, with a
// TTL that the flow's own packets do not have. Where the file does not show the flow for
// a while, as evidence does between two traces, its numbers may be farther than is known;
// then a TTL far below tells alone.
func (e *Engine) replayedSegment(p *capture.Packet) bool {
	f, a := e.replayed(p)
	if a == nil {
		return false
	}
	if p.Direction != capture.Outgoing || e.tcp.Flags != wire.ACK || e.tcp.PayloadLen != 0 || e.ip.TTL >= f.TTL {
		return e.twice(p, a)
	}
	old := f.TCP.HaveUna && wire.SeqLess(e.tcp.Seq, f.TCP.Una)
	stale := p.Time.Sub(f.LastSeen) > staleAfter && int(e.ip.TTL)+farBelow <= int(f.TTL)
	if !old && !stale {
		return e.twice(p, a)
	}
	e.probeSeen(p, f, probe.SeenTCP(&e.ip, &e.tcp))
	return true
}

// replayedDatagram is the same for UDP.
func (e *Engine) replayedDatagram(p *capture.Packet) bool {
	f, a := e.replayed(p)
	if a == nil {
		return false
	}
	if s, ok := probe.SeenUDP(&e.ip, &e.udp); ok && p.Direction == capture.Outgoing && e.ip.TTL < f.TTL {
		e.probeSeen(p, f, s)
		return true
	}
	return e.twice(p, a)
}

// seenAgain takes in what has the identifiers of a probe: a copy, or another probe, after
// which a quote no longer tells which of the two it is about.
func (e *Engine) seenAgain(p *capture.Packet, s *probe.Sent) {
	if p.Direction == capture.Outgoing && s.TTL != int(e.ip.TTL) && p.Interface == s.Place.Interface {
		e.spoil(s)
	}
}

// spoil takes a probe out that another one cannot be told from: it neither counts nor is
// answered.
func (e *Engine) spoil(s *probe.Sent) {
	if s.Answered {
		return
	}
	s.Answered = true
	if r, ok := s.Owner.(*run); ok && r.index >= 0 && s.Leg == r.leg {
		r.hop(s.TTL).sent--
		r.plan.Lost(s.TTL)
		if s.Reaching {
			r.reach.Void()
		}
	}
}

// probeSeen takes a probe of the flow into its trace, which begins with it.
func (e *Engine) probeSeen(p *capture.Packet, f *flow.Flow, s *probe.Sent) {
	now := p.Time
	a := e.match(now, f)
	awaited := a.words != nil && a.words.said.Awaited // who sent the probe knew more
	if a.watch == nil && !awaited || s.TTL > replayMaxTTL {
		return
	}
	if r := a.run; r != nil {
		if now.Sub(r.probedAt) >= settledFor {
			r.resumedAt = now
		}
		if now.Sub(r.resumedAt) < restartWithin && s.TTL <= r.reach.Lowest() && r.plan.Settled(s.TTL) {
			e.finish(now, r, trace.StopUnknown) // the next trace asks again what this one knew
		}
	}
	if a.run == nil {
		if len(e.runs) >= maxReplayed {
			return
		}
		e.begin(now, f, a)
	}
	r := a.run
	s.At, s.Owner, s.Leg, s.Place = now, r, r.leg, r.place(s.TTL)
	s.Place.Interface = p.Interface
	if twin := e.sent.Same(s); twin != nil {
		e.spoil(twin)
		s.Answered = true
		e.sent.Add(now, s, r.params.Timeout)
		return
	}
	e.stats.Probes.Sent++
	s.Attempt = r.plan.Attempt(s.TTL)
	s.Reaching = r.mayReach(s.TTL)
	e.charge(now, r, s)
	e.sent.Add(now, s, r.params.Timeout)
	r.open = append(r.open, s)
	r.hop(s.TTL).sent++
	r.progressAt, r.probedAt = now, now
	e.schedule(r, now)
	switch {
	case s.Reaching:
		crowded := r.reach.Open().TTL != 0
		if crowded {
			r.reach.Void()
			r.reach.Miss(true)
		}
		r.plan.SentReaching(s.TTL, now)
		r.reach.Sent(s.TTL, now)
		if crowded {
			r.reach.Void() // an answer may be to either
		}
		r.lastReachAt, r.crossed = now, false
		r.near.reachedAt = now
	default:
		r.plan.Sent(s.TTL, now)
		if r.udp() && s.TTL > r.fence {
			r.fence = s.TTL // who sent it knew of a farther one
			r.plan.SetBoundary(max(r.plan.Boundary(), s.TTL+1))
		}
	}
}

// charge charges the probe to its responder's bucket as if it had waited there: what a
// router's limit keeps silent is not called loss.
func (e *Engine) charge(now time.Time, r *run, s *probe.Sent) {
	if s.Reaching && s.TTL >= r.plan.Boundary() && !e.buckets.Answers(s.Place) {
		return
	}
	hop := noAddr
	if n := len(r.hop(s.TTL).replies); n > 0 {
		hop = r.hop(s.TTL).replies[n-1].Addr
	}
	s.Bucket = e.buckets.For(now, s.Place, hop)
	s.Bucket.Sent(s)
}

// mayReach reports whether a probe of that TTL is one of those that look for the
// destination, which go alone.
func (r *run) mayReach(ttl int) bool {
	if r.udp() {
		return false
	}
	return ttl >= r.plan.Boundary() || r.reach.Found() && ttl > r.reach.Lowest() && r.plan.Settled(ttl)
}

// shown reports whether the flow is one: both ends have spoken, or one for long. It may be
// over.
func shown(now time.Time, f *flow.Flow) bool {
	if f.Key.Proto == trace.UDP {
		return f.UDP.PacketsIn > 0 && f.UDP.PacketsOut > 0 || mute(now, f)
	}
	return f.TCP.Established || f.BytesIn+f.BytesOut > 0
}

// identify writes the record of a selected flow, once.
func (e *Engine) identify(now time.Time, f *flow.Flow, a *attachment) {
	if !a.told {
		a.told = true
		e.tell(now, f, a, trace.FlowMatched, 0)
	}
}

// renew lets the next connection of the same addresses and ports be another flow, with
// names of its own. A flow whose way was guessed was opened by its near end.
func (e *Engine) renew(f *flow.Flow, o *flow.Observation) {
	if a, ok := f.Attachment.(*attachment); ok && o.FirstSYN && a.told {
		a.told, a.watch, a.epoch = false, nil, 0
	}
	if e.guessed && !f.TCP.SynOut && !f.TCP.SynIn {
		f.Direction = trace.Out
	}
}

// follow is work for a replayed trace: it is over when it has all it needs, or when no
// probe came for longer than a trace waits.
func (e *Engine) follow(now time.Time, r *run) {
	e.timeouts(now, r)
	next := r.probedAt.Add(patience)
	if end, open := r.attempt(now, max(probe.ReachingInterval, 2*r.rtt())); open {
		next = earliest(next, end)
	}
	e.prove(now, r)
	if stop, over := e.concluded(now, r); over {
		if now.Sub(r.probedAt) >= settledFor {
			e.finish(now, r, stop)
			return
		}
		next = earliest(next, r.probedAt.Add(settledFor))
	}
	if now.Sub(r.probedAt) >= patience {
		e.finish(now, r, trace.StopUnknown)
		return
	}
	for _, s := range r.open {
		next = earliest(next, s.At.Add(r.params.Timeout))
	}
	if !next.After(now) {
		next = now.Add(time.Millisecond)
	}
	e.schedule(r, next)
}

// concluded is what the trace came to, as far as the file shows; false while it may go on.
func (e *Engine) concluded(now time.Time, r *run) (trace.Stop, bool) {
	for _, s := range r.open {
		if !s.Answered {
			return 0, false
		}
	}
	if !r.plan.Finished() {
		return 0, false
	}
	return e.conclusion(now, r)
}

// ending is when and why a replayed trace ended, of which that is known only later.
func (e *Engine) ending(now time.Time, r *run, stop trace.Stop) (time.Time, trace.Stop) {
	if r.at.watch != nil {
		e.identify(now, r.flow, r.at)
	}
	if told, over := e.concluded(now, r); over {
		stop = told
	}
	if stop != trace.StopFlowClosed && stop != trace.StopCancelled {
		now = r.progressAt
	}
	if now.Before(r.start) { // packets may be a little out of order
		now = r.start
	}
	return now, stop
}

// disown takes a trace out of the counters.
func (e *Engine) disown(t *trace.Trace) {
	e.stats.Traces.Started--
	e.stats.Traces.Done--
	if e.stats.Traces.ByStop[t.Stop]--; e.stats.Traces.ByStop[t.Stop] == 0 {
		delete(e.stats.Traces.ByStop, t.Stop)
	}
	for _, h := range t.Hops {
		e.stats.Probes.Sent -= uint64(h.Sent)
		e.stats.Replies.Matched -= uint64(len(h.Replies))
	}
}

// Local returns the test whether an address lies in one of the prefixes; nil for none.
func Local(prefixes []netip.Prefix) func(netip.Addr) bool {
	if len(prefixes) == 0 {
		return nil
	}
	return func(a netip.Addr) bool {
		for _, p := range prefixes {
			if p.Contains(a) {
				return true
			}
		}
		return false
	}
}
