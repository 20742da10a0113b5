package engine

import (
	"hash/maphash"
	"time"

	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/quic"
)

// A program may hold several QUIC connections to one server in one flow, at once or one after
// another, each with a hello of its own (quic-go's Transport does, and a NAT's ports are given
// again). The flow is a service's if one of them names it: as long as it is nobody's, the hello
// of the next connection is read, too.

// ids are hashes of the newest ids of a flow's connections to which an Initial of the client may
// be sent that begins no other one: that of a hello which was read, and the server's own.
type ids struct {
	hashes [8]uint64
	next   int
}

func (e *Engine) noteID(w *words, id []byte) {
	if w.ids == nil {
		w.ids = &ids{}
	}
	if h := maphash.Bytes(e.idSeed, id); !w.ids.has(h) {
		w.ids.hashes[w.ids.next] = h
		w.ids.next = (w.ids.next + 1) % len(w.ids.hashes)
	}
}

func (i *ids) has(h uint64) bool {
	for _, other := range i.hashes {
		if other == h {
			return true
		}
	}
	return false
}

// noteServer notes the id that a QUIC server gives itself.
func (e *Engine) noteServer(w *words, b []byte) {
	var p quic.Packet
	if _, err := p.Decode(b); err == nil && p.Type != quic.Short && len(p.SCID) > 0 {
		e.noteID(w, p.SCID)
	}
}

// another begins to read the hello of one more connection of a flow, if the client's datagram
// begins one; else it does nothing.
func (e *Engine) another(now time.Time, f *flow.Flow, a *attachment, b []byte) {
	w := a.words
	if a.watch != nil || len(b) < quic.MinDatagram {
		return
	}
	var p quic.Packet
	if _, err := p.Decode(b); err != nil || p.Type != quic.Initial || len(p.DCID) < quic.MinDCID {
		return
	}
	if w.ids != nil && w.ids.has(maphash.Bytes(e.idSeed, p.DCID)) || !e.mayListen(w.byPeer) {
		return
	}
	e.read(now, f, a)
}
