//go:build !linux

package capture

import (
	"errors"
	"time"
)

// Answers needs Linux.
type Answers struct{}

// OpenAnswers returns errors.ErrUnsupported.
func OpenAnswers(PortRange) (*Answers, error) { return nil, errors.ErrUnsupported }

// Read returns errors.ErrUnsupported.
func (a *Answers) Read(time.Time) (Answer, bool, error) {
	return Answer{}, false, errors.ErrUnsupported
}

// Close does nothing.
func (a *Answers) Close() error { return nil }
