package output

import (
	"bytes"
	"net/netip"
	"testing"

	"servicetraceroute/internal/join"
	"servicetraceroute/trace"
)

// joinable is a trace of one flow by one of its hosts.
func joinable(src, dst string, hops ...string) *trace.Trace {
	tr := &trace.Trace{
		ID: "0123456789abcdef", Reached: true, Destination: &trace.Destination{TTL: len(hops) + 1},
		Flow: trace.Tuple{FlowKey: trace.FlowKey{Proto: trace.TCP, Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}, Direction: trace.Out},
	}
	for i, h := range hops {
		hop := trace.Hop{TTL: i + 1, Sent: 1}
		if h != "" {
			hop.Replies = []trace.Reply{{Addr: netip.MustParseAddr(h), Kind: trace.TimeExceeded}}
		}
		tr.Hops = append(tr.Hops, hop)
	}
	return tr
}

// What join writes is described, too.
func TestJoinedMatchesSchema(t *testing.T) {
	s := compiledSchema(t)
	r := join.Result{
		Pairs:  []join.Pair{{There: joinable("10.0.0.1:1", "10.0.9.9:443", "10.0.0.2", "", "10.0.2.2"), Back: joinable("10.0.9.9:443", "10.0.0.1:1", "10.0.3.1", "10.0.2.1"), Match: join.Exact}},
		Unsure: []join.Unsure{{There: joinable("10.0.0.1:2", "10.0.9.9:443"), Match: join.ByPorts, Flows: []trace.Tuple{joinable("10.0.9.9:443", "10.0.0.1:9").Flow}}},
	}
	var out bytes.Buffer
	if err := JoinedJSON(&out, r); err != nil {
		t.Fatal(err)
	}
	lines := bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n"))
	if len(lines) != 2 {
		t.Fatalf("%d lines", len(lines))
	}
	for _, line := range lines {
		if err := valid(t, s, line); err != nil {
			t.Errorf("%v\n%s", err, line)
		}
	}
	for _, broken := range [][2]string{{`"match":"exact"`, `"match":"likely"`}, {`"back_ttl":`, `"backttl":`}, {`"match":"exact"`, `"match":"ambiguous"`}} {
		if line := bytes.Replace(lines[0], []byte(broken[0]), []byte(broken[1]), 1); bytes.Equal(line, lines[0]) || valid(t, s, line) == nil {
			t.Errorf("accepted with %s: %s", broken[1], line)
		}
	}
}
