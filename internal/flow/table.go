package flow

import (
	"net/netip"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// Table holds at most a fixed number of flows; the one unused for longest makes
// room for a new one. It is not safe for concurrent use.
type Table struct {
	flows   map[trace.FlowKey]*Flow
	limit   int
	idle    time.Duration
	newest  *Flow
	oldest  *Flow
	evicted uint64
	began   time.Time // when the first flow was seen
	// OnRemove is told of every flow that leaves the table.
	OnRemove func(*Flow)
}

// NewTable returns a table of at most limit flows that forgets a flow after idle.
func NewTable(limit int, idle time.Duration) *Table {
	return &Table{flows: make(map[trace.FlowKey]*Flow), limit: max(limit, 1), idle: idle}
}

// Observe takes in one TCP segment. f is nil when the packet belongs to no flow
// worth keeping (a reset of an unknown one); followed is false for the copy of a
// packet seen at a second tap, which changes nothing.
func (t *Table) Observe(p *capture.Packet, ip *wire.Packet, s *wire.TCP) (f *Flow, o Observation, followed bool) {
	outgoing := p.Direction == capture.Outgoing
	key := Key(ip, s, outgoing)
	f = t.flows[key]
	if f == nil {
		if s.Flags&wire.RST != 0 {
			return nil, o, false
		}
		f = t.add(key, p.Time)
	} else {
		t.touch(f)
	}
	if !outgoing && f.TCP.outside(s) {
		return f, Observation{Outside: true}, true
	}
	if outgoing {
		followed = f.followOut(p, ip, s)
	} else {
		followed = f.followIn(p)
	}
	if followed {
		o = f.observe(p, ip, s, outgoing)
	}
	return f, o, followed
}

// Key is the flow's key of a packet that leaves (outgoing) or comes.
func Key(ip *wire.Packet, s *wire.TCP, outgoing bool) trace.FlowKey {
	k := trace.FlowKey{
		Proto: trace.TCP,
		Src:   netip.AddrPortFrom(ip.Src, s.SrcPort),
		Dst:   netip.AddrPortFrom(ip.Dst, s.DstPort),
	}
	if !outgoing {
		k.Src, k.Dst = k.Dst, k.Src
	}
	return k
}

// Get returns a flow without touching it, or nil.
func (t *Table) Get(k trace.FlowKey) *Flow { return t.flows[k] }

// Len is the number of flows.
func (t *Table) Len() int { return len(t.flows) }

// Evicted is the number of flows that had to make room.
func (t *Table) Evicted() uint64 { return t.evicted }

// Each calls yield for every flow, most recently used first.
func (t *Table) Each(yield func(*Flow) bool) {
	for f := t.newest; f != nil; f = f.older {
		if !yield(f) {
			return
		}
	}
}

// Expire forgets flows that were silent for longer than the table's idle time,
// at most some at a time so that no call is long.
func (t *Table) Expire(now time.Time) {
	for range 1024 {
		f := t.oldest
		if f == nil || now.Sub(f.LastSeen) < t.idle {
			return
		}
		t.remove(f)
	}
}

// Forget removes the flows of which it reports true.
func (t *Table) Forget(which func(*Flow) bool) {
	for f := t.newest; f != nil; {
		older := f.older
		if which(f) {
			t.remove(f)
		}
		f = older
	}
}

func (t *Table) add(k trace.FlowKey, at time.Time) *Flow {
	if len(t.flows) >= t.limit {
		t.evicted++
		t.remove(t.oldest)
	}
	if t.began.IsZero() {
		t.began = at
	}
	f := &Flow{Key: k, FirstSeen: at, LastSeen: at}
	f.TCP.reset()
	t.flows[k] = f
	t.push(f)
	return f
}

func (t *Table) remove(f *Flow) {
	t.unlink(f)
	delete(t.flows, f.Key)
	if t.OnRemove != nil {
		t.OnRemove(f)
	}
}

func (t *Table) touch(f *Flow) {
	if t.newest != f {
		t.unlink(f)
		t.push(f)
	}
}

func (t *Table) push(f *Flow) {
	f.older, f.newer = t.newest, nil
	if t.newest != nil {
		t.newest.newer = f
	}
	t.newest = f
	if t.oldest == nil {
		t.oldest = f
	}
}

func (t *Table) unlink(f *Flow) {
	if f.newer != nil {
		f.newer.older = f.older
	} else {
		t.newest = f.older
	}
	if f.older != nil {
		f.older.newer = f.newer
	} else {
		t.oldest = f.newer
	}
	f.older, f.newer = nil, nil
}
