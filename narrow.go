package servicetraceroute

import "servicetraceroute/internal/capture"

// narrow lets the kernel's filter pass only what some watch may select. Without
// a watch everything passes, so that flows are known when one begins.
func (t *Tracer) narrow() {
	ring, ok := t.source.(interface{ SetFilter(capture.Config) error })
	if !ok {
		return
	}
	var cfg capture.Config
	for w := range t.watches {
		cfg.Prefixes = append(cfg.Prefixes, w.Selector.Prefixes()...)
	}
	if err := ring.SetFilter(cfg); err != nil {
		t.log.Warn("the capture filter stays as it was", "err", err)
	}
}
