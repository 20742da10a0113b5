//go:build !linux

package inject

// Raw needs Linux.
type Raw struct{}

// OpenRaw returns an error that matches errors.ErrUnsupported.
func OpenRaw() (*Raw, error) { return nil, unsupported{} }

// Send returns an error that matches errors.ErrUnsupported.
func (r *Raw) Send([]byte) error { return unsupported{} }

// Close does nothing.
func (r *Raw) Close() error { return nil }
