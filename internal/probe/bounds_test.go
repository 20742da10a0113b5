package probe

import (
	"net/netip"
	"testing"
	"time"
)

func TestBucketsAreBounded(t *testing.T) {
	s := NewBuckets(200)
	now := time.Unix(1_800_000_000, 0)
	for i := range maxBuckets + 5000 {
		now = now.Add(time.Millisecond)
		place := Place{Interface: i, TTL: 1}
		b := s.For(now, place, netip.Addr{})
		s.Answer(now, &Sent{At: now, Place: place, Bucket: b}, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	if n := len(s.places) + len(s.byAddr); n > maxBuckets+2 {
		t.Errorf("%d buckets, at most %d are wanted", n, maxBuckets)
	}
}
