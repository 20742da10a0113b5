package ladder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/errqueue"
	"servicetraceroute/trace"
)

// Ladder holds the local address and port from which all attempts are made. It is for one
// goroutine, which must Close it.
type Ladder struct {
	src, dst netip.AddrPort
	holder   int // a socket that is only bound: as long as it is there nobody else gets the port
	wake     int // an eventfd, readable when the waiting is over
}

// Open finds the local address from which dst is reached, and takes a port there. An
// error that nothing leads there is the kernel's (syscall.ENETUNREACH).
func Open(dst netip.AddrPort) (*Ladder, error) {
	l := &Ladder{dst: dst, holder: -1, wake: -1}
	err := l.open()
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("ladder: %w", err)
	}
	return l, nil
}

func (l *Ladder) open() (err error) {
	src, err := l.source()
	if err != nil {
		return fmt.Errorf("%v: %w", l.dst, err)
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	if l.holder, err = l.bound(netip.AddrPortFrom(src, 0)); err != nil {
		return err
	}
	l.src, err = local(l.holder)
	l.src = netip.AddrPortFrom(src, l.src.Port()) // with its zone
	return err
}

// Local is where all attempts come from.
func (l *Ladder) Local() netip.AddrPort { return l.src }

// Close gives the port back, unless a connection has it.
func (l *Ladder) Close() {
	for _, fd := range []int{l.holder, l.wake} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// source asks the kernel's routes: connecting a UDP socket sends nothing.
func (l *Ladder) source() (netip.Addr, error) {
	fd, err := unix.Socket(l.family(), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return netip.Addr{}, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(l.dst)); err != nil {
		return netip.Addr{}, err
	}
	src, err := local(fd)
	return src.Addr().WithZone(l.dst.Addr().Zone()), err
}

func (l *Ladder) family() int {
	if l.dst.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// bound is a socket with that local address. All are bound with SO_REUSEADDR, beside each
// other: none of them listens (socket(7)).
func (l *Ladder) bound(src netip.AddrPort) (fd int, err error) {
	fd, err = unix.Socket(l.family(), unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, sockaddr(src))
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind to %v: %w", src, err)
	}
	return fd, nil
}

// Connect makes one attempt with that TTL, and returns what answered; 0 is the system's TTL, with
// which nothing but the destination counts. The connection is there when the destination
// accepted it; it has the system's TTL. An error is local, ctx's, or with TTL 0 the kernel's.
func (l *Ladder) Connect(ctx context.Context, ttl int, wait time.Duration) (a Answer, conn *net.TCPConn, err error) {
	fd, err := l.bound(l.src)
	if err != nil {
		return a, nil, fmt.Errorf("ladder: %w", err)
	}
	defer func() {
		if fd >= 0 {
			unix.Close(fd) // which sends nothing in SYN-SENT
		}
	}()
	if err := l.options(ttl).set(fd); err != nil {
		return a, nil, fmt.Errorf("ladder: TTL %d: %w", ttl, err)
	}
	sent := time.Now()
	if err := unix.Connect(fd, sockaddr(l.dst)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return a, nil, l.failed(err)
	}
	a, connected, err := l.await(ctx, fd, ttl, sent, wait)
	if err != nil || !connected {
		return a, nil, err
	}
	if err := l.options(0).set(fd); err != nil {
		return a, nil, fmt.Errorf("ladder: TTL of the connection: %w", err)
	}
	file := os.NewFile(uintptr(fd), "")
	fd = -1
	defer file.Close()
	c, err := net.FileConn(file) // a copy
	if err != nil {
		return a, nil, fmt.Errorf("ladder: %w", err)
	}
	return a, c.(*net.TCPConn), nil
}

// await waits for what becomes of an attempt.
func (l *Ladder) await(ctx context.Context, fd, ttl int, sent time.Time, wait time.Duration) (a Answer, connected bool, err error) {
	defer l.wakenBy(ctx)()
	for {
		left := wait - time.Since(sent)
		if ctx.Err() != nil {
			return a, false, ctx.Err()
		}
		if left <= 0 {
			return l.late(fd, ttl, sent)
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}, {Fd: int32(l.wake), Events: unix.POLLIN}}
		timeout := unix.NsecToTimespec(left.Nanoseconds())
		if _, err := unix.Ppoll(fds, &timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return a, false, fmt.Errorf("ladder: poll: %w", err)
		}
		if fds[0].Revents == 0 {
			continue
		}
		a, connected, over, err := l.outcome(fd, ttl, sent)
		if over || err != nil {
			return a, connected, err
		}
	}
}

// late looks a last time, when the waiting is over: a connection that stands by then, as it may
// where this thread stood still, is not given up. Its addresses and ports would be taken.
func (l *Ladder) late(fd, ttl int, sent time.Time) (a Answer, connected bool, err error) {
	a, connected, over, err := l.outcome(fd, ttl, sent)
	if over || err != nil || ttl != 0 {
		return a, connected, err
	}
	return a, false, l.failed(unix.ETIMEDOUT)
}

// wakenBy ends the waiting when ctx ends, until the returned function is called.
func (l *Ladder) wakenBy(ctx context.Context) (enough func()) {
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 1}) // not 0 in either byte order
	})
	return func() {
		if !stop() {
			<-woken // or it might write to whatever has that number next
		}
	}
}

// outcome looks at a socket that has something to say.
func (l *Ladder) outcome(fd, ttl int, sent time.Time) (a Answer, connected, over bool, err error) {
	took := time.Since(sent)
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return a, false, false, fmt.Errorf("ladder: TCP_INFO: %w", err)
	}
	if info.State == unix.BPF_TCP_ESTABLISHED || info.State == unix.BPF_TCP_CLOSE_WAIT {
		a.Kind, a.Addr, a.RTT = trace.TCPAck, l.dst.Addr().WithZone(""), took
		if rtt := time.Duration(info.Rtt) * time.Microsecond; rtt > 0 && rtt < took {
			a.RTT = rtt // the kernel's sample of the handshake
		}
		return a, true, true, nil
	}
	// The kernel puts an ICMP error there for a socket in SYN-SENT (45af29ca761c, Linux 5.8) if
	// the quoted sequence number is its SYN's.
	var quoted [512]byte
	if e, _, ok := errqueue.Read(fd, quoted[:]); ok && ttl != 0 {
		if e.From == l.src.Addr().WithZone("") {
			return a, false, true, nil // this host's own word (no neighbour answers, say): nobody on the path said anything
		}
		a.Kind, a.Addr, a.ReplyTTL, a.RTT = kinds[e.Kind], e.From, e.TTL, took
		if rtt := e.At.Sub(sent); !e.At.IsZero() && rtt > 0 && rtt < took {
			a.RTT = rtt // both of the wall clock, which may have been set meanwhile
		}
		return a, false, true, nil
	}
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	switch why := unix.Errno(errno); {
	case err != nil:
		return a, false, false, fmt.Errorf("ladder: SO_ERROR: %w", err)
	case why == 0:
		return a, false, false, nil
	case ttl == 0:
		return a, false, true, l.failed(why)
	case why == unix.ECONNREFUSED, why == unix.ECONNRESET: // the latter right after it accepted
		a.Kind, a.Addr, a.RTT = trace.TCPRst, l.dst.Addr().WithZone(""), took
	}
	return a, false, true, nil // else an error that nobody is named for: as silence
}

// failed is an error as package net has it.
func (l *Ladder) failed(why error) error {
	return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(l.dst), Err: os.NewSyscallError("connect", why)}
}

// option is one of setsockopt(2).
type option struct{ level, name, value int }

type options []option

func (all options) set(fd int) error {
	for _, o := range all {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("option %d of level %d: %w", o.name, o.level, err)
		}
	}
	return nil
}

// options are those of an attempt; with TTL 0 what they are without (-1 is the system's).
// Automatic flow labels stay off in both: they differ from socket to socket, and routers
// balance by them (RFC 6438).
func (l *Ladder) options(ttl int) options {
	on := 1
	if ttl == 0 {
		ttl, on = -1, 0
	}
	stamps := option{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, on}
	if l.dst.Addr().Is4() {
		return options{
			{unix.IPPROTO_IP, unix.IP_TTL, ttl}, {unix.IPPROTO_IP, unix.IP_RECVERR, on}, {unix.IPPROTO_IP, unix.IP_RECVTTL, on}, stamps,
		}
	}
	return options{
		{unix.IPPROTO_IPV6, unix.IPV6_AUTOFLOWLABEL, 0}, {unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, ttl},
		{unix.IPPROTO_IPV6, unix.IPV6_RECVERR, on}, {unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, on}, stamps,
	}
}

// local is a socket's own address.
func local(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), err
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)), err
	}
	return netip.AddrPort{}, fmt.Errorf("getsockname: %w", errors.Join(err, errors.ErrUnsupported))
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: zone(a.Addr().Zone())}
}

// zone is the number of an interface, by name or as it is.
func zone(name string) uint32 {
	if name == "" {
		return 0
	}
	if ifi, err := net.InterfaceByName(name); err == nil {
		return uint32(ifi.Index)
	}
	n, _ := strconv.ParseUint(name, 10, 32) // 0: connecting will say that it is none
	return uint32(n)
}
