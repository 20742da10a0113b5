package evidence

import (
	"container/heap"
	"time"

	"servicetraceroute/internal/engine"
)

const (
	settle     = 50 * time.Millisecond // packets of several processors are in order within that
	maxPatient = 10 * time.Second      // for a probe's verdict
	maxDoubt   = 3 * time.Second       // for a doubtful reply to find its probe
	maxHeld    = 64 << 20              // bytes
	clockStep  = 5 * time.Second       // a packet so much older than the newest: the clock was set
)

// entry is one packet that waits for its turn.
type entry struct {
	event
	pending bool // its verdict is to come, until
	until   time.Time
	seen    bool // a probe's own copy was captured
	cut     bool // the tracer ended before the verdict
	number  uint64
	index   int
}

func (e *entry) size() int { return len(e.Packet.Data) + eventSize }

// hold keeps packets in time order until the verdict of the oldest is known.
type hold struct {
	entries order
	serials map[uint64]*entry
	write   func(*entry)
	bytes   int
	count   uint64
	newest  time.Time // of a packet's own time
}

func newHold(write func(*entry)) *hold {
	return &hold{serials: map[uint64]*entry{}, write: write}
}

// take takes in one event.
func (h *hold) take(ev *event) {
	switch ev.Kind {
	case engine.FlowPacket, engine.ReplyPacket, engine.ProbeSent:
		h.add(ev)
		return
	}
	e := h.serials[ev.Serial]
	if e == nil {
		return // dropped, or written without a verdict
	}
	switch ev.Kind {
	case engine.ProbeSeen:
		h.bytes += len(ev.Packet.Data) - len(e.Packet.Data)
		e.Packet, e.tap, e.seen = ev.Packet, ev.tap, true
		e.Packet.Time = e.Packet.Time.Round(0)
		heap.Fix(&h.entries, e.index)
	case engine.ProbeUnsent:
		heap.Remove(&h.entries, e.index)
		h.forget(e)
	case engine.ProbeVerdict, engine.ReplyVerdict:
		// The packet stays; a late answer outweighs the silence before.
		packet, kind := e.Packet, e.Kind
		if e.Kind == engine.ReplyPacket && ev.Verdict == engine.Unmatched {
			ev.Trace, ev.From = e.Trace, e.From
		}
		e.Evidence = ev.Evidence
		e.Packet, e.Kind, e.pending = packet, kind, false
	}
}

func (h *hold) add(ev *event) {
	e := &entry{event: *ev, number: h.count}
	h.count++
	e.Packet.Time = e.Packet.Time.Round(0) // the wall clock's alone, as the kernel's times are
	if e.Packet.Time.Before(h.newest.Add(-clockStep)) {
		h.flush() // or all that comes would go before what is held
		h.newest = e.Packet.Time
	}
	if e.Packet.Time.After(h.newest) {
		h.newest = e.Packet.Time
	}
	if e.Serial != 0 && e.Verdict == 0 {
		e.pending, e.until = true, e.arrived.Add(maxPatient)
		if e.Kind == engine.ReplyPacket {
			e.until = e.arrived.Add(maxDoubt)
		}
	}
	if e.Serial != 0 {
		h.serials[e.Serial] = e
	}
	h.bytes += e.size()
	heap.Push(&h.entries, e)
	for h.bytes > maxHeld {
		h.pop()
	}
}

// release writes what need not wait any longer.
func (h *hold) release(now time.Time) {
	for len(h.entries) > 0 {
		e := h.entries[0]
		if now.Sub(e.arrived) < settle || e.pending && now.Before(e.until) {
			return
		}
		h.pop()
	}
}

// end writes everything; verdicts that are missing will not come any more.
func (h *hold) end() {
	for _, e := range h.entries {
		e.cut = true
	}
	h.flush()
}

func (h *hold) flush() {
	for len(h.entries) > 0 {
		h.pop()
	}
}

func (h *hold) pop() {
	e := heap.Pop(&h.entries).(*entry)
	h.forget(e)
	h.write(e)
}

func (h *hold) forget(e *entry) {
	h.bytes -= e.size()
	if e.Serial != 0 {
		delete(h.serials, e.Serial)
	}
}

// order is a heap of packets by time, those of one time as they came.
type order []*entry

func (o order) Len() int { return len(o) }
func (o order) Less(i, j int) bool {
	if c := o[i].Packet.Time.Compare(o[j].Packet.Time); c != 0 {
		return c < 0
	}
	return o[i].number < o[j].number
}
func (o order) Swap(i, j int) {
	o[i], o[j] = o[j], o[i]
	o[i].index, o[j].index = i, j
}

// Push implements heap.Interface.
func (o *order) Push(x any) {
	e := x.(*entry)
	e.index = len(*o)
	*o = append(*o, e)
}

// Pop implements heap.Interface.
func (o *order) Pop() any {
	old := *o
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*o = old[:len(old)-1]
	return e
}
