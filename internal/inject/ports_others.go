//go:build !linux

package inject

import "net/netip"

// Ports needs Linux.
type Ports struct{}

// Hold holds nothing, and calls every port free.
func (p *Ports) Hold(uint8, netip.AddrPort) (free bool) { return true }

// Release does nothing.
func (p *Ports) Release() {}
