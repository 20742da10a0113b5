//go:build linux

package whole

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/trace"
)

// moments are when a signal comes, after the start.
func moments(upTo time.Duration, n int) (all []time.Duration) {
	if os.Getenv("SERVICE_TRACEROUTE_FULL") != "" {
		n *= 6
	}
	// Dense at first, where there is most to begin and to end.
	for i := range n {
		x := (float64(i) + rand.Float64()) / float64(n)
		all = append(all, time.Duration(x*x*float64(upTo)))
	}
	return all
}

// TestInterrupted sends Ctrl-C to each command at many moments, while flows come and
// go: it ends within a second, with records that are whole and what was found in
// them, and nothing of it stays.
func TestInterrupted(t *testing.T) {
	f := newField(t)
	ctx, cancel := context.WithCancel(t.Context())
	download := make(chan struct{})
	go func() {
		defer close(download)
		for ctx.Err() == nil {
			f.download(t, time.Second)
		}
	}()
	t.Run("trace", f.traceInterrupted)
	t.Run("dial", f.dialInterrupted)
	t.Run("run", f.runInterrupted)
	cancel()
	<-download
	t.Run("while it waits", f.waitingInterrupted)
}

// traceInterrupted traces the downloads again and again.
func (f *field) traceInterrupted(t *testing.T) {
	before := remains(t, f.bin)
	found := 0
	for _, at := range moments(3*time.Second, 8) {
		what := fmt.Sprintf("Ctrl-C after %v", at)
		promptly(t, what, func() time.Duration {
			file := filepath.Join(t.TempDir(), "out")
			p := start(t, f.Node("client").Do, nil, f.bin, "trace", "--host", f.server.String(), "--retrace", "200ms", "--output", "json", "-o", file)
			time.Sleep(at)
			status, took := p.signal(t, syscall.SIGINT, false)
			// Before it listens to signals, one ends it as any program.
			if status != 0 && !(status < 0 && p.stderr.String() == "") {
				t.Errorf("%s: status %d\n%s", what, status, p.stderr.String())
			}
			found += records(t, file)
			nothingLeft(t, what, f.bin, before)
			if tables, _, _, err := f.Node("client").Exec(t.Context(), []string{"nft", "list", "tables"}, nil, nil); err == nil /* nft is here */ && len(tables) > 0 {
				t.Errorf("%s: nftables %s", what, tables)
			}
			return took
		})
	}
	if found == 0 {
		t.Error("no trace was found before any Ctrl-C")
	}
	t.Logf("%d traces found", found)
}

// dialInterrupted makes connections with a request in them.
func (f *field) dialInterrupted(t *testing.T) {
	before := remains(t, f.bin)
	found := 0
	for _, at := range moments(2500*time.Millisecond, 8) {
		what := fmt.Sprintf("Ctrl-C after %v", at)
		promptly(t, what, func() time.Duration {
			file := filepath.Join(t.TempDir(), "out")
			p := start(t, f.Node("client").Do, nil, f.bin, "dial", f.server.String(), "--insecure", "--request", "--output", "json", "-o", file)
			time.Sleep(at)
			status, took := p.signal(t, syscall.SIGINT, false)
			told := p.stderr.String()
			switch {
			case status == 0 && strings.Contains(told, "connected: "):
			case status == 1 && strings.Contains(told, "error: interrupted before the connection"):
			case status < 0 && told == "":
			default:
				t.Errorf("%s: status %d\n%s", what, status, told)
			}
			found += records(t, file)
			nothingLeft(t, what, f.bin, before)
			return took
		})
	}
	if found == 0 {
		t.Error("nothing was found before any Ctrl-C")
	}
	t.Logf("%d traces found", found)
}

// runInterrupted starts clients that stay connected. Ctrl-C reaches both, as from a
// terminal; SIGTERM reaches us alone and is handed on. Either the command was never
// started, or it is ended and what it did was traced.
func (f *field) runInterrupted(t *testing.T) {
	before := remains(t, f.bin)
	found, early := 0, 0
	for i, at := range append(moments(60*time.Millisecond, 8), moments(2500*time.Millisecond, 8)...) {
		sig, group, want := syscall.SIGINT, true, 130
		if i%2 == 1 {
			sig, group, want = syscall.SIGTERM, false, 143
		}
		what := fmt.Sprintf("%v after %v", sig, at)
		promptly(t, what, func() time.Duration {
			file := filepath.Join(t.TempDir(), "out")
			p := start(t, f.Node("client").Do, func(cmd *exec.Cmd) {
				cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%v:443 1m 0", envTalk, f.server))
			}, f.bin, "run", "--output", "json", "-o", file, "--", self(t))
			time.Sleep(at)
			status, took := p.signal(t, sig, group)
			if status != want && !(status < 0 && p.stdout.String()+p.stderr.String() == "") {
				t.Errorf("%s: status %d\n%s", what, status, p.stderr.String())
			}
			if p.stdout.String() == "" {
				early++
			}
			found += records(t, file)
			nothingLeft(t, what, f.bin, before)
			return took
		})
	}
	if found == 0 || early == 0 {
		t.Errorf("%d traces found, %d ended before the command did anything", found, early)
	}
	t.Logf("%d traces found, %d ended before the command did anything", found, early)
}

// waitingInterrupted sends Ctrl-C while somebody else is waited for.
func (f *field) waitingInterrupted(t *testing.T) {
	before := remains(t, f.bin)
	server := f.Node("server")
	asked := make(chan struct{}, 100)
	var silent net.Listener
	var names net.PacketConn
	if err := server.Do(func() (err error) {
		// Nobody accepts: the kernel makes the connections, and that is all.
		if silent, err = net.Listen("tcp", net.JoinHostPort(f.server.String(), "9999")); err != nil {
			return err
		}
		names, err = net.ListenPacket("udp", net.JoinHostPort(f.server.String(), "53"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	defer names.Close()
	go func() {
		for {
			if _, _, err := names.ReadFrom(make([]byte, 512)); err != nil {
				return
			}
			select {
			case asked <- struct{}{}:
			default:
			}
		}
	}()
	resolver := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolver, []byte("nameserver "+f.server.String()+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	pipe, started := filepath.Join(t.TempDir(), "pipe"), filepath.Join(t.TempDir(), "started")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(f.server, 9999).String()
	named := []string{"unshare", "-m", "sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, resolver}
	const looksUp, connecting, connected, waits = "", "connecting", "connected", "waits for a reader"
	for _, test := range []struct {
		name   string
		argv   []string
		until  string // it says this; empty: it asks for a name
		status int
		told   string
	}{
		{"trace, for a name", []string{"trace", "--host", "www.example.com"}, looksUp, 0, ""},
		{"dial, for a name", []string{"dial", "www.example.com"}, looksUp, 1, "interrupted before the connection"},
		{"run, for a name", []string{"run", "--host", "www.example.com", "--", "touch", started}, looksUp, 130, ""},
		{"dial, to connect", []string{"dial", f.server.String() + ":9998"}, connecting, 1, "interrupted before the connection"},
		{"dial, in a handshake", []string{"dial", at}, connecting, 1, "interrupted before the connection"},
		{"dial, for the peer to close", []string{"dial", "--plain", at}, connected, 0, ""},
		{"dial, for an answer", []string{"dial", "--plain", "--request", at}, connected, 0, ""},
		{"trace, for a reader of the records", []string{"trace", "--host", "192.0.2.1", "-o", pipe}, waits, 1, "nobody reads it"},
		{"run, for a reader of the records", []string{"run", "-o", pipe, "--", "touch", started}, waits, 130, "nobody reads it"},
		{"run, for a reader of the packets", []string{"run", "--pcap", pipe, "--", "touch", started}, waits, 130, "nobody reads it"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name == "dial, to connect" {
				f.silence(t)
			}
			promptly(t, test.name, func() time.Duration {
				argv := append([]string{f.bin}, test.argv...)
				if test.until == looksUp {
					argv = append(named, argv...)
				}
				for len(asked) > 0 {
					<-asked
				}
				p := start(t, f.Node("client").Do, nil, argv...)
				if test.until != looksUp {
					p.stderr.await(t, test.until)
				} else {
					eventually(t, "a question", func() bool { return len(asked) > 0 })
				}
				time.Sleep(50 * time.Millisecond) // until it really waits
				status, took := p.signal(t, syscall.SIGINT, false)
				if told := p.stderr.String(); status != test.status || !strings.Contains(told, test.told) {
					t.Errorf("status %d, %s", status, told)
				}
				return took
			})
			if _, err := os.Stat(started); err == nil {
				t.Error("the command was started")
			}
			nothingLeft(t, "in the end", f.bin, before)
		})
	}
}

// silence makes the first router forward nothing until the test ends.
func (f *field) silence(t *testing.T) {
	t.Helper()
	forward := func(ctx context.Context, value string) {
		if err := f.Node("r1").Sysctl(ctx, "net.ipv4.ip_forward", value); err != nil {
			t.Error(err)
		}
	}
	forward(t.Context(), "0")
	t.Cleanup(func() { forward(context.Background(), "1") })
}

// TestDemoInterrupted sends Ctrl-C to "demo" while it builds, traces and takes down
// its network.
func TestDemoInterrupted(t *testing.T) {
	bin := build(t)
	labtest.Exclusive(t)
	before := remains(t, bin)
	for _, at := range moments(6*time.Second, 5) {
		what := fmt.Sprintf("Ctrl-C after %v", at)
		promptly(t, what, func() time.Duration {
			p := start(t, here, nil, bin, "demo")
			time.Sleep(at)
			status, took := p.signal(t, syscall.SIGINT, false)
			// Before it listens to signals, a signal ends it as any program.
			whole := status == 0 && strings.Contains(p.stdout.String(), "arrived intact") // it was done by then
			if status != 1 && !whole && !(status < 0 && p.stderr.String() == "") || status == 1 && !strings.Contains(p.stderr.String(), "error: interrupted") {
				t.Errorf("%s: status %d\n%s", what, status, p.stderr.String())
			}
			nothingLeft(t, what, bin, before)
			if dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), fmt.Sprintf("service-traceroute-lab-%d-*", p.cmd.Process.Pid))); len(dirs) > 0 {
				t.Errorf("%s: left %q", what, dirs)
			}
			return took
		})
	}
}

// records reads whole records from a file and counts the traces with something in
// them. The file is missing when the end came before it was made.
func records(t *testing.T, file string) (found int) {
	t.Helper()
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 0 && b[len(b)-1] != '\n' {
		t.Errorf("the last record is cut: %q", b[max(0, len(b)-80):])
	}
	stats := false
	for line := range bytes.Lines(b) {
		ev, err := trace.Unmarshal(line)
		if err != nil {
			t.Errorf("%v: %s", err, line)
			continue
		}
		switch ev := ev.(type) {
		case *trace.Trace:
			if len(ev.Hops) > 0 {
				found++
			}
		case *trace.Stats:
			stats = true
		}
	}
	if len(b) > 0 && !stats {
		t.Error("the counters at the end are missing")
	}
	return found
}
