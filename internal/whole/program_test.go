//go:build linux

package whole

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// longestEnd is how long the end may take after Ctrl-C.
	longestEnd = time.Second
	// patience is for what happens at once, on a machine that has other things to do.
	patience = 30 * time.Second
	// envMark is in the environment of every program and of whatever it starts.
	envMark = "SERVICE_TRACEROUTE_TEST_MARK"
)

// transcript is what a program has written so far.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (w *transcript) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(b)
}

// String returns all of it.
func (w *transcript) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// await waits for a word.
func (w *transcript) await(t testing.TB, word string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%q", word), func() bool { return strings.Contains(w.String(), word) })
}

// eventually waits until something is so.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited for %s in vain", what)
		}
	}
}

// promptly wants a try to take at most longestEnd. On a busy machine one may take
// longer, so there are three.
func promptly(t testing.TB, what string, try func() time.Duration) {
	t.Helper()
	var took time.Duration
	for range 3 {
		if took = try(); took <= longestEnd || t.Failed() {
			return
		}
		t.Logf("%s: the end came %v later", what, took)
	}
	t.Errorf("%s: three times the end came too late, at last after %v", what, took)
}

// program is a command while it runs, leader of a process group.
type program struct {
	cmd            *exec.Cmd
	stdout, stderr transcript
	over           chan struct{} // it has ended; then err is of waiting for that
	err            error
	ended          time.Time
}

// start starts a program, in the namespace that in runs functions in. setup may
// change how.
func start(t testing.TB, in func(func() error) error, setup func(*exec.Cmd), argv ...string) *program {
	t.Helper()
	p := &program{cmd: exec.Command(argv[0], argv[1:]...), over: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.Env = append(os.Environ(), envMark+"="+t.Name())
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.WaitDelay = patience // for what it left behind with its streams
	if setup != nil {
		setup(p.cmd)
	}
	if err := in(p.cmd.Start); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.over)
		p.err = p.cmd.Wait()
		p.ended = time.Now()
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.over
	})
	return p
}

// here is the namespace of this process, for start.
func here(f func() error) error { return f() }

// status waits for the end and returns the exit status, -1 when a signal ended it.
func (p *program) status(t testing.TB) int {
	t.Helper()
	select {
	case <-p.over:
	case <-time.After(2 * patience):
		t.Fatalf("no end: %s%s", p.stdout.String(), p.stderr.String())
	}
	var exit *exec.ExitError
	if p.err != nil && !errors.As(p.err, &exit) {
		t.Fatal(p.err)
	}
	return p.cmd.ProcessState.ExitCode()
}

// signal sends a signal, to the whole process group as a terminal does or to the
// program alone, and waits for the end: the exit status, and how long that took.
func (p *program) signal(t testing.TB, sig syscall.Signal, group bool) (status int, took time.Duration) {
	t.Helper()
	to := p.cmd.Process.Pid
	if group {
		to = -to
	}
	sent := time.Now()
	if err := syscall.Kill(to, sig); err != nil && err != syscall.ESRCH { // it may have ended just now
		t.Error(err)
	}
	status = p.status(t)
	return status, max(p.ended.Sub(sent), 0)
}

// remains lists what programs could leave behind: processes that run the command or
// were started by a program of this test, control groups and named namespaces.
func remains(t *testing.T, bin string) (all []string) {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	mark := []byte(envMark + "=" + t.Name() + "\x00")
	for _, dir := range processes {
		to, err := os.Readlink(dir + "/exe")
		if err != nil { // it has ended, or is the kernel's
			continue
		}
		if env, _ := os.ReadFile(dir + "/environ"); to == bin || bytes.Contains(env, mark) {
			all = append(all, dir)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/service-traceroute-*", "/sys/fs/cgroup/*/service-traceroute-*", "/run/netns/*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

// nothingLeft wants what is there to be what was there before. Groups and namespaces
// of others, whose tests run at the same time, go away by themselves.
func nothingLeft(t *testing.T, what, bin string, before []string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		left := slices.DeleteFunc(remains(t, bin), func(thing string) bool { return slices.Contains(before, thing) })
		ours := slices.ContainsFunc(left, func(thing string) bool { return strings.HasPrefix(thing, "/proc/") })
		if len(left) == 0 {
			return
		}
		if ours || time.Now().After(end) {
			t.Errorf("%s: left %q", what, left)
			return
		}
	}
}

// terminal is a pseudoterminal (pty(7)) with a shell that does job control.
type terminal struct {
	*program
	master *os.File
	shown  transcript
}

func newTerminal(t *testing.T, in func(func() error) error) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	raw, err := master.SyscallConn() // Fd would make reading block, and Close wait for that
	if err != nil {
		t.Fatal(err)
	}
	var n int
	control := raw.Control(func(fd uintptr) {
		if n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN); err == nil {
			err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		}
	})
	if err := errors.Join(control, err); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	w := &terminal{master: master}
	w.program = start(t, in, func(cmd *exec.Cmd) {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	}, "sh", "-i")
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			_, _ = w.shown.Write(b[:n])
			if err != nil { // EIO when nobody has the other side open
				return
			}
		}
	}()
	return w
}

// press presses keys.
func (w *terminal) press(t *testing.T, keys string) {
	t.Helper()
	if _, err := w.master.WriteString(keys); err != nil {
		t.Fatal(err)
	}
}

// number waits for a number that is shown as "NAME-7-".
func (w *terminal) number(t *testing.T, name string) (n int) {
	t.Helper()
	shown := regexp.MustCompile(name + `-(\d+)-`)
	eventually(t, name, func() bool {
		m := shown.FindStringSubmatch(w.shown.String())
		if m != nil {
			n, _ = strconv.Atoi(m[1])
		}
		return m != nil
	})
	return n
}
