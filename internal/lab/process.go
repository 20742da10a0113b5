//go:build linux

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// forker starts processes from one OS thread that lives as long as the lab. The
// parent-death signal of a child (PR_SET_PDEATHSIG, prctl(2)) is sent when the
// thread that made it ends, not the process, and Go ends threads as it likes.
type forker struct {
	work chan func()
	done chan struct{}
}

// oneProcessor keeps the children on one processor.
func newForker(oneProcessor bool) *forker {
	f := &forker{work: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(f.done)
		runtime.LockOSThread()
		if oneProcessor {
			settle() // the thread ends with this goroutine
		} else {
			defer runtime.UnlockOSThread()
		}
		for work := range f.work {
			work()
		}
	}()
	return f
}

// settled counts the labs that have a processor of their own, so that the next one
// gets the next.
var settled atomic.Int64

// settle binds the calling thread, and whatever it will start, to one of the
// processors that it may use.
func settle() {
	var all, one unix.CPUSet
	if unix.SchedGetaffinity(0, &all) != nil || all.Count() < 2 {
		return
	}
	n := int(settled.Add(1)) % all.Count()
	for cpu := 0; n >= 0; cpu++ {
		if all.IsSet(cpu) {
			one.Zero()
			one.Set(cpu)
			n--
		}
	}
	_ = unix.SchedSetaffinity(0, &one) // the lab works without, too
}

func (f *forker) start(cmd *exec.Cmd) (err error) {
	started := make(chan struct{})
	f.work <- func() {
		err = cmd.Start()
		close(started)
	}
	<-started
	return err
}

func (f *forker) close() {
	close(f.work)
	<-f.done
}

// startNode starts the process of a node, in a new network namespace.
func startNode(l *Lab, name string) (*Node, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "control")
	defer theirs.Close()
	if err := unix.SetNonblock(pair[0], true); err != nil {
		unix.Close(pair[0])
		return nil, err
	}
	ours := os.NewFile(uintptr(pair[0]), "control")

	// The link to our own executable works also when its file was replaced.
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{argv0 + " " + name}
	cmd.Env = append(os.Environ(), envNode+"="+name, "GOMAXPROCS=2",
		// Of a binary built with -race, which by default waits a second at its end.
		"GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0")
	cmd.ExtraFiles = []*os.File{theirs} // becomes controlFD
	cmd.Stdout, cmd.Stderr = l.opts.Stderr, l.opts.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGTERM,
		// A terminal's ^C is for the controller, which then closes the lab.
		Setsid: true,
	}
	if err := l.forker.start(cmd); err != nil {
		ours.Close()
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("new network namespace: %w (needs CAP_SYS_ADMIN)", err)
		}
		return nil, err
	}
	n := &Node{lab: l, name: name, cmd: cmd, client: newClient(ours), exited: make(chan struct{})}
	go n.supervise()
	n.netns, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err == nil {
		err = l.registry.add(cmd.Process.Pid)
	}
	if err != nil {
		n.end()
		n.awaitEnd()
		return nil, err
	}
	return n, nil
}

// supervise hands the node's answers out and waits for its process.
func (n *Node) supervise() {
	defer close(n.exited)
	n.client.receive()
	err := errGone
	if status := n.cmd.Wait(); status != nil {
		err = fmt.Errorf("%w: %w", errGone, status)
	}
	n.client.fail(err)
}

// end asks the node's process to end, by closing its control socket.
func (n *Node) end() {
	n.running.Range(func(p, _ any) bool {
		p.(*process).kill()
		return true
	})
	n.client.control.Close()
}

// awaitEnd returns when the node's process is gone.
func (n *Node) awaitEnd() {
	select {
	case <-n.exited:
	case <-time.After(closeGrace):
		_ = n.cmd.Process.Kill()
		<-n.exited
	}
	n.programs.Wait()
	if n.netns != nil {
		n.netns.Close()
	}
}

// killNamespace kills every other process of this one's network namespace. A
// server that was started in a node may have started others (nginx's workers
// outlive their master), and a namespace lives as long as any of them.
func killNamespace() {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return
	}
	killInNamespace(own, os.Getpid(), os.Getppid())
}

// killInNamespace repeats until it finds nothing more, because a process can
// start another one while the list is read. The controller is excepted by its
// callers: a process shows in the namespace that its first thread is in just now.
func killInNamespace(netns string, except ...int) {
	for range 10 {
		found := false
		links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
		for _, link := range links {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(link))))
			if err != nil || slices.Contains(except, pid) {
				continue
			}
			if at, err := os.Readlink(link); err == nil && at == netns {
				found = syscall.Kill(pid, syscall.SIGKILL) == nil || found
			}
		}
		if !found {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// startTime returns when a process started, in clock ticks since boot: together
// with the pid it names one process, whatever becomes of the pid. It is field 22
// of /proc/pid/stat, see proc_pid_stat(5); field 2 may hold spaces and brackets.
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(fields))
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// group is a set of goroutines to be joined that is closed for new ones once
// somebody waits.
type group struct {
	mu     sync.Mutex
	wg     sync.WaitGroup
	closed bool
}

// Go runs f, or returns false when the group is closed.
func (g *group) Go(f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.wg.Go(f)
	return true
}

// Wait closes the group and waits for what runs in it.
func (g *group) Wait() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.wg.Wait()
}

// parallel runs functions side by side and collects their errors.
type parallel struct {
	wg  sync.WaitGroup
	mu  sync.Mutex
	err error
}

func (p *parallel) Go(f func() error) {
	p.wg.Go(func() {
		if err := f(); err != nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.err = errors.Join(p.err, err)
		}
	})
}

func (p *parallel) Wait() error {
	p.wg.Wait()
	return p.err
}
