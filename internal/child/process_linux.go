package child

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Command is what to start. User nil is this process's own, Group nil none.
type Command struct {
	Path  string // see Find
	Argv  []string
	User  *User
	Group *Group
}

// Process is a running command. It has this process's standard descriptors and
// every other one that was inherited, and belongs to the same job of the shell.
type Process struct{ pid int }

// Subreap makes this process the parent of descendants whose own parents end, so
// that they stay descendants (PR_SET_CHILD_SUBREAPER).
func Subreap() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("child: become a subreaper: %w", err)
	}
	return nil
}

// Start starts a command. Errors are *StartError.
func Start(c Command) (*Process, error) {
	attr := &syscall.ProcAttr{Env: c.User.environment(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{}}
	if c.User != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: c.User.UID, Gid: c.User.GID, Groups: c.User.Groups}
	}
	if c.Group != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(c.Group.file.Fd())
	}
	pid, _, err := syscall.StartProcess(c.Path, c.Argv, attr)
	if errors.Is(err, syscall.ENOEXEC) {
		// A script without "#!": as execvp(3) and every shell do.
		pid, _, err = syscall.StartProcess("/bin/sh", append([]string{"sh", c.Path}, c.Argv[1:]...), attr)
	}
	if _, there := os.Stat(c.Path); errors.Is(err, syscall.ENOENT) && there == nil {
		err = fmt.Errorf("the interpreter that it names is missing: %w", err)
	}
	if err != nil {
		return nil, notStarted(c.Argv[0], err)
	}
	return &Process{pid}, nil
}

// PID returns the process's number.
func (p *Process) PID() int { return p.pid }

// Signal sends a signal to the command.
func (p *Process) Signal(s os.Signal) error {
	sig, ok := s.(syscall.Signal)
	if !ok {
		return fmt.Errorf("child: %v is no signal", s)
	}
	return unix.Kill(p.pid, sig)
}

// Wait waits for the command's end and returns its exit status, 128+n if signal n
// ended it. Orphans that became this process's children are taken care of
// meanwhile. When the command stops, this process stops too, so that the shell
// sees the job stop.
func (p *Process) Wait() (int, error) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WUNTRACED, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, fmt.Errorf("child: wait for %d: %w", p.pid, err)
		case pid != p.pid:
		case ws.Exited():
			return ws.ExitStatus(), nil
		case ws.Signaled():
			return 128 + int(ws.Signal()), nil
		case ws.Stopped():
			p.suspend(ws.StopSignal())
		}
	}
}

// suspend stops this process, too, if the command was stopped by the terminal or
// by itself. A Ctrl-Z has stopped both already, and this is read after both go on
// again: hence the second look. The kernel ignores the signal where no shell could
// continue us (an orphaned process group).
func (p *Process) suspend(s syscall.Signal) {
	switch s {
	case unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU:
		if p.stopped() {
			_ = unix.Kill(os.Getpid(), unix.SIGTSTP)
		}
	}
}

// stopped reads field 3 of /proc/PID/stat; field 2 may hold anything.
func (p *Process) stopped() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	return err == nil && len(fields) > 0 && string(fields[0]) == "T"
}
