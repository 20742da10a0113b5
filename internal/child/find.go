package child

import (
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
)

// The shells' exit statuses for a command that did not start (POSIX, 2.8.2).
const (
	StatusNotExecutable = 126
	StatusNotFound      = 127
)

// StartError tells why a command did not start, with a shell's status for it.
type StartError struct {
	Name   string
	Status int
	err    error
}

// Error implements error.
func (e *StartError) Error() string { return fmt.Sprintf("%s: %v", e.Name, e.err) }

// Unwrap implements the errors package's convention.
func (e *StartError) Unwrap() error { return e.err }

// Find looks a command up in PATH, unless it is a path. Errors are *StartError.
func Find(name string) (string, error) {
	path, err := exec.LookPath(name)
	// Found in the current directory: a shell whose PATH says so does the same.
	if err == nil || errors.Is(err, exec.ErrDot) {
		return path, nil
	}
	return "", notStarted(name, err)
}

func notStarted(name string, err error) error {
	var look *exec.Error
	if errors.As(err, &look) {
		err = look.Err // without the name, which comes in front anyway
	}
	status := StatusNotExecutable
	switch {
	case errors.Is(err, exec.ErrNotFound):
		err, status = errors.New("command not found"), StatusNotFound
	case errors.Is(err, fs.ErrNotExist):
		status = StatusNotFound
	}
	var file *fs.PathError
	if errors.As(err, &file) {
		err = file.Err
	}
	return &StartError{Name: name, Status: status, err: err}
}
