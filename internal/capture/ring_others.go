//go:build !linux

package capture

import (
	"errors"
	"fmt"
	"runtime"
)

// Ring needs Linux.
type Ring struct{ Source }

// Open returns an error that matches errors.ErrUnsupported.
func Open(Config) (*Ring, error) {
	return nil, fmt.Errorf("capture: packet capture on %s (needs Linux): %w", runtime.GOOS, errors.ErrUnsupported)
}

// SetFilter needs Linux.
func (r *Ring) SetFilter(Config) error { return errors.ErrUnsupported }
