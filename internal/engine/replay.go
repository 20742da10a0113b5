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
	maxReplays   = 4096            // traces in progress
	maxReplayed  = 1 << 17         // probes in them
	maxSeen      = 1024            // and in one
	replayMaxTTL = 64              // of a probe
	staleAfter   = time.Second     // a flow that was not seen for so long may be farther than is known
	farBelow     = 16              // so much lower than the flow's own TTL is no other way to here
	settledFor   = 5 * time.Second // after which a trace that has all it needs is over
	// A trace that goes on with what it knew already is the next one of its flow.
	restartWithin = time.Second
	copyWithin    = time.Millisecond
)

// ReplayParams are the parameters of traces that are found in a file.
func ReplayParams(p probe.Params) probe.Params {
	p.FirstTTL, p.MaxTTL, p.Share = 1, replayMaxTTL, false
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
	return from >= capture.ClientPorts || to < capture.ClientPorts
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
	if a.newest == nil {
		a.newest = &[2]print{}
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

// followed is what is known of the flow of the packet at hand; nil: it is new.
func (e *Engine) followed(p *capture.Packet) (*flow.Flow, *attachment) {
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
	f, a := e.followed(p)
	if a == nil {
		return false
	}
	if p.Direction != capture.Outgoing || e.tcp.Flags != wire.ACK || e.tcp.PayloadLen != 0 || e.ip.TTL >= f.TTL {
		return e.twice(p, a)
	}
	old := f.TCP.HaveUna && wire.SeqLess(e.tcp.Seq, f.TCP.Una)
	stale := p.Time.Sub(f.LastSeen()) > staleAfter && int(e.ip.TTL)+farBelow <= int(f.TTL)
	if !old && !stale {
		return e.twice(p, a)
	}
	e.probeSeen(p, f, probe.SeenTCP(&e.ip, &e.tcp))
	return true
}

// replayedDatagram is the same for UDP.
func (e *Engine) replayedDatagram(p *capture.Packet) bool {
	f, a := e.followed(p)
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
	e.stats.Probes.Sent--
	if r, ok := s.Owner.(*run); ok && r.index >= 0 && s.Leg == r.leg {
		r.hop(s.TTL).sent--
		r.plan.Lost(s.TTL)
		if s.Reaching {
			r.reach.Void()
		}
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
