package owner

import (
	"sync"
	"time"

	"servicetraceroute/trace"
)

// Query asks whose a flow is.
type Query struct {
	Key       trace.FlowKey // on the wire
	Interface int
	At        time.Time // the asker's own, told back with the answer
}

// Finding is the answer to a Query. The Process is zero when it could not be found.
type Finding struct {
	Query
	Process trace.Process
}

const (
	// maxQueries bounds the flows that wait for a Finder.
	maxQueries = 16384
	// restFactor is how many times as long as a look took the Finder rests: it never
	// takes more than a fifth of one processor.
	restFactor = 4
	// A socket that nobody has open is asked about again, after a wait that grows: one
	// that was accepted by the kernel is the application's a little later.
	maxTries  = 5
	firstWait = 20 * time.Millisecond
	waitGrows = 4
)

// inquiry is a Query on its way.
type inquiry struct {
	Query
	tries int
	due   time.Time // zero: at once
}

// again puts off an inquiry; false when there were enough.
func (q *inquiry) again(now time.Time) bool {
	if q.tries++; q.tries >= maxTries {
		return false
	}
	wait := firstWait
	for range q.tries - 1 {
		wait *= waitGrows
	}
	q.due = now.Add(wait)
	return true
}

// mailbox is what goes into a Finder and comes out of it. Its methods may be called from
// any goroutine.
type mailbox struct {
	mu       sync.Mutex
	queries  []Query
	findings []Finding
	stats    Stats
	ready    chan struct{} // capacity 1: there are queries
}

// Ask asks about flows. When too many wait, the newest are dropped.
func (m *mailbox) Ask(all ...Query) {
	if len(all) == 0 {
		return
	}
	m.mu.Lock()
	room := max(maxQueries-len(m.queries), 0)
	m.stats.Dropped += uint64(max(len(all)-room, 0))
	m.queries = append(m.queries, all[:min(room, len(all))]...)
	m.mu.Unlock()
	select {
	case m.ready <- struct{}{}:
	default:
	}
}

// Found returns the findings since the last call.
func (m *mailbox) Found() []Finding {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.findings
	m.findings = nil
	return all
}

// Stats returns the counters so far.
func (m *mailbox) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stats
}

// take empties the box of queries.
func (m *mailbox) take() []Query {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.queries
	m.queries = nil
	return all
}

// put delivers findings, which nobody may be taking, and counts.
func (m *mailbox) put(all []Finding, asked int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stats.Asked += uint64(asked)
	for _, f := range all {
		if f.Process == (trace.Process{}) {
			m.stats.Unknown++
		} else {
			m.stats.Found++
		}
	}
	room := max(maxQueries-len(m.findings), 0)
	m.stats.Dropped += uint64(max(len(all)-room, 0))
	m.findings = append(m.findings, all[:min(room, len(all))]...)
}
