//go:build !linux

package servicetraceroute

import "syscall"

// keepAlive does nothing where flows are seen only through the caller's Source.
func keepAlive(syscall.RawConn) (again, undo func()) { return nil, nil }

// connClosed reports whether this process has closed the connection.
func connClosed(raw syscall.RawConn) bool { return raw.Control(func(uintptr) {}) != nil }
