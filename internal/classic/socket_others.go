//go:build !linux

package classic

import (
	"context"
	"errors"
)

// Tracer needs Linux.
type Tracer struct{}

// Open returns errors.ErrUnsupported.
func Open() (*Tracer, error) { return nil, errors.ErrUnsupported }

// Close does nothing.
func (t *Tracer) Close() {}

// Run returns errors.ErrUnsupported.
func (t *Tracer) Run(context.Context, Config) ([]Hop, error) { return nil, errors.ErrUnsupported }
