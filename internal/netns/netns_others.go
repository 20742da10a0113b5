//go:build !linux

package netns

import (
	"errors"
	"fmt"
	"runtime"
)

// errLinux matches errors.ErrUnsupported.
var errLinux = fmt.Errorf("network namespaces need Linux, this is %s: %w", runtime.GOOS, errors.ErrUnsupported)

// Namespace needs Linux.
type Namespace struct {
	ID   ID
	Name string
}

// Open returns an error that matches errors.ErrUnsupported.
func Open(string) (*Namespace, error) { return nil, errLinux }

// Close does nothing.
func (n *Namespace) Close() error { return nil }

// Path is empty.
func (n *Namespace) Path() string { return "" }

// Do returns an error that matches errors.ErrUnsupported.
func (n *Namespace) Do(func() error) error { return errLinux }

// Do runs f here when where is empty.
func Do(where string, f func() error) error {
	if where == "" {
		return f()
	}
	return fmt.Errorf("network namespace %q: %w", path(where), errLinux)
}

// Names are none.
func Names() []string { return nil }

// List finds none.
func List(int) (all []*Namespace, more int) { return nil, 0 }

// Own returns an error that matches errors.ErrUnsupported.
func Own() (ID, error) { return ID{}, errLinux }
