//go:build linux

package whole

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// envHold makes this program open connections to the server of loads, say so, and have a
// short exchange on each of them again and again: "ADDRESS HOW-MANY EVERY".
const envHold = "SERVICE_TRACEROUTE_TEST_HOLD"

func held() {
	words := strings.Fields(os.Getenv(envHold))
	if len(words) != 3 {
		return
	}
	n, _ := strconv.Atoi(words[1])
	every, _ := time.ParseDuration(words[2])
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := net.Dial("tcp", net.JoinHostPort(words[0], strconv.Itoa(portRequests)))
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		conns[i] = c
	}
	fmt.Println("established")
	buf := make([]byte, answer)
	for began := time.Now(); ; {
		for i, c := range conns {
			time.Sleep(time.Until(began.Add(every * time.Duration(i) / time.Duration(n))))
			_, err := c.Write(buf[:question])
			if err == nil {
				_, err = io.ReadFull(c, buf)
			}
			if err != nil {
				fmt.Println("error:", err)
				os.Exit(1)
			}
		}
		began = began.Add(every)
	}
}

// scale is how many connections are traced, and how fast at most.
type scale struct {
	flows   int
	rate    int // probes a second, of all flows and of one responder
	patient time.Duration
}

// TestScale traces established connections once each, by the built command: all to the end,
// within one processor and 256 MiB, without losing a packet, and never faster than allowed.
func TestScale(t *testing.T) {
	s := scale{flows: 500, rate: 1000, patient: time.Minute}
	if full() {
		s = scale{flows: 10_000, rate: 4000, patient: 5 * time.Minute}
	}
	var rows strings.Builder
	for _, backend := range backends() {
		t.Run(backend, func(t *testing.T) { rows.WriteString(s.run(t, backend)) })
	}
	evidence(t, "scale", fmt.Sprintf(`# Many flows at once

The built command traces %d established TCP connections, which were there before it, once each: 3 routers without limits, then the server; an exchange of %d and %d bytes on each connection every 10 s. At most %d probes a second (%s), after a burst of a twentieth.

    SERVICE_TRACEROUTE_FULL=1 go test -count=1 -run TestScale ./internal/whole

| back end | traces | complete | destination unknown | wrong hops | over after | probes | most in a second | processors, average | resident, most | packets seen | dropped |
|---|---|---|---|---|---|---|---|---|---|---|---|
`, s.flows, question, answer, s.rate, "`--rate`, `--hop-rate`")+rows.String())
}

func (s scale) run(t *testing.T, backend string) (row string) {
	n := scenario.Network{Name: "scale", Nodes: []scenario.Node{{Name: "client", Kind: scenario.Host}}}
	for _, name := range []string{"r1", "r2", "r3"} {
		n.Nodes = append(n.Nodes, scenario.Node{Name: name, Kind: scenario.Router})
	}
	n.Nodes = append(n.Nodes, scenario.Node{Name: "server", Kind: scenario.Host})
	for i := range n.Nodes[1:] {
		n.Links = append(n.Links, scenario.Link{A: n.Nodes[i].Name, B: n.Nodes[i+1].Name})
	}
	bin := build(t)
	l := labtest.Start(t, n)
	server := l.Node("server").Addr(false)
	p := start(t, l.Node("server").Do, withEnv(envLoad+"=serve "+server.String()), self(t))
	eventually(t, "the server", func() bool { return strings.Contains(p.stdout.String(), "serving") })
	hold := start(t, l.Node("client").Do, withEnv(envHold+"="+fmt.Sprintf("%v %d 10s", server, s.flows)), self(t))
	eventually(t, "the connections", func() bool { return hold.stdout.String() != "" })
	if got := hold.stdout.String(); got != "established\n" {
		t.Fatal(got)
	}
	probes := countProbes(t, l.Node("client"), len(n.Nodes)-1)
	file := filepath.Join(t.TempDir(), "out.ndjson")
	began := time.Now()
	p = start(t, l.Node("client").Do, nil, bin, "trace", "--host", server.String(), "--backend", backend, "--every", "once",
		"--rate", strconv.Itoa(s.rate), "--hop-rate", strconv.Itoa(s.rate), "--max-ttl", "8", "--output", "json", "-o", file)
	p.stderr.await(t, "watching")
	lines := func() int { b, _ := os.ReadFile(file); return strings.Count(string(b), `"type":"trace"`) }
	for time.Since(began) < s.patient && lines() < s.flows {
		time.Sleep(250 * time.Millisecond)
	}
	took := time.Since(began)
	busy, resident := p.busy(), p.resident(t)
	p.signal(t, syscall.SIGINT, false)
	sent, fastest := probes()
	traces, stats := parsed(t, file), lastStats(t, file)
	path := []netip.Addr{server}
	for _, r := range []string{"r3", "r2", "r1"} {
		path = slices.Insert(path, 0, l.Layout().Nodes[r].Interfaces[0].Addr4.Addr()) // towards the client
	}
	flows, complete, unknown, wrong := map[netip.AddrPort]bool{}, 0, 0, 0
	for _, tr := range traces {
		flows[tr.Flow.Src] = true
		if tr.Complete && tr.Stop == trace.StopDestination {
			complete++
		}
		if !tr.Reached {
			unknown++
		}
		astray := false
		for _, h := range tr.Hops {
			if len(h.Replies) > 0 && (h.TTL > len(path) || h.Replies[0].Addr != path[h.TTL-1]) {
				wrong++
				astray = true
			}
		}
		if !tr.Complete || astray {
			record, _ := json.Marshal(tr)
			t.Logf("%v: %s", tr, record)
		}
	}
	if len(flows) != s.flows || len(traces) != s.flows || complete < s.flows*99/100 || unknown > s.flows/200 || wrong > 0 {
		t.Errorf("%d flows, %d traces, %d complete, %d without the destination, %d wrong hops", len(flows), len(traces), complete, unknown, wrong)
	}
	processors := busy.Seconds() / took.Seconds()
	if processors > 1 || resident > 256<<20 || stats.Packets.Dropped > 0 || fastest > s.rate*11/10 {
		t.Errorf("%.2f processors, %d MiB, %d packets dropped, %d probes in a second", processors, resident>>20, stats.Packets.Dropped, fastest)
	}
	return fmt.Sprintf("| %s | %d | %d | %d | %d | %.0f s | %d | %d | %.2f | %d MiB | %d | %d |\n", backend, len(traces), complete, unknown, wrong,
		took.Seconds(), sent, fastest, processors, resident>>20, stats.Packets.Seen, stats.Packets.Dropped)
}

// countProbes counts what leaves a node with a TTL too small for other packets. What it
// returns ends that: how many there were, and how many in the fullest second, by the wire's
// clock.
func countProbes(t testing.TB, at *lab.Node, ttl int) func() (sent, fastest int) {
	t.Helper()
	var ring *capture.Ring
	if err := at.Do(func() (err error) { ring, err = capture.Open(capture.Config{}); return err }); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var times []time.Time
	go func() {
		defer close(done)
		for {
			batch, err := ring.ReadBatch()
			if err != nil {
				return
			}
			for i := range batch {
				var ip wire.Packet
				if batch[i].Direction == capture.Outgoing && ip.Decode(batch[i].Data, batch[i].Len) == nil && int(ip.TTL) <= ttl {
					times = append(times, batch[i].Time)
				}
			}
		}
	}()
	end := sync.OnceFunc(func() { _ = ring.Close(); <-done })
	t.Cleanup(end)
	return func() (sent, fastest int) {
		end()
		first := 0
		for i, at := range times {
			for at.Sub(times[first]) >= time.Second {
				first++
			}
			fastest = max(fastest, i-first+1)
		}
		return len(times), fastest
	}
}

// resident is the most memory that a program has held at once (proc_pid_status(5), VmHWM).
func (p *program) resident(t testing.TB) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no VmHWM: %s", b)
	}
	kib, _ := strconv.Atoi(string(m[1]))
	return kib << 10
}

// lastStats are the last ones in a file of records.
func lastStats(t testing.TB, name string) *trace.Stats {
	t.Helper()
	all := recorded[*trace.Stats](t, name)
	if len(all) == 0 {
		t.Fatalf("no stats in %s", name)
	}
	return all[len(all)-1]
}

// backends are those that a big run compares, else the best that there is here.
func backends() []string {
	switch b := os.Getenv("SERVICE_TRACEROUTE_BACKEND"); {
	case b != "":
		return []string{b}
	case full():
		return []string{"ebpf", "afpacket"}
	}
	return []string{"auto"}
}

// full says that the big runs are wanted.
func full() bool { return os.Getenv("SERVICE_TRACEROUTE_FULL") != "" }

// evidence logs what a run measured and, of a full run, keeps it in docs/evidence.
func evidence(t *testing.T, name, text string) {
	t.Helper()
	t.Log("\n" + text)
	if full() {
		if err := os.WriteFile(filepath.Join("..", "..", "docs", "evidence", name+".md"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
