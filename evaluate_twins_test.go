//go:build linux

package servicetraceroute_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"sort"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"servicetraceroute"
	"servicetraceroute/internal/evaluate"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/selftest"
	"servicetraceroute/trace"
)

// The kinds of flows in namespaces.
var mixedThere = []string{"web", "video, TCP", "video, QUIC", "request/response"}

// batch is what became of the flows, in the order of their beginning.
type batch struct {
	took  map[string][]float64 // ms, by kind
	bytes map[string]int64
	moved peer.Counters // of client and servers
	stall time.Duration
}

// batch runs all kinds: the short flows, then the long ones.
func (v *village) batch(e evaluation) batch {
	b := batch{took: map[string][]float64{}, bytes: map[string]int64{}, moved: peer.Counters{}}
	small, pages := int64(1), 6
	if e.small {
		small, pages = 8, 2
	}
	before := v.counters()
	var mu sync.Mutex
	add := func(kind string, took time.Duration, bytes int64) {
		mu.Lock()
		defer mu.Unlock()
		b.took[kind] = append(b.took[kind], float64(took.Microseconds())/1000)
		b.bytes[kind] += bytes
	}
	ctx, cancel := context.WithCancel(v.t.Context())
	var beside, flows sync.WaitGroup
	beside.Go(func() { b.stall = selftest.Stalls(ctx) })
	tcp := func(kind string, w scenario.Workload, n int, stagger time.Duration) {
		flows.Go(func() {
			for _, f := range v.flowsTo(w, n, stagger, 0) {
				add(kind, f.End.Sub(f.Start), f.Received)
			}
		})
	}
	// Short flows do not stand in the queue of long ones: how long that is just then is chance.
	tcp("web", scenario.Workload{Traffic: scenario.Download, Bytes: 20_000}, pages, 400*time.Millisecond)
	tcp("request/response", scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 500, Every: 100 * time.Millisecond, Duration: 3 * time.Second / time.Duration(small)}, 1, 0)
	flows.Wait()
	tcp("video, TCP", scenario.Workload{Traffic: scenario.Download, Bytes: 3_000_000 / small, IPv6: true}, 1, 0)
	flows.Go(func() {
		const kind = "video, QUIC"
		for i := range 2 {
			bytes := 1_500_000 / small
			took, err := transferQUIC(ctx, v.lab.Node("client"), v.unwalled().Addr(i%2 == 1), bytes)
			if err != nil {
				v.t.Errorf("QUIC: %v", err)
			}
			add(kind, took, bytes)
		}
	})
	flows.Wait()
	time.Sleep(100 * time.Millisecond) // the last packets
	cancel()
	beside.Wait()
	b.moved = v.counters().Delta(before)
	return b
}

// counters are those of the client and all servers, added up.
func (v *village) counters() peer.Counters {
	v.t.Helper()
	sum := peer.Counters{}
	for _, name := range append([]string{"client"}, v.world.Servers...) {
		c, err := peer.ReadCounters(v.t.Context(), v.lab.Node(name))
		if err != nil {
			v.t.Fatal(err)
		}
		for k, n := range c {
			sum[k] += n
		}
	}
	return sum
}

// transferQUIC sends so much to a server of serveQUIC and takes it back.
func transferQUIC(ctx context.Context, from *lab.Node, to netip.Addr, bytes int64) (took time.Duration, err error) {
	began := time.Now()
	var conn *net.UDPConn
	if err := from.Do(func() (err error) { conn, err = net.ListenUDP("udp", &net.UDPAddr{}); return err }); err != nil {
		return 0, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	q, err := quic.Dial(ctx, conn, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, quicPort)), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"echo"}}, nil)
	if err != nil {
		return 0, err
	}
	defer q.CloseWithError(0, "")
	s, err := q.OpenStreamSync(ctx)
	if err != nil {
		return 0, err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := s.Write(make([]byte, bytes))
		if err == nil {
			err = s.Close()
		}
		sent <- err
	}()
	n, err := io.Copy(io.Discard, s)
	if err == nil {
		err = <-sent
	}
	if err == nil && n != bytes {
		err = fmt.Errorf("%d of %d bytes came back", n, bytes)
	}
	return time.Since(began), err
}

// twins are what became of all rounds: without probes first, then with.
type twins struct {
	took                            [2]map[string][]float64 // ms, by kind
	bytes                           [2]map[string]int64
	ratios                          map[string][]float64 // of each round's medians
	moved                           [2]peer.Counters
	traces, inQUIC, probes, repeats int
}

// round runs the flows once without a tracer and once with one; which comes first changes. ok is
// false when the machine was too busy for one of them.
func (v *village) round(e evaluation, n int) (pair [2]batch, here found, ok bool) {
	for i := range pair {
		if (n+i)%2 == 0 {
			pair[0] = v.batch(e)
			continue
		}
		here = v.traced(servicetraceroute.Config{}, servicetraceroute.Selection{Retrace: time.Second}, func() { pair[1] = v.batch(e) })
	}
	return pair, here, max(pair[0].stall, pair[1].stall) < longestStall
}

// add takes a round in.
func (x *twins) add(pair [2]batch, here found) {
	x.probes, x.traces = x.probes+int(here.stats.Probes.Sent), x.traces+len(here.traces)
	for _, tr := range here.traces {
		if tr.Flow.Proto == trace.UDP && tr.Stop != trace.StopRefused {
			x.inQUIC++
		}
	}
	for _, kind := range mixedThere {
		x.ratios[kind] = append(x.ratios[kind], evaluate.Quantile(pair[1].took[kind], 0.5)/evaluate.Quantile(pair[0].took[kind], 0.5))
		for i := range pair {
			x.took[i][kind] = append(x.took[i][kind], pair[i].took[kind]...)
			x.bytes[i][kind] += pair[i].bytes[kind]
		}
	}
	for i := range pair {
		for name, n := range pair[i].moved.Only(peer.Harm) {
			x.moved[i][name] += n
		}
	}
}

// effectThere is part (a) in namespaces: the same flows again and again, in turns with a tracer
// beside them and without.
func (e evaluation) effectThere(v *village, plots *evaluate.Report) string {
	serveQUIC(v.t, v.unwalled())
	rounds := 15
	if e.small {
		rounds = 1
	}
	x := twins{ratios: map[string][]float64{}}
	for i := range 2 {
		x.took[i], x.bytes[i], x.moved[i] = map[string][]float64{}, map[string]int64{}, peer.Counters{}
	}
	for done := 0; done < rounds; {
		pair, here, ok := v.round(e, done)
		if !ok && x.repeats < max(rounds, 5) {
			x.repeats++
			continue
		}
		x.add(pair, here)
		done++
	}
	if x.probes == 0 {
		v.t.Error("nothing was probed")
	}
	text := fmt.Sprintf("### (a) What probes do to flows\n\n%s", e.labCommand("effect")) +
		fmt.Sprintf("%d rounds of two: short flows to all servers, then long ones, with nothing beside them, and with a tracer that traces them from the beginning and again each second (which of the two comes first changes): %d traces, %d of them in QUIC flows, %d probes. "+
			"%d rounds were repeated because the machine stood still for %v. Web: 20 kB; video over TCP: 3 MB from each server at once, over QUIC (quic-go) beside them: 1.5 MB there and back, twice; requests and responses: one each 100 ms for 3 s. IPv4 and IPv6; the client's link carries %d Mbit/s, no link loses anything. "+
			"Ratio: the median duration with probes over that without, of each round; the median of the rounds with its 95 %% interval (by ranks). Demanded: that no interval lies above 1.02, and that transfers carry the same bytes; who exchanges by the clock gets an exchange less where the machine is slow.\n\n",
			rounds, x.traces, x.inQUIC, x.probes, x.repeats, longestStall, villageRate/1_000_000)
	text += x.table(e, v) + e.harmThere(v, x.moved)
	from := plots.Text.Len()
	plots.Show("namespaces-duration", "Duration of flows in namespaces, with probes in them and without", x.chart().SVG())
	return text + plots.Text.String()[from:]
}

// chart is the distribution of durations.
func (x *twins) chart() evaluate.Chart {
	c := evaluate.Chart{Title: "Duration of flows in namespaces", X: "duration in ms", Y: "share of flows up to it", LogX: true, YMax: 1, Percent: true}
	for i, kind := range mixedThere {
		for k, name := range []string{"without", "with probes"} {
			c.Series = append(c.Series, evaluate.Series{Name: kind + ", " + name, Color: i, Steps: true, Dashed: k > 0, Points: evaluate.Distribution(x.took[k][kind])})
		}
	}
	return c
}

// table is what the rounds say of each kind of flow, and demands that probes took nothing.
func (x *twins) table(e evaluation, v *village) string {
	table := evaluate.Table{Head: []string{"flows", "count", "bytes without", "with", "duration in ms without: median", "90 %", "with: median", "90 %", "ratio", "95 % interval"}}
	for _, kind := range mixedThere {
		middle, interval := evaluate.Median(x.ratios[kind])
		alone, traced := x.took[0][kind], x.took[1][kind]
		table.Add(kind, len(alone), x.bytes[0][kind], x.bytes[1][kind], ms(alone, 0.5), ms(alone, 0.9), ms(traced, 0.5), ms(traced, 0.9), fmt.Sprintf("%.4f", middle), fmt.Sprintf("%.4f to %.4f", interval.Low, interval.High))
		if x.bytes[0][kind] != x.bytes[1][kind] && kind != "request/response" || len(alone) != len(traced) {
			v.t.Errorf("%s: %d bytes without probes, %d with", kind, x.bytes[0][kind], x.bytes[1][kind])
		}
		if !e.small && interval.Low > 1.02 {
			v.t.Errorf("%s takes longer with probes: %v (%v)", kind, middle, interval)
		}
	}
	return table.String() + "\n"
}

// lateErrors counts ICMP errors for which there is no socket.
const lateErrors = "Icmp.InErrors"

// harmThere is the table of the kernel's counters that a disturbed flow moves.
func (e evaluation) harmThere(v *village, moved [2]peer.Counters) string {
	var names []string
	for name := range moved[0] {
		names = append(names, name)
	}
	for name := range moved[1] {
		if _, both := moved[0][name]; !both {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	table := evaluate.Table{Head: []string{"counter, all hosts", "without", "with", "allowed with"}}
	for _, name := range names {
		a, b := moved[0][name], moved[1][name]
		// Three standard deviations of the difference of two counts, and a few where both are small.
		allowed := a + int64(3*math.Sqrt(float64(a+b))) + 3
		if name == lateErrors {
			table.Add(name, a, b, "not bounded")
			continue
		}
		table.Add(name, a, b, fmt.Sprintf("up to %d", allowed))
		if b > allowed {
			v.t.Errorf("%s: %d without probes, %d with", name, a, b)
		}
	}
	if len(names) == 0 {
		return "None of the kernel's counters of harm (retransmissions, timeouts, spurious recoveries, resets and more) moved at any host, with probes or without.\n\n"
	}
	return fmt.Sprintf("The kernel's counters of harm, all others 0. %s counts routers' answers about flows that had closed meanwhile: there is no socket any more that could hear of them.\n\n%v\n", lateErrors, table)
}
