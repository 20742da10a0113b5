//go:build linux

package lab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// envEntered marks the process that Enter started, so that it does not start
// another one if it still lacks something.
const envEntered = "SERVICE_TRACEROUTE_LAB_ENTERED"

// Enter makes sure that this process may open labs. Where it lacks the
// capabilities it runs this program again, with the same arguments and files, as
// root of a new user namespace (user_namespaces(7)), passes signals on, and
// exits as that exits: Enter returns only in a process that may open labs, or
// with an error that matches os.ErrPermission and says what would help.
//
// It comes right after [Main]: what the program did before happens twice.
func Enter() error {
	if capable() {
		return nil
	}
	if os.Getenv(envEntered) != "" {
		return fmt.Errorf("lab: still no capabilities in a user namespace: %w", os.ErrPermission)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = os.Args
	cmd.Env = append(os.Environ(), envEntered+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	// For Pdeathsig, see forker.
	runtime.LockOSThread()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals)
	if err := cmd.Start(); err != nil {
		signal.Stop(signals)
		runtime.UnlockOSThread()
		return noUserNamespace(err)
	}
	go passOn(signals, cmd.Process)
	var status *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &status) {
		fmt.Fprintf(os.Stderr, "lab: %v\n", err)
		os.Exit(1)
	}
	exitLike(cmd.ProcessState.Sys().(syscall.WaitStatus))
	return nil
}

func noUserNamespace(err error) error {
	const hint = "run as root, or let users have user namespaces: " +
		"sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns"
	if !errors.Is(err, os.ErrPermission) {
		// ENOSPC is the answer to user.max_user_namespaces=0, EINVAL that of a
		// kernel without CONFIG_USER_NS (clone(2)).
		err = fmt.Errorf("%w (%w)", os.ErrPermission, err)
	}
	return fmt.Errorf("lab: neither CAP_SYS_ADMIN and CAP_NET_ADMIN nor a user namespace: %w; %s", err, hint)
}

// capable reports whether this process has what a lab needs, by its effective
// capabilities (proc_pid_status(5)).
func capable() bool {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return false
	}
	defer f.Close()
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if hex, ok := strings.CutPrefix(lines.Text(), "CapEff:"); ok {
			has, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return err == nil && has&need == need
		}
	}
	return false
}

// passOn hands signals to the process. Those that a terminal sends to all its
// foreground processes reach it by themselves.
func passOn(signals <-chan os.Signal, p *os.Process) {
	for s := range signals {
		switch s {
		case syscall.SIGCHLD, syscall.SIGURG, syscall.SIGPIPE:
			continue // SIGURG is how the Go runtime preempts goroutines
		case syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTSTP:
			if inForeground() {
				continue
			}
		}
		_ = p.Signal(s)
	}
}

// inForeground reports whether this process's group is its terminal's foreground.
func inForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// exitLike ends this process with the other's exit status, or by the same signal.
func exitLike(status syscall.WaitStatus) {
	if !status.Signaled() {
		os.Exit(status.ExitStatus())
	}
	signal.Reset()
	_ = syscall.Kill(os.Getpid(), status.Signal())
	time.Sleep(100 * time.Millisecond) // another thread may be the one to die of it
	// The shell's convention, for a signal that this process does not die of.
	os.Exit(128 + int(status.Signal()))
}
