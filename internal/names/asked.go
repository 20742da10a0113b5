package names

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// asked remembers questions, so that only answers to them are believed. It keeps
// two generations: when the younger is full, or its time is over, the older is
// forgotten. A question is thus known for one to two QueryLifes, and never are there
// more than the limit.
type asked struct {
	seed       maphash.Seed
	young, old generation
	turned     time.Time // when young began
	limit      int       // of both generations together
	dropped    uint64    // forgotten before their time, without an answer

}

type generation struct {
	answered map[key]bool
	waiting  int
}

// key tells questions apart. Names enter as a hash with a secret seed, so that
// keys are small and nobody outside can aim at a collision.
type key struct {
	client, server netip.AddrPort
	name           uint64
	id, qtype      uint16
}

func newAsked(limit int) asked {
	return asked{
		seed: maphash.MakeSeed(), limit: limit,
		young: generation{answered: map[key]bool{}}, old: generation{answered: map[key]bool{}},
	}
}

func (a *asked) key(client, server netip.AddrPort, q *question) key {
	return key{client, server, maphash.Bytes(a.seed, q.name[:q.nameLen]), q.id, q.qtype}
}

// ask writes a question down. One that was answered and is asked again waits again.
func (a *asked) ask(now time.Time, k key) {
	a.turn(now)
	if done, known := a.young.answered[k]; known {
		if done {
			a.young.answered[k] = false
			a.young.waiting++
		}
		return
	}
	if done, known := a.old.answered[k]; known { // it moves
		delete(a.old.answered, k)
		if !done {
			a.old.waiting--
		}
	}
	if len(a.young.answered) >= max(a.limit/2, 1) {
		a.next(now)
	}
	a.young.answered[k] = false
	a.young.waiting++
}

// state is what is known of a question. The zero value: it was not asked.
type state uint8

const (
	unasked state = iota
	waiting
	answered
)

func (a *asked) look(now time.Time, k key) state {
	a.turn(now)
	for _, g := range []*generation{&a.young, &a.old} {
		if done, known := g.answered[k]; known {
			if done {
				return answered
			}
			return waiting
		}
	}
	return unasked
}

// close says that a waiting question got its answer.
func (a *asked) close(k key) {
	for _, g := range []*generation{&a.young, &a.old} {
		if done, known := g.answered[k]; known && !done {
			g.answered[k] = true
			g.waiting--
			return
		}
	}
}

// turn forgets what is old enough.
func (a *asked) turn(now time.Time) {
	if age := now.Sub(a.turned); age >= QueryLife {
		a.old.waiting = 0 // their time is over; nothing was dropped
		a.next(now)
		if age >= 2*QueryLife {
			a.old.waiting = 0
			clear(a.old.answered)
		}
	}
}

func (a *asked) next(now time.Time) {
	a.dropped += uint64(a.old.waiting)
	clear(a.old.answered)
	a.young, a.old = generation{answered: a.old.answered}, a.young
	a.turned = now
}
