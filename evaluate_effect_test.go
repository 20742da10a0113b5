//go:build linux

package servicetraceroute_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/evaluate"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
)

// mixed is what people do at once, by name, in the order of the report.
var mixed = []string{"web", "video", "request/response"}

// mix draws a kind of flow for each of so many clients and servers. The kinds have the same
// shares whatever the seed; sizes of web pages are spread as those of the web are, over orders
// of magnitude.
func (e evaluation) mix(flow int, rng *rand.Rand) (kind string, w scenario.Workload) {
	small := int64(1)
	if e.small {
		small = 16
	}
	switch {
	case flow%12 == 5:
		kind, w = "video", scenario.Workload{Traffic: scenario.Download, Bytes: (4_000_000 + rng.Int64N(6_000_000)) / small}
	case flow%4 == 2:
		kind, w = "request/response", scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 200 + rng.Int64N(2800),
			Every: time.Duration(50+rng.IntN(200))*time.Millisecond + 113, Duration: 10 * time.Second}
	default:
		bytes := 20_000 * rng.ExpFloat64() * rng.ExpFloat64()
		kind, w = "web", scenario.Workload{Traffic: scenario.Download, Bytes: 500 + int64(bytes)}
	}
	w.IPv6 = family(flow / 2)
	return kind, w
}

// effects are the flows of one kind, with probes in them or without.
type effects struct {
	flows, intact  int
	took           []float64 // ms
	bytes          []float64 // received by the client
	retransmits    []float64 // of both ends
	harm, timeouts int64
	streams        []string // what both ends received
}

func (x *effects) add(j *journey) {
	r := j.Result()
	x.flows++
	if r.Intact {
		x.intact++
	}
	x.took = append(x.took, float64(j.took.Microseconds())/1000)
	x.bytes = append(x.bytes, float64(r.Client.Received))
	x.retransmits = append(x.retransmits, float64(r.Client.Counters.Retransmits+r.Server.Counters.Retransmits))
	x.harm += r.Client.Counters.Harm() + r.Server.Counters.Harm()
	x.timeouts += r.Client.Counters.Timeouts + r.Server.Counters.Timeouts
	x.streams = append(x.streams, fmt.Sprintf("%x %x", r.Client.SHA256, r.Server.SHA256))
}

// play runs the mix, each client with each server several times, and returns what became of
// it and how many probes were sent.
func (e evaluation) play(t *testing.T, probed bool) (all map[string]*effects, probes, traces int) {
	all = map[string]*effects{}
	for _, kind := range mixed {
		all[kind] = &effects{}
	}
	synctest.Test(t, func(t *testing.T) {
		m := inMemory(t, e.shares(), servicetraceroute.Config{NoProbe: !probed})
		stop := m.watch(servicetraceroute.Selection{Every: -1, Retrace: time.Second})
		rng := rand.New(rand.NewPCG(e.seed, 7))
		kinds := map[*simnet.Flow]string{}
		var flows []*journey
		n := len(m.world.Servers) * len(m.vantages) * e.effectRounds()
		for i := range n {
			kind, w := e.mix(i, rng)
			j := m.start(i%len(m.vantages), rng.IntN(len(m.world.Servers)), w)
			kinds[j.Flow] = kind
			flows = append(flows, j)
			time.Sleep(time.Duration(20+rng.IntN(400))*time.Millisecond + 139*time.Nanosecond)
		}
		for _, j := range flows {
			<-j.done
		}
		found := stop()
		for _, tr := range found.traces {
			m.judge(tr)
		}
		for _, j := range flows {
			all[kinds[j.Flow]].add(j)
		}
		probes, traces = int(found.stats.Probes.Sent), len(found.traces)
	})
	return all, probes, traces
}

// effect is part (a): what flows are like with probes in them, and without.
func (e evaluation) effect(t *testing.T) *evaluate.Report {
	r := &evaluate.Report{}
	alone, none, _ := e.play(t, false)
	traced, probes, traces := e.play(t, true)
	if none != 0 || probes == 0 {
		t.Errorf("%d probes without probing, %d with", none, probes)
	}
	r.Printf("### (a) What probes do to flows\n\n%s", e.command("effect"))
	r.Printf("Short web transfers, long video transfers and exchanges of requests and responses, at once, IPv4 and IPv6, from %d clients to %d servers; on %s of the base graph's links "+
		"%s of the segments with payload are lost, the same ones with probes and without. Each flow runs twice: once nothing is sent into it, once it is traced from its beginning and again each second "+
		"(`--retrace 1s`): %d traces, %d probes. Same: flows of which both ends received the very same bytes both times. Virtual time, to 0.1 ms.\n\n",
		e.shares().Clients, e.shares().Servers, evaluate.Share(e.shares().Lossy), evaluate.Share(e.shares().Loss), traces, probes)
	table := evaluate.Table{Head: []string{"flows", "probes", "count", "intact", "same", "duration in ms: 10 %", "median", "90 %", "99 %", "bytes: median", "in all", "retransmissions: flows with any", "most", "in all", "timeouts"}}
	for _, kind := range mixed {
		for _, x := range []struct {
			name string
			of   *effects
		}{{"without", alone[kind]}, {"with", traced[kind]}} {
			table.Add(kind, x.name, x.of.flows, x.of.intact, sameBytes(alone[kind], traced[kind]), ms(x.of.took, 0.1), ms(x.of.took, 0.5), ms(x.of.took, 0.9), ms(x.of.took, 0.99),
				int64(evaluate.Quantile(x.of.bytes, 0.5)), int64(sum(x.of.bytes)), above(x.of.retransmits, 0), evaluate.Quantile(x.of.retransmits, 1), sum(x.of.retransmits), x.of.timeouts)
		}
	}
	r.Printf("%v\n", table)
	e.judgeEffect(t, r, alone, traced)
	for _, p := range []struct {
		name, title, x string
		log            bool
		of             func(*effects) []float64
	}{
		{"duration", "Duration of flows, with probes in them and without", "duration in ms", true, func(x *effects) []float64 { return x.took }},
		{"bytes", "Bytes received by clients, with probes and without", "bytes", true, func(x *effects) []float64 { return x.bytes }},
		{"retransmissions", "Retransmissions in a flow, with probes and without", "retransmissions", false, func(x *effects) []float64 { return x.retransmits }},
	} {
		c := evaluate.Chart{Title: p.title, X: p.x, Y: "share of flows up to it", LogX: p.log, YMax: 1, Percent: true}
		for i, kind := range mixed {
			c.Series = append(c.Series,
				evaluate.Series{Name: kind + ", without", Color: i, Steps: true, Points: evaluate.Distribution(p.of(alone[kind]))},
				evaluate.Series{Name: kind + ", with probes", Color: i + 3, Steps: true, Dashed: true, Points: evaluate.Distribution(p.of(traced[kind]))})
		}
		r.Show("effect-"+p.name, p.title, c.SVG())
	}
	return r
}

// judgeEffect says, and demands, that probes took nothing from any flow.
func (e evaluation) judgeEffect(t *testing.T, r *evaluate.Report, alone, traced map[string]*effects) {
	worst, flows, fewer, harm := 0.0, 0, 0.0, [2]int64{}
	for _, kind := range mixed {
		a, b := alone[kind], traced[kind]
		for i := range a.took {
			flows++
			worst = max(worst, b.took[i]/a.took[i]-1)
			if fewer += a.retransmits[i] - b.retransmits[i]; b.retransmits[i] > a.retransmits[i] {
				t.Errorf("%s: %v retransmissions alone, %v traced", kind, a.retransmits[i], b.retransmits[i])
			}
		}
		harm[0], harm[1] = harm[0]+a.harm, harm[1]+b.harm
		if a.intact != a.flows || b.intact != b.flows || sameBytes(a, b) != a.flows {
			t.Errorf("%s: %d flows, %d and %d intact, %d the same", kind, a.flows, a.intact, b.intact, sameBytes(a, b))
		}
	}
	if harm[1] > harm[0] || worst > 0.01 {
		t.Errorf("signs of harm: %d alone, %d traced; one flow took %.4f longer", harm[0], harm[1], worst)
	}
	r.Printf("Of %d flows the one that probes delayed most took %.3f %% longer than its twin, and none has more retransmissions. Signs of harm (retransmissions, timeouts, false recoveries, resets, challenges), both ends of all flows: %d without, %d with. "+
		"Probes saved %v retransmissions: when a response is lost, the destination's answer to a probe acknowledges the request that the response would have acknowledged.\n\n", flows, 100*worst, harm[0], harm[1], fewer)
}

// sameBytes counts the flows of which both ends received the same bytes both times.
func sameBytes(a, b *effects) (n int) {
	for i := range a.streams {
		if a.streams[i] == b.streams[i] {
			n++
		}
	}
	return n
}

func ms(values []float64, share float64) string {
	return fmt.Sprintf("%.1f", evaluate.Quantile(values, share))
}

func sum(values []float64) (s float64) {
	for _, v := range values {
		s += v
	}
	return s
}

func above(values []float64, than float64) (n int) {
	for _, v := range values {
		if v > than {
			n++
		}
	}
	return n
}
