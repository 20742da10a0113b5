package evidence

import (
	"fmt"
	"io"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"servicetraceroute/internal/engine"
)

const (
	maxQueued  = 32 << 20 // bytes between the tracer's loop and the file
	maxBatches = 4096
	maxNames   = 4096
	look       = 50 * time.Millisecond  // how often held packets are looked at
	patience   = 500 * time.Millisecond // of Close with a reader that does not read
	eventSize  = 320                    // what one event costs beside its packet's bytes
)

// Options of a Writer.
type Options struct {
	Payload     bool
	Application string                 // who writes
	Interface   func(index int) string // the name of an interface; asked by Put
	Failed      func(error)            // told once, from the Writer's goroutine, when writing failed; may be nil
}

// Counts of a Writer.
type Counts struct {
	Packets uint64 // written
	Dropped uint64 // not written: the writer was too slow, or failed
}

// Writer writes evidence. Put and Close are called from one goroutine; Counts
// may be called from any.
type Writer struct {
	opts   Options
	out    io.Writer
	names  map[int]string
	queue  chan batch
	queued atomic.Int64
	done   chan struct{}

	written, lost atomic.Uint64

	mu      sync.Mutex
	dropped map[tap]uint64

	// Of the goroutine.
	buffered uint64 // packets that were not flushed yet
	err      error
}

// tap is an interface, by index and name: indexes are used again.
type tap struct {
	index int
	name  string
}

// batch is the evidence of one step.
type batch struct {
	events []event
	size   int64
}

// event is a piece of evidence that owns its bytes.
type event struct {
	engine.Evidence
	tap     tap
	arrived time.Time
}

// New starts a goroutine that writes to out until Close. It writes nothing
// before the first packet.
func New(out io.Writer, opts Options) *Writer {
	w := &Writer{
		opts: opts, out: out, names: map[int]string{}, queue: make(chan batch, maxBatches),
		done: make(chan struct{}), dropped: map[tap]uint64{},
	}
	go w.run()
	return w
}

// Put queues what the engine said at now, with copies of the packets. It never
// waits: what finds the queue full is dropped and counted.
func (w *Writer) Put(now time.Time, evidence []engine.Evidence) {
	if len(evidence) == 0 {
		return
	}
	total := 0
	for i := range evidence {
		total += w.kept(&evidence[i])
	}
	b := batch{size: int64(total + eventSize*len(evidence))}
	if w.queued.Add(b.size) > maxQueued {
		w.queued.Add(-b.size)
		w.drop(evidence)
		return
	}
	b.events = make([]event, len(evidence))
	bytes := make([]byte, 0, total)
	for i := range evidence {
		ev := &b.events[i]
		*ev = event{Evidence: evidence[i], arrived: now}
		if n := w.kept(&evidence[i]); n > 0 {
			from := len(bytes)
			bytes = append(bytes, ev.Packet.Data[:n]...)
			ev.tap = w.tap(ev.Packet.Interface)
			ev.Packet.Data = bytes[from:len(bytes):len(bytes)]
		} else {
			ev.Packet.Data = nil
		}
	}
	select {
	case w.queue <- b:
	default:
		w.queued.Add(-b.size)
		w.drop(evidence)
	}
}

// kept is how many bytes of a packet are written.
func (w *Writer) kept(ev *engine.Evidence) int {
	n := len(ev.Packet.Data)
	if !w.opts.Payload {
		n = min(n, max(ev.Keep, 0))
	}
	return n
}

// tap names an interface. A name is asked for once: it is good enough for a file,
// and asking costs a system call.
func (w *Writer) tap(index int) tap {
	name, ok := w.names[index]
	if !ok {
		if len(w.names) > maxNames {
			clear(w.names)
		}
		name = w.opts.Interface(index)
		if name == "" {
			name = fmt.Sprintf("interface %d", index)
		}
		w.names[index] = name
	}
	return tap{index, name}
}

func (w *Writer) drop(evidence []engine.Evidence) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range evidence {
		switch evidence[i].Kind {
		case engine.FlowPacket, engine.ProbeSent, engine.ReplyPacket:
			w.dropped[w.tap(evidence[i].Packet.Interface)]++
			w.lost.Add(1)
		}
	}
}

// drops is what was dropped at each interface.
func (w *Writer) drops() map[tap]uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.dropped)
}

// Counts returns the counters so far.
func (w *Writer) Counts() Counts { return Counts{w.written.Load(), w.lost.Load()} }

// Close writes what is still held, with "cut short" where a verdict is missing,
// joins the goroutine and returns the first error of writing. out is not closed.
// A reader that does not read is given half a second where out has write
// deadlines.
func (w *Writer) Close() error {
	if d, ok := w.out.(interface{ SetWriteDeadline(time.Time) error }); ok {
		_ = d.SetWriteDeadline(time.Now().Add(patience)) // an ordinary file has none and needs none
	}
	close(w.queue)
	<-w.done
	return w.err
}

// run owns what is held and the file.
func (w *Writer) run() {
	defer close(w.done)
	f := &file{out: w.out, opts: w.opts}
	h := newHold(func(e *entry) {
		w.buffered++
		w.attempt(func() error { return f.packet(e) })
	})
	every := time.NewTicker(look)
	defer every.Stop()
	for {
		select {
		case b, ok := <-w.queue:
			if !ok {
				h.end()
				w.flush(func() error { return f.finish(w.drops()) })
				return
			}
			for i := range b.events {
				h.take(&b.events[i])
			}
			w.queued.Add(-b.size)
		case now := <-every.C:
			h.release(now)
			w.flush(f.flush)
		}
	}
}

// attempt runs a part of the writing, unless it failed before, and ends it at the
// first error: what was buffered may be lost.
func (w *Writer) attempt(part func() error) {
	if w.err == nil {
		if err := part(); err != nil {
			w.err = fmt.Errorf("write packets: %w", err)
			if w.opts.Failed != nil {
				w.opts.Failed(w.err)
			}
		}
	}
	if w.err != nil {
		w.lost.Add(w.buffered)
		w.buffered = 0
	}
}

// flush is attempt of what leaves nothing in a buffer.
func (w *Writer) flush(part func() error) {
	w.attempt(part)
	w.written.Add(w.buffered)
	w.buffered = 0
}
