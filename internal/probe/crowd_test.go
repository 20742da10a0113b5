package probe

import (
	"container/heap"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// crowd is a model of a hundred flows of each family that ask the same five places at
// once, through routers with Linux's limits: at every second place there is one, at the
// others there are three. The tracer stalls now and then, as on a busy machine.
type crowd struct {
	rng            *rand.Rand
	buckets        *Buckets
	now            time.Time
	stalledUntil   time.Time
	events         timeline
	sent, withheld int
}

type occurrence struct {
	at time.Time
	f  func()
}

type timeline []occurrence

func (t timeline) Len() int           { return len(t) }
func (t timeline) Less(i, j int) bool { return t[i].at.Before(t[j].at) }
func (t timeline) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t *timeline) Push(x any)        { *t = append(*t, x.(occurrence)) }
func (t *timeline) Pop() any {
	old := *t
	last := old[len(old)-1]
	*t = old[:len(old)-1]
	return last
}

func (c *crowd) later(d time.Duration, f func()) { heap.Push(&c.events, occurrence{c.now.Add(d), f}) }

// limiter is a router's: a burst of six, and one more each interval, by its clock of
// 250 ticks a second.
type limiter struct {
	every  time.Duration
	tokens float64
	at     time.Time
	addr   netip.Addr
}

func (l *limiter) allows(now time.Time) bool {
	now = now.Truncate(4 * time.Millisecond)
	l.tokens = min(6, l.tokens+now.Sub(l.at).Seconds()/l.every.Seconds())
	l.at = now
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}

// ask lets one flow ask one router until it answers, three times at most.
func (c *crowd) ask(place Place, router *limiter, attempt int) {
	b := c.buckets.For(c.now, place, netip.Addr{})
	b.Wait(&Waiter{Rank: attempt, Grant: func(now time.Time, _ *Bucket) bool {
		s := &Sent{At: now, TTL: place.TTL, Bucket: b, Place: place}
		b.Sent(s)
		c.sent++
		if router.allows(now) {
			rtt := 3*time.Millisecond + time.Duration(c.rng.IntN(2000))*time.Microsecond
			c.later(rtt, func() { s.Answered = true; c.buckets.Answer(now.Add(rtt), s, router.addr) })
			return true
		}
		c.withheld++
		c.later(2*time.Second, func() {
			b.Missed(s)
			if attempt < 2 {
				c.ask(place, router, attempt+1)
			}
		})
		return true
	}})
}

// play lets half a minute pass, with stalls of up to so long, about one a second.
func (c *crowd) play(stall time.Duration) {
	for end := c.now.Add(30 * time.Second); c.now.Before(end); c.now = c.now.Add(time.Millisecond) {
		if stall > 0 && c.rng.IntN(1000) == 0 {
			c.stalledUntil = c.now.Add(time.Duration(c.rng.Int64N(int64(stall))))
		}
		if c.now.Before(c.stalledUntil) {
			continue
		}
		for len(c.events) > 0 && !c.events[0].at.After(c.now) {
			heap.Pop(&c.events).(occurrence).f()
		}
		c.buckets.Release(c.now, func() bool { return true })
	}
}

func newCrowd(seed uint64) *crowd {
	start := time.Unix(1000, 0)
	c := &crowd{rng: rand.New(rand.NewPCG(seed, 7)), buckets: NewBuckets(200), now: start}
	for ttl := 1; ttl <= 5; ttl++ {
		for _, ipv6 := range []bool{false, true} {
			var routers []*limiter
			for i := range 1 + 2*((ttl+1)%2) {
				l := &limiter{time.Second, 6, start, netip.AddrFrom4([4]byte{10, 0, byte(ttl), byte(i)})}
				if ipv6 {
					l.every, l.addr = 100*time.Millisecond, netip.AddrFrom16([16]byte{0xfd, 14: byte(ttl), 15: byte(i)})
				}
				routers = append(routers, l)
			}
			for i := range 100 {
				c.ask(Place{IPv6: ipv6, TTL: ttl}, routers[i%len(routers)], 0)
			}
		}
	}
	return c
}

// What a limit withholds is not taken for loss, also where stalls make probes leave in
// heaps: believed to be loss, it would be let pass, and each time a little more.
func TestCrowdLosesNothing(t *testing.T) {
	for _, test := range []struct {
		stall time.Duration
		most  float64 // withheld
	}{{0, 0.03}, {100 * time.Millisecond, 0.04}, {time.Second, 0.06}, {3 * time.Second, 0.09}} {
		for seed := range uint64(20) {
			c := newCrowd(seed)
			c.play(test.stall)
			if share := c.buckets.loss.share(); share > 0.01 {
				t.Errorf("stalls of %v, seed %d: %.1f %% is taken for loss, and nothing was lost", test.stall, seed, 100*share)
			}
			if share := float64(c.withheld) / float64(c.sent); share > test.most {
				t.Errorf("stalls of %v, seed %d: %.1f %% of %d probes were withheld", test.stall, seed, 100*share, c.sent)
			}
		}
	}
}

// A second address at a place: those that wait for the first one's allowance, and those
// that come from then on, wait in one queue, for it may be one router that answers.
func TestOneQueueForAPlace(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := NewBuckets(200)
	place, other := Place{Interface: 1, TTL: 3}, Place{Interface: 1, TTL: 4}
	first, second := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	var by []*Bucket
	wait := func(b *Bucket, p Place) {
		b.Wait(&Waiter{Place: p, Grant: func(_ time.Time, b *Bucket) bool { by = append(by, b); return true }})
	}
	answer := func(from netip.Addr) {
		b := s.For(now, place, netip.Addr{})
		b.Take(now)
		sent := &Sent{At: now, TTL: 3, Bucket: b, Place: place}
		b.Sent(sent)
		sent.Answered = true
		s.Answer(now, sent, from)
	}
	answer(first)
	one := s.For(now, place, netip.Addr{})
	sent := &Sent{At: now, TTL: 3, Bucket: one, Place: place}
	one.Sent(sent)
	for range 10 {
		wait(one, place)
	}
	wait(one, other)
	s.Answer(now, sent, second)
	if at := s.For(now, place, netip.Addr{}); at == one || len(at.waiting) != 10 || len(one.waiting) != 1 {
		t.Fatalf("%d wait for the place, %d for its first address", len(at.waiting), len(one.waiting))
	}
	one.Release(now, func() bool { return true })
	granted := len(by)
	for range 100 {
		now = now.Add(100 * time.Millisecond)
		s.Release(now, func() bool { return true })
	}
	at := s.For(now, place, netip.Addr{})
	for _, b := range by[granted:] {
		if b != at {
			t.Error("granted by another bucket than the place's")
		}
	}
	if granted != 1 || len(by) != 11 {
		t.Errorf("%d granted by the address, %d in all", granted, len(by))
	}
}
