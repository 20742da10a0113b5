//go:build linux

package servicetraceroute_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/selftest"
	"servicetraceroute/trace"
)

// narrow is a path of four routers with a firewall and one slow link:
// 20 Mbit/s, 20 ms one way.
func narrow(name string, loss float64) scenario.Network {
	return scenario.Network{Name: name,
		Nodes: []scenario.Node{
			{Name: "client", Kind: scenario.Host}, {Name: "server", Kind: scenario.Host},
			{Name: "r1", Kind: scenario.Router}, {Name: "r3", Kind: scenario.Router}, {Name: "r4", Kind: scenario.Router},
			{Name: "fw", Kind: scenario.Router, Firewall: &scenario.Firewall{AllowTCP: []uint16{443, 444, 4444}}},
		},
		Links: []scenario.Link{
			{A: "client", B: "r1"}, {A: "r1", B: "fw"}, {A: "fw", B: "r3"}, {A: "r4", B: "server"},
			{Name: "slow", A: "r3", B: "r4", Delay: 20 * time.Millisecond, Rate: 20_000_000, Loss: loss},
		},
	}
}

// bench is a narrow network with a server, on which flows run with and without
// probes in them.
type bench struct {
	t     testing.TB
	lab   *lab.Lab
	cubic peer.Server
	// With losses, cubic's slow start makes two runs differ by a factor of three:
	// whether HyStart ends it hangs on microseconds.
	reno peer.Server
}

func newBench(t testing.TB, name string, loss float64) *bench {
	t.Helper()
	b := &bench{t: t, lab: labtest.StartWith(t, narrow(name, loss), lab.Options{OneProcessor: true})}
	var err error
	if b.cubic, err = peer.ServeTCP(t.Context(), b.lab.Node("server"), peer.TCPConfig{Port: 443}); err != nil {
		t.Fatal(err)
	}
	if b.reno, err = peer.ServeTCP(t.Context(), b.lab.Node("server"), peer.TCPConfig{Port: 444, Congestion: "reno"}); err != nil {
		t.Fatal(err)
	}
	if err := b.measured().Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) ends() []*lab.Node { return []*lab.Node{b.lab.Node("client"), b.lab.Node("server")} }

// measured is what flows are measured on.
func (b *bench) measured() *selftest.Bench {
	return &selftest.Bench{Client: b.lab.Node("client"), Server: b.lab.Node("server"), Slow: b.lab.Link("slow"), Firewall: b.lab.Node("fw")}
}

func (b *bench) counters() [2]peer.Counters {
	b.t.Helper()
	c, err := b.measured().Counters(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// outcome is what became of one flow, at both ends.
type outcome struct {
	flow      peer.Flow
	moved     [2]peer.Counters // client, server: all that changed
	conntrack time.Duration    // the least time the firewall still gave the flow
	traces    []*trace.Trace
	sent      uint64
	lost      uint64        // segments that the slow link lost on purpose
	trouble   uint64        // and frames that it lost without being asked to
	stall     time.Duration // the longest that this process had to wait for a processor
}

// harm are the harm counters of both ends together.
func (o outcome) harm() peer.Counters { return o.sum(peer.Harm) }

func (o outcome) sum(names []string) peer.Counters {
	all := peer.Counters{}
	for _, c := range o.moved {
		for name, v := range c.Only(names) {
			all[name] += v
		}
	}
	return all
}

// run lets one flow live, and during does what it wants beside it.
func (b *bench) run(cfg peer.RunConfig, during func(ctx context.Context)) outcome {
	b.t.Helper()
	server := b.cubic
	if cfg.Socket.Congestion == "reno" {
		server = b.reno
	}
	cfg.Server = netip.AddrPortFrom(b.lab.Node("server").Addr(cfg.Workload.IPv6), server.Addr.Port())
	var flows []peer.Flow
	m, err := b.measured().Measure(b.t.Context(), func(ctx context.Context) (err error) {
		flows, err = peer.Run(ctx, b.lab.Node("client"), cfg)
		return err
	}, during)
	if err != nil {
		b.t.Fatalf("run: %v", err)
	}
	return outcome{flow: flows[0], moved: m.Moved, conntrack: m.Conntrack, lost: m.Lost, trouble: m.Trouble, stall: m.Stall}
}

const longestStall = selftest.LongestStall

// hard is how the probing twin is probed.
type hard struct {
	name    string
	cfg     servicetraceroute.Config
	retrace time.Duration
	// warm lets another flow, before, show the tracer that the routers answer all it
	// asks: else their allowances, and not the rate, would bound the probes.
	warm time.Duration
}

func rates() []hard {
	return []hard{
		{name: "default", retrace: time.Second},
		{
			name: "tenfold", retrace: 50 * time.Millisecond, warm: 9 * time.Second,
			cfg: servicetraceroute.Config{Rate: 10_000, HopRate: 2000, Defaults: servicetraceroute.Params{
				Algorithm: trace.Concurrent, Probes: 20, ProbeInterval: 2 * time.Millisecond,
			}},
		},
	}
}

// traced runs a flow with a tracer that traces it again and again. Its twin has no
// tracer beside it at all.
func (b *bench) traced(cfg peer.RunConfig, h hard) outcome {
	b.t.Helper()
	var tracer *servicetraceroute.Tracer
	err := b.lab.Node("client").Do(func() (err error) {
		tracer, err = servicetraceroute.New(h.cfg)
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	defer tracer.Close()
	f := &field{t: b.t, lab: b.lab, tracer: tracer}
	watch := func() func() found { return f.watch(servicetraceroute.Selection{Retrace: h.retrace}) }
	if h.warm > 0 {
		b.warm(cfg, h.warm, watch)
	}
	before := tracer.Stats().Probes.Sent
	stop := watch()
	o := b.run(cfg, nil)
	all := stop()
	o.traces, o.sent = all.traces, tracer.Stats().Probes.Sent-before
	return o
}

// warm lets a flow of the same family be traced for that long.
func (b *bench) warm(cfg peer.RunConfig, life time.Duration, watch func() func() found) {
	b.t.Helper()
	stop := watch()
	_, err := peer.Run(b.t.Context(), b.lab.Node("client"), peer.RunConfig{
		Workload: scenario.Workload{
			Traffic: scenario.RequestResponse, Bytes: 100, Every: 100 * time.Millisecond, Duration: life, IPv6: cfg.Workload.IPv6,
		},
		Server: netip.AddrPortFrom(b.lab.Node("server").Addr(cfg.Workload.IPv6), b.cubic.Addr.Port()),
	})
	if err != nil {
		b.t.Fatalf("warming up: %v", err)
	}
	stop()
	time.Sleep(200 * time.Millisecond) // its last packets
}
