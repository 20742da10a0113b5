//go:build !linux

package privilege

// Drop has nothing to give up here.
func Drop(...Capability) error { return nil }

// Held returns no capabilities.
func Held() (uint64, error) { return 0, nil }
