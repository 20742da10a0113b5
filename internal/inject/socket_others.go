//go:build !linux

package inject

import (
	"errors"
	"fmt"
	"runtime"
)

// Socket needs Linux.
type Socket struct{ Sink }

// Open returns an error that matches errors.ErrUnsupported.
func Open() (*Socket, error) {
	return nil, fmt.Errorf("inject: sending probes on %s (needs Linux): %w", runtime.GOOS, errors.ErrUnsupported)
}
