package owner

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"servicetraceroute/trace"
)

// Watcher sees connections begin and finds out whose they are, in the network
// namespace of the thread that opened it.
//
// One goroutine does nothing but take SYNs and ask the kernel, since a socket may
// be gone a millisecond later; another one goes through /proc.
type Watcher struct {
	file *os.File // the packet socket, without a ring: that would deliver too late
	conn syscall.RawConn
	diag *diag
	nat  *translations // nil: nothing is translated
	wake func()

	proc    procs
	groups  groups
	wanted  atomic.Pointer[Want]
	owners  chan Owner
	pending chan pending
	quit    chan struct{}
	once    sync.Once
	closed  error
	work    sync.WaitGroup

	asked, found, unknown, dropped atomic.Uint64
}

// pending is a flow on its way from one goroutine to the other.
type pending struct {
	owner   Owner
	ifindex int
	answer  answer
	ask     bool // the kernel was not asked yet
}

// Open opens the sockets on the calling thread. wake is called, from any
// goroutine, whenever there is something in Owners. Errors match os.ErrPermission
// without CAP_NET_RAW.
func Open(wake func()) (*Watcher, error) {
	w := &Watcher{
		wake: wake, proc: "/proc", owners: make(chan Owner, maxPending), pending: make(chan pending, maxPending),
		quit: make(chan struct{}),
	}
	w.wanted.Store(&Want{})
	// Without control groups of version 2 there are only processes.
	w.groups.h, _ = FindHierarchy()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("owner: open packet socket: %w", err)
	}
	w.file = os.NewFile(uintptr(fd), "SYN socket")
	if err := w.setUp(fd); err != nil {
		return nil, errors.Join(fmt.Errorf("owner: %w", err), w.file.Close())
	}
	if w.conn, err = w.file.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("owner: %w", err), w.file.Close())
	}
	if w.diag, err = openDiag(); err != nil {
		return nil, errors.Join(fmt.Errorf("owner: open sock_diag: %w", err), w.file.Close())
	}
	if w.nat, err = openTranslations(); err != nil {
		return nil, errors.Join(err, w.file.Close(), w.diag.close())
	}
	w.work.Go(w.watch)
	w.work.Go(w.search)
	return w, nil
}

func (w *Watcher) setUp(fd int) error {
	raw, err := bpf.Assemble(synOnly())
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return fmt.Errorf("SO_TIMESTAMPNS: %w", err)
	}
	// In network byte order, unlike everything else here (packet(7)).
	all := uint16(unix.ETH_P_ALL)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8}); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}

// Owners delivers what was found. It is never closed.
func (w *Watcher) Owners() <-chan Owner { return w.owners }

// Want replaces what is looked for.
func (w *Watcher) Want(want Want) {
	w.groups.want(want.Cgroups)
	w.wanted.Store(&want)
}

// Ask looks for the owner of a flow whose beginning nobody saw.
func (w *Watcher) Ask(key trace.FlowKey, ifindex int) {
	w.hand(pending{owner: Owner{Key: key}, ifindex: ifindex, ask: true})
}

// Stats returns the counters since Open. It may be called from any goroutine.
func (w *Watcher) Stats() Stats {
	s := Stats{Asked: w.asked.Load(), Found: w.found.Load(), Unknown: w.unknown.Load(), Dropped: w.dropped.Load()}
	_ = w.control(func(fd int) error {
		// The kernel's count starts anew with every look.
		st, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err == nil {
			s.Dropped = w.dropped.Add(uint64(st.Drops))
		}
		return err
	})
	return s
}

func (w *Watcher) control(f func(fd int) error) (err error) {
	if w.conn.Control(func(fd uintptr) { err = f(int(fd)) }) != nil {
		return net.ErrClosed
	}
	return err
}

// Close ends both goroutines and returns when they have.
func (w *Watcher) Close() error {
	w.once.Do(func() {
		close(w.quit)
		w.closed = w.file.Close()
		w.work.Wait()
		w.closed = errors.Join(w.closed, w.diag.close(), w.nat.close())
	})
	return w.closed
}

// watch takes SYNs until Close.
func (w *Watcher) watch() {
	buf, oob := make([]byte, snapSYN), make([]byte, 128)
	for {
		var n, oobn int
		var from unix.Sockaddr
		var err error
		closed := w.conn.Read(func(fd uintptr) bool {
			n, oobn, _, from, err = unix.Recvmsg(int(fd), buf, oob, 0)
			return err != unix.EAGAIN && err != unix.EINTR
		})
		switch ll, ok := from.(*unix.SockaddrLinklayer); {
		case closed != nil:
			return
		case err == unix.ENETDOWN:
			continue // an interface went down
		case err != nil:
			select { // never seen; it must not become a busy loop
			case <-w.quit:
				return
			case <-time.After(10 * time.Millisecond):
			}
		case ok:
			if key, ok := synKey(buf[:n]); ok {
				w.began(key, ll.Ifindex, stamp(oob[:oobn]))
			}
		}
	}
}

// stamp reads the kernel's timestamp of a packet, or the clock.
func stamp(oob []byte) time.Time {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		if h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_TIMESTAMPNS {
			if ts, ok := timespec(data); ok {
				return ts
			}
		}
		oob = rest
	}
	return time.Now()
}

// began asks whose connection begins, at once.
func (w *Watcher) began(key trace.FlowKey, ifindex int, at time.Time) {
	if w.wanted.Load().none() {
		return
	}
	p := pending{owner: Owner{Key: key, At: at}, ifindex: ifindex}
	if w.inquire(&p) && w.belongs(&p, w.groups.lookup) {
		w.hand(p)
	}
}

// inquire asks the kernel; false when there is no such socket.
func (w *Watcher) inquire(p *pending) bool {
	w.asked.Add(1)
	a, err := w.diag.ask(p.owner.Key, p.ifindex, 0)
	if errors.Is(err, errGone) {
		if socket, ok := w.nat.inside(p.owner.Key); ok {
			p.owner.Socket = socket
			a, err = w.diag.ask(socket, p.ifindex, 0)
		}
	}
	if err != nil || a.inode == 0 && !a.hasCgroup {
		w.unknown.Add(1)
		return false
	}
	p.answer, p.ask, p.owner.UID = a, false, a.uid
	return true
}

// belongs tells a flow's control group as soon as it is known to be a wanted one,
// and reports whether the flow's process is to be looked for.
func (w *Watcher) belongs(p *pending, find func(id uint64) (path string, known bool)) bool {
	want := w.wanted.Load()
	known := len(want.Cgroups) == 0
	if !known && p.answer.hasCgroup {
		p.owner.Process.Cgroup, known = find(p.answer.cgroup)
		if p.owner.Process.Cgroup != "" {
			w.tell(p.owner)
			return true
		}
	}
	return !known || want.Everyone || want.Tree != 0 || len(want.PIDs) > 0
}

// hand passes a flow on to the search, which may have too many already.
func (w *Watcher) hand(p pending) {
	select {
	case w.pending <- p:
	default:
		w.dropped.Add(1)
	}
}

// tell delivers an owner. When nobody takes them, the newest is dropped.
func (w *Watcher) tell(o Owner) {
	select {
	case w.owners <- o:
		w.wake()
	default:
		w.dropped.Add(1)
	}
}
