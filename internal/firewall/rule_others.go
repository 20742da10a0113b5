//go:build !linux

package firewall

import "errors"

// Rule needs Linux.
type Rule struct{}

// Open returns an error that matches errors.ErrUnsupported.
func Open() (*Rule, error) { return nil, errors.ErrUnsupported }

// Ready returns an error that matches errors.ErrUnsupported.
func (*Rule) Ready() error { return errors.ErrUnsupported }

// Add returns an error that matches errors.ErrUnsupported.
func (*Rule) Add(...[]byte) error { return errors.ErrUnsupported }

// Dropped returns an error that matches errors.ErrUnsupported.
func (*Rule) Dropped() (uint64, error) { return 0, errors.ErrUnsupported }

// Close has nothing to do.
func (*Rule) Close() error { return nil }
