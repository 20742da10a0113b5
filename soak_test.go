//go:build linux

package servicetraceroute_test

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute"
	"servicetraceroute/internal/simnet"
	"servicetraceroute/trace"
)

// residue is what a Tracer and its process hold at one moment.
type residue struct {
	traces, goroutines, descriptors int
	servicetraceroute.Held
	heap uint64
	at   time.Duration // real time since the start
}

func (r residue) String() string {
	return fmt.Sprintf("| %d | %d | %d | %d | %d | %d | %d | %d | %.2f MiB | %v |\n", r.traces, r.goroutines, r.descriptors, r.Probes,
		r.IDs, r.Runs, r.Buckets, r.Flows, float64(r.heap)/(1<<20), r.at.Round(time.Second))
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all) - 1 // the directory itself
}

// TestSoak traces one flow after another through one Tracer and looks, after a tenth
// of them and after all, at what stays behind.
func TestSoak(t *testing.T) {
	total := 2_000
	if full() {
		total = 100_000
	}
	goroutines, open := runtime.NumGoroutine(), descriptors(t)
	wall := realClock()
	var looks []residue
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, wires(way(1, 1), time.Millisecond), simnet.Options{}, servicetraceroute.Config{})
		n := 0
		look := func() {
			time.Sleep(15 * time.Minute) // beyond every lifetime: probes 3 s, flows 10 min
			synctest.Wait()
			s.forget()
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			looks = append(looks, residue{
				traces: n, goroutines: runtime.NumGoroutine(), descriptors: descriptors(t), Held: s.tracer.Held(), heap: m.HeapAlloc, at: wall(),
			})
		}
		for n < total {
			soakOne(t, s, n)
			if n++; n == total/10 || n == total {
				look()
			}
			if n%100 == 0 {
				s.forget()
			}
		}
	})
	text := "# A hundred thousand traces, one after another\n\nOne Tracer on the network in memory; looked at after a tenth of the traces and after all of them, " +
		"a quarter of an hour (virtual) after the last.\n\n" +
		"| traces | goroutines | descriptors | probes remembered | identifications | traces running | allowances | flows | heap after GC | real time |\n|---|---|---|---|---|---|---|---|---|---|\n"
	for _, l := range looks {
		text += l.String()
	}
	evidence(t, "soak", text)
	early, late := looks[0], looks[1]
	for _, l := range looks {
		if l.Probes+l.IDs+l.Runs+l.Flows+l.Waiting != 0 {
			t.Errorf("left behind: %+v", l)
		}
	}
	if late.goroutines > early.goroutines || late.descriptors > early.descriptors || late.Buckets > early.Buckets {
		t.Errorf("grew from %+v to %+v", early, late)
	}
	// Last remembers the newest traces of 4096 flows, of some KiB each.
	remembered := int64(min(late.traces, 4096)-min(early.traces, 4096)) * 3 << 10
	if grown := int64(late.heap) - int64(early.heap) - remembered; grown > 1<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	// The bubble's own goroutine, and what the collector has clean up, may take a moment to end.
	for end := wall() + 10*time.Second; runtime.NumGoroutine() > goroutines && wall() < end; {
		time.Sleep(10 * time.Millisecond)
	}
	if g, d := runtime.NumGoroutine(), descriptors(t); g > goroutines || d > open {
		stacks := make([]byte, 1<<16)
		t.Errorf("%d goroutines and %d descriptors before, %d and %d after:\n%s", goroutines, open, g, d, stacks[:runtime.Stack(stacks, true)])
	}
}

// soakOne traces one new flow to its end.
func soakOne(t *testing.T, s *sim, n int) {
	w := chatty(n%2 == 1)
	w.Duration = 2 * time.Second
	stop := s.watch(servicetraceroute.Selection{})
	f := s.start(w)
	<-f.Done()
	all := stop()
	if len(all.traces) != 1 {
		t.Fatalf("trace %d: %d records", n, len(all.traces))
	}
	if tr := all.traces[0]; tr.Stop != trace.StopDestination || !tr.Complete || tr.Destination.TTL != 4 {
		t.Fatalf("trace %d: %v", n, describe(tr))
	}
	if !f.Result().Intact {
		t.Fatalf("flow %d: %+v", n, f.Result())
	}
}

// realClock tells real time, also in a bubble.
func realClock() func() time.Duration {
	now := func() time.Duration {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			panic("soak: " + err.Error())
		}
		return time.Duration(ts.Nano())
	}
	start := now()
	return func() time.Duration { return now() - start }
}
