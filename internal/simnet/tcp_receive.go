package simnet

import (
	"syscall"
	"time"

	"servicetraceroute/internal/wire"
)

// receiver is what a connection knows of its peer's stream.
type receiver struct {
	irs            uint32
	rcvNxt, rcvWup int64 // RCV.NXT, now and as last told the peer
	rcvRight       int64 // end of the window as told the peer
	rcvBuf         int64
	slow           bool   // the application fetches data by read
	unread         []byte // until it does
	early          []piece
	newest         int64 // where the latest early data stands
	dsack          span  // to be told with the next acknowledgement
	ackPending     bool
	ackNow         bool
	finAt          int64 // the FIN's offset; 0: not seen
	peerEnded      bool  // the application was told

	answered   bool  // an old segment was answered
	answeredAt int64 // when last
}

// piece is data that came before what precedes it.
type piece struct {
	from int64
	data []byte
	fin  bool
}

const (
	// oldInterval is the least time between two answers to segments out of the
	// window (net.ipv4.tcp_invalid_ratelimit).
	oldInterval = 500 * time.Millisecond
	// replayWindow is how old a timestamp may be, as measured on Linux 6.18.
	replayWindow = 100
)

// input takes a segment of this connection.
func (c *conn) input(p *packet) {
	c.count.SegmentsIn++
	switch c.state {
	case synSent:
		c.inSYNSent(p)
	case synReceived:
		c.inSYNReceived(p)
	case open:
		c.inOpen(p)
	case timeWait:
		c.inTimeWait(p)
	}
	c.arm()
}

func (c *conn) inSYNSent(p *packet) {
	t := &p.tcp
	if t.Flags&wire.ACK != 0 && c.sndOff(t.Ack) != 1 {
		c.stack.node.reset(p)
		return
	}
	switch t.Flags & (wire.SYN | wire.ACK | wire.RST) {
	case wire.RST | wire.ACK:
		c.count.ResetsReceived++
		c.die(syscall.ECONNREFUSED)
	case wire.SYN | wire.ACK:
		c.agree(&t.Options)
		c.irs, c.rcvNxt, c.rcvWup, c.una = t.Seq, 1, 1, 1
		c.tsRecent = t.Options.TSVal
		c.sndWnd, c.maxWnd = int64(t.Window), int64(t.Window)
		c.measure(1)
		c.rtoAt, c.state = 0, open
		c.sendACK()
		c.establish()
	}
}

// inSYNReceived is Linux's tcp_check_req: no data, no options are looked at before
// the handshake's last segment.
func (c *conn) inSYNReceived(p *packet) {
	t := &p.tcp
	seq := c.rcvOff(t.Seq)
	switch {
	case t.Flags&wire.SYN != 0 && seq == 0 && t.Flags&wire.ACK == 0:
		c.sendSYN(wire.SYN | wire.ACK)
	case seq < c.rcvNxt || seq > c.rcvRight:
		c.count.OldSegments++
		if t.Flags&wire.RST == 0 {
			c.answerOld()
		}
	case t.Flags&wire.RST != 0:
		c.count.ResetsReceived++
		c.die(syscall.ECONNRESET)
	case t.Flags&wire.ACK == 0:
	case c.sndOff(t.Ack) != 1:
		c.stack.node.reset(p)
	default:
		c.una = 1
		c.sndWnd = int64(t.Window) << c.sndScale
		c.maxWnd = c.sndWnd
		c.measure(1)
		c.establish()
		c.inOpen(p)
	}
}

// inTimeWait answers all but what the peer's last acknowledgement looks like.
func (c *conn) inTimeWait(p *packet) {
	bare := segmentEnd(&p.tcp) == p.tcp.Seq && c.rcvOff(p.tcp.Seq) == c.rcvNxt
	if p.tcp.Flags&wire.RST == 0 && !bare {
		c.count.OldSegments++
		c.answerOld()
	}
}

func (c *conn) inOpen(p *packet) {
	t := &p.tcp
	seq := c.rcvOff(t.Seq)
	end := seq + int64(int32(segmentEnd(t)-t.Seq))
	c.keep()
	if !c.valid(p, seq, end) {
		return
	}
	if o := &t.Options; c.ts && o.HasTimestamp && seq <= c.rcvWup && int32(o.TSVal-c.tsRecent) > 0 {
		c.tsRecent = o.TSVal
	}
	if t.Flags&wire.ACK == 0 || !c.acked(p, seq) {
		return
	}
	if end > seq {
		c.take(seq, end, t)
	}
	c.settle()
	if c.state != open {
		return
	}
	c.output()
	if c.ackNow {
		c.sendACK()
	}
}

// valid is Linux's tcp_validate_incoming: timestamp, sequence number, then RST and
// SYN.
func (c *conn) valid(p *packet, seq, end int64) bool {
	t := &p.tcp
	rst := t.Flags&wire.RST != 0
	if o := &t.Options; c.ts && o.HasTimestamp && int32(c.tsRecent-o.TSVal) > replayWindow && !rst {
		if seq == end && seq < c.rcvNxt {
			c.count.PAWSOldACK++ // silently: TCP_RFC7323_PAWS_ACK
			return false
		}
		if seq != end || seq != c.rcvNxt { // else tcp_disordered_ack
			c.count.PAWSRejected++
			c.refuse(p, seq, end)
			return false
		}
	}
	switch {
	case end < c.rcvWup || seq > c.rcvRight:
		if !rst {
			c.refuse(p, seq, end)
		}
	case end > c.rcvRight:
		c.count.BeyondWindow++
		c.refuse(p, seq, end)
	case rst && seq == c.rcvNxt:
		c.count.ResetsReceived++
		c.die(syscall.ECONNRESET)
	case rst || t.Flags&wire.SYN != 0: // RFC 5961 sections 3 and 4
		c.challenge()
	default:
		return true
	}
	return false
}

// refuse answers a segment that is not acceptable (tcp_send_dupack): those without
// data at most once in a while, lest two hosts answer each other for ever.
func (c *conn) refuse(p *packet, seq, end int64) {
	if seq == end {
		c.count.OldSegments++
		c.answerOld()
		return
	}
	if seq < c.rcvNxt {
		c.duplicate(seq, min(end, c.rcvNxt), p.ip.FlowLabel)
	}
	c.sendACK()
}

// duplicate notes that data came twice.
func (c *conn) duplicate(from, to int64, label uint32) {
	if c.sack {
		c.dsack = span{from, to}
	}
	// IPv6: a new label on old data tells that the peer's timer ran out, perhaps
	// because our acknowledgements get lost, and so this side changes its own path
	// (tcp_rcv_spurious_retrans).
	if c.tuple.Dst.Addr().Is6() && label != c.lastLabel && c.mode != lost && !c.stack.node.opts.KeepLabel {
		c.lastLabel = label
		c.count.DuplicateDataRehash++
		c.label = c.stack.rng.Uint32() & 0xfffff
	}
}

// answerOld acknowledges at most once per oldInterval.
func (c *conn) answerOld() {
	if c.answered && c.now()-c.answeredAt < int64(oldInterval) {
		c.count.ACKsSkipped++
		return
	}
	c.answered, c.answeredAt = true, c.now()
	c.count.OldAnswered++
	c.sendACK()
}

func (c *conn) challenge() {
	c.count.ChallengeACKs++
	c.sendACK()
}

// sendACK sends an acknowledgement alone.
func (c *conn) sendACK() {
	s := wire.TCPSegment{TCPProbe: c.header(c.nxt, wire.ACK)}
	if c.sack {
		s.Options = c.sackOption()
	}
	c.transmit(&s)
}

// sackOption tells the DSACK first, then the block that grew last, then others.
func (c *conn) sackOption() []byte {
	var blocks []span
	if c.dsack.to > c.dsack.from {
		c.count.DSACKSent++
		blocks, c.dsack = append(blocks, c.dsack), span{}
	}
	var held []span
	for _, e := range c.early {
		held = insert(held, span{e.from, e.end()})
	}
	for _, h := range held {
		if h.from <= c.newest && c.newest < h.to {
			blocks = append(blocks, h)
		}
	}
	for _, h := range held {
		if c.newest < h.from || h.to <= c.newest {
			blocks = append(blocks, h)
		}
	}
	room := 4
	if c.ts {
		room = 3
	}
	blocks = blocks[:min(len(blocks), room)]
	if len(blocks) == 0 {
		return nil
	}
	o := []byte{1, 1, 5, byte(2 + 8*len(blocks))}
	for _, b := range blocks {
		o = be.AppendUint32(o, c.rcvSeq(b.from))
		o = be.AppendUint32(o, c.rcvSeq(b.to))
	}
	return o
}
