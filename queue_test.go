package servicetraceroute

import (
	"log/slog"
	"testing"

	"servicetraceroute/trace"
)

// What a slow reader does not take is dropped, the newest first, and counted.
func TestSlowReader(t *testing.T) {
	tracer := &Tracer{log: slog.New(slog.DiscardHandler)}
	s := &subscription{ready: make(chan struct{}, 1)}
	first := &trace.Flow{}
	s.put(tracer, first)
	for range maxQueued + 2 {
		s.put(tracer, &trace.Flow{})
	}
	if tracer.unread != 3 {
		t.Errorf("%d records are counted", tracer.unread)
	}
	if queued := s.rest(); len(queued) != maxQueued || queued[0] != first {
		t.Errorf("%d records wait", len(queued))
	}
}
