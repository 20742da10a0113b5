package sibling

import (
	"net/netip"
	"testing"

	"servicetraceroute/trace"
)

// A hop that another flow's probe found is not the flow's own way.
func TestCompareShared(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.6")
	hops := func(addr netip.Addr, shared string) []trace.Hop {
		return []trace.Hop{{TTL: 1, Replies: []trace.Reply{{Addr: addr, Kind: trace.TimeExceeded, SharedFrom: shared}}}}
	}
	siblings := []trace.Sibling{{Proto: TCP, Hops: hops(b, "")}}
	for shared, divergent := range map[string]bool{"": true, "another": false} {
		c := Compare(&trace.Trace{Hops: hops(a, shared)}, siblings)
		if c.Divergent != divergent {
			t.Errorf("shared from %q: divergent %v", shared, c.Divergent)
		}
		for _, alt := range c.Alternatives {
			if alt.InFlow.IsValid() != divergent {
				t.Errorf("shared from %q: in the flow %v", shared, alt.InFlow)
			}
		}
	}
}
