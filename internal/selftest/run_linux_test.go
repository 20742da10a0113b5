package selftest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"servicetraceroute/internal/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// TestRun: the real Tracer is harmless on this machine, its paths are those of the
// network, and nothing is left behind.
func TestRun(t *testing.T) {
	labtest.Require(t)
	labtest.Exclusive(t)
	told := 0
	r, err := Run(t.Context(), Config{
		Quick: true, Version: "test", Progress: func(done, total int, what string) { told++ },
		plan: append(plan(1, 0), Pair{Family: "ipv6", Proto: "udp", Traffic: datagrams}),
	})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", b.String())
	private(t, b.Bytes(), namesHere()...)
	if err := validate(t, schema(t), b.String()); err != nil {
		t.Error(err)
	}
	if r.Verdict != Harmless && !busy(r) {
		t.Errorf("%v: %v", r.Verdict, r.Reasons)
	}
	if p := r.Paths; p.Hops < 6 || p.False+p.WrongDistance > 0 {
		t.Errorf("paths: %+v", p)
	}
	if told < 5 {
		t.Errorf("progress was told %d times", told)
	}
}

// busy reports whether a pair was never calm: then this machine tells nothing.
func busy(r *Record) bool {
	return r.Verdict == NotTried && strings.Contains(strings.Join(r.NotTried, "\n"), "too busy")
}

// TestRunInterrupted: whoever stops it has nothing left.
func TestRunInterrupted(t *testing.T) {
	labtest.Require(t)
	labtest.Exclusive(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	began := 0
	_, err := Run(ctx, Config{Quick: true, Progress: func(int, int, string) {
		if began++; began == 3 {
			time.AfterFunc(300*time.Millisecond, cancel)
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	list, err := os.ReadDir(os.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		if strings.HasPrefix(f.Name(), "service-traceroute-lab-"+strconv.Itoa(os.Getpid())+"-") {
			t.Errorf("%s is left", f.Name())
		}
	}
}
