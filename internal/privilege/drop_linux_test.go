package privilege

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

const childEnv = "SERVICE_TRACEROUTE_PRIVILEGE_CHILD"

// TestMain plays the child of TestDrop, whose privileges are gone for good.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	if err := dropped(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("dropped")
}

// dropped drops and then tries, on many threads, what is no longer allowed.
func dropped() error {
	before, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	opened := err == nil
	if err := Drop(); err != nil {
		return err
	}
	if opened {
		if _, err := unix.GetsockoptInt(before, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
			return fmt.Errorf("the socket from before: %w", err)
		}
	}
	var wg sync.WaitGroup
	errs := make(chan error, 64) // room for all that can go wrong
	for range 16 {
		wg.Go(func() {
			runtime.LockOSThread()
			held, err := Held()
			if err != nil || held != 0 {
				errs <- fmt.Errorf("held %#x, %v", held, err)
			}
			if _, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0); !errors.Is(err, os.ErrPermission) {
				errs <- fmt.Errorf("packet socket after the drop: %v", err)
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

func TestDrop(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil && strings.Contains(string(out), "held") && cgo {
		t.Log("with cgo only the calling thread drops: ", string(out))
		return
	}
	if err != nil || !strings.Contains(string(out), "dropped") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestHint(t *testing.T) {
	if Hint(errors.New("x")) != "" {
		t.Error("a hint for any error")
	}
	if h := Hint(fmt.Errorf("open: %w", os.ErrPermission)); !strings.Contains(h, "0750") || !strings.Contains(h, "cap_net_raw") {
		t.Errorf("hint %q", h)
	}
}
