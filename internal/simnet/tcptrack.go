package simnet

import (
	"time"

	"servicetraceroute/internal/wire"
)

// tcpTrack follows a TCP flow as nf_conntrack_proto_tcp.c does (after van Rooij,
// "Real Stateful TCP Packet Filtering in IP Filter", 2001): which sequence numbers
// either side may use follows from what the other one allowed. The limits have the
// names that they have there.
type tcpTrack struct {
	seen        [2]tcpSide
	established bool // or just opened: both are long-lived here
	closing     bool
	reset       bool
	// liberal: picked up in the middle, the window scales are unknown.
	liberal bool
	last    repeated
	retrans int
}

type tcpSide struct {
	end    uint32 // td_end: one beyond the highest byte sent
	maxEnd uint32 // td_maxend: one beyond what the other side allowed
	maxWin uint32 // td_maxwin: the largest window advertised; 0: nothing seen
	scale  uint8
	scales bool // the SYN had the option
}

// repeated is what makes segments equal.
type repeated struct {
	dir           int
	seq, ack, end uint32
	win           uint16
}

type windowVerdict uint8

const (
	windowOK windowVerdict = iota
	windowIgnore
	windowInvalid
)

const (
	maxRetrans = 3     // nf_conntrack_tcp_max_retrans
	maxAckWin  = 66000 // MAXACKWINCONST
)

func segmentEnd(t *wire.TCP) uint32 {
	end := t.Seq + uint32(t.PayloadLen)
	if t.Flags&wire.SYN != 0 {
		end++
	}
	if t.Flags&wire.FIN != 0 {
		end++
	}
	return end
}

// begin takes a flow's first segment; false when it cannot be one.
func (k *tcpTrack) begin(p *packet) bool {
	t := &p.tcp
	end, win := segmentEnd(t), max(uint32(t.Window), 1)
	switch t.Flags & (wire.SYN | wire.ACK | wire.FIN | wire.RST) {
	case wire.SYN:
		k.seen[original] = tcpSide{end: end, maxEnd: end, maxWin: win, scale: t.Options.WindowScale, scales: t.Options.HasWindowScale}
	case wire.ACK:
		k.established, k.liberal = true, true
		k.seen[original] = tcpSide{end: end, maxEnd: end + win, maxWin: win}
	default:
		return false
	}
	return true
}

// window judges a segment of a known flow and learns from it. Its acknowledgements
// are shift too high (nf_ct_seq_offset); old is Linux before 6.1.
func (k *tcpTrack) window(p *packet, dir int, shift uint32, old bool) windowVerdict {
	t := &p.tcp
	sender, receiver := &k.seen[dir], &k.seen[1-dir]
	end, win := segmentEnd(t), uint32(t.Window)
	// A SYN above the one before begins the connection anew while nobody has answered.
	again := t.Flags&wire.SYN != 0 && !k.established && wire.SeqLess(sender.end, end)
	if sender.maxWin == 0 || again {
		k.meet(t, dir, end)
	}
	ack, sack := t.Ack-shift, t.Ack-shift
	if t.Flags&wire.ACK == 0 {
		ack, sack = receiver.end, receiver.end
	}
	for _, b := range sackBlocks(nil, p.ip.Transport) {
		sack = wire.SeqMax(sack, b[1]-shift)
	}
	if v := k.judge(t, sender, receiver, end, sack, old); v != windowOK {
		if k.liberal {
			return windowIgnore
		}
		return v
	}
	if t.Flags&wire.SYN == 0 {
		win <<= sender.scale
	}
	sender.maxWin = max(sender.maxWin, win+(sack-ack))
	if wire.SeqLess(sender.maxEnd, end) && receiver.maxWin != 0 {
		receiver.maxWin += end - sender.maxEnd
	}
	sender.end = wire.SeqMax(sender.end, end)
	if wire.SeqLess(receiver.maxEnd-1, sack+win) {
		receiver.maxEnd = sack + win
		if win == 0 {
			receiver.maxEnd++
		}
	}
	k.follow(t, dir, end)
	return windowOK
}

// meet takes the first segment of a side.
func (k *tcpTrack) meet(t *wire.TCP, dir int, end uint32) {
	sender, receiver := &k.seen[dir], &k.seen[1-dir]
	win := max(uint32(t.Window), 1)
	*sender = tcpSide{end: end, maxEnd: end, maxWin: win}
	if t.Flags&wire.SYN == 0 {
		sender.maxEnd = end + win
		return
	}
	sender.scale, sender.scales = t.Options.WindowScale, t.Options.HasWindowScale
	if dir == replying && (!sender.scales || !receiver.scales) {
		sender.scale, receiver.scale = 0, 0
	}
}

// judge tests the four bounds.
func (k *tcpTrack) judge(t *wire.TCP, sender, receiver *tcpSide, end, sack uint32, old bool) windowVerdict {
	switch {
	case wire.SeqLess(sender.maxEnd, t.Seq): // I: beyond what the receiver allowed
		return windowInvalid
	case !wire.SeqLess(sender.end-receiver.maxWin-1, end): // II: long acknowledged
		if old {
			return windowInvalid
		}
		return windowIgnore
	case wire.SeqLess(receiver.end, sack): // III: acknowledges what was never sent
		return windowInvalid
	case !wire.SeqLess(receiver.end-max(sender.maxWin, maxAckWin)-1, sack): // IV
		return windowIgnore
	}
	return windowOK
}

// follow notes the flow's state and how often segments repeat.
func (k *tcpTrack) follow(t *wire.TCP, dir int, end uint32) {
	switch {
	case t.Flags&wire.RST != 0:
		k.closing, k.reset = true, true
	case t.Flags&wire.FIN != 0:
		k.closing = true
	case t.Flags&wire.SYN == 0:
		k.established = true
		this := repeated{dir, t.Seq, t.Ack, end, t.Window}
		if this == k.last {
			k.retrans++
		} else {
			k.last, k.retrans = this, 0
		}
	}
}

// timeout is what the entry's life is after a segment. Repeated segments make
// conntrack believe that the other side is gone.
func (k *tcpTrack) timeout() time.Duration {
	switch {
	case k.reset:
		return timeoutReset
	case k.closing:
		return timeoutClose
	case !k.established:
		return timeoutSYN
	case k.retrans >= maxRetrans:
		return timeoutRetrans
	}
	return timeoutTCP
}
