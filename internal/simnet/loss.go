package simnet

import (
	"math"

	"servicetraceroute/internal/wire"
)

// losses decides which packets of one way of a link are lost: the same ones as on
// a link of the namespace lab. A decision depends on nothing but the link and the
// packet's place in its flow, not on time and not on other flows. So a flow that
// is probed and its untouched twin lose the same data. Where every packet may be hit
// it depends on the flow as well: else the third probe of all flows would be lost, or
// of none, and look like a router that answers nobody.
type losses struct {
	seed, way uint64
	flows     map[Tuple]*lossFlow
}

// lossFlow is what decisions about one way of a flow need to remember.
type lossFlow struct {
	base     uint32         // the SYN's sequence number
	end      uint32         // relative: one beyond the highest byte seen
	ackBase  uint32         // the first acknowledgement seen
	haveAck  bool           // ackBase is set
	resent   map[uint32]int // by anchor: transmissions seen after the first
	lastAck  uint32
	sameAcks int // pure acknowledgements in a row with lastAck
	oldOnes  int // empty segments below end
	packets  int // of a flow that is not TCP
}

// The kinds of packets, each with decisions of its own.
const (
	kindData = iota + 1
	kindControl
	kindAck
	kindOld
	kindOther
)

// block is the distance of the bytes by which segments are judged: a full
// segment with timestamps over Ethernet and IPv4.
const block = 1448

func newLosses(seed, way uint64) *losses {
	return &losses{seed: seed, way: way, flows: map[Tuple]*lossFlow{}}
}

// anchor returns the byte by which a segment is judged: the first of 1, 1+block,
// 1+2*block, … in it, so that one short segment does not change the fate of all
// that follow. A segment without one is judged by its first byte.
func anchor(rel, length uint32) uint32 {
	if a := 1 + (rel-1+block-1)/block*block; a-rel < length {
		return a
	}
	return rel
}

// strikes decides about a packet, and remembers that it was there.
func (l *losses) strikes(p *packet, loss float64, all bool) bool {
	if loss <= 0 {
		return false
	}
	f := l.flows[p.tuple]
	if f == nil {
		f = &lossFlow{resent: map[uint32]int{}}
		l.flows[p.tuple] = f
	}
	kind, place, occurrence := f.locate(p)
	if kind != kindData && !all {
		return false
	}
	x := mix(l.seed ^ l.way<<63)
	if all {
		x = mix(x ^ p.tuple.hash())
	}
	x = mix(x ^ uint64(kind)<<32 ^ uint64(place))
	x = mix(x ^ uint64(occurrence))
	return float64(x) < loss*math.MaxUint64 || loss >= 1
}

// locate finds a packet's place in its flow.
func (f *lossFlow) locate(p *packet) (kind int, place uint32, occurrence int) {
	f.packets++
	if !p.isTCP {
		return kindOther, 0, f.packets
	}
	t := &p.tcp
	if syn := t.Flags&wire.SYN != 0; syn && f.base != t.Seq || f.packets == 1 {
		*f = lossFlow{base: t.Seq, resent: map[uint32]int{}, packets: f.packets}
		if !syn {
			f.base-- // as if the SYN had been the byte before
		}
	}
	if t.Flags&wire.ACK != 0 && !f.haveAck {
		f.ackBase, f.haveAck = t.Ack, true
	}
	rel := t.Seq - f.base
	switch {
	case t.PayloadLen > 0:
		a := anchor(rel, uint32(t.PayloadLen))
		return kindData, a, f.transmission(a, rel+uint32(t.PayloadLen))
	case t.Flags&(wire.SYN|wire.FIN|wire.RST) != 0:
		return kindControl, rel, f.transmission(rel, rel+1)
	case wire.SeqLess(rel, f.end):
		// A keepalive or a probe: it must not count as one of the flow's own
		// acknowledgements.
		f.oldOnes++
		return kindOld, rel, f.oldOnes
	}
	ack := t.Ack - f.ackBase
	if ack == f.lastAck {
		f.sameAcks++
	} else {
		f.lastAck, f.sameAcks = ack, 0
	}
	return kindAck, ack, f.sameAcks
}

// transmission returns how many transmissions of the byte at came before, in a
// segment that goes up to end.
func (f *lossFlow) transmission(at, end uint32) int {
	first := !wire.SeqLess(at, f.end)
	if wire.SeqLess(f.end, end) {
		f.end = end
	}
	if first {
		return 0
	}
	f.resent[at]++
	return f.resent[at]
}
