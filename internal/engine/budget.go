package engine

import (
	"sync"
	"time"
)

// Budget bounds the probes per second of the engines that share it. Its methods
// may be called from any goroutine.
type Budget struct {
	mu     sync.Mutex
	rate   float64
	tokens float64
	filled time.Time // zero: nobody asked yet
}

// NewBudget returns a budget of so many probes per second, which must be positive.
func NewBudget(rate int) *Budget { return &Budget{rate: float64(rate), tokens: 1} }

// available reports whether one more probe may go now.
func (b *Budget) available(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.filled.IsZero() {
		b.filled = now
	}
	if d := now.Sub(b.filled); d > 0 {
		b.tokens = min(max(1, b.rate/burstPart), b.tokens+d.Seconds()*b.rate)
		b.filled = now
	}
	return b.tokens >= 1
}

// spend takes one probe off, also where available was not asked.
func (b *Budget) spend() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens--
}

// turn is within what time so many find out by themselves that the next probe may go: if all
// asked as soon as it can, they would do nothing else.
func (b *Budget) turn(n int) time.Duration {
	return min(time.Duration(float64(n)/b.rate*float64(time.Second)), idleLook)
}

// wait is how long it takes until the next probe may go; 0: it may.
func (b *Budget) wait() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tokens >= 1 {
		return 0
	}
	// One more, since it is rounded down: the token must be whole by then.
	return time.Duration((1-b.tokens)/b.rate*float64(time.Second)) + 1
}
