//go:build !linux

package ladder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Ladder needs Linux.
type Ladder struct{}

// Open returns an error that matches errors.ErrUnsupported.
func Open(netip.AddrPort) (*Ladder, error) {
	return nil, fmt.Errorf("ladder: needs Linux: %w", errors.ErrUnsupported)
}

// Local is the zero address.
func (*Ladder) Local() (a netip.AddrPort) { return a }

// Connect returns errors.ErrUnsupported.
func (*Ladder) Connect(context.Context, int, time.Duration) (Answer, *net.TCPConn, error) {
	return Answer{}, nil, errors.ErrUnsupported
}

// Close does nothing.
func (*Ladder) Close() {}
