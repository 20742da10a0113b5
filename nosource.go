package servicetraceroute

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/engine"
	"servicetraceroute/trace"
)

// noSource is the source of BackendSock: it shows no packet, and waits as others do.
type noSource struct {
	deadlines chan time.Time // the newest, until it is read
	closed    chan struct{}
	deadline  time.Time // of the goroutine that reads
}

func newNoSource() *noSource {
	return &noSource{deadlines: make(chan time.Time, 1), closed: make(chan struct{})}
}

// ReadBatch implements Source.
func (s *noSource) ReadBatch() ([]Packet, error) {
	for {
		var over <-chan time.Time
		if !s.deadline.IsZero() {
			over = time.After(time.Until(s.deadline))
		}
		select {
		case <-s.closed:
			return nil, net.ErrClosed
		case s.deadline = <-s.deadlines:
		case <-over:
			return nil, os.ErrDeadlineExceeded
		}
	}
}

// SetReadDeadline implements Source.
func (s *noSource) SetReadDeadline(t time.Time) error {
	for {
		select {
		case s.deadlines <- t:
			return nil
		case <-s.deadlines: // the loop looks for what woke it after it has set its own
		}
	}
}

// InterfaceName implements Source.
func (s *noSource) InterfaceName(int) string { return "" }

// Stats implements Source.
func (s *noSource) Stats() SourceStats { return capture.Stats{} }

// Close implements Source.
func (s *noSource) Close() error {
	close(s.closed)
	return nil
}

// sees is nil where packets are seen, else an error that matches errors.ErrUnsupported.
func (t *Tracer) sees() error {
	if t.backend != BackendSock.String() {
		return nil
	}
	return fmt.Errorf("servicetraceroute: the back end sock sees no packets, so it finds no flows; the command's dial traces with it: %w", errors.ErrUnsupported)
}

// unseen is the trace of a connection where no packets are seen. Probes inside one that
// exists take a raw socket; IP_RECVERR on the caller's would make its own calls fail.
func (t *Tracer) unseen(w *engine.Watch, flow trace.Tuple) *trace.Trace {
	tr := t.nothing(w, flow, trace.StopRefused)
	tr.Reason = trace.ReasonCapability
	return tr
}
