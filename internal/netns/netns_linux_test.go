package netns_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/internal/netns"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// What is opened inside belongs there, and the threads of this process do not.
func TestDo(t *testing.T) {
	ns := nstest.New(t)
	where := fmt.Sprintf("/proc/self/fd/%d", ns.FD())
	before, err := netns.Own()
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	for range 50 {
		work.Go(func() {
			err := netns.Do(where, func() error {
				list, err := net.Interfaces()
				if len(list) != 1 {
					err = fmt.Errorf("%v, not only lo", list)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	inside, err := netns.Open(where)
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	leader := fmt.Sprintf("/proc/self/task/%d/ns/net", os.Getpid())
	for _, thread := range threads {
		var st unix.Stat_t
		if unix.Stat(thread, &st) == nil && st.Ino != before.Inode && thread == leader {
			t.Errorf("the first thread stays in %d", st.Ino)
		}
	}
	if inside.ID == before {
		t.Error("the namespace is our own")
	}
}

// What ends its goroutine on a thread of its own ends the caller's, as a test that fails there does.
func TestThreadEnded(t *testing.T) {
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = netns.Thread(func() error { runtime.Goexit(); return nil })
		t.Error("it went on")
	}()
	<-over
}

func TestOpenErrors(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for where, want := range map[string]error{
		"no-such-name": netns.ErrNone, "/nonexistent": netns.ErrNone, "../../etc/passwd": nil, fifo: nil, "/proc/self/ns/uts": nil, "/": nil,
	} {
		n, err := netns.Open(where)
		if err == nil {
			n.Close()
			t.Errorf("%s: opened", where)
		}
		if want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v", where, err)
		}
	}
}

// A namespace with a process is listed once, whatever the number of processes; one
// that only a descriptor keeps is not.
func TestList(t *testing.T) {
	lived, empty := nstest.New(t), nstest.New(t)
	for range 3 {
		cmd := exec.Command("sleep", "60")
		lived.Must(t, cmd.Start)
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	}
	count := func(n *nstest.NS, limit int) (found, all, more int) {
		var st unix.Stat_t
		if err := unix.Fstat(n.FD(), &st); err != nil {
			t.Fatal(err)
		}
		list, more := netns.List(limit)
		for _, ns := range list {
			if ns.ID.Inode == st.Ino {
				found++
			}
			ns.Close()
		}
		return found, len(list), more
	}
	if found, _, more := count(lived, 1000); found != 1 || more != 0 {
		t.Errorf("listed %d times, %d beyond the limit", found, more)
	}
	if found, _, _ := count(empty, 1000); found != 0 {
		t.Error("one without a process is listed")
	}
	if _, all, more := count(lived, 1); all != 1 || more == 0 {
		t.Errorf("%d listed with a limit of 1, %d beyond", all, more)
	}
}
