package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/output"
	"servicetraceroute/trace"
)

// quiet is a source at which nothing ever arrives.
type quiet struct {
	mu       sync.Mutex
	deadline time.Time
	closed   bool
	changed  chan struct{}
}

func newQuiet() *quiet { return &quiet{changed: make(chan struct{}, 1)} }

func (q *quiet) ReadBatch() ([]servicetraceroute.Packet, error) {
	for {
		q.mu.Lock()
		closed, deadline := q.closed, q.deadline
		q.mu.Unlock()
		if closed {
			return nil, net.ErrClosed
		}
		timer := time.NewTimer(time.Hour)
		if !deadline.IsZero() {
			timer.Reset(time.Until(deadline))
		}
		select {
		case <-q.changed:
			timer.Stop()
		case <-timer.C:
			return nil, os.ErrDeadlineExceeded
		}
	}
}

func (q *quiet) set(f func()) error {
	q.mu.Lock()
	f()
	q.mu.Unlock()
	select {
	case q.changed <- struct{}{}:
	default:
	}
	return nil
}

func (q *quiet) SetReadDeadline(t time.Time) error    { return q.set(func() { q.deadline = t }) }
func (q *quiet) Close() error                         { return q.set(func() { q.closed = true }) }
func (q *quiet) InterfaceName(int) string             { return "" }
func (q *quiet) Stats() servicetraceroute.SourceStats { return servicetraceroute.SourceStats{} }

// watchQuiet runs the watch of the trace command where nothing happens.
func watchQuiet(t *testing.T, ctx context.Context) (stdout, stderr string, err error) {
	t.Helper()
	tracer, err := servicetraceroute.New(servicetraceroute.Config{Source: newQuiet(), NoProbe: true})
	if err != nil {
		t.Fatal(err)
	}
	defer tracer.Close()
	var out, talk bytes.Buffer
	w, err := output.New("json", &out, output.Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = (&traceFlags{hosts: []string{"192.0.2.1"}}).watch(ctx, tracer, servicetraceroute.Selection{Hosts: []string{"192.0.2.1"}}, w, &talk)
	return out.String(), talk.String(), err
}

func TestTimeOverWithoutFlow(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	out, talk, err := watchQuiet(t, ctx)
	var f *failure
	if !errors.As(err, &f) || f.status != exitNoMatch {
		t.Errorf("the time is over and nothing matched: %v", err)
	}
	if talk != "watching for flows of 192.0.2.1; Ctrl-C stops\n" {
		t.Errorf("standard error: %q", talk)
	}
	var last struct{ Type string }
	if err := json.Unmarshal([]byte(out), &last); err != nil || last.Type != "stats" {
		t.Errorf("standard output is not one stats record: %q, %v", out, err)
	}
}

func TestCtrlCIsNoFailure(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var at time.Time
	time.AfterFunc(50*time.Millisecond, func() { at = time.Now(); cancel() })
	if _, _, err := watchQuiet(t, ctx); err != nil {
		t.Errorf("after Ctrl-C: %v", err)
	}
	if took := time.Since(at); took > time.Second {
		t.Errorf("it took %v to stop", took)
	}
}

func TestPrefixes(t *testing.T) {
	name := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(name, []byte("# none of these\n192.0.2.7/24 # a net\n\n2001:db8::1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got []netip.Prefix
	if err := prefixes("--exclude", []string{"198.51.100.1"}, []string{name}, &got); err != nil {
		t.Fatal(err)
	}
	want := []string{"198.51.100.1/32", "192.0.2.0/24", "2001:db8::1/128"}
	if len(got) != len(want) {
		t.Fatalf("%v", got)
	}
	for i, p := range got {
		if p.String() != want[i] {
			t.Errorf("%d: %v, want %s", i, p, want[i])
		}
	}
}

// puzzled is a watcher that sees one flow and cannot tell whose it is.
type puzzled struct{ watcher }

func (puzzled) Watch(_ context.Context, sel servicetraceroute.Selection) iter.Seq2[trace.Event, error] {
	return func(yield func(trace.Event, error) bool) {
		sel.Ready()
		yield(&trace.Flow{State: trace.FlowIgnored, Reason: trace.ReasonAmbiguous}, nil)
	}
}

// Flows that were left out because nothing tells whose they are get a hint of their own.
func TestHintOfAmbiguousFlows(t *testing.T) {
	var out bytes.Buffer
	w, err := output.New("text", &out, output.Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = (&traceFlags{}).watch(t.Context(), puzzled{}, servicetraceroute.Selection{}, w, io.Discard)
	var f *failure
	if !errors.As(err, &f) || f.status != exitNoMatch || !strings.Contains(f.hint, "named none: 1; -v shows them") {
		t.Errorf("%+v", err)
	}
}
