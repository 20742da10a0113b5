package servicetraceroute

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"servicetraceroute/internal/engine"
	"servicetraceroute/trace"
)

// maxQueued bounds the records that wait for a slow reader; newer ones are
// dropped, counted and logged.
const maxQueued = 65536

// longAgo wakes a waiting source.
var longAgo = time.Unix(1, 0)

// loop is the one goroutine that owns the engine, the source and the sink.
func (t *Tracer) loop() {
	defer close(t.done)
	wake := time.Now()
	for {
		select {
		case <-t.closing:
			t.shut(nil)
			return
		default:
		}
		batch, err := t.read(wake)
		now := time.Now()
		switch {
		case err == nil || errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, net.ErrClosed):
			t.shut(nil)
			return
		default:
			t.shut(err)
			return
		}
		st := t.source.Stats()
		t.engine.Dropped(now, st.Dropped, st.Seen)
		t.takeOwners(now)
		wake = t.step(now, batch)
		if t.runCommands() {
			wake = longAgo // what they began is due now
		}
		t.tellScales()
		if t.tellHearings(now) {
			wake = longAgo
		}
		if t.tellPlaces(now) {
			wake = longAgo
		}
		t.askOwners()
		t.deliver(now)
	}
}

// read waits for packets until the deadline or until a command comes.
func (t *Tracer) read(deadline time.Time) ([]Packet, error) {
	if err := t.source.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	select {
	case <-t.closing:
		return nil, os.ErrDeadlineExceeded
	default:
	}
	if len(t.commands) > 0 || t.owners != nil && len(t.owners.Owners()) > 0 { // its wake-up may have come before our deadline
		if err := t.source.SetReadDeadline(longAgo); err != nil {
			return nil, err
		}
	}
	batch, err := t.source.ReadBatch()
	if t.cfg.Source == nil {
		return batch, err // our own ring's are on the monotonic line
	}
	t.batch = append(t.batch[:0], batch...) // the caller's stay as they are
	t.clock.Steady(t.batch)
	return t.batch, err
}

// step runs the engine and sends what it wants sent.
func (t *Tracer) step(now time.Time, batch []Packet) time.Time {
	actions := t.engine.Step(now, batch)
	known := t.rule.add(actions.Probes)
	for _, p := range actions.Probes {
		err := known
		if err == nil || !p.DropErrors {
			err = t.sink.Send(p.Packet, p.Interface, p.NextHop)
		}
		if err != nil {
			t.engine.Failed(now, p, failure(err))
			t.log.Debug("probe not sent", "err", err)
		}
	}
	return actions.Wake
}

func failure(err error) engine.Failure {
	switch {
	case errors.Is(err, syscall.EPERM):
		return engine.FailEPERM
	case errors.Is(err, syscall.ENOBUFS):
		return engine.FailENOBUFS
	}
	return engine.FailOther
}

// runCommands reports whether there were any.
func (t *Tracer) runCommands() (any bool) {
	for {
		select {
		case c := <-t.commands:
			c(time.Now())
			any = true
		default:
			return any
		}
	}
}

// do runs f in the loop and waits for it.
func (t *Tracer) do(f func(now time.Time)) error {
	ran := make(chan struct{})
	select {
	case t.commands <- func(now time.Time) { f(now); close(ran) }:
	case <-t.done:
		return t.closed()
	}
	t.wakeLoop()
	select {
	case <-ran:
		return nil
	case <-t.done:
		select {
		case <-ran:
			return nil
		default:
			return t.closed()
		}
	}
}

func (t *Tracer) closed() error {
	if t.err != nil {
		return t.err
	}
	return net.ErrClosed
}

func (t *Tracer) wakeLoop() { _ = t.source.SetReadDeadline(longAgo) } // a closed source is awake

// deliver hands records to their watches, minutely statistics too, and ends
// watches that were idle for too long.
func (t *Tracer) deliver(now time.Time) {
	t.keep(now)
	for _, rec := range t.engine.Records() {
		if tr, ok := rec.Event.(*trace.Trace); ok {
			t.results.add(tr)
		}
		if s := t.watches[rec.Watch]; s != nil {
			s.put(t, rec.Event)
		}
	}
	if now.Sub(t.minute) >= time.Minute {
		t.minute = now
		for _, s := range t.watches {
			s.put(t, t.stats(now))
		}
	}
	for w, s := range t.watches {
		if s.idle > 0 && now.Sub(w.LastSeen()) > s.idle && w.Running() == 0 {
			s.end(nil)
		}
		if w.Over(now) {
			s.end(nil)
		}
	}
}

// tapCounts is what a Tap counts beside packets.
type tapCounts interface {
	Withheld() uint64
	Brief() uint64
}

func (t *Tracer) stats(now time.Time) *trace.Stats {
	s := t.engine.Stats(now)
	s.Owners = t.ownerStats()
	s.Replies.Withheld = t.rule.dropped()
	s.Backend, s.Reason = t.backend, t.reason
	if tap, ok := t.source.(tapCounts); ok && t.cfg.Source == nil {
		s.Flows.Withheld, s.Flows.Brief = tap.Withheld(), tap.Brief()
	}
	s.Pcap = t.pcapStats()
	if t.unread > 0 {
		s.Records = &trace.RecordStats{Dropped: t.unread}
	}
	return s
}

// shut ends everything; err is why, nil after Close.
func (t *Tracer) shut(err error) {
	now := time.Now()
	for w := range t.watches {
		t.engine.Remove(now, w, trace.StopCancelled)
	}
	t.deliver(now)
	for _, s := range t.watches {
		s.end(err)
	}
	t.err = err
	closing := []error{err}
	if t.owners != nil {
		closing = append(closing, t.owners.Close())
	}
	if t.finder != nil {
		t.finder.Close()
	}
	if t.sockets != nil {
		closing = append(closing, t.sockets.Close())
	}
	closing = append(closing, t.source.Close())
	_, _ = t.source.ReadBatch() // lets go of what the last batch referred to
	if t.sink != nil {
		closing = append(closing, t.sink.Close())
	}
	closing = append(closing, t.rule.close(t.engine.AnswersUntil()))
	t.err = errors.Join(closing...)
	t.closePcap()
}

// subscription is one watch's way to its reader.
type subscription struct {
	watch   *engine.Watch
	idle    time.Duration
	mu      sync.Mutex
	queue   []trace.Event
	dropped int
	ready   chan struct{} // capacity 1: something is queued, or it has ended
	ended   bool
	failure error
}

func (t *Tracer) subscribe(w *engine.Watch, idle time.Duration) (*subscription, error) {
	s := &subscription{watch: w, idle: idle, ready: make(chan struct{}, 1)}
	err := t.do(func(now time.Time) {
		t.watches[w] = s
		t.narrow()
		t.engine.Add(now, w)
	})
	return s, err
}

// unsubscribe ends the watch's traces; what they found stays queued. It returns
// the tracer's counters, nil when the tracer has ended already.
func (t *Tracer) unsubscribe(s *subscription, stop trace.Stop) (last trace.Event) {
	_ = t.do(func(now time.Time) { // the loop has ended: so have the traces
		t.engine.Remove(now, s.watch, stop)
		t.deliver(now)
		delete(t.watches, s.watch)
		t.narrow()
		last = t.stats(now)
	})
	return last
}

func (s *subscription) put(t *Tracer, ev trace.Event) {
	s.mu.Lock()
	if len(s.queue) < maxQueued {
		s.queue = append(s.queue, ev)
	} else {
		t.unread++
		if s.dropped++; s.dropped == 1 {
			t.log.Warn("records are dropped: their reader is too slow", "queued", maxQueued)
		}
	}
	s.mu.Unlock()
	s.signal()
}

func (s *subscription) end(err error) {
	s.mu.Lock()
	s.ended = true
	if s.failure == nil {
		s.failure = err
	}
	s.mu.Unlock()
	s.signal()
}

func (s *subscription) signal() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// rest takes what is queued.
func (s *subscription) rest() []trace.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue
	s.queue = nil
	return q
}

// stream yields events until ctx ends or the watch does; false when yield
// wanted no more.
func (s *subscription) stream(ctx context.Context, yield func(trace.Event, error) bool) bool {
	for {
		select {
		case <-ctx.Done():
			return true
		case <-s.ready:
		}
		for _, ev := range s.rest() {
			if !yield(ev, nil) {
				return false
			}
		}
		s.mu.Lock()
		over := s.ended && len(s.queue) == 0
		s.mu.Unlock()
		if over {
			return true
		}
	}
}
