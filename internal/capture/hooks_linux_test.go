package capture_test

import (
	"os"
	"testing"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/lab/nstest"
)

// TestTapOutsideFirstThread: what keeps a Tap's programs in a namespace is never the
// process's first thread. That does not end, so the namespace would live as long as the
// process, and the whole process would seem to be in it. Go runs goroutines on threads
// as it likes, therefore many times.
func TestTapOutsideFirstThread(t *testing.T) {
	if !mayLoad(t) {
		nstest.Skip(t, "needs CAP_BPF in the initial user namespace")
	}
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		ns := nstest.New(t)
		var tap *capture.Tap
		ns.Must(t, func() (err error) { tap, err = capture.OpenTap(capture.Config{}); return err })
		now, err := os.Readlink("/proc/self/ns/net")
		if err := tap.Close(); err != nil {
			t.Error(err)
		}
		_, _ = tap.ReadBatch()
		if err != nil || now != before {
			t.Fatalf("the process is in %s, not in %s any more: %v", now, before, err)
		}
	}
}
