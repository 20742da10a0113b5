//go:build linux

package servicetraceroute_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/evaluate"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/observe"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/sibling"
	"servicetraceroute/trace"
)

// village is a small drawn Internet of namespaces and real kernels, with a server at each of
// its servers. It has no tracer of its own.
type village struct {
	*field
	world   evaluate.World
	servers []peer.Server
}

// villageShares are those of the Internet in namespaces.
func (e evaluation) villageShares() evaluate.Shares {
	s := evaluate.Shares{Seed: e.seed, Routers: 12, Clients: 1, Servers: 4, Balanced: 0.35, Width: 3, Asymmetric: 0.3, Silent: 0.1, Limited: 0.15, Firewalls: 0.5, NATs: 1}
	if e.small {
		s.Routers, s.Servers, s.Balanced, s.Width = 4, 2, 0.5, 2
	}
	return s
}

// villageDelay is that of the client's own link each way, the only one with any: each delayed
// link keeps a processor busy.
const villageDelay = 10 * time.Millisecond

// villageRate is what it carries in a second, less than the processors do. Its queue holds all
// that can be under way.
const villageRate, villageQueue = 50_000_000, 16 << 20

func (e evaluation) village(t *testing.T, name string, observed bool) *village {
	t.Helper()
	w, err := evaluate.Generate(e.villageShares())
	if err != nil {
		t.Fatal(err)
	}
	w.Network.Name = name
	for i := range w.Network.Links {
		l := &w.Network.Links[i]
		l.Delay, l.Loss = 0, 0
		if l.A == "client" {
			l.Delay, l.Rate, l.Queue = villageDelay, villageRate, villageQueue
		}
	}
	v := &village{field: &field{t: t, lab: labtest.StartWith(t, w.Network, lab.Options{OneProcessor: !observed}), nat: w.Count.NATs > 0}, world: w}
	if observed {
		for _, n := range w.Network.Nodes {
			if err := observe.Start(t.Context(), v.lab.Node(n.Name), observe.Config{MaxPackets: 1 << 20}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range w.Servers {
		server, err := peer.ServeTCP(t.Context(), v.lab.Node(name), peer.TCPConfig{Port: evaluate.Port})
		if err != nil {
			t.Fatal(err)
		}
		v.servers = append(v.servers, server)
	}
	return v
}

// traced watches flows to all servers with a tracer that is there only as long as during runs.
func (v *village) traced(cfg servicetraceroute.Config, sel servicetraceroute.Selection, during func()) found {
	v.t.Helper()
	tracer := v.openOnce(cfg)
	for _, name := range v.world.Servers {
		n := v.lab.Node(name)
		sel.Hosts = append(sel.Hosts, n.Addr(false).String(), n.Addr(true).String())
	}
	stop := collect(v.t, tracer, sel)
	during()
	all := stop()
	if err := tracer.Close(); err != nil {
		v.t.Errorf("close: %v", err)
	}
	return all
}

// openOnce is open without Close at the end of the test.
func (v *village) openOnce(cfg servicetraceroute.Config) (tracer *servicetraceroute.Tracer) {
	v.t.Helper()
	err := v.lab.Node("client").Do(func() (err error) {
		tracer, err = servicetraceroute.New(cfg)
		return err
	})
	if err != nil {
		v.t.Fatal(err)
	}
	return tracer
}

// firstVillagePort is below those that the kernel gives to others
// (net.ipv4.ip_local_port_range).
const firstVillagePort = 20000

// portAt is the first source port of flows to a server, by number; 0: any. No two flows have
// the same one: bind(2) does not know where they go.
func portAt(first uint16, server int) uint16 {
	if first == 0 {
		return 0
	}
	return first + uint16(1000*server)
}

// flowsTo opens flows to each server at once; port is the first one's source port, see portAt.
func (v *village) flowsTo(w scenario.Workload, flows int, stagger time.Duration, port uint16) (all []peer.Flow) {
	v.t.Helper()
	byServer := make([][]peer.Flow, len(v.servers))
	var wg sync.WaitGroup
	for i, name := range v.world.Servers {
		to := netip.AddrPortFrom(v.lab.Node(name).Addr(w.IPv6), evaluate.Port)
		wg.Go(func() {
			time.Sleep(stagger * time.Duration(i) / time.Duration(len(v.servers)))
			var err error
			byServer[i], err = peer.Run(v.t.Context(), v.lab.Node("client"), peer.RunConfig{Workload: w, Server: to, Flows: flows, Stagger: stagger, Socket: peer.Socket{LocalPort: portAt(port, i)}})
			if err != nil {
				v.t.Errorf("run: %v", err)
			}
		})
	}
	wg.Wait()
	for _, flows := range byServer {
		all = append(all, flows...)
	}
	for _, f := range all {
		if !f.Intact {
			v.t.Errorf("flow %v: its bytes did not arrive as sent: %s", f.Local, f.Error)
		}
	}
	return all
}

// routers counts those of a flow's own way that are not silent, and those of them that its
// trace shows. What it shows was judged before.
func (v *village) routers(truth *observe.Truth, tr *trace.Trace) (shown, all int) {
	for i, name := range v.lastWay(truth, tr) {
		k := slices.IndexFunc(v.world.Network.Nodes, func(n scenario.Node) bool { return n.Name == name })
		if v.world.Network.Nodes[k].Silent {
			continue
		}
		all++
		if shows(tr.Hops, i+1) {
			shown++
		}
	}
	return shown, all
}

// lastWay are the routers that forwarded the flow's packets last.
func (v *village) lastWay(truth *observe.Truth, tr *trace.Trace) []string {
	ways := during(tr, truth.Path(observed(tr.Flow.FlowKey), 40))
	if len(ways) == 0 {
		v.t.Errorf("the observers saw nothing of %v", tr.Flow)
		return nil
	}
	return ways[len(ways)-1].Nodes
}

// foundThere is part (b) in namespaces.
func (e evaluation) foundThere(v *village) string {
	var b strings.Builder
	algorithms, each, life := algorithms, 2, 15*time.Second
	if e.small {
		algorithms, each, life = []trace.Algorithm{trace.Adaptive}, 1, 3*time.Second
	}
	kinds := map[string]trace.Algorithm{}
	var traces []*trace.Trace
	byAlgorithm := map[trace.Algorithm][]*trace.Trace{}
	for _, a := range algorithms {
		kinds[a.String()] = a
		all := v.traced(servicetraceroute.Config{Defaults: servicetraceroute.Params{Algorithm: a}}, servicetraceroute.Selection{}, func() {
			var families sync.WaitGroup
			for _, ipv6 := range []bool{false, true} {
				families.Go(func() {
					v.flowsTo(scenario.Workload{IPv6: ipv6, Traffic: scenario.RequestResponse, Bytes: 300, Every: 200 * time.Millisecond, Duration: life}, each, time.Second, 0)
				})
			}
			families.Wait()
		})
		byAlgorithm[a] = all.traces
		traces = append(traces, all.traces...)
	}
	truth := v.truth()
	verdict := v.judge(truth, traces)
	fmt.Fprintf(&b, "### (b) What is found of a flow's path\n\n%s", e.labCommand("found"))
	fmt.Fprintf(&b, "%d exchanges of requests and responses to each of %d servers, half of them IPv6, each %v long, for each algorithm. Every hop shown was held against what the routers really sent: %d hops, %d of them false (allowed: none).\n\n",
		2*each, len(v.servers), life, verdict.hops, verdict.false_)
	table := evaluate.Table{Head: []string{"by", "traces", "routers", "own", "95 %", "destinations", "95 %"}}
	for _, a := range algorithms {
		d := discovery{}
		for _, tr := range byAlgorithm[a] {
			shown, routers := v.routers(truth, tr)
			d.flows, d.shown, d.routers = d.flows+1, d.shown+shown, d.routers+routers
			if tr.Reached {
				d.reached++
			}
		}
		table.Add(a, d.flows, d.routers, evaluate.Percent(d.shown, d.routers), evaluate.Wilson(d.shown, d.routers), evaluate.Percent(d.reached, d.flows), evaluate.Wilson(d.reached, d.flows))
		// That adaptive finds 95 of 100 routers, and destinations, is what is promised.
		if a == trace.Adaptive && (d.flows == 0 || !e.small && evaluate.Wilson(d.shown, d.routers).High < 0.95 || !e.small && evaluate.Wilson(d.reached, d.flows).High < 0.95) {
			v.t.Errorf("adaptive found %d of %d routers, %d of %d destinations", d.shown, d.routers, d.reached, d.flows)
		}
	}
	fmt.Fprintf(&b, "%v\n", table)
	return b.String()
}

// byPorts are traces by destination and source port.
func byPorts(traces []*trace.Trace) map[netip.AddrPort]map[uint16]*trace.Trace {
	all := map[netip.AddrPort]map[uint16]*trace.Trace{}
	for _, tr := range traces {
		if all[tr.Flow.Dst] == nil {
			all[tr.Flow.Dst] = map[uint16]*trace.Trace{}
		}
		all[tr.Flow.Dst][tr.Flow.Src.Port()] = tr
	}
	return all
}

// wrongThere is part (c) in namespaces: pairs of flows to one server that differ in their
// source port alone. Ports are fixed, and so are the routers' hash seeds: each run takes the
// same ways.
func (e evaluation) wrongThere(v *village) string {
	pairs, life := 30, 12*time.Second
	if e.small {
		pairs, life = 9, 2500*time.Millisecond
	}
	stagger := 800 * time.Millisecond
	if e.small {
		stagger = 100 * time.Millisecond
	}
	all := v.traced(servicetraceroute.Config{}, servicetraceroute.Selection{}, func() {
		v.flowsTo(scenario.Workload{IPv6: true, Traffic: scenario.RequestResponse, Bytes: 300, Every: 200 * time.Millisecond, Duration: life}, 2*pairs, stagger, firstVillagePort)
	})
	truth := v.truth()
	v.judge(truth, all.traces)
	byKey := byPorts(all.traces)
	n, differ, apart := 0, 0, 0
	var want, other float64
	for at, name := range v.world.Servers {
		odds, err := evaluate.Differ(v.lab.Layout(), "client", name, true)
		if err != nil {
			v.t.Fatal(err)
		}
		of := byKey[netip.AddrPortFrom(v.lab.Node(name).Addr(true), evaluate.Port)]
		for i := range pairs {
			first := portAt(firstVillagePort, at) + uint16(2*i)
			x, y := of[first], of[first+1]
			if x == nil || y == nil {
				v.t.Errorf("%s: no trace of pair %d", name, i)
				continue
			}
			n++
			want, other = want+odds.Shown, other+odds.Other
			shown := sibling.Compare(x, []trace.Sibling{{Proto: sibling.TCP, SourcePort: y.Flow.Src.Port(), Hops: y.Hops, Reached: y.Reached}}).Divergent
			took := !slices.Equal(v.lastWay(truth, x), v.lastWay(truth, y))
			if shown {
				differ++
			}
			if took {
				apart++
			}
			if shown && !took {
				v.t.Errorf("both took %v, and their traces differ: %v\n%v", v.lastWay(truth, x), describe(x), describe(y))
			}
		}
	}
	want, other = want/float64(n), other/float64(n)
	shown, took := evaluate.Wilson(differ, n), evaluate.Wilson(apart, n)
	// Of short flows on a busy machine some hops come too late to be shown.
	if !e.small && !shown.Has(want) || !took.Has(other) {
		v.t.Errorf("%d of %d pairs differ (%v), analytic %.3f; %d took other ways (%v), analytic %.3f", differ, n, shown, want, apart, took, other)
	}
	table := evaluate.Table{Head: []string{"pairs", "", "measured", "95 % interval", "analytic", "inside"}}
	table.Add(n, "their traces differ", evaluate.Percent(differ, n), shown, evaluate.Share(want), yes(shown.Has(want)))
	table.Add(n, "their packets took other ways, by the observers", evaluate.Percent(apart, n), took, evaluate.Share(other), yes(took.Has(other)))
	return fmt.Sprintf("### (c) Flows whose path a new flow gets wrong\n\n%s%d pairs of flows to each of %d servers, both traced inside, that differ in nothing but their source port (IPv6, so that routers at Linux's limits answer in time). "+
		"Ports and the routers' hash seeds are fixed: each run takes the same ways. Analytic as above, from the routes of this network.\n\n%v\n", e.labCommand("found"), pairs, len(v.servers), table)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// labCommand is how a figure in namespaces comes about.
func (e evaluation) labCommand(part string) string {
	return fmt.Sprintf("    SERVICE_TRACEROUTE_NO_SKIP=1 %s=%d go test -count=1 -timeout 30m -v -run 'TestEvaluateNamespaces/%s$' .\n\nSeed %d. ", envEvaluate, e.seed, part, e.seed)
}

// TestEvaluateNamespaces is the evaluation on real kernels. It states intervals, and fails
// where a value lies outside.
func TestEvaluateNamespaces(t *testing.T) {
	e := evaluating(t)
	if e.small {
		long(t)
	}
	labtest.Exclusive(t) // for all parts
	texts, plots := make([]string, 2), &evaluate.Report{}
	ok := t.Run("effect", func(t *testing.T) {
		if e.small {
			t.Parallel()
		}
		texts[0] = e.effectThere(e.village(t, "effect", false), plots)
		t.Log("\n" + texts[0])
	})
	ok = t.Run("found", func(t *testing.T) {
		if e.small {
			t.Parallel()
		}
		v := e.village(t, "found", true)
		texts[1] = e.foundThere(v) + e.wrongThere(v)
		t.Log("\n" + texts[1])
	}) && ok
	if !ok || e.small || slices.Contains(texts, "") {
		return
	}
	keepPlots(t, plots)
	keepPart(t, "namespaces", e.introThere(t)+strings.Join(texts, ""))
}

// introThere says what was drawn.
func (e evaluation) introThere(t *testing.T) string {
	w, err := evaluate.Generate(e.villageShares())
	if err != nil {
		t.Fatal(err)
	}
	c := w.Count
	return fmt.Sprintf("## In namespaces\n\nA small random Internet of network namespaces joined by veth pairs, on real kernels (`internal/lab`), drawn with seed %d: %d routers, %d of %d links of the base graph balanced over %d routers each (Linux's own multipath), %d asymmetric; %d routers silent, %d limited as Linux is; "+
		"%d of %d servers behind a firewall of nf_tables, the client behind address translation of nf_tables. %v each way on the client's own link. What is measured differs from run to run: intervals are stated, and the run fails where a value does not fit. "+
		"Short flows (d) on real kernels are in [evidence/shortflows.md](evidence/shortflows.md).\n\n",
		w.Shares.Seed, c.Routers, c.Balanced, c.Links, w.Shares.Width, c.Asymmetric, c.Silent, c.Limited, c.Firewalls, len(w.Servers), villageDelay)
}

// unwalled is the first server without a firewall.
func (v *village) unwalled() *lab.Node {
	for i, name := range v.world.Servers {
		gate := slices.IndexFunc(v.world.Network.Nodes, func(n scenario.Node) bool { return n.Name == fmt.Sprintf("gate%d", i) })
		if v.world.Network.Nodes[gate].Firewall == nil {
			return v.lab.Node(name)
		}
	}
	v.t.Fatal("all servers are behind firewalls")
	return nil
}
