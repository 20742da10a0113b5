//go:build linux

package whole

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/trace"
)

// hup sends SIGHUP to a program, which goes on.
func (p *program) hup(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

// write replaces a file.
func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// SIGHUP reads the files again: what is right is in force, what is wrong changes nothing,
// and what cannot change now is said.
func (f *field) readsAgain(t *testing.T) {
	dir := t.TempDir()
	conf, mine, out := filepath.Join(dir, "conf.yaml"), filepath.Join(dir, "mine.yaml"), filepath.Join(dir, "out.ndjson")
	catalogue := "services:\n  - name: ours\n    prefixes: [%v]\n"
	write(t, conf, "service: ours\nlabel: old\nprobes: 2\n")
	write(t, mine, fmt.Sprintf(catalogue, "192.0.2.250"))
	p := start(t, f.Node("client").Do, nil, f.bin, "trace", "--config", conf, "--catalogue", mine, "--output", "json", "-o", out, "--max-ttl", "2")
	p.stderr.await(t, "watching for flows of service ours; ")
	f.download(t, 100*time.Millisecond)

	write(t, mine, fmt.Sprintf(catalogue, f.server))
	p.hup(t)
	p.stderr.await(t, "files read again; watching for flows of service ours\n")
	f.download(t, time.Second)

	write(t, conf, "service: ours\nlabel: new\nmax-ttl: 30\nmatch: dport == 444\nservices: {ours: {algorithm: concurrent, first-ttl: 2}}\n")
	p.hup(t)
	p.stderr.await(t, "watching for flows of service ours, dport == 444\nwarning: label: as before, until the next start\n")
	f.download(t, time.Second)

	write(t, conf, "hsot: 192.0.2.1\n")
	p.hup(t)
	p.stderr.await(t, "conf.yaml:1: unknown name \"hsot\"\nhint: did you mean host?\nwhat is traced stays as it was\n")
	write(t, conf, "match: process == \"curl\"\n")
	p.hup(t)
	p.stderr.await(t, "error: whose flows are is not known")
	f.download(t, time.Second)
	if status, _ := p.signal(t, syscall.SIGTERM, false); status != 0 {
		t.Errorf("status %d:\n%s", status, p.stderr.String())
	}

	var got []string
	for _, tr := range parsed(t, out) {
		got = append(got, fmt.Sprintf("%s %s %s %v %d", tr.Service.Name, tr.Service.By, tr.Label, tr.Algorithm, len(tr.Hops)))
	}
	want := []string{"ours prefix old adaptive 2", "ours prefix old concurrent 1", "ours prefix old concurrent 1"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q\n%s", got, want, p.stderr.String())
	}
}

// Without files SIGHUP ends the command, as it does others; with files it does when the
// terminal is gone.
func (f *field) hangsUp(t *testing.T) {
	p := start(t, f.Node("client").Do, nil, f.bin, "trace", "--host", f.server.String())
	p.stderr.await(t, "watching")
	if status, _ := p.signal(t, syscall.SIGHUP, false); status != -1 {
		t.Errorf("status %d", status)
	}

	conf, talk := filepath.Join(t.TempDir(), "conf.yaml"), filepath.Join(t.TempDir(), "talk")
	write(t, conf, "host: "+f.server.String()+"\n")
	w := newTerminal(t, f.Node("client").Do)
	w.press(t, fmt.Sprintf("%s trace --config %s 2>%s; exit\n", f.bin, conf, talk))
	eventually(t, "the watch", func() bool { return strings.Contains(readFile(talk), "watching") })
	if err := w.master.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end", func() bool { return len(threads(t, f.bin)) == 0 })
	if strings.Contains(readFile(talk), "again") {
		t.Error("read again without a terminal")
	}
}

// What an expression tells is traced: by port at once, by the name once that is heard, by
// the process when it is known.
func (f *field) matches(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out.ndjson")
	for expr, traced := range map[string]bool{
		`dport in 400..443 && cidr(dst, "` + f.server.String() + `")`: true,
		`dport == 443 && process == "nobody"`:                         false,
		`process != "nobody" && uid == 0 && direction == "out"`:       true,
		`domain(name, "example.com")`:                                 false,
		`domain(name, "*.video.example") && dport < 1000`:             true,
		`name == ""`: true, // asked for by its address
	} {
		get := peer.GetConfig{URL: fmt.Sprintf("https://%v/slow/400000?for=1s", f.server)}
		if strings.Contains(expr, "example") {
			get.ServerName = "www.video.example"
		}
		during := func() {
			if got, err := peer.Get(t.Context(), f.Node("client"), get); err != nil || len(got) != 1 || !got[0].Intact {
				t.Errorf("download: %+v, %v", got, err)
			}
		}
		r := f.run(t, during, f.bin, "trace", "--match", expr, "--duration", "2s", "--output", "json", "-o", out)
		got := parsed(t, out)
		want := 0
		if traced {
			want = 1
		}
		if len(got) != want || r.status != 3*(1-want) {
			t.Errorf("%s: %d traces, status %d\n%s", expr, len(got), r.status, r.stderr)
			continue
		}
		if traced && (*got[0].Service != trace.Service{Name: expr, By: trace.ByExpr, Value: expr} || len(got[0].Hops) < 2) {
			t.Errorf("%s: %v, service %+v", expr, got[0], got[0].Service)
		}
	}
}
