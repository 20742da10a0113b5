package engine

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"servicetraceroute/internal/flow"
)

// Per says for what there is one trace at a time, and one within Policy.Every. The zero
// value is PerFlow.
type Per uint8

// The keys.
const (
	PerFlow        Per = iota // each flow
	PerDestination            // each destination address
	PerPort                   // each destination address and port
)

var perWords = [...]string{PerFlow: "flow", PerDestination: "destination", PerPort: "port"}

// String returns "flow", "destination" or "port".
func (p Per) String() string {
	if int(p) < len(perWords) {
		return perWords[p]
	}
	return "Per(" + strconv.Itoa(int(p)) + ")"
}

// MarshalText returns what String does.
func (p Per) MarshalText() ([]byte, error) {
	if int(p) >= len(perWords) {
		return nil, fmt.Errorf("engine: no key %d", p)
	}
	return []byte(perWords[p]), nil
}

// UnmarshalText reads what MarshalText writes.
func (p *Per) UnmarshalText(text []byte) error {
	for v, word := range perWords {
		if word == string(text) {
			*p = Per(v)
			return nil
		}
	}
	return fmt.Errorf("engine: unknown key %q", text)
}

// maxKeys bounds the destinations that a watch remembers. A forgotten one may be traced
// again before its time.
const maxKeys = 65536

// keyed is what a watch knows of the traces of one destination.
type keyed struct {
	running int
	ended   time.Time
}

// key is what the flow shares its traces with; ok is false where that is nothing.
func (p *Policy) key(f *flow.Flow) (k netip.AddrPort, ok bool) {
	switch p.Per {
	case PerDestination:
		return netip.AddrPortFrom(f.Key.Dst.Addr(), 0), true
	case PerPort:
		return f.Key.Dst, true
	}
	return k, false
}

// free reports whether no other flow's trace stands in the way of this one's first.
func (w *Watch) free(now time.Time, p *Policy, f *flow.Flow) bool {
	k, ok := p.key(f)
	if !ok {
		return true
	}
	last, known := w.keys[k]
	return !known || last.running == 0 && p.Every >= 0 && now.Sub(last.ended) >= p.Every
}

// occupy tells that a trace of the flow begins. The end of that has to be told to what it
// returns; nil: to nobody.
func (w *Watch) occupy(now time.Time, p *Policy, f *flow.Flow) *keyed {
	k, ok := p.key(f)
	if !ok {
		return nil
	}
	if w.keys == nil {
		w.keys = map[netip.AddrPort]*keyed{}
	}
	for other, last := range w.keys { // any that is not being traced
		if len(w.keys) < maxKeys {
			break
		}
		if last.running == 0 {
			delete(w.keys, other)
		}
	}
	last := w.keys[k]
	if last == nil {
		last = &keyed{}
		w.keys[k] = last
	}
	last.running++
	return last
}

// vacate tells that one of the traces ended.
func (k *keyed) vacate(now time.Time) {
	if k != nil {
		k.running--
		k.ended = now
	}
}
