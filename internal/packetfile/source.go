package packetfile

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"servicetraceroute/internal/capture"
)

const (
	maxBatch = 256       // packets of one ReadBatch
	maxBytes = 512 << 10 // and their bytes, but for the last one
	maxSteps = 4096      // records and blocks between two looks at the deadline
)

// Options of a File. The zero value is ready.
type Options struct {
	// Direction decides on the way of a packet of which the file does not tell it; it
	// may change the packet. nil leaves 0. What it leaves at Foreign is handed out, too.
	Direction func(p *capture.Packet) capture.Direction
}

// File is a capture.Source that reads a file as fast as it can. ReadBatch and Stats
// are called from one goroutine, SetReadDeadline and Close from any.
//
// ReadBatch never waits for the packets' own times, which whoever uses them has to
// take as the time (see package documentation). At the end it returns io.EOF, or an
// *Error after all that came before the broken place.
type File struct {
	r     *Reader
	in    io.Reader
	opts  Options
	batch []capture.Packet
	bytes []byte
	ended error // after the packets before it were handed out

	mu       sync.Mutex // over what follows
	names    []string   // of interfaces; only ReadBatch adds to it
	deadline time.Time
	closed   bool
}

// Open opens the named file, "-" for standard input.
func Open(name string, opts Options) (*File, error) {
	if name == "-" {
		return New(os.Stdin, opts), nil
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	return New(file, opts), nil
}

// New returns a File that reads from r. If r has a Close method, the File's calls
// it, and if it has a SetReadDeadline, that is called too: then a pipe that has nothing
// does not hold ReadBatch beyond its deadline.
func New(r io.Reader, opts Options) *File {
	return &File{r: NewReader(r), in: r, opts: opts}
}

// ReadBatch implements capture.Source. From a pipe it takes what is there.
func (f *File) ReadBatch() ([]capture.Packet, error) {
	f.batch, f.bytes = f.batch[:0], f.bytes[:0]
	if err := f.refused(); err != nil {
		return nil, err
	}
	for steps := 1; f.ended == nil && len(f.batch) < maxBatch && len(f.bytes) < maxBytes && (len(f.batch) == 0 || f.r.ready()); steps++ {
		if steps%maxSteps == 0 && f.refused() != nil {
			break // a file may hold anything but packets
		}
		p, ok, err := f.step()
		if err != nil {
			f.ended = err
		}
		if !ok {
			continue
		}
		at := len(f.bytes)
		f.bytes = append(f.bytes, p.Data...)
		p.Data = f.bytes[at:len(f.bytes):len(f.bytes)]
		f.batch = append(f.batch, p)
		if p.Direction == 0 && f.opts.Direction != nil {
			last := &f.batch[len(f.batch)-1]
			last.Direction = f.opts.Direction(last)
		}
	}
	if len(f.batch) > 0 {
		return f.batch, nil
	}
	err := f.ended
	if errors.Is(err, os.ErrDeadlineExceeded) {
		f.ended = nil // it passes
	}
	switch again := f.refused(); {
	case errors.Is(again, net.ErrClosed):
		err = again // which readers say in different ways
	case err == nil:
		err = os.ErrDeadlineExceeded // it had passed above
	}
	return nil, err
}

// step is the reader's. Names of interfaces that are new with it are for everybody.
func (f *File) step() (p capture.Packet, ok bool, err error) {
	p, ok, err = f.r.step()
	if n := len(f.names); n < len(f.r.interfaces) {
		f.mu.Lock()
		for _, i := range f.r.interfaces[n:] {
			f.names = append(f.names, i.Name)
		}
		f.mu.Unlock()
	}
	return p, ok, err
}

// refused is why nothing may be read now.
func (f *File) refused() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return net.ErrClosed
	case !f.deadline.IsZero() && !f.deadline.After(time.Now()):
		return os.ErrDeadlineExceeded
	}
	return nil
}

// SetReadDeadline implements capture.Source.
func (f *File) SetReadDeadline(t time.Time) error {
	f.mu.Lock()
	f.deadline = t
	f.mu.Unlock()
	if in, ok := f.in.(interface{ SetReadDeadline(time.Time) error }); ok {
		if err := in.SetReadDeadline(t); err != nil && !errors.Is(err, os.ErrNoDeadline) {
			return err
		}
	}
	return nil
}

// InterfaceName implements capture.Source. It may be called from any goroutine.
func (f *File) InterfaceName(index int) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if index < 1 || index > len(f.names) {
		return ""
	}
	return f.names[index-1]
}

// Stats implements capture.Source. Dropped are packets that could not be handed out,
// and those that were lost to who captured; what is no IP counts as neither.
func (f *File) Stats() capture.Stats {
	c := f.r.Counts()
	dropped := c.Cut + c.LinkType + c.NoInterface + c.TooLong + c.Lost
	return capture.Stats{Seen: c.Packets + dropped, Dropped: dropped}
}

// Counts are the same in detail.
func (f *File) Counts() Counts { return f.r.Counts() }

// Close implements capture.Source.
func (f *File) Close() error {
	f.mu.Lock()
	was := f.closed
	f.closed = true
	f.mu.Unlock()
	if c, ok := f.in.(io.Closer); ok && !was {
		return c.Close()
	}
	return nil
}
