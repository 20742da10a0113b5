package privilege

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab/nstest"
)

const childEnv = "SERVICE_TRACEROUTE_PRIVILEGE_CHILD"

// TestMain plays the child of the tests below, whose privileges are gone for good.
func TestMain(m *testing.M) {
	runtime.LockOSThread() // with cgo only this thread drops
	var err error
	switch os.Getenv(childEnv) {
	case "":
		runtime.UnlockOSThread()
		os.Exit(m.Run())
	case "drop":
		err = dropped()
	case "keep":
		err = kept()
	case "lower":
		err = lowered()
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("dropped as", os.Getuid(), os.Getgid())
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
	return onThreads(func() error {
		if _, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0); !errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("packet socket after the drop: %v", err)
		}
		return expect(0)
	})
}

// kept keeps one capability, which still works, and what it never had.
func kept() error {
	held, err := capabilities()
	if err != nil {
		return err
	}
	if err := Drop(NetRaw, 60); err != nil {
		return err
	}
	want := uint64(held[0].Permitted) & (1 << NetRaw)
	return onThreads(func() error {
		if want != 0 {
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
			if err != nil {
				return fmt.Errorf("with CAP_NET_RAW kept: %w", err)
			}
			unix.Close(fd)
		}
		return expect(want)
	})
}

// lowered gives up what raise brings back, and nothing but that.
func lowered() error {
	if err := NothingInherited(); err != nil {
		return err
	}
	before, err := capabilities()
	if err != nil {
		return err
	}
	raise, err := Lower([]Capability{DACOverride}, NetRaw)
	if err != nil {
		return err
	}
	held := uint64(before[0].Permitted)
	check := func(want uint64) func() error {
		return func() error {
			data, err := capabilities()
			if err != nil || uint64(data[0].Effective) != want&held || uint64(data[0].Permitted) != (1<<DACOverride|1<<NetRaw)&held ||
				data[0].Inheritable|data[1].Inheritable|data[1].Permitted != 0 {
				return fmt.Errorf("%+v, want %#x: %v", data, want&held, err)
			}
			return nil
		}
	}
	if err := onThreads(check(1 << NetRaw)); err != nil {
		return err
	}
	fmt.Print("lowered as ", os.Geteuid(), ", ")
	uid := os.Getuid()
	if err := raise(); err != nil {
		return err
	}
	if os.Getuid() != uid || held != 0 && os.Geteuid() != 0 {
		return fmt.Errorf("raised as %d %d", os.Getuid(), os.Geteuid())
	}
	return onThreads(check(1<<NetRaw | 1<<DACOverride))
}

func expect(want uint64) error {
	data, err := capabilities()
	if err != nil {
		return err
	}
	held, err := Held()
	if err != nil || held != want || uint64(data[0].Permitted) != want || data[1].Permitted != 0 ||
		data[0].Inheritable|data[1].Inheritable != 0 {
		return fmt.Errorf("held %#x, all %+v, want %#x; %v", held, data, want, err)
	}
	if set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || set != 1 {
		return fmt.Errorf("no new privileges: %d, %v", set, err)
	}
	return nil
}

// onThreads runs f on many threads, or on the one that dropped.
func onThreads(f func() error) error {
	if cgo {
		return f()
	}
	var wg sync.WaitGroup
	errs := make(chan error, 16)
	for range cap(errs) {
		wg.Go(func() {
			runtime.LockOSThread()
			if err := f(); err != nil {
				errs <- err
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

// child drops in a process of its own and returns what it says.
func child(t *testing.T, play string, env ...string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), "SUDO_UID=", "SUDO_GID=", childEnv+"="+play), env...)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "dropped") {
		t.Errorf("%v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestDrop(t *testing.T) {
	want := fmt.Sprint("dropped as ", os.Getuid(), " ", os.Getgid())
	for _, play := range []string{"drop", "keep"} {
		t.Run(play, func(t *testing.T) {
			if got := child(t, play); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

// Under sudo the user is the one who called it, in the initial user namespace.
func TestDropUnderSudo(t *testing.T) {
	want := fmt.Sprint("dropped as ", os.Getuid(), " ", os.Getgid())
	if os.Getuid() == 0 && initialUserNamespace() {
		want = "dropped as 12345 12346"
	}
	for _, play := range []string{"drop", "keep"} {
		t.Run(play, func(t *testing.T) {
			if got := child(t, play, "SUDO_UID=12345", "SUDO_GID=12346"); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

// In a user namespace sudo's user need not exist: root stays what it is.
func TestDropInUserNamespace(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=drop", "SUDO_UID=12345", "SUDO_GID=12346")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, os.ErrPermission) {
		nstest.Skip(t, "no user namespace: %v", err)
	}
	if err != nil || strings.TrimSpace(string(out)) != "dropped as 0 0" {
		t.Errorf("%v: %s", err, out)
	}
}

func TestHint(t *testing.T) {
	if Hint(errors.New("x"), "cap_net_raw") != "" {
		t.Error("a hint for any error")
	}
	if Hint(&os.PathError{Op: "open", Path: "x", Err: os.ErrPermission}, "cap_net_raw") != "" {
		t.Error("a hint for a file")
	}
	if h := Hint(fmt.Errorf("open: %w", os.ErrPermission), "cap_net_raw"); !strings.Contains(h, "0750") || !strings.Contains(h, "cap_net_raw") {
		t.Errorf("hint %q", h)
	}
}

// Under sudo it is the user who called, and root again in the end.
func TestLower(t *testing.T) {
	me := fmt.Sprint("lowered as ", os.Getuid(), ", dropped as ", os.Getuid(), " ", os.Getgid())
	if got := child(t, "lower"); got != me {
		t.Errorf("%q, want %q", got, me)
	}
	if os.Getuid() == 0 && initialUserNamespace() {
		me = "lowered as 12345, dropped as 12345 12346"
	}
	if got := child(t, "lower", "SUDO_UID=12345", "SUDO_GID=12346"); got != me {
		t.Errorf("%q, want %q", got, me)
	}
}
