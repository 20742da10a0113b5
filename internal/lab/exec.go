//go:build linux

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Program is an external program to be run in a node.
type Program struct {
	Argv           []string // Argv[0] is looked up in PATH
	Env            []string // appended to this process's environment
	Dir            string   // empty: this process's
	Stdin          io.Reader
	Stdout, Stderr io.Writer // nil discards
}

// process is a program that runs in a node, leader of a process group.
type process struct{ pid int }

func (p *process) kill() { _ = syscall.Kill(-p.pid, syscall.SIGKILL) }

const (
	killDelay = 500 * time.Millisecond // how long a program may take to obey SIGTERM
	// streamDelay is how long the streams of a program that has ended may stay open.
	// Others hold them until they are what they will be: programs that this process
	// starts beside it, which on a busy machine takes more than half a second.
	streamDelay = 10 * time.Second
)

// Run runs a program in the node's network namespace until it ends. When ctx
// ends, its process group gets SIGTERM, soon after SIGKILL; it does not outlive
// the lab. The exit status is -1 when a signal ended it. A program that ran is
// not an error whatever its status, except that ctx's error is returned when
// that is what ended it.
func (n *Node) Run(ctx context.Context, p Program) (exit int, err error) {
	if len(p.Argv) == 0 {
		return -1, fmt.Errorf("lab: node %s: no program", n.name)
	}
	done := make(chan struct{})
	started := n.programs.Go(func() {
		defer close(done)
		// The whole life of the program in one call: its parent-death signal
		// hangs on the thread that started it.
		err = n.inside(func() error {
			var err error
			exit, err = n.run(ctx, p)
			return err
		})
	})
	if !started {
		return -1, fmt.Errorf("lab: node %s: %w", n.name, errGone)
	}
	<-done
	if err != nil {
		return exit, fmt.Errorf("lab: node %s: %w", n.name, err)
	}
	return exit, nil
}

func (n *Node) run(ctx context.Context, p Program) (int, error) {
	cmd := exec.CommandContext(ctx, p.Argv[0], p.Argv[1:]...)
	cmd.Env = append(os.Environ(), p.Env...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = p.Dir, p.Stdin, p.Stdout, p.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var killing *time.Timer
	cmd.Cancel = func() error {
		pid := cmd.Process.Pid
		killing = time.AfterFunc(killDelay, (&process{pid}).kill)
		return syscall.Kill(-pid, syscall.SIGTERM)
	}
	cmd.WaitDelay = streamDelay
	if err := cmd.Start(); err != nil {
		return -1, err
	}
	started := &process{cmd.Process.Pid}
	n.running.Store(started, nil)
	defer n.running.Delete(started)
	select {
	case <-n.lab.done: // Close may have looked before the process was listed
		started.kill()
	default:
	}
	err := cmd.Wait()
	if killing != nil { // Cancel is over when Wait returns
		killing.Stop()
	}
	if ctx.Err() != nil {
		started.kill() // whatever of the group ignored SIGTERM
		return cmd.ProcessState.ExitCode(), context.Cause(ctx)
	}
	var status *exec.ExitError
	if err != nil && !errors.As(err, &status) {
		return -1, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

// Exec runs a program to its end and returns what it printed. For the rest see
// Run, which also can stream the output.
func (n *Node) Exec(ctx context.Context, argv []string, env []string, stdin io.Reader) (stdout, stderr []byte, exit int, err error) {
	var out, errs bytes.Buffer
	exit, err = n.Run(ctx, Program{Argv: argv, Env: env, Stdin: stdin, Stdout: &out, Stderr: &errs})
	return out.Bytes(), errs.Bytes(), exit, err
}
