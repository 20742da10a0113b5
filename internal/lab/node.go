//go:build linux

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab/node"
)

// Node is a host or router of a running lab. Its methods may be called from any
// goroutine.
type Node struct {
	lab          *Lab
	name         string
	addr4, addr6 netip.Addr
	cmd          *exec.Cmd
	netns        *os.File
	client       *client
	exited       chan struct{} // closed when the process is gone

	running  sync.Map // the *process of each program that Exec started
	programs group
}

var _ node.Caller = (*Node)(nil)

// Name returns the node's name in the description.
func (n *Node) Name() string { return n.name }

// Pid returns the node's process. Its /proc/PID/ns/net is the node's namespace.
func (n *Node) Pid() int { return n.cmd.Process.Pid }

// Addr returns the address at which the node is reached over IPv4 (or IPv6).
func (n *Node) Addr(ipv6 bool) netip.Addr {
	if ipv6 {
		return n.addr6
	}
	return n.addr4
}

// Call implements node.Caller. When ctx ends first it returns ctx's error at
// once; the role's own context ends then too. A failure of the role is a
// *RoleError.
func (n *Node) Call(ctx context.Context, role string, arg, result any) error {
	if err := n.client.call(ctx, role, arg, result); err != nil {
		return fmt.Errorf("node %s: %s: %w", n.name, role, err)
	}
	return nil
}

// Sysctl sets a kernel parameter of the node, by its name with dots
// ("net.ipv4.tcp_sack").
func (n *Node) Sysctl(ctx context.Context, name, value string) error {
	return n.Call(ctx, "lab/sysctl", sysctlArg{Name: name, Value: &value}, nil)
}

// ReadSysctl returns a kernel parameter of the node.
func (n *Node) ReadSysctl(ctx context.Context, name string) (string, error) {
	var value string
	err := n.Call(ctx, "lab/sysctl", sysctlArg{Name: name}, &value)
	return value, err
}

// Do runs f on a thread of this process that is in the node's network namespace:
// a socket that f opens belongs to the node and does so for ever. What f starts
// on other goroutines is not in the namespace, and net.Dial does that when it
// has to resolve a name or to try several addresses. When f ends its goroutine
// (runtime.Goexit, as testing.T.FailNow does), Do ends the caller's.
func (n *Node) Do(f func() error) error {
	var err error
	returned := false
	done := make(chan struct{})
	enter := func() {
		defer close(done)
		err = n.inside(f)
		returned = true
	}
	go func() {
		// Not on the process's first thread: the whole process would seem to be in the
		// node's namespace, and be killed with what is there when the node ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if unix.Gettid() != unix.Getpid() {
			enter()
			return
		}
		go enter() // on another one, since this one is held
		<-done
	}()
	<-done
	if !returned {
		runtime.Goexit()
	}
	return err
}

// inside moves the calling goroutine's thread to the node and back. The
// goroutine must end afterwards: where the thread could not be moved back it is
// left locked, and Go ends a thread whose goroutine ended locked to it.
func (n *Node) inside(f func() error) (err error) {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("lab: node %s: %w", n.name, err)
	}
	defer home.Close()
	if err := unix.Setns(int(n.netns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("lab: node %s: setns: %w", n.name, err)
	}
	defer func() {
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}
