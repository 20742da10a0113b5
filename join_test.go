//go:build linux

package servicetraceroute_test

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/join"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// roundTrip is a client behind a NAT and a server between which packets go by a and come
// back by b and c.
func roundTrip() scenario.Network {
	return scenario.Network{
		Name: "roundtrip", Nodes: []scenario.Node{
			{Name: "client", Kind: scenario.Host}, {Name: "gw", Kind: scenario.Router, NAT: &scenario.NAT{Outside: "gw-r", FullyRandom: true}},
			{Name: "r", Kind: scenario.Router}, {Name: "a", Kind: scenario.Router}, {Name: "b", Kind: scenario.Router},
			{Name: "c", Kind: scenario.Router}, {Name: "z", Kind: scenario.Router}, {Name: "server", Kind: scenario.Host},
		}, Links: []scenario.Link{
			{A: "client", B: "gw"}, {A: "gw", B: "r"}, {A: "r", B: "a", CostBA: 9}, {A: "a", B: "z", CostBA: 9},
			{A: "r", B: "b", CostAB: 9}, {A: "b", B: "c", CostAB: 9}, {A: "c", B: "z", CostAB: 9}, {A: "z", B: "server"},
		},
	}
}

// asRead are traces as they come back from a file.
func asRead(t *testing.T, traces []*trace.Trace) []*trace.Trace {
	t.Helper()
	var b bytes.Buffer
	for _, tr := range traces {
		if err := json.NewEncoder(&b).Encode(tr); err != nil {
			t.Fatal(err)
		}
	}
	out, err := join.Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestJoin: one flow traced at both of its hosts, with a NAT that changes address and port
// on the way: the two traces are known to be of one flow, and the way back is shown to be
// another one.
func TestJoin(t *testing.T) {
	t.Parallel()
	f := newField(t, roundTrip(), servicetraceroute.Config{})
	f.at = "server"
	atServer := f.open(servicetraceroute.Config{})
	there := f.watch(servicetraceroute.Selection{})
	back := collect(t, atServer, servicetraceroute.Selection{Ports: []string{"443"}, Hosts: []string{"0.0.0.0/0"}, Directions: []trace.Direction{trace.In}})
	f.run(scenario.Workload{Traffic: scenario.OneByte, Bytes: 1, Every: 100 * time.Millisecond, Duration: 6 * time.Second}, 1, 0)
	a, b := there().traces, back().traces
	if len(a) != 1 || len(b) != 1 {
		t.Fatalf("%d and %d traces", len(a), len(b))
	}
	r := join.Join(asRead(t, a), asRead(t, b), time.Minute)
	if len(r.Pairs) != 1 || r.Pairs[0].Match != join.ByEnd && r.Pairs[0].Match != join.ByPort || len(r.Unsure)+r.AloneThere+r.AloneBack != 0 {
		t.Fatalf("%+v\n%v\n%v", r, describe(a[0]), describe(b[0]))
	}
	p := r.Pairs[0].Paths()
	if !p.Asymmetric() || p.HopsThere != 4 || p.HopsBack != 5 {
		t.Errorf("%+v\n%v\n%v", p, describe(a[0]), describe(b[0]))
	}
	if s := p.Steps[0]; s.There != f.end("client-gw", "gw", false) {
		t.Errorf("%+v", s)
	}
}
