package engine

import (
	"net/netip"
	"time"

	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/service"
	"servicetraceroute/trace"
)

// QUIC connections move: a client that changes its network, or whose NAT changes its port,
// goes on with other addresses or ports (connection migration, RFC 9000 section 9), which is
// another flow, without a hello. It keeps its service where one of two things tells that it
// is the connection:
//
// The client's packets bear the connection id of those before. That is so when the client
// does not know that it moved.
//
// A client that does takes a new id, which was told encrypted, and first checks the way: it
// sends a packet of 1200 bytes at least, and gets as much (section 8.2.1). A flow to a server
// that begins so is a connection that moved if all that this host has to that server want
// the same.

const (
	maxMoves   = 4096        // connections whose ids are known, and servers
	moveWithin = time.Minute // of the last packet before
	checkLen   = 1200        // of a packet that checks a way
	idLen      = 8           // of an id, what is compared: one that is shorter is never the same
	shortMin   = 1 + idLen
)

// connection names a QUIC connection: its server's end, and the id by which the client calls
// it.
type connection struct {
	server netip.AddrPort
	id     [idLen]byte
}

// origin is a flow whose connection may move.
type origin struct {
	flow    *flow.Flow
	said    service.Words
	several bool // others to the same server want other names
}

// moves are the origins that are known; the zero value knows none.
type moves struct {
	byID map[connection]*origin
	to   map[netip.AddrPort]*origin // the newest to a server of those that this host opened
}

// shortHeader reports whether a datagram is a packet of a QUIC connection that stands
// (RFC 9000 section 17.3.1), long enough to compare ids.
func shortHeader(b []byte) bool { return len(b) >= shortMin && b[0]&0xc0 == 0x40 }

// serverOf is the end that was connected to.
func serverOf(f *flow.Flow) netip.AddrPort {
	if f.Direction == trace.In {
		return f.Key.Src
	}
	return f.Key.Dst
}

// mayMove keeps what a flow's client named in its hello, for the flow in which its connection
// goes on.
func (e *Engine) mayMove(now time.Time, f *flow.Flow, a *attachment) {
	if a.words.said.Name == "" {
		return
	}
	o := &origin{flow: f, said: a.words.said}
	a.words.origin = o
	if a.words.byPeer {
		return
	}
	before := e.moves.to[f.Key.Dst]
	o.several = e.live(now, before) && (before.several || before.said.Name != o.said.Name)
	if e.moves.to == nil {
		e.moves.to = map[netip.AddrPort]*origin{}
	}
	keep(e, now, e.moves.to, f.Key.Dst, o)
}

// number notes the id by which the client calls its connection, with the first packet that
// bears it alone.
func (e *Engine) number(now time.Time, f *flow.Flow, a *attachment, b []byte) {
	if a.words.origin == nil || !shortHeader(b) {
		return
	}
	if e.moves.byID == nil {
		e.moves.byID = map[connection]*origin{}
	}
	keep(e, now, e.moves.byID, connection{serverOf(f), [idLen]byte(b[1:])}, a.words.origin)
	a.words.origin = nil
}

// keep adds an origin where there is room.
func keep[K comparable](e *Engine, now time.Time, m map[K]*origin, k K, o *origin) {
	if len(m) >= maxMoves {
		for k, old := range m {
			if !e.live(now, old) {
				delete(m, k)
			}
		}
		if len(m) >= maxMoves {
			e.stats.Services.Dropped++
			return
		}
	}
	m[k] = o
}

// live reports whether an origin's connection may move now.
func (e *Engine) live(now time.Time, o *origin) bool {
	return o != nil && e.table.Get(o.flow.Key) == o.flow && now.Sub(o.flow.LastSeen()) <= moveWithin
}

// arrives looks at the first packet of a flow that begins without a hello.
func (e *Engine) arrives(now time.Time, f *flow.Flow, a *attachment, fromClient bool, b []byte) {
	if !fromClient || !shortHeader(b) {
		return
	}
	if o := e.moves.byID[connection{serverOf(f), [idLen]byte(b[1:])}]; e.live(now, o) {
		e.moved(now, f, a, o)
		return
	}
	if a.words.byPeer || len(b) < checkLen || len(e.expected) >= maxExpected || !e.live(now, e.moves.to[f.Key.Dst]) {
		return
	}
	a.words.checks, a.words.said.Awaited, a.words.until = true, true, now.Add(wordsWait)
	e.expected = append(e.expected, expectation{f, a.words})
}

// checked looks at what follows a packet that may check the way to a server.
func (e *Engine) checked(now time.Time, f *flow.Flow, a *attachment, fromClient bool, b []byte) {
	if fromClient && len(b) >= checkLen {
		return // once more
	}
	a.words.checks = false
	o := e.moves.to[f.Key.Dst]
	if !fromClient && shortHeader(b) && len(b) >= checkLen && e.live(now, o) && !o.several && o.flow != f {
		e.moved(now, f, a, o)
		return
	}
	e.silent(a)
}

// moved gives a flow the service of the one in which its connection was before.
func (e *Engine) moved(now time.Time, f *flow.Flow, a *attachment, o *origin) {
	a.words.said, f.UDP.QUIC = o.said, true
	e.silent(a)
	e.mayMove(now, f, a)
}
