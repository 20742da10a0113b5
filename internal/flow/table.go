package flow

import (
	"hash/maphash"
	"net/netip"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// Table holds at most a fixed number of flows; the one unused for longest makes
// room for a new one. Flows of which but one end was heard, as in a flood of SYNs, have a
// smaller number to themselves and make room for each other alone. It is not safe for
// concurrent use.
type Table struct {
	// flows by their keys' hashes, the first of those that share one: so a key, the largest
	// part of a flow, is there once.
	flows   map[uint64]*Flow
	seed    maphash.Seed
	limit   int
	idle    time.Duration
	open    list // both ends were heard
	unheard list // one was not
	evicted uint64
	began   stamp     // when the first flow was seen
	zero    time.Time // what stamps are relative to
	// OnRemove is told of every flow that leaves the table.
	OnRemove func(*Flow)
}

// Flows of which one end was not heard are at most this part of a table, if that is not
// very small.
const (
	unheardPart  = 8
	unheardLeast = 16
)

// NewTable returns a table of at most limit flows that forgets a flow after idle.
func NewTable(limit int, idle time.Duration) *Table {
	return &Table{flows: map[uint64]*Flow{}, seed: maphash.MakeSeed(), limit: max(limit, 1), idle: idle}
}

// Observe takes in one TCP segment. f is nil when the packet belongs to no flow
// worth keeping (a reset of an unknown one); followed is false for the copy of a
// packet seen at a second tap, which changes nothing.
func (t *Table) Observe(p *capture.Packet, ip *wire.Packet, s *wire.TCP) (f *Flow, o Observation, followed bool) {
	outgoing := p.Direction == capture.Outgoing
	key := Key(ip, s, outgoing)
	at := t.stamp(p.Time)
	f = t.Get(key)
	if f == nil {
		if s.Flags&wire.RST != 0 {
			return nil, o, false
		}
		f = t.add(key, at)
	} else {
		t.touch(f)
	}
	if !outgoing && f.TCP.outside(s) {
		return f, Observation{Outside: true}, true
	}
	if outgoing {
		followed = f.followOut(at, p, ip, s)
	} else {
		followed = f.followIn(at, p)
	}
	if followed {
		o = f.observe(at, ip, s, outgoing)
		t.hear(f)
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
func (t *Table) Get(k trace.FlowKey) *Flow {
	if f := t.open.newest; f != nil && f.Key == k {
		return f // most packets come behind one of the same flow
	}
	f := t.flows[t.hash(k)]
	for f != nil && f.Key != k {
		f = f.collision
	}
	return f
}

func (t *Table) hash(k trace.FlowKey) uint64 { return maphash.Comparable(t.seed, k) }

// Len is the number of flows.
func (t *Table) Len() int { return t.open.len + t.unheard.len }

// Evicted is the number of flows that had to make room.
func (t *Table) Evicted() uint64 { return t.evicted }

// Each calls yield for every flow, most recently used first, and those last of which one
// end was not heard.
func (t *Table) Each(yield func(*Flow) bool) {
	for _, l := range []*list{&t.open, &t.unheard} {
		for f := l.newest; f != nil; f = f.older {
			if !yield(f) {
				return
			}
		}
	}
}

// Expire forgets flows that were silent for longer than the table's idle time,
// at most some at a time so that no call is long.
func (t *Table) Expire(now time.Time) {
	at := t.stamp(now)
	for _, l := range []*list{&t.open, &t.unheard} {
		for range 1024 {
			f := l.oldest
			if f == nil || at.since(f.lastSeen) < t.idle {
				break
			}
			t.remove(f)
		}
	}
}

// Forget removes the flows of which it reports true.
func (t *Table) Forget(which func(*Flow) bool) {
	for _, l := range []*list{&t.open, &t.unheard} {
		for f := l.newest; f != nil; {
			older := f.older
			if which(f) {
				t.remove(f)
			}
			f = older
		}
	}
}

func (t *Table) add(k trace.FlowKey, at stamp) *Flow {
	switch {
	case t.unheard.len >= max(t.limit/unheardPart, min(t.limit, unheardLeast)):
		t.evicted++
		t.remove(t.unheard.oldest)
	case t.Len() >= t.limit:
		t.evicted++
		t.remove(t.open.oldest)
	}
	if t.began == 0 {
		t.began = at
	}
	f := newFlow(k.Proto, at)
	f.Key, f.table, f.lastSeen = k, t, at
	hash := t.hash(k)
	f.collision = t.flows[hash]
	t.flows[hash] = f
	t.unheard.push(f)
	return f
}

// newFlow returns a flow and its protocol's state in one piece.
func newFlow(proto trace.Proto, at stamp) *Flow {
	if proto == trace.UDP {
		both := &struct {
			Flow
			udp UDP
		}{}
		both.UDP = &both.udp
		both.UDP.began = at
		return &both.Flow
	}
	both := &struct {
		Flow
		tcp TCP
	}{}
	both.TCP = &both.tcp
	both.TCP.began = at
	both.TCP.reset()
	return &both.Flow
}

// Remove forgets one of the table's flows.
func (t *Table) Remove(f *Flow) { t.remove(f) }

func (t *Table) remove(f *Flow) {
	t.listOf(f).unlink(f)
	t.forget(f)
	if t.OnRemove != nil {
		t.OnRemove(f)
	}
}

// forget takes a flow out of those with its hash.
func (t *Table) forget(f *Flow) {
	hash := t.hash(f.Key)
	first := t.flows[hash]
	switch {
	case first != f:
		for first.collision != f {
			first = first.collision
		}
		first.collision = f.collision
	case f.collision != nil:
		t.flows[hash] = f.collision
	default:
		delete(t.flows, hash)
	}
	f.collision = nil
}

// touch makes a flow the most recently used.
func (t *Table) touch(f *Flow) { t.listOf(f).touch(f) }

// hear puts a flow among those of which both ends were heard, once they were.
func (t *Table) hear(f *Flow) {
	if f.heard || f.TCP != nil && !f.TCP.Established || f.UDP != nil && f.UDP.Exchanges == 0 {
		return
	}
	t.unheard.unlink(f)
	f.heard = true
	t.open.push(f)
}

func (t *Table) listOf(f *Flow) *list {
	if f.heard {
		return &t.open
	}
	return &t.unheard
}
