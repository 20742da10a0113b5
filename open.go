package servicetraceroute

import (
	"errors"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/inject"
)

// openIO takes the caller's source and sink or opens the packet sockets.
func openIO(cfg Config) (Source, Sink, error) {
	if cfg.Source != nil {
		return cfg.Source, cfg.Sink, nil
	}
	source, err := capture.Open(capture.Config{Interfaces: cfg.Interfaces, Payload: cfg.keepsPayload(), RingBytes: cfg.RingBytes})
	if err != nil {
		return nil, nil, err
	}
	if cfg.NoProbe {
		return source, nil, nil
	}
	sink, err := inject.Open()
	if err != nil {
		return nil, nil, errors.Join(err, source.Close())
	}
	return source, sink, nil
}
