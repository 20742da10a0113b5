//go:build linux

package lab

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

const (
	// envNode names the node that a child process is to play.
	envNode = "SERVICE_TRACEROUTE_LAB_NODE"
	// argv0 is how nodes appear in a process list; a sweep for leftovers knows
	// them by it.
	argv0 = "service-traceroute-lab:"
	// controlFD is the node's end of the socket pair to its controller.
	controlFD = 3
)

// Main must be the first statement of main or TestMain of a program that opens
// labs. In a child process of a lab it plays the child's node and exits when the
// lab is closed or its controller is gone; in any other process it returns at
// once.
func Main() {
	name := os.Getenv(envNode)
	if name == "" {
		return
	}
	// What the node starts is not a node.
	os.Unsetenv(envNode)
	if err := play(name); err != nil {
		fmt.Fprintf(os.Stderr, "lab: node %s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// play serves the controller's calls until the control socket ends. The end of
// that socket is what cannot be missed: the kernel closes the controller's side
// however the controller dies.
func play(name string) error {
	// A lab has dozens of these processes, and each allocates little.
	debug.SetGCPercent(50)
	if err := inOwnNamespace(); err != nil {
		return err
	}
	// Named by itself the process would be "exe", after the link that was executed.
	if err := os.WriteFile("/proc/self/comm", []byte(name), 0); err != nil {
		return err
	}
	if err := syscall.SetNonblock(controlFD, true); err != nil {
		return err
	}
	syscall.CloseOnExec(controlFD)
	control := os.NewFile(controlFD, "control")
	life, end := context.WithCancel(context.Background())

	// The parent-death signal; SIGTERM instead of SIGKILL because a node has to
	// take what was started in its namespace along.
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		<-term
		control.Close()
	}()

	err := newServer(control, roles()).serve(life)
	end()
	killNamespace()
	return err
}

// inOwnNamespace makes sure that this process shares its network namespace with
// nobody it was not started for: at its end it kills all others there, which a
// stray environment variable must not make happen on the host.
func inOwnNamespace() error {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	parents, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", os.Getppid()))
	if err != nil {
		return err
	}
	if own == parents {
		return fmt.Errorf("%s is set, but this is not a lab's process", envNode)
	}
	return nil
}
