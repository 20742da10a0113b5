package servicetraceroute

import (
	"time"

	"servicetraceroute/internal/engine"
)

// Held is what the engine holds now.
type Held = engine.Held

// Held tells what the tracer's engine holds now.
func (t *Tracer) Held() (h Held) {
	_ = t.do(func(now time.Time) { h = t.engine.Held(now) })
	return h
}
