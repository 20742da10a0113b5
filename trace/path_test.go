package trace

import (
	"net/netip"
	"testing"
)

// What another trace measured has no part in a path's name.
func TestPathIDShared(t *testing.T) {
	at := func(addr, from string) Reply { return Reply{Addr: netip.MustParseAddr(addr), SharedFrom: from} }
	own := []Hop{{TTL: 1}, {TTL: 2, Replies: []Reply{at("192.0.2.2", "")}}}
	shared := []Hop{{TTL: 1, Replies: []Reply{at("192.0.2.1", "0123456789abcdef")}}, own[1]}
	measured := []Hop{{TTL: 1, Replies: []Reply{at("192.0.2.1", "")}}, own[1]}
	if PathID(shared, 2) != PathID(own, 2) || PathID(measured, 2) == PathID(own, 2) {
		t.Errorf("%s, %s, %s", PathID(own, 2), PathID(shared, 2), PathID(measured, 2))
	}
}
