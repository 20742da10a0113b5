//go:build !linux

package privilege

// Drop has nothing to give up here.
func Drop(...Capability) error { return nil }

// Held returns no capabilities.
func Held() (uint64, error) { return 0, nil }

// Lower has nothing to give up here.
func Lower([]Capability, ...Capability) (raise func() error, err error) {
	return func() error { return nil }, nil
}

// NothingInherited has nothing to take away here.
func NothingInherited() error { return nil }

// Shed has nothing to give up here.
func Shed([]Capability, ...Capability) (raise func() error, err error) {
	return func() error { return nil }, nil
}

// Invoker knows nobody here.
func Invoker() (uid, gid int, ok bool) { return 0, 0, false }
