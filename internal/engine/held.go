package engine

import "time"

// Held counts what an engine holds at one moment: what is bounded, and what has to
// be gone when no flow is traced any more.
type Held struct {
	Flows   int // followed
	Runs    int // traces in progress
	Probes  int // sent ones that are remembered
	IDs     int // IPv4 identifications not to be used now
	Buckets int // responders' allowances
	Shared  int // groups of flows that may share hops
	Waiting int // records nobody has fetched
}

// Held tells what the engine holds after forgetting what is too old by now.
func (e *Engine) Held(now time.Time) Held {
	e.sent.Expire(now)
	e.table.Expire(now)
	shared := 0
	if e.common != nil {
		shared = e.common.Len()
	}
	return Held{
		Flows: e.table.Len(), Runs: len(e.runs) + len(e.runsTo), Probes: e.sent.Len(), IDs: e.sent.IDs(), Buckets: e.buckets.Len(), Waiting: len(e.records) + len(e.nameless),
		Shared: shared,
	}
}
