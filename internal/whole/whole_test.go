//go:build linux

package whole

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/privilege"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

func TestMain(m *testing.M) {
	talk()
	confine()
	visit()
	loaded()
	held()
	floods()
	heed()
	labtest.Main(m)
}

// heed lets what the tests start find signals as usual, where they were ignored when
// this process was started: under nohup, or in a script's background. A program starts
// with the default for what its parent handles (execve(2)).
func heed() {
	for _, sig := range []os.Signal{syscall.SIGHUP, os.Interrupt} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
}

// build makes the command as it is released: without cgo.
func build(t testing.TB) string {
	t.Helper()
	labtest.Require(t)
	bin := filepath.Join(t.TempDir(), "service-traceroute")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "servicetraceroute/cmd/service-traceroute")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

// field is a client, two routers and a web server.
type field struct {
	*lab.Lab
	bin    string
	server netip.Addr
}

func newField(t *testing.T) *field {
	t.Helper()
	f := &field{bin: build(t)}
	n := scenario.Network{Name: "whole", Nodes: []scenario.Node{
		{Name: "client", Kind: scenario.Host}, {Name: "r1", Kind: scenario.Router}, {Name: "r2", Kind: scenario.Router},
		{Name: "server", Kind: scenario.Host},
	}}
	for i := range 3 {
		n.Links = append(n.Links, scenario.Link{A: n.Nodes[i].Name, B: n.Nodes[i+1].Name})
	}
	f.Lab = labtest.Start(t, n)
	f.server = f.Node("server").Addr(false)
	if _, err := peer.ServeHTTPS(t.Context(), f.Node("server"), peer.HTTPSConfig{Port: 443}); err != nil {
		t.Fatal(err)
	}
	return f
}

// result is what a run of the command left.
type result struct {
	status         int
	stdout, stderr string
	took           time.Duration
}

// run starts the command in the client's namespace, waits until it watches, runs
// during, and waits for its end.
func (f *field) run(t *testing.T, during func(), argv ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var stdout bytes.Buffer
	talk := &awaited{word: "watching", seen: make(chan struct{})}
	ended := make(chan struct{})
	var status int
	var err error
	var took time.Duration
	start := time.Now()
	go func() {
		defer close(ended)
		defer func() { took = time.Since(start) }()
		status, err = f.Node("client").Run(ctx, lab.Program{Argv: argv, Stdout: &stdout, Stderr: talk})
	}()
	select {
	case <-talk.seen:
		if during != nil {
			during()
		}
	case <-ended:
	}
	<-ended
	if err != nil {
		t.Fatalf("%v: %v", argv, err)
	}
	return result{status, stdout.String(), talk.text.String(), took}
}

// awaited tells when a word was written.
type awaited struct {
	text bytes.Buffer // not embedded: its ReadFrom would bypass Write
	word string
	seen chan struct{}
	told bool
}

func (a *awaited) Write(b []byte) (int, error) {
	n, err := a.text.Write(b)
	if !a.told && strings.Contains(a.text.String(), a.word) {
		a.told = true
		close(a.seen)
	}
	return n, err
}

// download fetches a file that takes so long.
func (f *field) download(t *testing.T, d time.Duration) {
	t.Helper()
	got, err := peer.Get(t.Context(), f.Node("client"), peer.GetConfig{URL: fmt.Sprintf("https://%v/slow/400000?for=%v", f.server, d)})
	if err != nil || len(got) != 1 || !got[0].Intact {
		t.Errorf("download: %+v, %v", got, err)
	}
}

// TestCommand shares one network among its parts: they take turns with other
// packages' labs.
func TestCommand(t *testing.T) {
	t.Parallel()
	f := newField(t)
	t.Run("trace to a file", f.traceToFile)
	t.Run("Ctrl-C", f.ctrlC)
	t.Run("no flow matches", f.noFlowMatches)
	t.Run("no probe", f.noProbe)
	t.Run("dial", f.dial)
	t.Run("dial over QUIC", f.dialQUIC)
	t.Run("expressions", f.matches)
	t.Run("flags", f.flags)
	t.Run("SIGHUP", f.readsAgain)
	t.Run("the terminal is gone", f.hangsUp)
	t.Run("privileges are dropped", f.privilegesAreDropped)
}

func (f *field) traceToFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "paths.ndjson")
	r := f.run(t, func() { f.download(t, 4*time.Second) },
		f.bin, "trace", "--host", f.server.String(), "--duration", "5s", "--output", "json", "-o", file, "--label", "whole")
	if r.status != 0 || r.stdout != "" {
		t.Errorf("status %d, stdout %q, stderr %q", r.status, r.stdout, r.stderr)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var traces []*trace.Trace
	for line := range bytes.Lines(b) {
		ev, err := trace.Unmarshal(line)
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if tr, ok := ev.(*trace.Trace); ok {
			traces = append(traces, tr)
		}
	}
	if len(traces) != 1 {
		t.Fatalf("%d traces:\n%s", len(traces), b)
	}
	tr := traces[0]
	if tr.Stop != trace.StopDestination || !tr.Complete || tr.Label != "whole" || len(tr.Hops) != 3 || tr.Destination.TTL != 3 {
		t.Errorf("%s", b)
	}
	if p := tr.Process; p == nil || p.PID != f.Node("client").Pid() {
		t.Errorf("process %+v, the client's is %d", p, f.Node("client").Pid())
	}
}

// Ctrl-C in the middle of a download prints what was found, at once.
func (f *field) ctrlC(t *testing.T) {
	promptly(t, "Ctrl-C", func() time.Duration {
		p := start(t, f.Node("client").Do, nil, f.bin, "trace", "--host", f.server.String(), "--max-silent", "0")
		p.stderr.await(t, "watching")
		over := make(chan struct{})
		go func() {
			defer close(over)
			f.download(t, 4*time.Second)
		}()
		time.Sleep(2 * time.Second)
		status, took := p.signal(t, syscall.SIGINT, false)
		<-over
		want := regexp.MustCompile(`(?s)^tcp \S+ -> ` + regexp.QuoteMeta(f.server.String()) + `:443 on eth0 \(out\), chosen by address .*\n  1  \S+  [0-9.]+ ms.*\n.* in .*impact`)
		if status != 0 || !want.MatchString(p.stdout.String()) || strings.Contains(p.stderr.String(), "error:") {
			t.Errorf("status %d, stdout:\n%s\nstderr:\n%s", status, p.stdout.String(), p.stderr.String())
		}
		return took
	})
}

func (f *field) noFlowMatches(t *testing.T) {
	r := f.run(t, nil, f.bin, "trace", "--host", f.server.String(), "--duration", "300ms")
	if r.status != 3 || !strings.Contains(r.stderr, "error: the time is over and no flow matched\n") || r.stdout != "" {
		t.Errorf("status %d, stdout %q, stderr %q", r.status, r.stdout, r.stderr)
	}
}

func (f *field) noProbe(t *testing.T) {
	r := f.run(t, func() { f.download(t, time.Second) },
		f.bin, "trace", "--host", f.server.String(), "--no-probe", "--duration", "2s")
	if r.status != 0 || !strings.Contains(r.stdout, "matched\n") || !strings.Contains(r.stdout, "probes 0 sent") {
		t.Errorf("status %d, stdout:\n%s", r.status, r.stdout)
	}
}

// Once it watches, the command has no capability on any thread and cannot get one, but
// for those that say whose flows are, and the one with which errors about probes in UDP
// flows are dropped.
func (f *field) privilegesAreDropped(t *testing.T) {
	const naming = 1<<privilege.SysPtrace | 1<<privilege.DACReadSearch
	for _, test := range []struct {
		flags []string
		keeps uint64
	}{
		{nil, 1 << privilege.NetAdmin}, {[]string{"--proto", "udp"}, 1 << privilege.NetAdmin},
		{[]string{"--proto", "tcp"}, 0}, {[]string{"--udp-probe", "off"}, 0}, {[]string{"--no-probe"}, 0},
	} {
		p := start(t, f.Node("client").Do, nil, append([]string{f.bin, "trace", "--host", f.server.String()}, test.flags...)...)
		p.stderr.await(t, "watching")
		statuses := threads(t, f.bin)
		if len(statuses) == 0 {
			t.Error("no process found")
		}
		for _, s := range statuses {
			for _, want := range []string{
				fmt.Sprintf("CapEff:\t%016x\n", test.keeps|naming), fmt.Sprintf("CapPrm:\t%016x\n", test.keeps|naming), "CapInh:\t0000000000000000\n", "NoNewPrivs:\t1\n",
			} {
				if !strings.Contains(s, want) {
					t.Errorf("%v lacks %q:\n%s", test.flags, want, s)
				}
			}
		}
		p.signal(t, syscall.SIGINT, false)
	}
}

// threads returns /proc/PID/task/TID/status of all threads that run the program.
func threads(t *testing.T, bin string) []string {
	t.Helper()
	var all []string
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, exe := range exes {
		if to, err := os.Readlink(exe); err != nil || to != bin {
			continue
		}
		tasks, err := filepath.Glob(filepath.Join(filepath.Dir(exe), "task/*/status"))
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if b, err := os.ReadFile(task); err == nil { // a thread may end meanwhile
				all = append(all, string(b))
			}
		}
	}
	return all
}

// Without privileges the command says what it needs, and touches no file. What dial does
// without them is in sock_test.go.
func TestWithoutPrivileges(t *testing.T) {
	bin := build(t)
	file := filepath.Join(t.TempDir(), "old")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "trace", "--host", "192.0.2.1", "-o", file)
	// Nobody in a user namespace: no capabilities after exec, in no namespace.
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 65534, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 65534, HostID: os.Getegid(), Size: 1}},
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	if !regexp.MustCompile(`^error: .*operation not permitted\nhint: .*0750.*setcap cap_net_raw\S* .*\n$`).MatchString(stderr.String()) {
		t.Errorf("stderr:\n%s", stderr.String())
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file was touched: %q, %v", b, err)
	}
}
