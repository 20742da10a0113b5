//go:build linux

package whole

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// build makes the command as it is released: without cgo.
func build(t *testing.T) string {
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
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
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
	f := newField(t)
	t.Run("trace to a file", f.traceToFile)
	t.Run("Ctrl-C", f.ctrlC)
	t.Run("no flow matches", f.noFlowMatches)
	t.Run("no probe", f.noProbe)
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
}

// Ctrl-C in the middle of a download prints what was found, at once.
func (f *field) ctrlC(t *testing.T) {
	r := f.run(t, func() { f.download(t, 4*time.Second) },
		"timeout", "--preserve-status", "-s", "INT", "2.5", f.bin, "trace", "--host", f.server.String(), "--max-silent", "0")
	if r.status != 0 || r.took > 3500*time.Millisecond {
		t.Errorf("status %d after %v", r.status, r.took)
	}
	want := regexp.MustCompile(`(?s)^tcp \S+ -> ` + regexp.QuoteMeta(f.server.String()) + `:443 on eth0 \(out\), chosen by address .*\n  1  \S+  [0-9.]+ ms.*\n.* in .*impact`)
	if !want.MatchString(r.stdout) {
		t.Errorf("stdout:\n%s", r.stdout)
	}
	if strings.Contains(r.stderr, "error:") {
		t.Errorf("stderr:\n%s", r.stderr)
	}
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

// Once it watches, the command has no capability on any thread and cannot get one.
func (f *field) privilegesAreDropped(t *testing.T) {
	looked := false
	f.run(t, func() {
		looked = true
		statuses := threads(t, f.bin)
		if len(statuses) == 0 {
			t.Error("no process found")
		}
		for _, s := range statuses {
			for _, want := range []string{"CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapInh:\t0000000000000000\n", "NoNewPrivs:\t1\n"} {
				if !strings.Contains(s, want) {
					t.Errorf("lacks %q:\n%s", want, s)
				}
			}
		}
	}, f.bin, "trace", "--host", f.server.String(), "--duration", "500ms")
	if !looked {
		t.Error("it never watched")
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

// Without privileges the command says what it needs, and touches no file.
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
