//go:build !linux

package selftest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
)

// Run returns an error that matches errors.ErrUnsupported.
func Run(context.Context, Config) (*Record, error) {
	return nil, fmt.Errorf("selftest: network namespaces on %s (needs Linux): %w", runtime.GOOS, errors.ErrUnsupported)
}
