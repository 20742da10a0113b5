//go:build !linux

package inject

import (
	"errors"
	"runtime"
)

// Socket needs Linux.
type Socket struct{ Sink }

// Open returns an error that matches errors.ErrUnsupported.
func Open() (*Socket, error) {
	return nil, unsupported{}
}

// unsupported matches errors.ErrUnsupported, whose own words would add nothing.
type unsupported struct{}

// Error implements error.
func (unsupported) Error() string {
	return "inject: sending probes is not supported on " + runtime.GOOS + " (needs Linux)"
}

// Is implements the errors package's convention.
func (unsupported) Is(target error) bool { return target == errors.ErrUnsupported }
