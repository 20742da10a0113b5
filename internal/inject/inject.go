// Package inject puts probes on the wire. It is the only package that sends.
package inject

import "servicetraceroute/internal/capture"

// Sink sends probes. Send is called from one goroutine.
type Sink interface {
	// Send puts one whole IP packet on the link of the given interface, addressed
	// to nextHop. The packet may be reused when Send returns. Errors match
	// syscall.EPERM (a local firewall), syscall.ENOBUFS (a full queue) and
	// net.ErrClosed where that is the cause.
	Send(packet []byte, ifindex int, nextHop capture.HardwareAddr) error
	Close() error
}
