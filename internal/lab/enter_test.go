//go:build linux

package lab_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/nstest"
)

// nobody is a user without privileges.
const nobody = 65534

func init() {
	// enter says how it went and ends with status 5; with an argument it waits
	// for SIGTERM, and ends by SIGKILL.
	programs["enter"] = func() {
		if err := lab.Enter(); err != nil {
			fmt.Println(errors.Is(err, os.ErrPermission), err)
			os.Exit(6)
		}
		fmt.Println("entered", os.Args[1:], os.Getuid())
		if len(os.Args) < 2 {
			os.Exit(5)
		}
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		fmt.Println("ready")
		<-term
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	// forbid runs enter as nobody where no user namespace can be made.
	programs["forbid"] = func() {
		if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
			fmt.Println(err)
		}
		cmd := unprivileged(context.Background())
		cmd.Stdout = os.Stdout
		_ = cmd.Run()
	}
}

// unprivileged is this test binary as program "enter", run by nobody.
func unprivileged(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), envProgram+"=enter", "TMPDIR=/tmp")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody, NoSetGroups: true}}
	return cmd
}

// needRoot skips where the test cannot become nobody. The tests then run
// unprivileged already, so the labs of all the others prove the same.
func needRoot(t *testing.T) {
	t.Helper()
	if uids, _ := os.ReadFile("/proc/self/uid_map"); !strings.Contains(string(uids), "4294967295") || os.Getuid() != 0 {
		nstest.Skip(t, "needs root outside of any user namespace")
	}
}

// limited ends processes that a failing test would wait for.
func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestEnter(t *testing.T) {
	needRoot(t)
	out, err := unprivileged(limited(t)).Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 5 || string(out) != "entered [] 0\n" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestEnterPassesSignals(t *testing.T) {
	needRoot(t)
	cmd := unprivileged(limited(t), "wait")
	var out bytes.Buffer
	r, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for b := make([]byte, 64); !strings.Contains(out.String(), "ready"); {
		n, err := r.Read(b)
		if err != nil {
			t.Fatal(out.String(), err)
		}
		out.Write(b[:n])
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v", cmd.ProcessState)
	}
}

func TestEnterForbidden(t *testing.T) {
	needRoot(t)
	cmd := exec.CommandContext(limited(t), "/proc/self/exe")
	cmd.Env = append(os.Environ(), envProgram+"=forbid")
	ids := []syscall.SysProcIDMap{{Size: nobody + 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := string(out); !strings.HasPrefix(got, "true lab: neither") || !strings.Contains(got, "sysctl user.max_user_namespaces") {
		t.Errorf("got %q", got)
	}
}

// TestUnprivileged builds labs with everything in them as nobody.
func TestUnprivileged(t *testing.T) {
	needRoot(t)
	// Without limited: each of its six labs may have to wait for its turn, see
	// labtest.Exclusive.
	cmd := unprivileged(t.Context(), "-test.run=^(TestPath|TestFirewall|TestNAT|TestKilledController|TestImpairedLink|TestICMPKernelDefaults)$", "-test.v")
	cmd.Env = append(os.Environ(), "TMPDIR=/tmp", "SERVICE_TRACEROUTE_NO_SKIP=1")
	out, err := cmd.CombinedOutput()
	if err != nil || bytes.Count(out, []byte("\n--- PASS")) != 6 {
		t.Errorf("%v\n%s", err, out)
	}
}
