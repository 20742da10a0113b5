// Package demo shows what the tool is for on a small Internet of its own: a real
// HTTPS download across load balancers and a firewall, the path that Service
// Traceroute shows for it, and what classic traceroutes would have shown.
package demo

import (
	"time"

	"servicetraceroute/internal/classic"
	"servicetraceroute/trace"
)

// Result is what the demo found.
type Result struct {
	Trace    *trace.Trace
	UDP, TCP []classic.Hop
	Intact   bool // the download's bytes were those that the server sent
	Bytes    int64
	Took     time.Duration
}
