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
