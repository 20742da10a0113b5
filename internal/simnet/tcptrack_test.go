package simnet

import (
	"testing"

	"servicetraceroute/internal/wire"
)

// While nobody has answered, a SYN above the one before begins the connection anew; one below
// is let by, and is none of the flow's before Linux 6.1 (tcp_in_window).
func TestSYNAgain(t *testing.T) {
	syn := func(seq uint32) *packet {
		return &packet{isTCP: true, tcp: wire.TCP{Seq: seq, Flags: wire.SYN, Window: 5840}}
	}
	for _, c := range []struct {
		name string
		seq  uint32
		old  bool
		want windowVerdict
	}{
		{"the same", 1 << 30, false, windowOK},
		{"above", 1<<30 + 1<<28, false, windowOK},
		{"above, before Linux 6.1", 1<<30 + 1<<28, true, windowOK},
		{"below", 1<<30 - 1<<28, false, windowIgnore},
		{"below, before Linux 6.1", 1<<30 - 1<<28, true, windowInvalid},
	} {
		var k tcpTrack
		if !k.begin(syn(1 << 30)) {
			t.Fatal("a SYN begins nothing")
		}
		if got := k.window(syn(c.seq), original, 0, c.old); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
