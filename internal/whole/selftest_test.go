//go:build linux

package whole

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/selftest"
)

// TestSelftest runs the command as a user would: the record is in the file, what it means
// on standard error.
func TestSelftest(t *testing.T) {
	bin := build(t)
	labtest.Exclusive(t)
	before := remains(t, bin)
	file := filepath.Join(t.TempDir(), "record.json")
	p := start(t, here, nil, bin, "selftest", "--quick", "--pairs", "1", "-o", file)
	status := p.status(t)
	told := p.stderr.String()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := selftest.Read(f)
	if err != nil {
		t.Fatalf("%v\n%s", err, told)
	}
	want := map[selftest.Verdict]int{selftest.Harmless: 0, selftest.Harm: 1, selftest.NotTried: 3}[r.Verdict]
	if status != want || r.Verdict == selftest.Harm {
		t.Errorf("status %d, verdict %v: %v", status, r.Verdict, r.Reasons)
	}
	for _, words := range []string{"testing, for about 10s", "verdict: " + strings.ToUpper(r.Verdict.String()), "To send the record in: " + file} {
		if !strings.Contains(told, words) {
			t.Errorf("lacks %q:\n%s", words, told)
		}
	}
	if p.stdout.String() != "" {
		t.Errorf("standard output: %s", p.stdout.String())
	}
	nothingLeft(t, "at the end", bin, before)
}

// TestSelftestInterrupted: Ctrl-C ends it soon, and neither that nor a crash leaves
// anything of its network.
func TestSelftestInterrupted(t *testing.T) {
	bin := build(t)
	labtest.Exclusive(t)
	before := remains(t, bin)
	for _, at := range moments(5*time.Second, 4) {
		what := fmt.Sprintf("Ctrl-C after %v", at)
		promptly(t, what, func() time.Duration {
			p := start(t, here, nil, bin, "selftest", "--quick")
			time.Sleep(at)
			status, took := p.signal(t, syscall.SIGINT, false)
			// Before it listens to signals, a signal ends it as any program.
			if status != 1 && !(status < 0 && p.stderr.String() == "") || status == 1 && !strings.Contains(p.stderr.String(), "error: interrupted") {
				t.Errorf("%s: status %d\n%s", what, status, p.stderr.String())
			}
			if p.stdout.String() != "" {
				t.Errorf("%s: a record: %s", what, p.stdout.String())
			}
			nothingLeft(t, what, bin, before)
			return took
		})
	}
	p := start(t, here, nil, bin, "selftest", "--quick")
	time.Sleep(3 * time.Second)
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.over
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		left := remains(t, bin)
		if len(left) <= len(before) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("after a crash: left %q", left)
		}
	}
}
