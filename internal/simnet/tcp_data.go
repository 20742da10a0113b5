package simnet

import (
	"slices"

	"servicetraceroute/internal/wire"
)

func (e *piece) end() int64 {
	end := e.from + int64(len(e.data))
	if e.fin {
		end++
	}
	return end
}

// take takes data or a FIN inside the window.
func (c *conn) take(seq, end int64, t *wire.TCP) {
	c.ackPending = true
	if end <= c.rcvNxt {
		c.duplicate(seq, end, c.lastLabel)
		c.ackNow = true
		return
	}
	e := piece{seq, t.Payload, t.Flags&wire.FIN != 0}
	if seq > c.rcvNxt {
		c.hold(e)
		return
	}
	if seq < c.rcvNxt {
		c.duplicate(seq, c.rcvNxt, c.lastLabel)
		c.ackNow = true
	}
	filled := len(c.early) > 0
	c.deliver(e)
	for len(c.early) > 0 && c.early[0].from <= c.rcvNxt {
		e := c.early[0]
		c.early = slices.Delete(c.early, 0, 1)
		if e.end() > c.rcvNxt {
			c.deliver(e)
		}
	}
	switch {
	case c.rcvWup == c.rcvNxt: // an answer of the application told it
	case filled || c.finAt != 0 || c.rcvNxt-c.rcvWup > int64(c.mss):
		c.ackNow = true
	case c.ackAt == 0:
		c.ackAt = c.now() + int64(delayedACK)
	}
}

// hold keeps data that came early, whoever sent it: when its turn comes it is
// delivered. A byte beyond SND.NXT thus becomes part of the stream.
func (c *conn) hold(e piece) {
	c.count.OutOfOrder++
	c.ackNow = true
	c.newest = e.from
	i := 0
	for i < len(c.early) && c.early[i].from <= e.from {
		if c.early[i].end() >= e.end() {
			c.dsack = span{e.from, e.end()}
			return
		}
		i++
	}
	e.data = slices.Clone(e.data)
	c.early = slices.Insert(c.early, i, e)
}

// deliver passes data on that begins at or before RCV.NXT.
func (c *conn) deliver(e piece) {
	data := e.data[min(c.rcvNxt-e.from, int64(len(e.data))):]
	c.rcvNxt = e.end()
	if e.fin {
		c.finAt = c.rcvNxt - 1
	}
	if c.slow {
		c.unread = append(c.unread, data...)
	} else if len(data) > 0 && c.app != nil {
		c.app.data(data)
	}
	c.tellEnd()
}

// tellEnd tells the application that its peer's stream has ended.
func (c *conn) tellEnd() {
	if c.finAt == 0 || len(c.unread) > 0 || c.peerEnded {
		return
	}
	c.peerEnded = true
	c.lastCloser = !c.finished
	if c.app != nil {
		c.app.eof()
	}
}

// read lets a slow application fetch data, and tells the peer when there is much
// more room than it knows of (tcp_cleanup_rbuf).
func (c *conn) read(n int) {
	n = min(n, len(c.unread))
	if n == 0 {
		return
	}
	c.app.data(c.unread[:n])
	c.unread = c.unread[n:]
	known := c.rcvRight - c.rcvNxt
	if now := c.right() - c.rcvNxt; now >= 2*known && now > known && c.state == open {
		c.sendACK()
	}
	c.tellEnd()
	c.settle()
}

// right is where the window may end now. It never moves back, and small steps are
// not worth telling (RFC 9293 section 3.8.6.2.2).
func (c *conn) right() int64 {
	free := c.rcvBuf - int64(len(c.unread))
	if free < int64(c.mss) {
		free = 0
	}
	return max(c.rcvRight, c.rcvNxt+free)
}

// offer returns the window for a segment's header.
func (c *conn) offer() uint16 {
	unit := int64(1) << c.rcvScale
	field := min((c.right()-c.rcvNxt+unit-1)/unit, 0xffff)
	c.rcvRight = max(c.rcvRight, c.rcvNxt+field*unit)
	return uint16(field)
}
