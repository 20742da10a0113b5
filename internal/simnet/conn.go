package simnet

import (
	"syscall"
	"time"

	"servicetraceroute/internal/wire"
)

// conn is one end of a TCP connection. Positions in the streams are 64-bit
// offsets, to be compared without wrapping: the SYN is byte 0, the first of the
// application byte 1, the FIN follows the last.
type conn struct {
	stack *stack
	tuple Tuple // of what leaves
	state connState
	app   app
	err   error
	count Counters

	// Agreed on in the handshake.
	mss                int // payload of a full segment
	sack, ts           bool
	sndScale, rcvScale uint8
	wants              offered

	// What the packets carry.
	tsOffset, tsRecent uint32
	label, lastLabel   uint32 // lastLabel: of the peer's latest duplicate data
	id                 uint16

	sender
	receiver
	timers
}

type connState uint8

const (
	synSent connState = iota + 1
	synReceived
	open
	timeWait
	closed
)

// offered is what a client puts into its SYN.
type offered struct{ sack, ts, scale bool }

const (
	rcvScale     = 7 // of a host that may use a buffer of 6 MB, as Linux is set
	rcvBuffer    = 1 << 20
	timeWaitLife = 60 * time.Second
)

func (s *stack) newConn(leaving Tuple, iss uint32) *conn {
	c := &conn{
		stack: s, tuple: leaving, wants: offered{true, true, true},
		tsOffset: s.rng.Uint32(), id: uint16(s.rng.Uint32()), label: s.rng.Uint32() & 0xfffff, lastLabel: noLabel,
	}
	c.iss, c.rcvBuf = iss, rcvBuffer
	c.mss = s.maxSegment(leaving)
	c.ssthresh, c.rto = 1<<40, initialRTO
	s.conns[leaving.Reverse()] = c
	return c
}

const noLabel = 1 << 20 // no label has so many bits

// maxSegment is what the first link's MTU leaves for TCP without options.
func (s *stack) maxSegment(t Tuple) int {
	mtu := defaultMTU
	if via := s.node.routes(t.Dst.Addr()); len(via) > 0 {
		mtu = via[0].out.mtu()
	}
	if t.Dst.Addr().Is6() {
		return mtu - 60
	}
	return mtu - 40
}

// dial opens a connection.
func (c *conn) dial() {
	c.state = synSent
	c.nxt = 1
	c.sendSYN(wire.SYN)
	c.rtoAt = c.now() + int64(c.rto)
	// Linux sends the SYN with another flow label than all that follows.
	c.label = c.stack.rng.Uint32() & 0xfffff
	c.arm()
}

// answerSYN takes a SYN: the second segment of the handshake.
func (c *conn) answerSYN(p *packet) {
	c.state = synReceived
	c.irs, c.rcvNxt, c.rcvWup = p.tcp.Seq, 1, 1
	c.tsRecent = p.tcp.Options.TSVal
	c.nxt = 1
	c.sndWnd = int64(p.tcp.Window)
	c.sendSYN(wire.SYN | wire.ACK)
	c.rtoAt = c.now() + int64(c.rto)
	c.arm()
}

// agree settles the options with those of the peer's SYN.
func (c *conn) agree(o *wire.TCPOptions) {
	c.sack = c.wants.sack && o.SACKPermitted
	c.ts = c.wants.ts && o.HasTimestamp
	if c.wants.scale && o.HasWindowScale {
		c.sndScale, c.rcvScale = min(o.WindowScale, 14), rcvScale
	}
	if o.HasMSS {
		c.mss = min(c.mss, int(o.MSS))
	} else {
		c.mss = 536 // RFC 9293 section 3.7.1
	}
	if c.ts {
		c.mss -= 12
	}
	c.wants = offered{c.sack, c.ts, c.rcvScale > 0}
	c.cwnd = int64(initialWindow * c.mss)
}

func (c *conn) now() int64 { return c.stack.node.net.now }

// sndOff and rcvOff turn sequence numbers into offsets, sndSeq and rcvSeq back.
func (c *conn) sndOff(seq uint32) int64 { return c.nxt + int64(int32(seq-c.sndSeq(c.nxt))) }
func (c *conn) rcvOff(seq uint32) int64 { return c.rcvNxt + int64(int32(seq-c.rcvSeq(c.rcvNxt))) }
func (c *conn) sndSeq(off int64) uint32 { return c.iss + uint32(off) }
func (c *conn) rcvSeq(off int64) uint32 { return c.irs + uint32(off) }

// tsNow is the timestamp clock, in milliseconds as Linux has it.
func (c *conn) tsNow() uint32 { return c.tsOffset + uint32(c.now()/1e6) }

// write lets the application send n more bytes of its stream.
func (c *conn) write(n int64) {
	if c.finished {
		return
	}
	c.written += n
	c.output()
}

// closeWrite ends the application's stream after what was written.
func (c *conn) closeWrite() {
	if !c.finished {
		c.finished = true
		c.output()
	}
}

// established tells the application that the handshake is over.
func (c *conn) establish() {
	c.state, c.rtoAt, c.backoff, c.rto = open, 0, 0, max(c.rto, minRTO)
	c.keep()
	if c.app != nil {
		c.app.connected()
	}
}

// settle moves on when both streams have ended.
func (c *conn) settle() {
	if c.state != open || !c.peerEnded || !c.finished || c.una < c.end() {
		return
	}
	c.timers = timers{armed: c.armed}
	c.state = closed
	if c.ackPending {
		c.sendACK()
	}
	if c.lastCloser {
		c.forget()
	} else {
		c.state, c.gone = timeWait, c.now()+int64(timeWaitLife)
	}
	c.leave(nil)
}

// abort ends the connection at once: a fatal ICMP error, or too many timeouts.
// The application that closes its socket then resets the peer.
func (c *conn) abort(err error) {
	if c.state >= open {
		c.count.ResetsSent++
		c.transmit(&wire.TCPSegment{TCPProbe: c.header(c.nxt, wire.RST|wire.ACK)})
	}
	c.die(err)
}

// die ends the connection without telling the peer.
func (c *conn) die(err error) {
	c.timers = timers{armed: c.armed}
	c.state = closed
	c.forget()
	c.leave(err)
}

func (c *conn) leave(err error) {
	c.err = err
	if a := c.app; a != nil {
		c.app = nil
		a.ended(err)
	}
}

func (c *conn) forget() {
	if key := c.tuple.Reverse(); c.stack.conns[key] == c {
		delete(c.stack.conns, key)
	}
}

// over reports whether the connection's TIME-WAIT is past, or cut short by a new
// SYN.
func (c *conn) over(p *packet) bool {
	if c.state != timeWait {
		return false
	}
	fresh := p.tcp.Flags&(wire.SYN|wire.ACK) == wire.SYN && c.rcvOff(p.tcp.Seq) > c.rcvNxt
	return fresh || c.now() >= c.gone
}

// icmpError is what an application reads from its socket.
func icmpError(k wire.ICMPKind) error {
	switch k {
	case wire.NetUnreachable:
		return syscall.ENETUNREACH
	case wire.PortUnreachable:
		return syscall.ECONNREFUSED
	}
	return syscall.EHOSTUNREACH
}
