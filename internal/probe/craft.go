package probe

import (
	"math/rand/v2"

	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/wire"
)

// MaxOffset bounds how far below SND.UNA - 1 a probe's sequence number lies.
const MaxOffset = 4096

const ecnMask = 0x03

// Offsets returns how many values of k a probe of this flow may take now: its
// sequence number SND.UNA - 1 - k has to stay less than the largest window the
// peer has shown below SND.NXT, or conntrack before Linux 6.1 calls it INVALID.
// 0 means that no probe may be sent at this moment.
func Offsets(t *flow.TCP) int {
	if !t.HaveUna || !t.HaveNxt || !t.Newest.Valid {
		return 0
	}
	outstanding := wire.SeqDiff(t.Nxt, t.Una)
	if outstanding < 0 {
		return 0
	}
	room := int64(t.MaxPeerWindow) - int64(outstanding) - 1
	return int(max(0, min(room, MaxOffset)))
}

// Craft fills in a probe of the flow: an empty ACK segment that is old to the
// peer whatever happens. taken reports sequence numbers that may not be used. ok
// is false when the flow leaves no room for one.
//
// Acknowledgement, window, timestamps, DSCP and flow label are those of the
// newest packet that the flow itself sent, so that load balancers and receivers
// find nothing new in it; ECN is zero, as RFC 3168 section 6.1.4 asks of pure
// acknowledgements.
func Craft(p *wire.TCPProbe, f *flow.Flow, ttl int, rng *rand.Rand, taken func(seq uint32) bool) (ok bool) {
	t := f.TCP
	n := Offsets(t)
	if n == 0 {
		return false
	}
	k := 0
	if n > 1 {
		k = 1 + rng.IntN(n-1) // SND.UNA - 1 is what a keepalive has
	}
	seq := t.Una - 1 - uint32(k)
	for tries := 0; taken(seq); tries++ {
		if tries >= n || tries >= 64 {
			return false
		}
		k = (k + 1) % n
		seq = t.Una - 1 - uint32(k)
	}
	*p = wire.TCPProbe{
		Src: f.Key.Src, Dst: f.Key.Dst, TTL: uint8(ttl), TOS: t.Newest.TOS &^ ecnMask,
		FlowLabel: t.Newest.FlowLabel, Seq: seq, Ack: t.Newest.Ack, Flags: wire.ACK, Window: t.Newest.Window,
		Timestamp: t.Newest.Timestamp, TSVal: t.Newest.TSVal, TSEcr: t.Newest.TSEcr,
	}
	return true
}
