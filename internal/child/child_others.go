//go:build !linux

package child

import (
	"errors"
	"os"
	"runtime"
)

// Group needs Linux.
type Group struct{}

// NewGroup returns an error that matches errors.ErrUnsupported.
func NewGroup() (*Group, error) { return nil, unsupported{} }

// Path is never called: there is no Group.
func (g *Group) Path() string { return "" }

// Guarded is never called.
func (g *Group) Guarded() bool { return false }

// Remove is never called.
func (g *Group) Remove() (int, error) { return 0, nil }

// Command is what to start.
type Command struct {
	Path  string
	Argv  []string
	User  *User
	Group *Group
}

// Process is a running command.
type Process struct{}

// Subreap returns an error that matches errors.ErrUnsupported.
func Subreap() error { return unsupported{} }

// Start returns an error that matches errors.ErrUnsupported.
func Start(Command) (*Process, error) { return nil, unsupported{} }

// PID is never called: there is no Process.
func (p *Process) PID() int { return 0 }

// Signal is never called.
func (p *Process) Signal(os.Signal) error { return unsupported{} }

// Wait is never called.
func (p *Process) Wait() (int, error) { return 0, unsupported{} }

// unsupported matches errors.ErrUnsupported, whose own words would add nothing.
type unsupported struct{}

// Error implements error.
func (unsupported) Error() string {
	return "child: running a command is not supported on " + runtime.GOOS + " (needs Linux)"
}

// Is implements the errors package's convention.
func (unsupported) Is(target error) bool { return target == errors.ErrUnsupported }
