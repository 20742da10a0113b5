package simnet

import (
	"slices"
	"time"

	"servicetraceroute/internal/wire"
)

// span is a piece of a stream.
type span struct{ from, to int64 }

const (
	dupThreshold = 3
	// Queueing delays at which the congestion window stops growing: when it
	// doubles (HyStart, Ha and Rhee 2011), and later.
	slowStartQueue = 4 * time.Millisecond
	steadyQueue    = 10 * time.Millisecond
)

// acked takes a segment's acknowledgement, window and SACK blocks; false when the
// segment is to be ignored for them.
func (c *conn) acked(p *packet, seq int64) bool {
	t := &p.tcp
	ack := c.sndOff(t.Ack)
	switch {
	case ack > c.nxt:
		return false // of what was never sent
	case ack < c.una-c.maxWnd:
		c.challenge() // RFC 5961 section 5.2
		return false
	}
	prior := c.una
	changed := c.takeWindow(t, seq, ack)
	c.takeSACK(p, ack, prior)
	switch {
	case ack > c.una:
		c.advance(ack)
	case ack == c.una && c.una < c.nxt && t.PayloadLen == 0 && t.Flags&wire.FIN == 0 && !changed:
		c.count.DupACKsReceived++
		c.dupACKs++
	}
	c.detectLoss()
	return true
}

// takeWindow believes a window as RFC 9293 section 3.10.7.4 says, whoever sent
// the segment (tcp_may_update_window), and reports whether it is another one.
func (c *conn) takeWindow(t *wire.TCP, seq, ack int64) (changed bool) {
	wnd := int64(t.Window) << c.sndScale
	if ack > c.una || seq > c.wl1 || seq == c.wl1 && ack == c.una && (wnd > c.sndWnd || wnd == 0) {
		changed = wnd != c.sndWnd
		c.wl1, c.sndWnd = seq, wnd
		c.maxWnd = max(c.maxWnd, wnd)
		if changed && c.una == c.nxt {
			c.rtoAt, c.backoff = 0, 0 // of window probes
		}
	}
	return changed
}

// advance takes an acknowledgement of new data.
func (c *conn) advance(ack int64) {
	newly := ack - c.una
	c.measure(ack)
	c.una, c.backoff = ack, 0
	c.rex = max(c.rex, ack)
	c.trimSacked()
	switch {
	case c.mode != normal && ack >= c.recover:
		if c.mode == recovering {
			c.cwnd = c.ssthresh
		}
		c.mode, c.dupACKs = normal, 0
	case c.mode == recovering && !c.sack:
		// NewReno (RFC 6582): the next segment is missing too. Without SACK that
		// is a guess, and false duplicate acknowledgements make it a wrong one.
		c.rex = ack
	}
	// An acknowledgement of several segments takes back the duplicates that those
	// after the first have caused (tcp_remove_reno_sacks); one does not.
	c.dupACKs = max(0, c.dupACKs-int((newly-1)/int64(c.mss)))
	if c.mode != recovering {
		c.grow(newly)
	}
	c.rtoAt = 0
	if c.una < c.nxt {
		c.rtoAt = c.now() + int64(c.rto)
	}
}

// grow opens the congestion window while the application uses it and no queue
// builds.
func (c *conn) grow(newly int64) {
	queue := c.lastRTT - c.minRTT
	switch {
	case c.nxt-c.una+newly < c.cwnd/2:
	case c.cwnd < c.ssthresh:
		if queue > max(slowStartQueue, c.minRTT/8) {
			c.ssthresh = c.cwnd
			return
		}
		c.cwnd += newly
	case queue < steadyQueue:
		c.cwnd += max(1, int64(c.mss)*newly/c.cwnd)
	}
}

// measure takes the round-trip time of the newest segment that was acknowledged.
func (c *conn) measure(ack int64) {
	n := 0
	for n < len(c.timed) && c.timed[n].end <= ack {
		n++
	}
	if n == 0 {
		return
	}
	rtt := time.Duration(c.now() - c.timed[n-1].at)
	c.timed = append(c.timed[:0], c.timed[n:]...)
	c.roundTrip(rtt)
}

// roundTrip estimates by RFC 6298.
func (c *conn) roundTrip(rtt time.Duration) {
	if c.srtt == 0 {
		c.srtt, c.rttvar, c.minRTT = rtt, rtt/2, rtt
	} else {
		c.rttvar += ((c.srtt - rtt).Abs() - c.rttvar) / 4
		c.srtt += (rtt - c.srtt) / 8
	}
	c.lastRTT, c.minRTT = rtt, min(c.minRTT, rtt)
	// Linux bounds the variance, not the sum: a delayed acknowledgement must not
	// look like a loss.
	c.rto = min(c.srtt+max(4*c.rttvar, minRTO), maxRTO)
}

// takeSACK takes the blocks of a segment. A first block of what was acknowledged
// already, or that lies in the second, is a DSACK (RFC 2883).
func (c *conn) takeSACK(p *packet, ack, prior int64) {
	if !c.sack || p.tcp.Options.SACKBlocks == 0 {
		return
	}
	var blocks [4][2]uint32
	for i, b := range sackBlocks(blocks[:0], p.ip.Transport) {
		s := span{c.sndOff(b[0]), c.sndOff(b[1])}
		switch {
		case s.from >= s.to || s.to > c.nxt:
		case i == 0 && (s.to <= ack || inSecond(s, blocks[1], c, p.tcp.Options.SACKBlocks)):
			c.dsacked(s, prior)
		case s.from >= c.una:
			c.sacked = insert(c.sacked, s)
		}
	}
}

func inSecond(s span, b [2]uint32, c *conn, blocks int) bool {
	return blocks > 1 && c.sndOff(b[0]) <= s.from && s.to <= c.sndOff(b[1])
}

// dsacked takes the news that the peer got something twice (tcp_check_dsack).
func (c *conn) dsacked(s span, prior int64) {
	c.count.DSACKReceived++
	if c.undoMarker > 0 && c.undoRetrans > 0 && s.to <= prior && s.to > c.undoMarker {
		c.undoRetrans--
	}
}

// detectLoss begins a recovery when enough segments have overtaken one, and takes
// the last one back when all its retransmissions were needless.
func (c *conn) detectLoss() {
	if c.mode != normal {
		return
	}
	if c.undoMarker > 0 && c.undoRetrans == 0 {
		c.count.DSACKUndo++
		c.cwnd, c.ssthresh = max(c.cwnd, c.priorCwnd), max(c.ssthresh, c.priorCwnd)
		c.undoMarker, c.undoRetrans = 0, -1
	}
	missing := !c.sack && c.dupACKs >= dupThreshold || c.sack && c.sackedBytes() > int64((dupThreshold-1)*c.mss)
	if !missing || c.una == c.nxt {
		return
	}
	c.count.Recoveries++
	c.mode, c.recover, c.rex = recovering, c.nxt, c.una
	c.priorCwnd = c.cwnd
	c.undoMarker, c.undoRetrans = c.una, -1
	c.ssthresh = max(c.cwnd*7/10, int64(2*c.mss))
	c.cwnd = c.ssthresh
}

// hole returns the next piece that is deemed lost and was not sent again.
func (c *conn) hole() (from, to int64) {
	from, limit := max(c.rex, c.una), c.lostEnd()
	to = min(from+int64(c.mss), limit)
	for _, s := range c.sacked {
		switch {
		case s.to <= from:
		case s.from <= from:
			from = s.to
			to = min(from+int64(c.mss), limit)
		default:
			to = min(to, s.from)
		}
	}
	return from, to
}

// lostEnd is where the data deemed lost ends: after a timeout all of it is; with
// SACK what enough segments have overtaken (RFC 6675); else one segment.
func (c *conn) lostEnd() int64 {
	first := min(c.una+int64(c.mss), c.recover)
	switch {
	case c.mode == lost:
		return c.recover
	case c.mode == normal:
		return c.una
	case !c.sack:
		return first
	}
	above := int64(0)
	for _, s := range slices.Backward(c.sacked) {
		above += s.to - s.from
		if above > int64((dupThreshold-1)*c.mss) {
			return max(first, min(s.from, c.recover))
		}
	}
	return first
}

// pipe estimates what is under way.
func (c *conn) pipe() int64 {
	p := c.nxt - c.una - c.sackedBytes()
	if c.mode == normal {
		return p
	}
	from, limit := max(c.rex, c.una), c.lostEnd()
	if from < limit {
		p -= limit - from
		for _, s := range c.sacked {
			p += max(0, min(s.to, limit)-max(s.from, from))
		}
	}
	if !c.sack {
		p -= int64(c.dupACKs * c.mss)
	}
	return max(p, 0)
}

func (c *conn) sackedBytes() (n int64) {
	for _, s := range c.sacked {
		n += s.to - s.from
	}
	return n
}

func (c *conn) trimSacked() {
	for len(c.sacked) > 0 && c.sacked[0].from < c.una {
		if c.sacked[0].to > c.una {
			c.sacked[0].from = c.una
			return
		}
		c.sacked = slices.Delete(c.sacked, 0, 1)
	}
}

// insert adds a span to disjoint ones in order and joins those that touch.
func insert(all []span, s span) []span {
	i := 0
	for i < len(all) && all[i].to < s.from {
		i++
	}
	j := i
	for j < len(all) && all[j].from <= s.to {
		s.from, s.to = min(s.from, all[j].from), max(s.to, all[j].to)
		j++
	}
	return slices.Replace(all, i, j, s)
}

// shrink takes a path's smaller MTU and sends again what did not fit.
func (c *conn) shrink(mtu int) {
	overhead := 40
	if c.tuple.Dst.Addr().Is6() {
		overhead = 60
	}
	if c.ts {
		overhead += 12
	}
	if mss := mtu - overhead; mss >= 256 && mss < c.mss {
		c.mss = mss
		c.count.SoftErrors++
		c.mode, c.recover, c.rex = lost, c.nxt, c.una
		c.output()
	}
}
