package probe

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// Where the rate of all is short, responders take turns, in the order in which they were first
// waited for: none starves, and nothing is left to chance.
func TestQueuesTakeTurns(t *testing.T) {
	for range 5 {
		now := time.Unix(1000, 0)
		s := NewBuckets(1000)
		var granted []string
		for ttl := 1; ttl <= 4; ttl++ {
			b := s.For(now, Place{Interface: 1, TTL: ttl}, netip.Addr{})
			for k := range 2 {
				w := &Waiter{Rank: k}
				w.Grant = func(time.Time, *Bucket) bool {
					granted = append(granted, fmt.Sprintf("%d.%d", ttl, k))
					return true
				}
				b.Wait(w)
			}
		}
		for range 8 { // one probe a time
			left := 1
			s.Release(now, func() bool { left--; return left >= 0 })
			now = now.Add(time.Millisecond)
		}
		if want := []string{"1.0", "2.0", "3.0", "4.0", "1.1", "2.1", "3.1", "4.1"}; !slices.Equal(granted, want) {
			t.Fatalf("granted %v, want %v", granted, want)
		}
		if next := s.Release(now, func() bool { return true }); !next.IsZero() || len(s.queues.line) != 0 {
			t.Errorf("nobody waits, and the next grant is at %v", next)
		}
	}
}

// Who begins to wait while others are served is not forgotten.
func TestQueuesWaitWithin(t *testing.T) {
	now := time.Unix(1000, 0)
	s := NewBuckets(1000)
	other := s.For(now, Place{Interface: 1, TTL: 2}, netip.Addr{})
	late := 0
	w := &Waiter{}
	w.Grant = func(time.Time, *Bucket) bool {
		other.Wait(&Waiter{Grant: func(time.Time, *Bucket) bool { late++; return true }})
		return true
	}
	s.For(now, Place{Interface: 1, TTL: 1}, netip.Addr{}).Wait(w)
	for range 2 {
		s.Release(now, func() bool { return true })
	}
	if late != 1 {
		t.Errorf("the late one was granted %d times", late)
	}
}
