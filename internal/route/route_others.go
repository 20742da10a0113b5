//go:build !linux

package route

import (
	"errors"
	"fmt"

	"servicetraceroute/trace"
)

// Interface returns an error that matches errors.ErrUnsupported.
func Interface(trace.FlowKey) (index int, name string, err error) {
	return 0, "", fmt.Errorf("route: needs Linux: %w", errors.ErrUnsupported)
}
