//go:build !linux

package owner

import (
	"errors"
	"runtime"

	"servicetraceroute/trace"
)

// Watcher needs Linux.
type Watcher struct{}

// Open returns an error that matches errors.ErrUnsupported.
func Open(func()) (*Watcher, error) { return nil, unsupported{} }

// Owners is never called: there is no Watcher.
func (w *Watcher) Owners() <-chan Owner { return nil }

// Want is never called.
func (w *Watcher) Want(Want) {}

// Ask is never called.
func (w *Watcher) Ask(trace.FlowKey, int) {}

// Stats is never called.
func (w *Watcher) Stats() Stats { return Stats{} }

// Close is never called.
func (w *Watcher) Close() error { return nil }

// Tracking is of Linux.
func Tracking() bool { return false }

// Sockets needs Linux.
type Sockets struct{}

// OpenSockets returns an error that matches errors.ErrUnsupported.
func OpenSockets() (*Sockets, error) { return nil, unsupported{} }

// Handshake is never called.
func (s *Sockets) Handshake(trace.FlowKey, int) (Handshake, error) { return Handshake{}, unsupported{} }

// Ears is never called.
func (s *Sockets) Ears(trace.FlowKey, int) (Ears, error) { return HearsAll, unsupported{} }

// OnWire is never called.
func (s *Sockets) OnWire(k trace.FlowKey) trace.FlowKey { return k }

// Close is never called.
func (s *Sockets) Close() error { return nil }

// Tracks is never called.
func (s *Sockets) Tracks() bool { return false }

// Connection is never called.
func (s *Sockets) Connection(trace.FlowKey) (Connection, error) { return Connection{}, unsupported{} }

// Finder needs Linux.
type Finder struct{ mailbox }

// NewFinder is never called.
func NewFinder(*Sockets) *Finder { return nil }

// Close is never called.
func (x *Finder) Close() {}

// unsupported matches errors.ErrUnsupported, whose own words would add nothing.
type unsupported struct{}

// Error implements error.
func (unsupported) Error() string {
	return "owner: finding the process of a flow is not supported on " + runtime.GOOS + " (needs Linux)"
}

// Is implements the errors package's convention.
func (unsupported) Is(target error) bool { return target == errors.ErrUnsupported }
