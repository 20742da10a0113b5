package trace_test

import (
	"net/netip"
	"testing"

	"servicetraceroute/trace"
)

func TestTraceString(t *testing.T) {
	addr := netip.MustParseAddr
	tr := &trace.Trace{
		Flow: trace.Tuple{FlowKey: trace.FlowKey{
			Proto: trace.TCP, Src: netip.MustParseAddrPort("192.0.2.1:40510"), Dst: netip.MustParseAddrPort("203.0.113.7:443"),
		}},
		Hops: []trace.Hop{
			{TTL: 1, Replies: []trace.Reply{{Addr: addr("192.0.2.2")}, {Addr: addr("192.0.2.3")}, {Addr: addr("192.0.2.2")}}},
			{TTL: 2}, {TTL: 3, Replies: []trace.Reply{{Addr: addr("203.0.113.7")}}},
		},
		Stop: trace.StopDestination, Complete: true,
	}
	const flow = "tcp 192.0.2.1:40510 > 203.0.113.7:443: "
	if got, want := tr.String(), flow+"1 192.0.2.2/192.0.2.3, 2 *, 3 203.0.113.7 (destination, complete)"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	tr.Hops, tr.Stop, tr.Reason, tr.Complete = nil, trace.StopRefused, trace.ReasonExcluded, false
	if got, want := tr.String(), flow+"no hops (refused: excluded)"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
