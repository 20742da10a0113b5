//go:build !linux

package capture

import (
	"errors"
	"runtime"
)

// Ring needs Linux.
type Ring struct{ Source }

// Open returns an error that matches errors.ErrUnsupported.
func Open(Config) (*Ring, error) {
	return nil, unsupported{}
}

// Tap needs Linux.
type Tap struct{ Source }

// OpenTap returns an error that matches errors.ErrUnsupported.
func OpenTap(Config) (*Tap, error) { return nil, unsupported{} }

// SetFilter needs Linux.
func (r *Ring) SetFilter(Config) error { return errors.ErrUnsupported }

// unsupported matches errors.ErrUnsupported, whose own words would add nothing.
type unsupported struct{}

// Error implements error.
func (unsupported) Error() string {
	return "capture: packet capture is not supported on " + runtime.GOOS + " (needs Linux)"
}

// Is implements the errors package's convention.
func (unsupported) Is(target error) bool { return target == errors.ErrUnsupported }
