//go:build linux

package link

import (
	"math"
	"net/netip"

	"servicetraceroute/internal/lab/tap"
)

// losses decides which frames of one way are lost. A decision depends on nothing
// but the seed, the way and the frame's place in its flow: no clock, no random
// state, no other flow. So a flow that is probed and its untouched twin with
// other ports lose the same data.
//
// Two flows that send the same do not always cut it alike: one short segment, where
// the sender's buffer ran dry, shifts all that follow. Hence a segment is judged by
// a byte inside it whose place does not depend on the cut (see anchor).
type losses struct {
	way uint64 // 0: A to B, 1: B to A
	// Flows live in two generations: when the young one is full it becomes the old
	// one, and the flows that were silent since then are forgotten.
	young, old map[flowKey]*lossFlow
}

// flowKey is one way of a flow.
type flowKey struct {
	src, dst netip.AddrPort
	proto    uint8
}

// lossFlow is what decisions about one way of a flow need to remember.
type lossFlow struct {
	base     uint32         // the SYN's sequence number
	end      uint32         // relative: one beyond the highest byte seen
	ackBase  uint32         // the first ack number seen
	haveAck  bool           // ackBase is set
	resent   map[uint32]int // by anchor: transmissions seen after the first
	lastAck  uint32
	sameAcks int // pure ACKs in a row with lastAck
	oldOnes  int // empty segments below end
	packets  int // of a flow that is not TCP
}

const (
	maxLossFlows = 4096
	maxResent    = 4096
)

// The kinds of frames, each with decisions of its own.
const (
	kindData = iota + 1
	kindControl
	kindAck
	kindOld
	kindOther
)

func newLosses(way uint64) *losses {
	return &losses{way: way, young: map[flowKey]*lossFlow{}}
}

func (l *losses) flow(k flowKey) *lossFlow {
	if f := l.young[k]; f != nil {
		return f
	}
	f := l.old[k]
	if f == nil {
		f = &lossFlow{}
	}
	if len(l.young) >= maxLossFlows {
		l.young, l.old = make(map[flowKey]*lossFlow), l.young
	}
	l.young[k] = f
	return f
}

// place is where a frame stands in its flow.
type place struct {
	kind       int
	seq        uint32 // what it is judged by: relative, of data the anchor
	occurrence int
	rel        uint32 // of TCP: the relative sequence number
}

// Block is the distance of anchors: the payload of a full TCP segment with
// timestamps over Ethernet and IPv4.
const Block = 1448

// anchor returns the byte by which a segment is judged: the first of 1, 1+Block,
// 1+2*Block, … that lies in it. A segment that contains none, being short, is
// judged by its first byte.
func anchor(rel, length uint32) uint32 {
	if a := 1 + (rel-1+Block-1)/Block*Block; a-rel < length {
		return a
	}
	return rel
}

// locate finds a packet's place and remembers that it was there.
func (l *losses) locate(h tap.Header) place {
	k := flowKey{netip.AddrPortFrom(h.Src, h.Sport), netip.AddrPortFrom(h.Dst, h.Dport), h.Proto}
	f := l.flow(k)
	if h.Proto != tap.TCP || h.Fragment {
		f.packets++
		return place{kind: kindOther, occurrence: f.packets}
	}
	syn := h.Flags&tap.SYN != 0
	if syn && f.base != h.Seq || f.resent == nil {
		*f = lossFlow{base: h.Seq, resent: map[uint32]int{}}
		if !syn {
			f.base-- // as if the SYN had been the byte before
		}
	}
	if h.Flags&tap.ACK != 0 && !f.haveAck {
		f.ackBase, f.haveAck = h.Ack, true
	}
	rel := h.Seq - f.base
	switch {
	case h.Payload > 0:
		a := anchor(rel, uint32(h.Payload))
		return place{kindData, a, f.transmission(a, rel+uint32(h.Payload)), rel}
	case h.Flags&(tap.SYN|tap.FIN|tap.RST) != 0:
		return place{kindControl, rel, f.transmission(rel, rel+1), rel}
	case int32(rel-f.end) < 0:
		// An empty segment below what was sent: a keepalive, or a probe. It must not
		// count as one of the flow's own acknowledgements.
		f.oldOnes++
		return place{kindOld, rel, f.oldOnes, rel}
	}
	ack := h.Ack - f.ackBase
	if ack == f.lastAck {
		f.sameAcks++
	} else {
		f.lastAck, f.sameAcks = ack, 0
	}
	return place{kindAck, ack, f.sameAcks, rel}
}

// transmission returns how many transmissions of the byte at came before, in a
// segment that goes up to end.
func (f *lossFlow) transmission(at, end uint32) int {
	first := int32(at-f.end) >= 0
	if int32(end-f.end) > 0 {
		f.end = end
	}
	if first {
		return 0
	}
	if len(f.resent) >= maxResent {
		clear(f.resent) // those are long acknowledged
	}
	f.resent[at]++
	return f.resent[at]
}

// lost decides about a place.
func (l *losses) lost(p place, cfg *Config) bool {
	if cfg.Loss <= 0 || p.kind != kindData && !cfg.LoseAll {
		return false
	}
	x := mix(cfg.LossSeed ^ l.way<<63)
	x = mix(x ^ uint64(p.kind)<<32 ^ uint64(p.seq))
	x = mix(x ^ uint64(p.occurrence))
	return float64(x) < cfg.Loss*math.MaxUint64 || cfg.Loss >= 1
}

// mix is the finalizer of splitmix64: every input bit changes half of the output.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
