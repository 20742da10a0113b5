package servicetraceroute

import (
	"context"
	"iter"

	"servicetraceroute/trace"
)

// Tracer watches flows and traces them. Its methods may be called from any
// goroutine. Two Tracers in one process do not disturb each other.
type Tracer struct{}

// New opens the packet sockets (or takes the Config's) and starts watching.
// Privileges may be dropped as soon as it returned. The caller must Close it.
func New(cfg Config) (*Tracer, error) { return nil, nil }

// Close stops all traces, joins every goroutine and closes the sockets.
func (t *Tracer) Close() error { return nil }

// Watch traces every flow that the selection names, as it appears, and yields
// records until ctx ends (which is no error) or the selection's own limits are
// reached. The traces in progress when it ends are yielded with what they found,
// and the last record is *trace.Stats. An error ends the sequence.
func (t *Tracer) Watch(ctx context.Context, sel Selection) iter.Seq2[trace.Event, error] { return nil }

// Trace traces one flow. Source port 0 waits for the first flow that matches the
// rest. When ctx ends the partial trace is returned, and no error.
func (t *Tracer) Trace(ctx context.Context, flow trace.Flow) (*trace.Trace, error) { return nil, nil }

// Stats returns the counters since New.
func (t *Tracer) Stats() trace.Stats { return trace.Stats{} }
