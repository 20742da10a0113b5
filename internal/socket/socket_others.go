//go:build !linux

package socket

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/inject"
)

// Socket needs Linux.
type Socket struct{ net.PacketConn }

// Open returns an error that matches errors.ErrUnsupported.
func Open(netip.AddrPort) (*Socket, error) {
	return nil, fmt.Errorf("socket: needs Linux: %w", errors.ErrUnsupported)
}

// Stand does nothing.
func (*Socket) Stand() {}

// Interface is empty.
func (*Socket) Interface() string { return "" }

// Read returns errors.ErrUnsupported.
func (*Socket) Read([]byte) (int, error) { return 0, errors.ErrUnsupported }

// Write returns errors.ErrUnsupported.
func (*Socket) Write([]byte) (int, error) { return 0, errors.ErrUnsupported }

// RemoteAddr is nil.
func (*Socket) RemoteAddr() net.Addr { return nil }

// Source is nil.
func (*Socket) Source() capture.Source { return nil }

// Sink is nil.
func (*Socket) Sink() inject.Sink { return nil }
