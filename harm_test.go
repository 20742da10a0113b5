//go:build linux

package servicetraceroute_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/link"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// evidence logs what a run measured and, of a full run, keeps it in
// docs/evidence.
func evidence(t *testing.T, name, text string) {
	t.Helper()
	t.Log("\n" + text)
	if !full() {
		return
	}
	dir := filepath.Join("docs", "evidence")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".md"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

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
	b := &bench{t: t, lab: labtest.Start(t, narrow(name, loss))}
	var err error
	if b.cubic, err = peer.ServeTCP(t.Context(), b.lab.Node("server"), peer.TCPConfig{Port: 443}); err != nil {
		t.Fatal(err)
	}
	if b.reno, err = peer.ServeTCP(t.Context(), b.lab.Node("server"), peer.TCPConfig{Port: 444, Congestion: "reno"}); err != nil {
		t.Fatal(err)
	}
	for _, end := range b.ends() {
		for name, value := range map[string]string{
			// What one flow learnt about the path must not help its twin.
			"net.ipv4.tcp_no_metrics_save": "1",
			// Twice what the path holds: its queue never overflows, so that whatever is
			// lost was meant to be.
			"net.ipv4.tcp_rmem": "4096 131072 500000",
			"net.ipv4.tcp_wmem": "4096 65536 500000",
		} {
			if err := end.Sysctl(t.Context(), name, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	return b
}

func (b *bench) ends() []*lab.Node { return []*lab.Node{b.lab.Node("client"), b.lab.Node("server")} }

func (b *bench) counters() (c [2]peer.Counters) {
	b.t.Helper()
	for i, end := range b.ends() {
		var err error
		if c[i], err = peer.ReadCounters(b.t.Context(), end); err != nil {
			b.t.Fatal(err)
		}
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
	var o outcome
	before := b.counters()
	lost, trouble := b.slow()
	ctx, cancel := context.WithCancel(b.t.Context())
	var beside sync.WaitGroup
	beside.Go(func() { o.conntrack = b.patience(ctx) })
	beside.Go(func() { o.stall = stalls(ctx) })
	if during != nil {
		beside.Go(func() { during(ctx) })
	}
	server := b.cubic
	if cfg.Socket.Congestion == "reno" {
		server = b.reno
	}
	cfg.Server = netip.AddrPortFrom(b.lab.Node("server").Addr(cfg.Workload.IPv6), server.Addr.Port())
	flows, err := peer.Run(ctx, b.lab.Node("client"), cfg)
	if err != nil {
		b.t.Fatalf("run: %v", err)
	}
	o.flow = flows[0]
	time.Sleep(100 * time.Millisecond) // the last packets
	for i, after := range b.counters() {
		o.moved[i] = after.Delta(before[i])
	}
	lostNow, troubleNow := b.slow()
	o.lost, o.trouble = lostNow-lost, troubleNow-trouble
	cancel()
	beside.Wait()
	return o
}

// stalls is the longest that a sleep was overdue: when the machine is so busy, the
// lab's own hosts and its link stop as well, and TCP takes that for loss.
func stalls(ctx context.Context) (worst time.Duration) {
	const nap = 2 * time.Millisecond
	for ctx.Err() == nil {
		start := time.Now()
		time.Sleep(nap)
		worst = max(worst, time.Since(start)-nap)
	}
	return worst
}

const longestStall = 20 * time.Millisecond

// slow counts what the slow link lost: because it should, and because the machine
// was too busy.
func (b *bench) slow() (lost, trouble uint64) {
	b.t.Helper()
	s, err := link.ReadStats(b.t.Context(), b.lab.Link("slow"), "a0", "b0")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, c := range []link.Counts{s.AB, s.BA} {
		lost += c.Lost
		trouble += c.Queue + c.Overflow + c.Oversize + c.Failed + c.Missed
	}
	return lost, trouble
}

// patience is the least time that the firewall still gave an established flow,
// looked at now and then; 0 if there was none.
func (b *bench) patience(ctx context.Context) (least time.Duration) {
	const established = 300 * time.Second // what shows that the handshake was seen
	for {
		select {
		case <-ctx.Done():
			return least
		case <-time.After(700 * time.Millisecond):
		}
		all, err := b.lab.Node("fw").Conntrack(ctx)
		if err != nil {
			continue
		}
		// Flows that have ended are still there, for two minutes at most.
		for _, c := range all {
			if c.Protocol == 6 && c.Timeout > established-30*time.Second && (least == 0 || c.Timeout < least) {
				least = c.Timeout
			}
		}
	}
}

// hard is how the probing twin is probed.
type hard struct {
	name string
	cfg  servicetraceroute.Config
}

func rates() []hard {
	return []hard{
		{"default", servicetraceroute.Config{}},
		{"tenfold", servicetraceroute.Config{Rate: 10_000, HopRate: 2000, Defaults: servicetraceroute.Params{
			Algorithm: trace.Concurrent, Probes: 10, ProbeInterval: 2 * time.Millisecond,
		}}},
	}
}

// traced runs a flow with a tracer that traces it again every second. Its twin
// has no tracer beside it at all.
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
	stop := f.watch(servicetraceroute.Selection{Retrace: time.Second})
	o := b.run(cfg, nil)
	all := stop()
	o.traces, o.sent = all.traces, all.stats.Probes.Sent
	return o
}

// pairCase is one kind of flow and how it is probed.
type pairCase struct {
	workload scenario.Workload
	loss     float64
	hard     hard
}

func (c pairCase) String() string {
	w := c.workload
	s := fmt.Sprintf("%s, loss %g %%, rate %s", trafficName[w.Traffic], c.loss*100, c.hard.name)
	for _, o := range []struct {
		off  bool
		name string
	}{{w.NoSACK, "SACK"}, {w.NoTimestamps, "timestamps"}, {w.NoWindowScale, "window scaling"}} {
		if o.off {
			s += ", no " + o.name
		}
	}
	if w.IPv6 {
		return s + ", IPv6"
	}
	return s
}

var trafficName = map[scenario.Traffic]string{
	scenario.Download: "download", scenario.Upload: "upload", scenario.SlowReader: "slow reader",
	scenario.RequestResponse: "request/response", scenario.OneByte: "one byte", scenario.Idle: "idle",
}

// sized gives a flow of that shape a size such that it lives a few seconds.
func sized(w scenario.Workload, loss float64) scenario.Workload {
	life := 4 * time.Second
	switch w.Traffic {
	case scenario.Download, scenario.Upload:
		w.Bytes = 6_000_000
		if loss > 0 {
			w.Bytes = 1_500_000
		}
	case scenario.SlowReader:
		w.Bytes = 1_500_000
	case scenario.RequestResponse:
		w.Bytes, w.Every, w.Duration = 400, 100*time.Millisecond, life
	case scenario.OneByte:
		w.Every, w.Duration = 60*time.Millisecond, life
	case scenario.Idle:
		w.Bytes, w.Duration = 100, life
	}
	return w
}

// pairCases are all combinations: shape, options, loss, rate. Families alternate.
func pairCases() []pairCase {
	var all []pairCase
	for i := range 6 * 8 * 2 * 2 {
		loss := float64(i/48%2) / 100
		w := scenario.Workload{
			Traffic: scenario.Traffic(1 + i%6),
			NoSACK:  i/6&1 != 0, NoTimestamps: i/6&2 != 0, NoWindowScale: i/6&4 != 0,
		}
		rate := i / 96
		w.IPv6 = (i%6+i/6+i/48+rate)%2 == 1
		all = append(all, pairCase{sized(w, loss), loss, rates()[rate]})
	}
	return all
}

// pair is a flow and its twin.
type pair struct {
	pairCase
	repeats       int // the machine was too busy
	traced, alone outcome
}

// pairs runs every case on labs of its own, some at a time.
func pairs(t *testing.T, cases []pairCase, labs int) []pair {
	var mu sync.Mutex
	var out []pair
	work := make(chan pairCase)
	var wg sync.WaitGroup
	for i := range labs {
		b := newBench(t, fmt.Sprintf("pairs%d", i), 0.01)
		wg.Go(func() {
			n := i
			for c := range work {
				p := b.pair(c, n%2 == 0)
				n++
				mu.Lock()
				out = append(out, p)
				mu.Unlock()
			}
		})
	}
	for _, c := range cases {
		work <- c
	}
	close(work)
	wg.Wait()
	return out
}

func (b *bench) pair(c pairCase, tracedFirst bool) pair {
	ctx := b.t.Context()
	if err := b.lab.SetLink(ctx, "slow", func(l *scenario.Link) { l.Loss = c.loss }); err != nil {
		b.t.Error(err)
	}
	for _, end := range b.ends() {
		if err := peer.ApplyOptions(ctx, end, c.workload); err != nil {
			b.t.Error(err)
		}
	}
	cfg := peer.RunConfig{Workload: c.workload, Seed: 7}
	if c.loss > 0 {
		cfg.Socket.Congestion = "reno"
	}
	// Both twins are run again, whatever they showed, when the machine was too busy.
	for repeats := 0; ; repeats++ {
		p := pair{pairCase: c, repeats: repeats}
		if tracedFirst {
			p.traced = b.traced(cfg, c.hard)
		}
		p.alone = b.run(cfg, nil)
		if !tracedFirst {
			p.traced = b.traced(cfg, c.hard)
		}
		calm := max(p.traced.stall, p.alone.stall) < longestStall && p.traced.trouble+p.alone.trouble == 0
		if calm || repeats == 3 {
			return p
		}
	}
}

// summary adds up pairs.
type summary struct {
	pairs, repeats        int
	traced, alone         peer.Counters
	jitterTraced, jitter  peer.Counters
	lostTraced, lostAlone int64
	probes, traces, ended int
	ratios                map[scenario.Traffic][]float64
	latency               []float64
}

func sumUp(all []pair) summary {
	s := summary{pairs: len(all), traced: peer.Counters{}, alone: peer.Counters{}, jitterTraced: peer.Counters{}, jitter: peer.Counters{},
		ratios: map[scenario.Traffic][]float64{}}
	add := func(to, c peer.Counters) {
		for k, v := range c {
			to[k] += v
		}
	}
	for _, p := range all {
		add(s.traced, p.traced.harm())
		add(s.alone, p.alone.harm())
		add(s.jitterTraced, p.traced.sum(peer.Jitter))
		add(s.jitter, p.alone.sum(peer.Jitter))
		s.repeats += p.repeats
		s.lostTraced += int64(p.traced.lost)
		s.lostAlone += int64(p.alone.lost)
		s.probes += int(p.traced.sent)
		s.traces += len(p.traced.traces)
		for _, tr := range p.traced.traces {
			if tr.Reached {
				s.ended++
			}
		}
		switch p.workload.Traffic {
		case scenario.Download, scenario.Upload, scenario.SlowReader:
			s.ratios[p.workload.Traffic] = append(s.ratios[p.workload.Traffic], p.traced.flow.BitRate/p.alone.flow.BitRate)
		case scenario.RequestResponse:
			s.latency = append(s.latency, float64(p.traced.flow.Latency.P50)/float64(p.alone.flow.Latency.P50))
		}
	}
	return s
}

// lowerBound is the bootstrap's lower bound, at 95 %, of the mean.
func lowerBound(x []float64) (mean, low float64) {
	rng := rand.New(rand.NewPCG(1, 2))
	means := make([]float64, 4000)
	for i := range means {
		for range x {
			means[i] += x[rng.IntN(len(x))] / float64(len(x))
		}
	}
	slices.Sort(means)
	for _, v := range x {
		mean += v / float64(len(x))
	}
	return mean, means[len(means)/20]
}

func (s summary) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d pairs, %d repetitions because the machine was too busy; %d traces (%d with the destination), %d probes.\n\n", s.pairs, s.repeats, s.traces, s.ended, s.probes)
	fmt.Fprintf(&b, "| counter, both ends | traced | alone |\n|---|---|---|\n")
	row := func(traced, alone peer.Counters) {
		names := slices.Collect(maps.Keys(traced))
		names = append(names, slices.Collect(maps.Keys(alone))...)
		slices.Sort(names)
		for _, n := range slices.Compact(names) {
			fmt.Fprintf(&b, "| %s | %d | %d |\n", n, traced[n], alone[n])
		}
	}
	row(s.traced, s.alone)
	fmt.Fprintf(&b, "| *segments that the link lost* | %d | %d |\n", s.lostTraced, s.lostAlone)
	fmt.Fprintf(&b, "| *tail-loss probes, apart:* | | |\n")
	row(s.jitterTraced, s.jitter)
	fmt.Fprintf(&b, "\nAll other harm counters were 0 in both.\n\n| traced / alone | pairs | mean | 95 %% lower bound |\n|---|---|---|---|\n")
	for _, kind := range slices.SortedFunc(maps.Keys(s.ratios), func(a, b scenario.Traffic) int { return cmp.Compare(a, b) }) {
		mean, low := lowerBound(s.ratios[kind])
		fmt.Fprintf(&b, "| throughput, %s | %d | %.4f | %.4f |\n", trafficName[kind], len(s.ratios[kind]), mean, low)
	}
	if len(s.latency) > 0 {
		mean, low := lowerBound(s.latency)
		fmt.Fprintf(&b, "| median latency, request/response | %d | %.4f | %.4f |\n", len(s.latency), mean, low)
	}
	return b.String()
}

// tailLoss are the counters that every spurious tail-loss probe moves by one.
var tailLoss = []string{"Tcp.RetransSegs", "TcpExt.TCPDSACKRecv"}

// TestNoHarm runs each flow twice, with our probes in it and without. Both must
// arrive byte for byte, and no counter of either host, nor the firewall, may tell
// them apart.
func TestNoHarm(t *testing.T) {
	cases, labs := pairCases(), 6
	if !full() {
		cases = shortCases(cases)
	}
	all := pairs(t, cases, labs)
	var clean, lossy []pair
	for _, p := range all {
		p.check(t)
		if p.loss == 0 {
			clean = append(clean, p)
		} else {
			lossy = append(lossy, p)
		}
	}
	c, l := sumUp(clean), sumUp(lossy)
	evidence(t, "harm", "# No harm: flows with and without our probes\n\n20 Mbit/s, 20 ms each way, through a conntrack firewall; cubic, with loss reno; "+
		"SACK, timestamps and window scaling on and off; the default rate and ten times it; retraced every second.\n\n"+
		"## Without loss\n\n"+c.String()+"\n## With 1 % loss, the same segments for both twins\n\n"+l.String())
	c.compare(t, "without loss", clean)
	if !full() {
		return // a few lossy flows are a lottery
	}
	l.compare(t, "with loss", lossy)
	for _, s := range []summary{c, l} {
		for kind, ratios := range s.ratios {
			if _, low := lowerBound(ratios); low < 0.98 {
				t.Errorf("throughput of %s: lower bound %.4f", trafficName[kind], low)
			}
		}
	}
}

// compare reports every counter that is higher with probes than without.
func (s summary) compare(t *testing.T, what string, all []pair) {
	t.Helper()
	for name, v := range s.traced {
		alone := s.alone[name]
		if slices.Contains(tailLoss, name) {
			v, alone = v-s.jitterTraced["TcpExt.TCPLossProbes"], alone-s.jitter["TcpExt.TCPLossProbes"]
		}
		if slices.Contains(repairs, name) {
			// One of them for each lost segment is as it should be. Where a sender's
			// buffer runs dry, two flows cut their data differently, and now and then
			// one of the two loses a segment more.
			v, alone = v-s.lostTraced, alone-s.lostAlone
		}
		if v <= max(alone, 0)+s.chance() {
			continue
		}
		t.Errorf("%s: %s is %d with probes and %d without", what, name, s.traced[name], s.alone[name])
		for _, p := range all {
			if p.traced.harm()[name] != p.alone.harm()[name] {
				t.Logf("%v: %v, lost %d, tail-loss %v; alone %v, lost %d", p.pairCase, p.traced.harm(), p.traced.lost,
					p.traced.sum(peer.Jitter), p.alone.harm(), p.alone.lost)
			}
		}
	}
}

// chance is by how much the sums of two sets of untraced lossy flows differ: a
// segment that is late by a hair is sent twice. Wrong probes move these counters
// by tens in one flow (TestWrongProbesShow).
func (s summary) chance() int64 {
	if s.lostAlone == 0 {
		return 0
	}
	return 3
}

// repairs are the counters that a lost segment moves by one.
var repairs = []string{"Tcp.RetransSegs", "TcpExt.TCPFastRetrans"}

// shortCases are few that still touch every shape, option, loss and rate.
func shortCases(all []pairCase) []pairCase {
	var out []pairCase
	for i, c := range all {
		if c.loss > 0 && c.workload.Traffic != scenario.Upload && c.workload.Traffic != scenario.RequestResponse {
			continue
		}
		if i/6%8 == (i%6+i/48*3)%8 {
			out = append(out, c)
		}
	}
	return out
}

// check holds one pair against what must hold of each.
func (p pair) check(t *testing.T) {
	t.Helper()
	for _, o := range []outcome{p.traced, p.alone} {
		if !o.flow.Intact {
			t.Errorf("%v: its bytes did not arrive as sent: %s", p.pairCase, o.flow.Error)
		}
		// While data is not acknowledged it is five minutes anyway.
		if p.workload.Traffic == scenario.Idle && o.conntrack < 431_000*time.Second {
			t.Errorf("%v: the firewall would forget it in %v", p.pairCase, o.conntrack)
		}
	}
	if p.traced.flow.SHA256 != p.alone.flow.SHA256 && p.workload.Duration == 0 {
		t.Errorf("%v: hashes differ", p.pairCase)
	}
	if len(p.traced.traces) == 0 || p.traced.sent == 0 {
		t.Errorf("%v: was not probed", p.pairCase)
	}
	for _, tr := range p.traced.traces {
		if len(p.traced.sum(peer.Jitter)) > 0 {
			break // the breaker cannot tell a tail-loss probe from harm
		}
		if tr.Impact.RSTs+tr.Impact.Retransmits > 0 && p.loss == 0 || tr.Impact.Aborted && p.loss == 0 {
			t.Errorf("%v: impact %+v", p.pairCase, tr.Impact)
		}
	}
}
