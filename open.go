package servicetraceroute

import (
	"errors"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/inject"
)

// openIO takes the caller's source and sink or opens the packet sockets.
func openIO(cfg Config) (o packetIO, err error) {
	if cfg.Source != nil {
		return packetIO{source: cfg.Source, sink: cfg.Sink, backend: "source", reason: "given by the caller"}, nil
	}
	if o.source, o.backend, o.reason, err = openSource(cfg); err != nil || cfg.NoProbe || cfg.Backend == BackendSock {
		return o, err
	}
	if o.sink, err = inject.Open(); err != nil {
		return o, errors.Join(err, o.source.Close())
	}
	return o, nil
}

// packetIO is how packets come and go.
type packetIO struct {
	source          Source
	sink            Sink
	backend, reason string // which one it is, and why
}

// follower is our own source, where it shows but some packets of most flows.
func (o packetIO) follower(cfg Config) capture.Follower {
	if f, ok := o.source.(capture.Follower); ok && cfg.Source == nil {
		return f
	}
	return nil
}
