package engine

import (
	"net/netip"
	"time"
)

// breaker remembers destinations to which no probe may come near for a while,
// because one may have done harm.
type breaker map[netip.Addr]time.Time

const (
	breakerTime = 10 * time.Minute
	breakerSize = 4096
)

// trip opens the breaker for a destination.
func (b breaker) trip(now time.Time, dst netip.Addr) {
	if len(b) >= breakerSize {
		b.sweep(now)
	}
	for other := range b { // any: they are all young
		if len(b) < breakerSize {
			break
		}
		delete(b, other)
	}
	b[dst] = now.Add(breakerTime)
}

// open reports whether the destination is to be left alone.
func (b breaker) open(now time.Time, dst netip.Addr) bool {
	until, ok := b[dst]
	return ok && now.Before(until)
}

// sweep forgets what is over.
func (b breaker) sweep(now time.Time) {
	for dst, until := range b {
		if now.After(until) {
			delete(b, dst)
		}
	}
}

// harm is something in a flow that a probe might have caused.
type harm uint8

const (
	harmRST harm = iota + 1
	harmRetransmit
	harmUnreachable
	harmDupAck
)

// harmed counts what happened within a round trip of a reaching probe, and ends
// such probes to the destination if it may be their doing.
func (e *Engine) harmed(now time.Time, r *run, what harm) {
	if !r.mayShow(now, r.near.reachedAt) && !(what == harmRST && e.blamed(now, r)) {
		return
	}
	switch what {
	case harmRST:
		r.impact.RSTs++
	case harmRetransmit:
		r.impact.Retransmits++
	case harmDupAck:
		r.impact.DupAcks++
		return
	}
	if !r.impact.Aborted {
		r.impact.Aborted = true
		if a := r.reach.Open(); a.TTL != 0 {
			r.plan.Lost(a.TTL)
		}
		r.reach.Abort()
		e.stats.Impact.Aborts++
		e.breaker.trip(now, r.flow.Key.Dst.Addr())
	}
}

// mayShow reports whether what a probe does at the peer can show here now. It acts there
// half a round trip after it left and shows half a round trip later; twice that leaves room
// for queues. A zero time is that of no probe.
func (r *run) mayShow(now, sent time.Time) bool {
	since := now.Sub(sent)
	return !sent.IsZero() && since >= soonestAnswer(r.flow) && since <= 2*r.rtt()+50*time.Millisecond
}
