package simnet

import (
	"math/rand/v2"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/scenario"
)

// iface is one end of a link at a node.
type iface struct {
	*scenario.Interface
	node  *node
	index int
	mac   capture.HardwareAddr
	out   *way // packets that leave
}

const (
	// wireDelay is that of a link without Delay: time must pass, or an exchange
	// that follows another without a pause would go on for ever at one instant.
	wireDelay    = 10 * time.Microsecond
	defaultQueue = 256 << 10
	defaultMTU   = 1500
	// ethernet is what a frame's header takes of a link's rate.
	ethernet = 14
)

// way is one direction of a link.
type way struct {
	net      *Net
	link     *scenario.LinkLayout // its Link changes with SetLink
	from, to *iface
	losses   *losses
	jitter   *rand.Rand
	idle     int64 // when what waits for the rate will have been sent
	last     int64 // when the newest packet under way is due
}

func (n *Net) addLink(i int, l *scenario.LinkLayout) {
	a, b := n.nodes[l.A.Node].attach(l.A, i, 0xa), n.nodes[l.B.Node].attach(l.B, i, 0xb)
	for w, ends := range [2][2]*iface{{a, b}, {b, a}} {
		ends[0].out = &way{
			net: n, link: l, from: ends[0], to: ends[1],
			losses: newLosses(uint64(i), uint64(w)), jitter: n.random(l.Name + ends[0].Node),
		}
	}
}

func (w *way) mtu() int {
	if w.link.Link.MTU > 0 {
		return w.link.Link.MTU
	}
	return defaultMTU
}

// send puts a packet on the link. Taps see it before anything can happen to it.
func (w *way) send(p *packet) {
	n := w.net
	if !p.hidden {
		w.from.node.captured(p.data, w.from, capture.Outgoing)
	}
	p.hidden = false
	l := &w.link.Link
	if l.Down || w.losses.strikes(p, l.Loss, n.opts.LoseAll) || w.dropped(p) {
		n.release(p)
		return
	}
	start := n.now
	if l.Rate > 0 {
		start = max(start, w.idle)
		limit := l.Queue
		if limit <= 0 {
			limit = defaultQueue
		}
		size := len(p.data) + ethernet
		if waiting := float64(start-n.now) * float64(l.Rate) / 8e9; int(waiting)+size > limit {
			n.release(p)
			return
		}
		start += int64(float64(size) * 8e9 / float64(l.Rate))
		w.idle = start
	}
	delay := l.Delay
	if delay <= 0 {
		delay = wireDelay
	}
	due := start + int64(delay)
	if l.Jitter > 0 {
		due += w.jitter.Int64N(int64(l.Jitter) + 1)
	}
	w.last = max(due, w.last) // jitter never reorders
	n.arrive(w.last, w, p)
}

func (w *way) dropped(p *packet) bool {
	n := w.net
	return n.opts.Drop != nil && n.opts.Drop(Crossing{n.time(n.now), w.from.Node, w.to.Node, p.data})
}
