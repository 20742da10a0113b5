//go:build linux

package servicetraceroute_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

const (
	envFetch = "SERVICE_TRACEROUTE_TEST_FETCH"
	leastAge = 5500 * time.Microsecond // of a fetch's connection
)

// fetched is what such a client says of itself.
type fetched struct {
	PID    int
	Name   string `json:",omitempty"` // of the process, where it is known beforehand
	Port   uint16
	Start  time.Time // zero: not told
	Life   time.Duration
	Status int
}

// fetch plays a small client: one request over TLS in a connection that lives
// some milliseconds.
func fetch() {
	url := os.Getenv(envFetch)
	if url == "" {
		return
	}
	var conn net.Conn
	var start time.Time
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the lab's own certificate
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			start = time.Now()
			var d net.Dialer
			c, err := d.DialContext(ctx, network, addr)
			conn = c
			return c, err
		},
	}
	resp, err := (&http.Client{Transport: tr}).Get(url)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	time.Sleep(leastAge - time.Since(start))
	port := uint16(conn.LocalAddr().(*net.TCPAddr).Port)
	tr.CloseIdleConnections()
	_ = json.NewEncoder(os.Stdout).Encode(fetched{PID: os.Getpid(), Port: port, Start: start, Life: time.Since(start), Status: resp.StatusCode})
	os.Exit(0)
}

// runLab is a client, three routers and a web server.
func runLab(t *testing.T) *lab.Lab {
	n := scenario.Network{Name: "run", Nodes: []scenario.Node{{Name: "client", Kind: scenario.Host}}}
	for i := range 3 {
		n.Nodes = append(n.Nodes, scenario.Node{Name: "r" + strconv.Itoa(i+1), Kind: scenario.Router, ICMP: scenario.ICMPLimit{}})
	}
	n.Nodes = append(n.Nodes, scenario.Node{Name: "server", Kind: scenario.Host})
	for i := range n.Nodes[1:] {
		n.Links = append(n.Links, scenario.Link{A: n.Nodes[i].Name, B: n.Nodes[i+1].Name})
	}
	l := labtest.Start(t, n)
	if _, err := peer.ServeHTTPS(t.Context(), l.Node("server"), peer.HTTPSConfig{Port: 443}); err != nil {
		t.Fatal(err)
	}
	return l
}

// command builds the command as it is released.
func command(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "service-traceroute")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "servicetraceroute/cmd/service-traceroute")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

// attributions sum up what many runs showed.
type attributions struct {
	runs, attributed, wrong, hops, destination, noRecord int
	lives, starts                                        []time.Duration
	stops                                                map[trace.Stop]int
}

// TestRunShortFlows runs a client whose one connection lives 5 to 10 ms, again and
// again, and counts how often its flow was attributed to it and how often every
// router on the way was found.
func TestRunShortFlows(t *testing.T) {
	labtest.Require(t)
	bin := command(t)
	l := runLab(t)
	count := 30
	if full() {
		count = 1000
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	url := "https://" + l.Node("server").Addr(false).String() + "/bytes/2000"
	a := newAttributions()
	for range count {
		a.one(t, l, bin, []string{exe}, []string{envFetch + "=" + url}, func(out []byte) (was fetched, err error) {
			return was, json.Unmarshal(out, &was)
		})
		if t.Failed() {
			return
		}
	}
	a.report(t, "run", "A client makes one HTTPS request over three routers and ends")
}

func newAttributions() *attributions { return &attributions{stops: map[trace.Stop]int{}} }

// report writes down what was seen, and fails where it is less than what is promised.
func (a *attributions) report(t *testing.T, name, what string) {
	t.Helper()
	slices.Sort(a.lives)
	slices.Sort(a.starts)
	at := func(d []time.Duration, q float64) time.Duration {
		if len(d) == 0 {
			return 0
		}
		return d[int(q*float64(len(d)-1))].Round(10 * time.Microsecond)
	}
	text := fmt.Sprintf("# run: one flow of some milliseconds for each command\n\n%s; %d runs of `run --output json -- CLIENT`.\n\n"+
		"| | |\n|---|---|\n| life of the flow, 1 %% / median / 99 %% | %v / %v / %v |\n", what, a.runs, at(a.lives, .01), at(a.lives, .5), at(a.lives, .99))
	if len(a.starts) > 0 {
		text += fmt.Sprintf("| the trace begins after the client's connect, median / 99 %% | %v / %v |\n", at(a.starts, .5), at(a.starts, .99))
	}
	text += fmt.Sprintf("| attributed to the right process | %d of %d (%.1f %%) |\n| attributed to a wrong process | %d |\n| with every router on the way | %d (%.1f %%) |\n"+
		"| with the destination, too | %d |\n| how traces stopped | %v |\n",
		a.attributed, a.runs, share(a.attributed, a.runs), a.wrong, a.hops, share(a.hops, a.runs), a.destination, a.stops)
	evidence(t, name, text)
	// One in a hundred is promised. A few runs on a machine that is busy with other
	// tests show no more than that it works.
	allowed := a.runs / 100
	if !full() {
		allowed = a.runs / 5
	}
	if missed := a.runs - a.attributed; a.wrong > 0 || missed > allowed {
		t.Errorf("%d of %d attributed, %d wrongly, %d without a record", a.attributed, a.runs, a.wrong, a.noRecord)
	}
}

func share(n, of int) float64 { return 100 * float64(n) / float64(max(of, 1)) }

// one runs a client once; said reads what the client printed of itself.
func (a *attributions) one(t *testing.T, l *lab.Lab, bin string, client, env []string, said func(out []byte) (fetched, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	records := filepath.Join(t.TempDir(), "records")
	out, errs, status, err := l.Node("client").Exec(ctx, append([]string{bin, "run", "--output", "json", "-o", records, "--"}, client...), env, nil)
	was, unread := said(out)
	if err != nil || status != 0 || unread != nil || was.Status != 200 {
		t.Errorf("%v, status %d, %v: %s%s", err, status, unread, out, errs)
		return
	}
	b, err := os.ReadFile(records)
	if err != nil {
		t.Error(err)
		return
	}
	a.runs++
	a.lives = append(a.lives, was.Life)
	for line := range strings.Lines(string(b)) {
		ev, err := trace.Unmarshal([]byte(line))
		if err != nil {
			t.Errorf("%v: %s", err, line)
		}
		if tr, ok := ev.(*trace.Trace); ok {
			a.judge(tr, was)
			return
		}
	}
	a.noRecord++
	t.Logf("no record: %s%s", b, errs)
}

func (a *attributions) judge(tr *trace.Trace, said fetched) {
	a.stops[tr.Stop]++
	if !said.Start.IsZero() {
		a.starts = append(a.starts, tr.Start.Sub(said.Start))
	}
	switch p := tr.Process; {
	case tr.Flow.Src.Port() != said.Port || p != nil && p.PID != 0 && p.PID != said.PID || p != nil && said.Name != "" && p.Name != said.Name:
		a.wrong++
	case p != nil && p.PID == said.PID && tr.Service.By == trace.ByRun:
		a.attributed++
	}
	answered := 0
	for _, h := range tr.Hops {
		if h.TTL <= 3 && len(h.Replies) > 0 {
			answered++
		}
	}
	if answered == 3 {
		a.hops++
	}
	if tr.Reached {
		a.destination++
	}
}
