package engine

import (
	"net/netip"
	"time"
)

// Ignore has the engine leave out the packets of which ours is true: those of new flows that
// were made to compare a traced one with, which would be selected as it was. local is the
// port of this host. It may be asked for every packet. nil: none.
func (e *Engine) Ignore(ours func(local uint16, remote netip.Addr) bool) { e.ours = ours }

// ignored reports whether a packet with these ends is such a flow's.
func (e *Engine) ignored(srcPort, dstPort uint16, outgoing bool) bool {
	switch {
	case e.ours == nil:
		return false
	case outgoing:
		return e.ours(srcPort, e.ip.Dst)
	}
	return e.ours(dstPort, e.ip.Src)
}

// Take takes a probe off the budget for one that is sent outside of an engine, or returns
// how long until it may go.
func (b *Budget) Take(now time.Time) (wait time.Duration) {
	if b.available(now) {
		b.spend()
		return 0
	}
	return b.wait()
}
