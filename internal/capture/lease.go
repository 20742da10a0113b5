package capture

import (
	"net"
	"sync"
	"sync/atomic"
)

// lease is over memory that a batch refers to: Close may come while one is out, and then the
// goroutine that reads lets go of the memory, when it comes back for more.
type lease struct {
	mu     sync.Mutex
	inside bool // a ReadBatch is in progress or its batch is in use
	closed atomic.Bool
	free   func() // lets go of it; called once, with the lock held
}

// enter claims the memory for the goroutine that reads; false when it is gone.
func (l *lease) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed.Load() {
		l.release()
		return false
	}
	l.inside = true
	return true
}

// leave gives the memory up after a read without a batch.
func (l *lease) leave(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inside = false
	if l.closed.Load() {
		l.release()
		return net.ErrClosed
	}
	return err
}

// close runs stop once, and lets go of the memory if no batch is out.
func (l *lease) close(stop func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed.Swap(true) {
		return nil
	}
	err := stop()
	if !l.inside {
		l.release()
	}
	return err
}

func (l *lease) release() {
	if l.free != nil {
		l.free()
		l.free = nil
	}
}
