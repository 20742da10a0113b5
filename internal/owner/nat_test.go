package owner

import (
	"net/netip"
	"testing"

	"servicetraceroute/trace"
)

// A connection that conntrack joined late has no scales, and is not taken for one without.
func TestHandshook(t *testing.T) {
	for _, test := range []struct {
		flags, peer uint8
		known, sack bool
	}{
		{flagWindowScale | flagSACK, flagWindowScale | flagSACK, true, true},
		{flagWindowScale | flagSACK, flagWindowScale, true, false},
		{flagWindowScale, 0, false, false},
		{flagSACK | 8, flagSACK | 8, false, false}, // IP_CT_TCP_FLAG_BE_LIBERAL: joined late
	} {
		var c Connection
		c.handshook(7, 9, test.flags, test.peer)
		want := Connection{}
		if test.known {
			want = Connection{Handshake: Handshake{LocalScale: 7, PeerScale: 9, SACK: test.sack}, KnowsHandshake: true}
		}
		if c != want {
			t.Errorf("%b, %b: %+v", test.flags, test.peer, c)
		}
	}
}

func TestTracked(t *testing.T) {
	key := func(src, dst string) trace.FlowKey {
		return trace.FlowKey{Proto: trace.TCP, Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
	}
	for name, test := range map[string]struct {
		of           tracked
		socket, wire trace.FlowKey
		other        bool
	}{
		"nothing is translated": {
			tracked{key("10.0.0.2:4000", "203.0.113.7:443"), key("203.0.113.7:443", "10.0.0.2:4000")},
			key("10.0.0.2:4000", "203.0.113.7:443"), key("10.0.0.2:4000", "203.0.113.7:443"), false,
		},
		"masqueraded": {
			tracked{key("10.0.0.2:4000", "203.0.113.7:443"), key("203.0.113.7:443", "192.0.2.1:61000")},
			key("10.0.0.2:4000", "203.0.113.7:443"), key("192.0.2.1:61000", "203.0.113.7:443"), true,
		},
		"another destination": {
			tracked{key("192.0.2.1:4000", "10.96.0.1:80"), key("203.0.113.7:8080", "192.0.2.1:4000")},
			key("192.0.2.1:4000", "10.96.0.1:80"), key("192.0.2.1:4000", "203.0.113.7:8080"), true,
		},
		"both": {
			tracked{key("10.0.0.2:4000", "10.96.0.1:80"), key("203.0.113.7:8080", "192.0.2.1:61000")},
			key("10.0.0.2:4000", "10.96.0.1:80"), key("192.0.2.1:61000", "203.0.113.7:8080"), true,
		},
		"accepted, to another port": {
			tracked{key("198.51.100.9:5000", "192.0.2.1:80"), key("192.0.2.1:8080", "198.51.100.9:5000")},
			key("192.0.2.1:8080", "198.51.100.9:5000"), key("192.0.2.1:80", "198.51.100.9:5000"), true,
		},
		"accepted, as it is": {
			tracked{key("198.51.100.9:5000", "192.0.2.1:80"), key("192.0.2.1:80", "198.51.100.9:5000")},
			key("192.0.2.1:80", "198.51.100.9:5000"), key("192.0.2.1:80", "198.51.100.9:5000"), false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			if k, ok := test.of.inside(test.wire); ok != test.other || k != test.socket {
				t.Errorf("inside: %v %v", k, ok)
			}
			if k, ok := test.of.outside(test.socket); ok != test.other || k != test.wire {
				t.Errorf("outside: %v %v", k, ok)
			}
			if k, ok := test.of.inside(key("192.0.2.99:1", "203.0.113.7:443")); ok {
				t.Errorf("another flow is called %v", k)
			}
		})
	}
}
