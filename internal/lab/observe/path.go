//go:build linux

package observe

import (
	"cmp"
	"slices"
	"time"
)

// Interval is a time during which all packets of a flow took the same way.
type Interval struct {
	From, To time.Time // when the first and the last of them left their sender
	Packets  int       // of those sampled
	Nodes    []string  // that forwarded them, from sender to receiver
}

// wayKey tells the sampled packets of a flow apart. Length is not in it: a large
// segment is cut into several on the way, of which the first keeps all this.
type wayKey struct {
	key
	ack, tsval uint32
	syn        bool
}

// Path returns which nodes forwarded the flow's own packets, those with a TTL above
// minTTL as they left, and when. Only packets that arrived count: one lost on the
// way has not seen all of it. Packets that took turns between ways make as many
// intervals.
func (t *Truth) Path(f Flow, minTTL uint8) []Interval {
	groups := map[wayKey][]Sighting{}
	for _, k := range t.flows[f] {
		for _, s := range t.packets[k] {
			wk := wayKey{k, s.Ack, s.TSval, s.Flags&2 != 0}
			groups[wk] = append(groups[wk], s)
		}
	}
	type trip struct {
		at    time.Time
		nodes []string
	}
	var trips []trip
	for _, all := range groups {
		for i, s := range all {
			if s.Flow != f || s.TTL <= minTTL || !s.Outgoing || cameIn(all, i) {
				continue
			}
			if nodes, ok := t.trace(all, i); ok {
				trips = append(trips, trip{s.Time, nodes})
			}
		}
	}
	slices.SortFunc(trips, func(a, b trip) int {
		return cmp.Or(a.at.Compare(b.at), slices.Compare(a.nodes, b.nodes))
	})
	var path []Interval
	for _, trip := range trips {
		if n := len(path); n > 0 && slices.Equal(path[n-1].Nodes, trip.nodes) {
			path[n-1].To = trip.at
			path[n-1].Packets++
			continue
		}
		path = append(path, Interval{trip.at, trip.at, 1, trip.nodes})
	}
	return path
}

// trace follows the packet that left its sender in sighting i: in, out, in, out,
// each node taking one off the TTL, until it comes to the node that keeps it. It
// fails when the trail ends before.
func (t *Truth) trace(all []Sighting, i int) (nodes []string, ok bool) {
	at := all[i]
	for j := i + 1; j < len(all); j++ {
		s := all[j]
		switch {
		case s.Time.Sub(all[i].Time) > window:
			return nil, false
		case at.Outgoing && !s.Outgoing && s.TTL == at.TTL && s.Node != at.Node:
			if t.local(s) {
				return nodes, true
			}
			at = s
		case !at.Outgoing && s.Outgoing && s.Node == at.Node && s.TTL == at.TTL-1:
			nodes = append(nodes, s.Node)
			at = s
		}
	}
	return nil, false
}

// local reports whether a packet came to the node it was meant for.
func (t *Truth) local(s Sighting) bool {
	return slices.Contains(t.logs[s.Node].Local, s.Dst.Addr())
}
