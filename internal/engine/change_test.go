package engine

import (
	"net/netip"
	"testing"
)

// TestChangeCause: a change is called one of the route when so much was seen of both ways that a
// balancer which spreads the packets of one flow would have shown itself, and did not.
func TestChangeCause(t *testing.T) {
	way := func(addr string, seen int) *path {
		return &path{hops: []waypoint{{addrs: []netip.Addr{netip.MustParseAddr(addr)}, seen: seen}}}
	}
	const before, after = "192.0.2.1", "192.0.2.2"
	for name, test := range map[string]struct {
		was, is func() *path
		mixed   bool
		want    string // empty: no change
	}{
		"seen often enough":          {was: func() *path { return way(before, 4) }, is: func() *path { return way(after, 3) }, want: causeRoute},
		"seen once less":             {was: func() *path { return way(before, 3) }, is: func() *path { return way(after, 3) }, want: causeUnknown},
		"the trace saw several ways": {was: func() *path { return way(before, 9) }, is: func() *path { return way(after, 9) }, mixed: true, want: causeUnknown},
		"addresses took turns before": {was: func() *path {
			p := way(before, 9)
			p.hops[0].both = true
			return p
		}, is: func() *path { return way(after, 9) }, want: causeUnknown},
		"another flow label": {was: func() *path { return way(before, 9) }, is: func() *path {
			p := way(after, 9)
			p.label = 7
			return p
		}, want: causeFlowLabel},
		"the same": {was: func() *path { return way(before, 9) }, is: func() *path { return way(before, 9) }},
	} {
		c := test.was().changed(test.is(), test.mixed)
		if got := c != nil; got != (test.want != "") || got && c.Cause != test.want {
			t.Errorf("%s: %+v, want %q", name, c, test.want)
		}
	}
}

// TestChangeSaidEarly: what a trace saw before it said what changed is not seen again by its end.
func TestChangeSaidEarly(t *testing.T) {
	way := func(seen ...int) *path {
		p := &path{}
		for i, n := range seen {
			p.hops = append(p.hops, waypoint{addrs: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})}, seen: n})
		}
		return p
	}
	early, end := way(3, 2), way(3, 4, 1)
	later := end.since(early)
	for ttl, want := range map[int]int{1: 0, 2: 2, 3: 1} {
		if got := later.at(ttl); got.seen != want || len(got.addrs) != 1 {
			t.Errorf("TTL %d: %+v, want %d sightings", ttl, got, want)
		}
	}
	if end.at(2).seen != 4 || end.since(nil) != end {
		t.Error("the whole of what the trace saw changed")
	}
	p := way(1)
	for _, next := range []*path{early, later} {
		p.follow(next, nil, false)
	}
	if p.at(1).seen != 4 || p.at(2).seen != 4 || p.at(3).seen != 1 {
		t.Errorf("%+v", p.hops)
	}
}
