//go:build linux

// Package labtest lets tests open labs: it takes care of privileges, of skipping
// where there are none, of cleaning up, and of not running two packages' labs
// side by side.
package labtest

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/scenario"
)

// EnvNoSkip, when 1, makes Require fail where it would skip: a run of the tests
// that was meant to include the labs then cannot pass without them. One with -short
// is not meant to.
const EnvNoSkip = "SERVICE_TRACEROUTE_NO_SKIP"

// errUnable is why this process cannot open labs, nil when it can.
var errUnable = errors.New("labtest.Main was not called from TestMain")

// Main is a TestMain for packages whose tests open labs:
//
//	func TestMain(m *testing.M) { labtest.Main(m) }
//
// It gets the privileges for labs, if need be from a user namespace of its own. Parallel
// tests of labs wait more than they compute: four run at once if -parallel says nothing else.
func Main(m *testing.M) {
	lab.Main()
	errUnable = lab.Enter()
	if err := flag.Set("test.parallel", "4"); err != nil { // before flags are parsed, which m.Run does
		panic(err)
	}
	os.Exit(m.Run())
}

// Require skips the test, and says why, when labs cannot be opened here, and in a
// short run.
func Require(tb testing.TB) {
	tb.Helper()
	switch {
	case testing.Short():
		tb.Skip("needs a lab: not in a short run")
	case errUnable == nil:
	case os.Getenv(EnvNoSkip) == "1":
		tb.Fatalf("needs a lab: %v", errUnable)
	default:
		tb.Skipf("needs a lab: %v", errUnable)
	}
}

// Start opens a lab for the duration of the test, with Exclusive.
func Start(tb testing.TB, n scenario.Network) *lab.Lab {
	tb.Helper()
	return StartWith(tb, n, lab.Options{})
}

// StartWith is Start with options.
func StartWith(tb testing.TB, n scenario.Network, opts lab.Options) *lab.Lab {
	tb.Helper()
	Require(tb)
	Exclusive(tb)
	l, err := lab.Start(tb.Context(), n, opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := l.Close(); err != nil {
			tb.Error(err)
		}
	})
	return l
}

// turn is this process's hold on the lock that all test processes share.
var turn struct {
	sync.Mutex
	holders int
	file    *os.File
}

// Exclusive waits until no other process runs tests with labs and keeps it so
// until the test ends. "go test ./..." runs packages side by side, and on a busy
// machine timers fire late enough to look like packet loss. Tests of one process
// share their turn. A test that cannot have a lab is skipped before it waits.
func Exclusive(tb testing.TB) {
	tb.Helper()
	Require(tb)
	turn.Lock()
	defer turn.Unlock()
	if turn.holders == 0 {
		f, err := lock(filepath.Join(os.TempDir(), "service-traceroute-lab.lock"))
		if err != nil {
			tb.Fatalf("exclusive: %v", err)
		}
		turn.file = f
	}
	turn.holders++
	tb.Cleanup(func() {
		turn.Lock()
		defer turn.Unlock()
		if turn.holders--; turn.holders == 0 {
			turn.file.Close() // which unlocks
		}
	})
}

// lock opens and locks a file, which is made if need be. It is opened without
// O_CREAT first: where fs.protected_regular is set (sysctl(8), fs), nobody, root
// included, may open another user's file in /tmp with it. flock(2) does not need
// write access.
func lock(name string) (*os.File, error) {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		f, err = os.OpenFile(name, os.O_RDONLY|os.O_CREATE, 0o644)
	}
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
