package simnet

import (
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/wire"
)

// sender is what a connection knows of its own stream.
type sender struct {
	iss      uint32
	una, nxt int64 // SND.UNA and SND.NXT, which never goes back
	written  int64 // bytes of the application
	finished bool  // the FIN follows them

	sndWnd, maxWnd int64
	wl1            int64 // where the segment stood that told sndWnd

	cwnd, ssthresh int64
	dupACKs        int
	sacked         []span // above una, in order
	mode           mode
	recover        int64 // where mode ends
	rex            int64 // up to here everything lost was sent again
	// undoRetrans counts retransmissions since undoMarker that no DSACK has told
	// to be needless; -1: none yet (tcp_init_undo).
	undoMarker  int64
	undoRetrans int
	priorCwnd   int64

	timed             []timed // segments under way that were sent once
	srtt, rttvar, rto time.Duration
	minRTT, lastRTT   time.Duration
	backoff           int
	paceFree          int64
	lastCloser        bool // the peer's FIN came before ours had left
}

type mode uint8

const (
	normal     mode = iota
	recovering      // duplicate acknowledgements told of a loss
	lost            // the timer did
)

// timed is a segment whose round trip is being measured.
type timed struct{ end, at int64 }

const (
	initialWindow = 10
	paceBurst     = int64(time.Millisecond)
)

// end is where the stream ends as far as it was written, FIN included.
func (c *conn) end() int64 {
	if c.finished {
		return 2 + c.written
	}
	return 1 + c.written
}

// header begins a segment. Whatever leaves acknowledges what came.
func (c *conn) header(off int64, flags wire.TCPFlags) wire.TCPProbe {
	o := &c.stack.node.opts
	if c.id++; c.id == 0 {
		c.id = 1
	}
	h := wire.TCPProbe{
		Src: c.tuple.Src, Dst: c.tuple.Dst, TTL: o.TTL, TOS: o.TOS, ID: c.id, FlowLabel: c.label,
		Seq: c.sndSeq(off), Flags: flags, Timestamp: c.ts,
	}
	if c.ts {
		h.TSVal = c.tsNow()
	}
	if flags&wire.ACK != 0 {
		h.Ack, h.Window = c.rcvSeq(c.rcvNxt), c.offer()
		h.TSEcr = c.tsRecent
		c.rcvWup, c.ackPending, c.ackNow, c.ackAt = c.rcvNxt, false, false, 0
	}
	return h
}

// transmit sends a segment.
func (c *conn) transmit(s *wire.TCPSegment) { c.put(s, false) }

func (c *conn) put(s *wire.TCPSegment, hidden bool) {
	c.count.SegmentsOut++
	p := c.stack.node.net.segment(s)
	p.hidden = hidden
	c.stack.node.send(p)
}

// sendSYN sends a SYN with the options that this side offers.
func (c *conn) sendSYN(flags wire.TCPFlags) {
	s := wire.TCPSegment{TCPProbe: c.header(0, flags)}
	s.Seq, s.Window = c.iss, uint16(min(c.rcvBuf, 0xffff))
	s.Timestamp, s.TSVal = c.wants.ts, c.tsNow()
	c.rcvRight = 1 + int64(s.Window)
	mss := c.stack.maxSegment(c.tuple)
	s.Options = append(s.Options, 2, 4, byte(mss>>8), byte(mss))
	if c.wants.sack {
		s.Options = append(s.Options, 4, 2)
	}
	if c.wants.scale {
		s.Options = append(s.Options, 3, 3, rcvScale)
	}
	if c.backoff == 0 {
		c.timed = append(c.timed[:0], timed{1, c.now()})
	}
	c.transmit(&s)
}

// output sends what may be sent.
func (c *conn) output() {
	if c.state != open {
		return
	}
	opts := &c.stack.node.net.opts
	gso := opts.GSO && c.stack.node.capturing()
	var burst span
	flush := func() {
		if burst.to > burst.from {
			c.showBurst(burst)
		}
		burst = span{}
	}
	for {
		from, to, again := c.next()
		if from >= to {
			break
		}
		if c.paceFree > c.now()+paceBurst {
			c.paceAt = c.paceFree - paceBurst/2
			break
		}
		if again || to-from < int64(c.mss) || burst.to-burst.from+int64(c.mss) > int64(opts.OffloadSize) {
			flush()
		}
		whole := gso && !again && to-from == int64(c.mss) && to <= 1+c.written
		if whole {
			if burst.to != from {
				flush()
				burst = span{from, from}
			}
			burst.to = to
		}
		c.sendData(from, to, whole)
	}
	flush()
	c.persist()
	c.arm()
}

// persist keeps the timer running while the window alone holds data back.
func (c *conn) persist() {
	if c.una == c.nxt && c.nxt < c.end() && c.rtoAt == 0 && c.paceAt == 0 {
		c.rtoAt = c.now() + int64(c.rto)
	}
}

// next returns what to send now: what was lost, or what is new.
func (c *conn) next() (from, to int64, again bool) {
	if c.mode != normal {
		if from, to = c.hole(); from < to {
			if c.pipe()+(to-from) <= c.cwnd || from == c.una {
				return from, to, true
			}
			return 0, 0, false
		}
	}
	from, to = c.nxt, min(c.nxt+int64(c.mss), c.end())
	limit := c.una + c.sndWnd
	if to > limit || from < to && c.pipe()+(to-from) > c.cwnd {
		return 0, 0, false // only whole segments; probeWindow knows what else to do
	}
	return from, to, false
}

// sendData sends a piece of the stream.
func (c *conn) sendData(from, to int64, hidden bool) {
	now := c.now()
	s := wire.TCPSegment{TCPProbe: c.header(from, wire.ACK)}
	size := min(to, 1+c.written) - from
	buf := &c.stack.node.net.scratch
	if int64(cap(*buf)) < size {
		*buf = make([]byte, max(size, 1<<16))
	}
	s.Payload = (*buf)[:max(size, 0)]
	c.app.content(s.Payload, from-1)
	if to >= 1+c.written {
		s.Flags |= wire.PSH
	}
	if to > 1+c.written {
		s.Flags |= wire.FIN
	}
	if from < c.nxt {
		c.resent(from, to)
	} else {
		c.timed = append(c.timed, timed{to, now})
	}
	c.nxt = max(c.nxt, to)
	c.paceFree = max(c.paceFree, now) + (size+60)*8e9/c.stack.node.net.opts.Pace
	if c.rtoAt == 0 || c.backoff == 0 && from == c.una {
		c.rtoAt = now + int64(c.rto)
	}
	c.put(&s, hidden)
}

func (c *conn) resent(from, to int64) {
	c.count.Retransmits++
	if c.mode == recovering {
		c.count.FastRetransmits++
	}
	c.rex = max(c.rex, to)
	c.undoRetrans = max(c.undoRetrans, 0) + 1
	c.timed = c.timed[:0] // Karn: whose answer comes next is not known
}

// showBurst shows taps a burst as the network card is given it: one packet, whose
// checksum the card is to complete.
func (c *conn) showBurst(b span) {
	nd := c.stack.node
	s := wire.TCPSegment{TCPProbe: c.header(b.from, wire.ACK), Payload: make([]byte, b.to-b.from)}
	c.id-- // it has the ID of the first of its segments
	s.ID -= uint16(len(s.Payload) / c.mss)
	c.app.content(s.Payload, b.from-1)
	p := nd.net.segment(&s)
	p.ip.Transport[16], p.ip.Transport[17] = 0, 0
	if out := nd.egress(p); out != nil {
		p.data = super(p.data)
		nd.captured(p.data, out, capture.Outgoing)
	}
	nd.net.release(p)
}
