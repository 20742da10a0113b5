package simnet

import (
	"syscall"
	"time"

	"servicetraceroute/internal/wire"
)

// timers are a connection's times to act, 0 when off. All of them share one
// event: most are set anew long before they are due.
type timers struct {
	rtoAt, ackAt, paceAt, appAt, keepAt int64
	armed                               int64 // time of the earliest event under way
	gone                                int64 // end of TIME-WAIT
}

const (
	initialRTO = time.Second
	minRTO     = 200 * time.Millisecond
	maxRTO     = 120 * time.Second
	maxSYN     = 6  // net.ipv4.tcp_syn_retries
	maxTimeout = 15 // net.ipv4.tcp_retries2
	delayedACK = 40 * time.Millisecond
)

// arm makes sure of an event for the earliest timer.
func (c *conn) arm() {
	next := int64(0)
	for _, t := range [...]int64{c.rtoAt, c.ackAt, c.paceAt, c.appAt, c.keepAt} {
		if t != 0 && (next == 0 || t < next) {
			next = t
		}
	}
	if next == 0 || c.armed != 0 && c.armed <= next {
		return
	}
	c.armed = max(next, c.now())
	c.stack.node.net.at(c.armed, c.tick)
}

// tick runs the timers that are due.
func (c *conn) tick() {
	now := c.now()
	if now != c.armed {
		return // an event that an earlier timer overtook
	}
	c.armed = 0
	due := func(t *int64) bool {
		if *t == 0 || *t > now {
			return false
		}
		*t = 0
		return true
	}
	if due(&c.ackAt) {
		c.sendACK()
	}
	if due(&c.paceAt) {
		c.output()
	}
	if due(&c.keepAt) {
		c.keepAlive()
	}
	if due(&c.rtoAt) {
		c.timeout()
	}
	if due(&c.appAt) && c.app != nil {
		c.app.tick()
	}
	c.arm()
}

// after lets the application tick.
func (c *conn) after(d time.Duration) {
	c.appAt = max(c.now()+int64(d), 1)
	c.arm()
}

// timeout is the retransmission timer.
func (c *conn) timeout() {
	switch {
	case c.state == synSent || c.state == synReceived:
		c.handshakeTimeout()
	case c.state != open:
	case c.una == c.nxt:
		c.probeWindow()
	default:
		c.lossTimeout()
	}
}

func (c *conn) handshakeTimeout() {
	if c.backoff++; c.backoff > maxSYN {
		c.die(syscall.ETIMEDOUT)
		return
	}
	c.count.Retransmits++
	c.count.Timeouts++
	if c.state == synSent {
		c.sendSYN(wire.SYN)
	} else {
		c.sendSYN(wire.SYN | wire.ACK)
	}
	c.timed = c.timed[:0] // Karn: an answer may be to either
	c.rtoAt = c.now() + int64(c.rto)<<c.backoff
}

// lossTimeout deems everything lost that was not acknowledged.
func (c *conn) lossTimeout() {
	if c.backoff++; c.backoff > maxTimeout {
		c.die(syscall.ETIMEDOUT)
		return
	}
	c.count.Timeouts++
	if c.mode != lost {
		c.priorCwnd = c.cwnd
		c.ssthresh = max(c.cwnd/2, int64(2*c.mss))
	}
	c.mode, c.recover, c.rex = lost, c.nxt, c.una
	c.cwnd, c.dupACKs = int64(c.mss), 0
	c.undoMarker, c.undoRetrans = c.una, -1
	c.timed = c.timed[:0]
	if !c.stack.node.opts.KeepLabel {
		c.count.TimeoutRehash++
		c.label = c.stack.rng.Uint32() & 0xfffff
	}
	c.output()
	c.rtoAt = c.now() + int64(min(c.rto<<min(c.backoff, 10), maxRTO))
}

// probeWindow asks for the window: an empty segment one byte below the next one,
// or what fits (tcp_write_wakeup).
func (c *conn) probeWindow() {
	if c.nxt >= c.end() {
		return
	}
	c.count.WindowProbes++
	if room := c.una + c.sndWnd - c.nxt; room > 0 {
		c.sendData(c.nxt, min(c.nxt+room, c.nxt+int64(c.mss), c.end()), false)
	} else {
		c.transmit(&wire.TCPSegment{TCPProbe: c.header(c.una-1, wire.ACK)})
	}
	c.backoff++
	c.rtoAt = c.now() + int64(min(c.rto<<min(c.backoff, 10), maxRTO))
}

func (c *conn) keep() {
	if d := c.stack.node.opts.KeepAlive; d > 0 && c.state == open {
		c.keepAt = c.now() + int64(d)
	}
}

func (c *conn) keepAlive() {
	if c.una == c.nxt && c.state == open {
		c.count.KeepAlives++
		c.transmit(&wire.TCPSegment{TCPProbe: c.header(c.una-1, wire.ACK)})
	}
	c.keep()
}
