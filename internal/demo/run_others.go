//go:build !linux

package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
)

// Run returns an error that matches errors.ErrUnsupported.
func Run(context.Context, io.Writer) (*Result, error) {
	return nil, fmt.Errorf("demo: network namespaces on %s (needs Linux): %w", runtime.GOOS, errors.ErrUnsupported)
}
