//go:build !linux

package lab

import (
	"errors"
	"fmt"
	"runtime"
)

// Main has no children to play here.
func Main() {}

// Enter returns an error that matches errors.ErrUnsupported.
func Enter() error {
	return fmt.Errorf("lab: network namespaces on %s (needs Linux): %w", runtime.GOOS, errors.ErrUnsupported)
}
