package socket

import (
	"sync"
	"time"
)

// deadline is a time until which something may wait. The zero value is none. Its methods may
// be called from any goroutine.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	over  chan struct{} // closed when it has passed; nil: nobody asked yet
}

// set moves the deadline, also for those that wait; the zero time is none.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.channel() // it is being closed
	}
	d.timer = nil
	passed := isClosed(d.channel())
	if t.IsZero() {
		if passed {
			d.over = nil
		}
		return
	}
	left := time.Until(t)
	if left <= 0 {
		if !passed {
			close(d.over)
		}
		return
	}
	if passed {
		d.over = make(chan struct{})
	}
	over := d.over
	d.timer = time.AfterFunc(left, func() { close(over) })
}

// passed is closed when the deadline, as it is now or will be set, has passed.
func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.channel()
}

func (d *deadline) channel() chan struct{} {
	if d.over == nil {
		d.over = make(chan struct{})
	}
	return d.over
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
