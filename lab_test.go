//go:build linux

package servicetraceroute_test

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/observe"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

func TestMain(m *testing.M) {
	shortFlows()
	fetch()
	labtest.Main(m)
}

// full reports whether the big runs of "make check-full" are wanted.
func full() bool { return os.Getenv("SERVICE_TRACEROUTE_FULL") != "" }

// long skips a test of a minute or so unless everything is wanted, as in CI: all of them
// together take longer than "go test" lets a package.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv(labtest.EnvNoSkip) == "" && !full() {
		t.Skip("takes long: " + labtest.EnvNoSkip + "=1 go test -timeout 20m runs it")
	}
}

// field is a lab with an observer at every node and a tracer at its client.
type field struct {
	t      testing.TB
	lab    *lab.Lab
	tracer *servicetraceroute.Tracer
	server peer.Server
	nat    bool
	at     string // the tracer's node; empty: the client
	lossy  bool   // the observers may miss some: what they miss can only make a true hop look false
	hidden uint32 // what a box behind the client adds to its sequence numbers

	public map[bool]netip.Addr // addresses, by whether they are IPv6, by which the server is known outside; nil: its own

	past []netip.AddrPort // the client's ends of the flows of the round before
}

// newField starts the network, with nodes "client" and "server".
func newField(t testing.TB, n scenario.Network, cfg servicetraceroute.Config) *field {
	t.Helper()
	f := newBareField(t, n, cfg)
	var err error
	if f.server, err = peer.ServeTCP(t.Context(), f.lab.Node("server"), peer.TCPConfig{Port: 443}); err != nil {
		t.Fatal(err)
	}
	return f
}

// newBareField is newField without a server.
func newBareField(t testing.TB, n scenario.Network, cfg servicetraceroute.Config) *field {
	t.Helper()
	f := &field{t: t, lab: labtest.Start(t, n)}
	for _, node := range n.Nodes {
		f.nat = f.nat || node.NAT != nil
		if err := observe.Start(t.Context(), f.lab.Node(node.Name), observe.Config{MaxPackets: 1 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	f.tracer = f.open(cfg)
	return f
}

// open starts a tracer in the namespace of its node.
func (f *field) open(cfg servicetraceroute.Config) *servicetraceroute.Tracer {
	f.t.Helper()
	if word := os.Getenv("SERVICE_TRACEROUTE_BACKEND"); word != "" && cfg.Backend == servicetraceroute.BackendAuto {
		if err := cfg.Backend.UnmarshalText([]byte(word)); err != nil {
			f.t.Fatal(err)
		}
	}
	var tracer *servicetraceroute.Tracer
	err := f.lab.Node(cmp.Or(f.at, "client")).Do(func() (err error) {
		tracer, err = servicetraceroute.New(cfg)
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		if err := tracer.Close(); err != nil {
			f.t.Errorf("close: %v", err)
		}
	})
	return tracer
}

// found is what a watch yielded.
type found struct {
	traces []*trace.Trace
	flows  []*trace.Flow
	// What was said of paths, in the order in which it was.
	changes  []*trace.Change
	findings []*trace.Finding
	stats    *trace.Stats
}

// collect watches until stop is called, which returns what was found. When it returns
// the watch is in force.
func collect(t testing.TB, tracer *servicetraceroute.Tracer, sel servicetraceroute.Selection) (stop func() found) {
	t.Helper()
	return collectEach(t, tracer, sel, func(trace.Event) {})
}

// collectEach is collect with a function that is called for each record as it comes.
func collectEach(t testing.TB, tracer *servicetraceroute.Tracer, sel servicetraceroute.Selection, each func(trace.Event)) (stop func() found) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var all found
	ready, done := make(chan struct{}), make(chan struct{})
	sel.Ready = func() { close(ready) }
	go func() {
		defer close(done)
		for ev, err := range tracer.Watch(ctx, sel) {
			if err != nil {
				t.Errorf("watch: %v", err)
				return
			}
			each(ev)
			switch ev := ev.(type) {
			case *trace.Trace:
				all.traces = append(all.traces, ev)
			case *trace.Flow:
				all.flows = append(all.flows, ev)
			case *trace.Change:
				all.changes = append(all.changes, ev)
			case *trace.Finding:
				all.findings = append(all.findings, ev)
			case *trace.Stats:
				all.stats = ev
			}
		}
	}()
	select {
	case <-ready:
	case <-done:
	}
	return func() found {
		cancel()
		<-done
		return all
	}
}

// watch traces flows to the server, see collect.
func (f *field) watch(sel servicetraceroute.Selection) (stop func() found) {
	f.t.Helper()
	if len(sel.Hosts) == 0 {
		server := f.lab.Node("server")
		sel.Hosts = []string{server.Addr(false).String(), server.Addr(true).String()}
	}
	return collect(f.t, f.tracer, sel)
}

// known is the server's address to the client.
func (f *field) known(ipv6 bool) netip.Addr {
	if a, ok := f.public[ipv6]; ok {
		return a
	}
	return f.lab.Node("server").Addr(ipv6)
}

// run opens flows from the client to the server.
func (f *field) run(w scenario.Workload, flows int, stagger time.Duration) []peer.Flow {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Minute)
	defer cancel()
	out, err := peer.Run(ctx, f.lab.Node("client"), peer.RunConfig{
		Workload: w, Server: netip.AddrPortFrom(f.lab.Node("server").Addr(w.IPv6), f.server.Addr.Port()),
		Flows: flows, Stagger: stagger,
	})
	if err != nil {
		f.t.Errorf("run: %v", err)
	}
	for _, fl := range out {
		if !fl.Intact {
			f.t.Errorf("flow %v: its bytes did not arrive as sent: %s", fl.Local, fl.Error)
		}
	}
	return out
}

// truth joins what the observers saw.
func (f *field) truth() *observe.Truth {
	f.t.Helper()
	logs := map[string]observe.Log{}
	for _, n := range f.lab.Layout().Network.Nodes {
		log, err := observe.Fetch(f.t.Context(), f.lab.Node(n.Name), false)
		if err != nil {
			f.t.Fatal(err)
		}
		logs[n.Name] = log
	}
	// The observers' logs are joined by sequence numbers.
	logs["client"] = unhide(logs["client"], f.hidden)
	truth := observe.NewTruth(logs, f.nat)
	if d := truth.Dropped(); d != (observe.Dropped{}) && !f.lossy {
		f.t.Fatalf("the observers missed something: %+v", d)
	}
	return truth
}

func observed(k trace.FlowKey) observe.Flow {
	f := observe.Flow{Proto: 6, Src: k.Src, Dst: k.Dst}
	if k.Proto == trace.UDP {
		f.Proto = 17
	}
	return f
}

// verdict counts how traces compare with the truth.
type verdict struct {
	traces, complete, mixed, hops, false_, elsewhere, wrongDistance, deferred, shared int
	byStop                                                                            map[trace.Stop]int
}

func (v verdict) String() string {
	shared := ""
	if v.shared > 0 {
		shared = fmt.Sprintf("; %d hops shared", v.shared)
	}
	return fmt.Sprintf("%d traces, %d complete, %d mixed; %d hops shown, %d false; %d not the flow's own path; %d wrong distances; %d probes deferred; stops %v%s",
		v.traces, v.complete, v.mixed, v.hops, v.false_, v.elsewhere, v.wrongDistance, v.deferred, v.byStop, shared)
}

// judge holds every shown hop and distance against the truth, and reports each
// lie as an error.
func (f *field) judge(truth *observe.Truth, traces []*trace.Trace) verdict {
	f.t.Helper()
	v := verdict{byStop: map[trace.Stop]int{}}
	for _, tr := range traces {
		v.traces++
		v.byStop[tr.Stop]++
		if tr.Complete {
			v.complete++
		}
		if tr.Mixed {
			v.mixed++
		}
		hops := truth.Hops(observed(tr.Flow.FlowKey), 255)
		for _, h := range tr.Hops {
			v.deferred += h.Deferred
			for _, r := range h.Replies {
				if r.Kind != trace.TimeExceeded || r.SharedFrom != "" { // see sharing
					continue
				}
				v.hops++
				if !answered(hops[uint8(h.TTL)], r.Addr) {
					v.false_++
					f.t.Errorf("%v: %v never answered a probe of TTL %d; truth %v", tr.Flow, r.Addr, h.TTL, hops[uint8(h.TTL)])
				}
			}
		}
		if !tr.Mixed {
			ways := during(tr, truth.Path(observed(tr.Flow.FlowKey), 40))
			f.distance(ways, tr, &v)
			f.ownWay(ways, hops, tr, &v)
		}
	}
	f.sharing(truth, traces, &v)
	return v
}

// during leaves out the ways on which nothing went any more when the trace began: a
// SYN has a flow label of its own. Of an idle flow all are left.
func during(tr *trace.Trace, ways []observe.Interval) []observe.Interval {
	later := slices.DeleteFunc(slices.Clone(ways), func(w observe.Interval) bool { return w.To.Before(tr.Start) })
	if len(later) == 0 {
		return ways
	}
	return later
}

// ownWay holds the nodes that answered against those that forwarded the flow's own
// packets: all of them lie on one way, each at its place.
func (f *field) ownWay(ways []observe.Interval, hops map[uint8][]observe.Hop, tr *trace.Trace, v *verdict) {
	f.t.Helper()
	on := func(w observe.Interval) bool {
		for _, h := range tr.Hops {
			for _, r := range h.Replies {
				if r.Kind != trace.TimeExceeded || r.SharedFrom != "" {
					continue
				}
				if h.TTL > len(w.Nodes) || !slices.Contains(hops[uint8(h.TTL)], observe.Hop{Addr: r.Addr, Node: w.Nodes[h.TTL-1]}) {
					return false
				}
			}
		}
		return true
	}
	if len(ways) > 0 && !slices.ContainsFunc(ways, on) {
		v.elsewhere++
		f.t.Errorf("%v: its packets went %v, the answers came from %v\n%v", tr.Flow, ways, hops, describe(tr))
	}
}

func answered(hops []observe.Hop, addr netip.Addr) bool {
	for _, h := range hops {
		if h.Addr == addr {
			return true
		}
	}
	return false
}

// distance compares a destination's TTL with the number of nodes that forwarded
// the flow's own packets.
func (f *field) distance(ways []observe.Interval, tr *trace.Trace, v *verdict) {
	f.t.Helper()
	if !tr.Reached {
		return
	}
	fits := len(ways) == 0
	for _, w := range ways {
		fits = fits || len(w.Nodes)+1 == tr.Destination.TTL
	}
	if !fits {
		v.wrongDistance++
		f.t.Errorf("%v: destination at TTL %d, its packets went %v\n%v", tr.Flow, tr.Destination.TTL, ways, describe(tr))
	}
}

// intact describes a trace for a failing test.
func describe(tr *trace.Trace) string {
	s := fmt.Sprintf("%v %v: %v complete=%v mixed=%v dest=%+v impact=%+v in %v", tr.ID, tr.Flow.FlowKey, tr.Stop, tr.Complete,
		tr.Mixed, tr.Destination, tr.Impact, tr.End.Sub(tr.Start))
	for _, h := range tr.Hops {
		s += fmt.Sprintf("\n  %2d sent %d deferred %d limited %v", h.TTL, h.Sent, h.Deferred, h.Limited)
		for _, r := range h.Replies {
			s += fmt.Sprintf(" %v(%v,%v)", r.Addr, r.RTT, r.Kind)
		}
	}
	return s
}

// ladder is a network of stages of three-way ECMP between single routers, then
// a firewall and the server: TTL 1, then 2 for each stage.
func ladder(stages int, limit scenario.ICMPLimit) scenario.Network {
	n := scenario.Network{Name: "ladder", Nodes: []scenario.Node{
		{Name: "client", Kind: scenario.Host},
		{Name: "r0", Kind: scenario.Router, ICMP: limit},
	}, Links: []scenario.Link{{A: "client", B: "r0"}}}
	for s := range stages {
		from, to := fmt.Sprintf("r%d", s), fmt.Sprintf("r%d", s+1)
		next := scenario.Node{Name: to, Kind: scenario.Router, ICMP: limit}
		if s == stages-1 {
			next.Firewall = &scenario.Firewall{AllowTCP: []uint16{443}}
		}
		n.Nodes = append(n.Nodes, next)
		for b := range 3 {
			mid := fmt.Sprintf("m%d%c", s, 'a'+b)
			n.Nodes = append(n.Nodes, scenario.Node{Name: mid, Kind: scenario.Router, ICMP: limit})
			n.Links = append(n.Links, scenario.Link{A: from, B: mid}, scenario.Link{A: mid, B: to})
		}
	}
	n.Nodes = append(n.Nodes, scenario.Node{Name: "server", Kind: scenario.Host})
	n.Links = append(n.Links, scenario.Link{A: fmt.Sprintf("r%d", stages), B: "server"})
	return n
}
