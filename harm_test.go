//go:build linux

package servicetraceroute_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
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

// pair is a flow and its twin, in full runs two: how those two differ, neither of
// them traced, is the noise of the measurement.
type pair struct {
	pairCase
	repeats              int // the machine was too busy
	traced, alone, again outcome
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
			first := i
			for c := range work {
				p := b.pair(c, first)
				first++
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

// pair runs one case, beginning with another of the twins each time.
func (b *bench) pair(c pairCase, first int) pair {
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
	// All twins are run again, whatever they showed, when the machine was too busy.
	for repeats := 0; ; repeats++ {
		p := pair{pairCase: c, repeats: repeats}
		twins := []func(){
			func() { p.traced = b.traced(cfg, c.hard) },
			func() { p.alone = b.run(cfg, nil) },
			func() { p.again = b.run(cfg, nil) },
		}
		if !full() {
			twins = twins[:2]
		}
		for i := range twins {
			twins[(first+i)%len(twins)]()
		}
		if p.calm() || repeats == 3 {
			return p
		}
	}
}

// calm reports whether the machine let the lab's own parts run in time. A flow that lost
// nothing and still waited in vain for an acknowledgement tells, traced or not, that it did
// not; harm would do so each time. The big run takes that as it is.
func (p *pair) calm() bool {
	for _, o := range p.outcomes() {
		if o.stall >= longestStall || o.trouble > 0 || !full() && p.loss == 0 && o.harm()["TcpExt.TCPTimeouts"] > 0 {
			return false
		}
	}
	return true
}

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
		"SACK, timestamps and window scaling on and off; the default rate, retraced every second, and ten times it with 20 probes a hop, retraced at once. "+
		"Each flow has two untraced twins: how these differ is the noise.\n\n"+
		"## Without loss\n\n"+c.String()+"\n## With 1 % loss, the same bytes for all twins\n\n"+l.String())
	c.compare(t, "without loss")
	if !full() {
		return // a few lossy flows are a lottery
	}
	l.compareByChance(t)
	for _, s := range []summary{c, l} {
		for kind, ratios := range s.ratios {
			if _, low := lowerBound(ratios); low < 0.98 {
				t.Errorf("throughput of %s: lower bound %.4f", trafficName[kind], low)
			}
		}
	}
}

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
	twins := []outcome{p.traced, p.alone}
	if full() {
		twins = append(twins, p.again)
	}
	for _, o := range twins {
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
