package simnet

import (
	"time"

	"servicetraceroute/internal/scenario"
)

// app is what a connection serves. It is called in the event loop.
type app interface {
	connected()
	data(b []byte)               // the peer's stream goes on; b is lent
	eof()                        // the peer's stream has ended
	tick()                       // conn.after is over
	ended(err error)             // the connection is gone
	content(b []byte, off int64) // fills in the application's own stream
}

// endpoint is the application at one end of a flow: the shapes of scenario.Traffic.
// A server learns from a flow's first bytes which one it is.
type endpoint struct {
	net   *Net
	flow  *Flow // nil at a server that does not know yet
	conn  *conn
	side  side
	check *checker
	think time.Duration
	half  time.Duration // NodeOptions.HalfClose
	first []byte        // of the greeting, at a server
	ready bool          // the client has begun
	over  bool

	began     int64 // a client's first byte
	asked     int64 // its latest message
	exchanges int
	slowest   time.Duration
}

const (
	slowBuffer = 32 << 10
	slowChunk  = 8 << 10
	slowPause  = 10 * time.Millisecond
	receipt    = 40 // what a server answers to an upload
	endless    = 1 << 50
)

func (e *endpoint) content(b []byte, off int64) {
	if e.flow != nil {
		fill(b, e.flow.id, e.side, off)
	}
}

// message is the size of a message of an exchange.
func (e *endpoint) message() int64 {
	if w := &e.flow.Workload; w.Traffic != scenario.OneByte && w.Bytes > 0 {
		return w.Bytes
	}
	return 1
}

func (e *endpoint) connected() {
	if e.side == fromServer {
		return
	}
	if e.think > 0 {
		e.conn.after(e.think)
		return
	}
	e.begin()
}

// begin is the client's first action.
func (e *endpoint) begin() {
	e.ready, e.began = true, e.net.now
	switch w := &e.flow.Workload; w.Traffic {
	case scenario.Download, scenario.SlowReader:
		e.conn.write(greeting)
		switch {
		case w.Traffic == scenario.SlowReader:
			e.conn.after(e.pause())
		case e.half > 0:
			e.conn.after(e.half)
		}
	case scenario.Upload:
		e.send(greeting)
	default:
		e.ask(greeting)
	}
}

func (e *endpoint) pause() time.Duration {
	if w := &e.flow.Workload; w.Every > 0 {
		return w.Every
	}
	return slowPause
}

// send writes a transfer, of Bytes or for Duration.
func (e *endpoint) send(extra int64) {
	w := &e.flow.Workload
	n := w.Bytes
	if n <= 0 {
		n = endless
	}
	if w.Duration > 0 {
		e.conn.after(w.Duration)
	}
	e.conn.write(extra + n)
	if w.Bytes > 0 {
		e.conn.closeWrite()
	}
}

// ask writes the next message of an exchange.
func (e *endpoint) ask(extra int64) {
	e.asked = e.net.now
	e.conn.write(extra + e.message())
}

func (e *endpoint) tick() {
	w := &e.flow.Workload
	switch {
	case e.side == fromClient && !e.ready:
		e.begin()
	case e.side == fromClient && w.Traffic == scenario.SlowReader:
		e.conn.read(slowChunk)
		if e.conn.state == open {
			e.conn.after(e.pause())
		}
	case w.Traffic <= scenario.SlowReader:
		// Duration is over, or it is time for a half-close: what is not sent yet never
		// will be.
		if c := e.conn; !c.finished {
			c.written = c.nxt - 1
			c.closeWrite()
		}
	case e.lastExchange():
		e.conn.closeWrite()
	default:
		e.ask(0)
	}
}

func (e *endpoint) data(b []byte) {
	if e.flow == nil {
		if b = e.meet(b); e.flow == nil {
			return
		}
	}
	e.check.write(b)
	w := &e.flow.Workload
	switch {
	case w.Traffic <= scenario.SlowReader:
	case e.side == fromServer:
		if due := (e.check.n - greeting) / e.message() * e.message(); due > e.conn.written {
			e.conn.write(due - e.conn.written)
		}
	case e.check.n >= int64(e.exchanges+1)*e.message():
		e.exchanged()
	}
}

// meet collects the greeting until it tells which flow this is.
func (e *endpoint) meet(b []byte) (rest []byte) {
	n := min(greeting-len(e.first), len(b))
	e.first = append(e.first, b[:n]...)
	if len(e.first) < greeting {
		return nil
	}
	id := be.Uint64(e.first[8:])
	if be.Uint64(e.first) != magic || id <= e.net.forgotten || id-e.net.forgotten > uint64(len(e.net.flows)) {
		e.conn.abort(errGreeting)
		return nil
	}
	f := e.net.flows[id-e.net.forgotten-1]
	e.flow, f.server = f, e
	e.check = newChecker(id, fromClient)
	e.check.write(e.first)
	if w := &f.Workload; w.Traffic == scenario.Download || w.Traffic == scenario.SlowReader {
		e.send(0)
	}
	return b[n:]
}

// exchanged is a client's answer that came in whole.
func (e *endpoint) exchanged() {
	e.exchanges++
	e.slowest = max(e.slowest, time.Duration(e.net.now-e.asked))
	w := &e.flow.Workload
	next := e.began + int64(e.exchanges)*int64(w.Every)
	if e.lastExchange() {
		next = e.began + int64(w.Duration)
	}
	e.conn.after(time.Duration(max(next-e.net.now, 0)))
}

// lastExchange reports whether a client has nothing more to ask.
func (e *endpoint) lastExchange() bool {
	w := &e.flow.Workload
	switch {
	case w.Traffic == scenario.Idle || w.Duration <= 0 && w.Traffic == scenario.RequestResponse:
		return true
	case w.Duration <= 0:
		return int64(e.exchanges) >= max(w.Bytes, 1)
	}
	return time.Duration(e.net.now-e.began)+w.Every >= w.Duration
}

func (e *endpoint) eof() {
	if e.side == fromServer && e.flow != nil && e.flow.Workload.Traffic == scenario.Upload {
		e.conn.write(receipt)
	}
	e.conn.closeWrite()
}

func (e *endpoint) ended(error) {
	e.over = true
	if e.flow != nil {
		e.flow.finish()
	}
}
