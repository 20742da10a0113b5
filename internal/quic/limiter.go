package quic

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// Limits bound how often keys are derived. A field that is zero takes its default.
type Limits struct {
	Rate        int // derivations per second: 2000 for this host's own flows, and as many for all others
	Burst       int // of them at once: 1000
	SourceRate  int // per second and source: 20
	SourceBurst int // at once and source: 40
	Sources     int // that are remembered: 4096, rounded up to a power of two
}

const (
	ways       = 4 // places that a source may have in the table
	minSources = ways
	maxSources = 1 << 20
)

// Limiter decides whether keys may be derived. Its memory is fixed. It is not safe
// for concurrent use.
type Limiter struct {
	limits      Limits
	own, others bucket
	seed        maphash.Seed // outsiders must not choose who shares a place
	sources     []source
}

// source is a place in the table. The zero value is free.
type source struct {
	key [16]byte
	bucket
}

// bucket is a token bucket. The zero value was never used.
type bucket struct {
	tokens float64
	filled time.Time
}

// NewLimiter returns a Limiter with full allowances.
func NewLimiter(l Limits) *Limiter {
	set := func(v *int, to int) {
		if *v <= 0 {
			*v = to
		}
	}
	set(&l.Rate, 2000)
	set(&l.Burst, 1000)
	set(&l.SourceRate, 20)
	set(&l.SourceBurst, 40)
	set(&l.Sources, 4096)
	size := minSources
	for size < min(l.Sources, maxSources) {
		size *= 2
	}
	return &Limiter{limits: l, seed: maphash.MakeSeed(), sources: make([]source, size)}
}

// Allow takes one derivation for a datagram from src. The invalid address is this
// host's own: its flows have no limit each, and an allowance that junk from outside
// cannot use up. IPv6 sources count by /64, which one of them has for itself.
func (l *Limiter) Allow(now time.Time, src netip.Addr) bool {
	rate, burst := float64(l.limits.Rate), float64(l.limits.Burst)
	if !src.IsValid() {
		return l.own.fill(now, rate, burst).take()
	}
	all := l.others.fill(now, rate, burst)
	if all.tokens < 1 {
		return false
	}
	return l.of(now, src).take() && all.take()
}

// of returns the source's bucket, filled. An unknown source takes the place of the
// one that has the most left: forgetting a full one loses nothing.
func (l *Limiter) of(now time.Time, src netip.Addr) *bucket {
	rate, burst := float64(l.limits.SourceRate), float64(l.limits.SourceBurst)
	key := src.Unmap().As16()
	if !src.Unmap().Is4() {
		clear(key[8:])
	}
	set := int(maphash.Bytes(l.seed, key[:])) & (len(l.sources)/ways - 1) * ways
	var most *source
	for i := range l.sources[set : set+ways] {
		s := &l.sources[set+i]
		if s.key == key {
			return s.fill(now, rate, burst)
		}
		if s.fill(now, rate, burst); most == nil || s.tokens > most.tokens {
			most = s
		}
	}
	*most = source{key: key, bucket: bucket{tokens: burst, filled: now}}
	return &most.bucket
}

func (b *bucket) fill(now time.Time, rate, burst float64) *bucket {
	switch {
	case b.filled.IsZero():
		b.tokens = burst
	case now.After(b.filled):
		b.tokens = min(burst, b.tokens+now.Sub(b.filled).Seconds()*rate)
	default:
		return b
	}
	b.filled = now
	return b
}

func (b *bucket) take() bool {
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
