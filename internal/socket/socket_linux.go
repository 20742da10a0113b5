package socket

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/errqueue"
	"servicetraceroute/internal/route"
	"servicetraceroute/trace"
)

const (
	maxUnread = 256         // datagrams that the application has not read; then the kernel keeps them
	sendWait  = time.Second // for room in the socket's send buffer
)

// Socket is a connected UDP socket that hears of ICMP errors. The application's side of it are
// the methods of net.PacketConn and net.Conn, the tracer's side are Source and Sink. All
// may be called from any goroutine. Close ends it.
type Socket struct {
	fd       int
	wake     int // an eventfd, readable when the socket is to be closed
	flow     flow
	name     string // of the interface
	addr     *net.UDPAddr
	peer     *net.UDPAddr
	data     chan []byte // what the peer sent
	queue    *queue
	reading  deadline     // of the application
	sending  sync.RWMutex // held for writing where the socket's options are another's for a while
	probeLen atomic.Int64 // of the payload of probes
	standing atomic.Bool
	refused  chan error // capacity 1: what ICMP said before the connection stood
	closing  chan struct{}
	once     sync.Once
	pumped   chan struct{} // the reading goroutine has ended
	err      error         // of closing, valid after pumped
}

// Open connects a socket to dst. An error that nothing leads there is the kernel's
// (syscall.ENETUNREACH).
func Open(dst netip.AddrPort) (*Socket, error) {
	s := &Socket{
		fd: -1, wake: -1, peer: net.UDPAddrFromAddrPort(dst), data: make(chan []byte, maxUnread), queue: newQueue(),
		refused: make(chan error, 1), closing: make(chan struct{}), pumped: make(chan struct{}),
	}
	if err := s.open(dst); err != nil {
		_ = s.release()
		return nil, fmt.Errorf("socket: %v: %w", dst, err)
	}
	go s.pump()
	return s, nil
}

func (s *Socket) open(dst netip.AddrPort) (err error) {
	family := unix.AF_INET6
	if dst.Addr().Is4() {
		family = unix.AF_INET
	}
	if s.fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if s.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	for _, o := range options(dst.Addr()) {
		if err := unix.SetsockoptInt(s.fd, o.level, o.name, 1); err != nil {
			return fmt.Errorf("option %d of level %d: %w", o.name, o.level, err)
		}
	}
	bound := unix.NsecToTimeval(sendWait.Nanoseconds())
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &bound); err != nil {
		return fmt.Errorf("SO_SNDTIMEO: %w", err)
	}
	to, err := sockaddr(dst)
	if err != nil {
		return err
	}
	if err := unix.Connect(s.fd, to); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	return s.locate(dst)
}

// locate finds out what the kernel chose: our end, and the interface.
func (s *Socket) locate(dst netip.AddrPort) error {
	sa, err := unix.Getsockname(s.fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	var local netip.AddrPort
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		local = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		local = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	s.flow.local, s.flow.remote = local, netip.AddrPortFrom(dst.Addr().WithZone(""), dst.Port())
	s.addr = net.UDPAddrFromAddrPort(local)
	s.flow.ifindex, s.name, err = route.Interface(trace.FlowKey{Proto: trace.UDP, Src: local, Dst: s.flow.remote})
	if zone := dst.Addr().Zone(); zone != "" { // the route of a link-local address alone does not tell
		var ifi *net.Interface
		if ifi, err = byZone(zone); err == nil {
			s.flow.ifindex, s.name, s.addr.Zone = ifi.Index, ifi.Name, ifi.Name
		}
	}
	return err
}

// option is one of setsockopt(2), to be switched on.
type option struct{ level, name int }

func options(dst netip.Addr) []option {
	stamps := option{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW}
	if dst.Is4() {
		return []option{{unix.IPPROTO_IP, unix.IP_RECVERR}, {unix.IPPROTO_IP, unix.IP_RECVTTL}, stamps}
	}
	return []option{{unix.IPPROTO_IPV6, unix.IPV6_RECVERR}, {unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT}, stamps}
}

// pump reads until the socket is closed: ICMP errors first, then datagrams.
func (s *Socket) pump() {
	defer close(s.pumped)
	defer func() { s.err = s.release() }()
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(s.wake), Events: unix.POLLIN}}
	buf := make([]byte, maxDatagram)
	for {
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			s.refuse(fmt.Errorf("socket: poll: %w", err))
			return
		}
		if fds[1].Revents != 0 || isClosed(s.closing) {
			return
		}
		s.errors(buf)
		for s.datagram(buf) {
		}
	}
}

// errors takes what waits in the error queue.
func (s *Socket) errors(buf []byte) {
	for {
		e, n, ok := errqueue.Read(s.fd, buf)
		if !ok {
			return
		}
		s.queue.put(s.flow.complaint(e, buf[:n], int(s.probeLen.Load())))
		if !s.standing.Load() && final(e.Kind) {
			s.refuse(e.Errno)
		}
	}
}

// refuse hands the application an error, once.
func (s *Socket) refuse(err error) {
	select {
	case s.refused <- err:
	default:
	}
}

// datagram takes one datagram; false: there is none now. While the application does not
// read, it waits, and the kernel keeps what comes.
func (s *Socket) datagram(buf []byte) bool {
	var control [256]byte
	n, oob, flags, _, err := unix.Recvmsg(s.fd, buf, control[:], unix.MSG_DONTWAIT)
	var errno syscall.Errno
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false
	case errors.As(err, &errno) && hearsay(errno), errors.Is(err, unix.EINTR):
		return true // of an error in the queue, which is where it is told whole
	case err != nil:
		s.refuse(fmt.Errorf("socket: receive: %w", err))
		return false
	case flags&unix.MSG_TRUNC != 0:
		s.queue.lose()
		return true
	}
	at, ttl := told(control[:oob])
	data := append([]byte(nil), buf[:n]...)
	s.queue.put(s.flow.received(at, ttl, data))
	select {
	case s.data <- data:
	case <-s.closing:
		return false
	}
	return true
}

// told reads a datagram's control messages. Without a timestamp it came now.
func told(control []byte) (at time.Time, ttl uint8) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		messages = nil
	}
	for _, m := range messages {
		switch [2]int32{m.Header.Level, m.Header.Type} {
		case [2]int32{unix.IPPROTO_IP, unix.IP_TTL}, [2]int32{unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT}:
			ttl = uint8(errqueue.HopLimit(m.Data))
		case [2]int32{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW}:
			at = errqueue.Stamp(m.Data)
		}
	}
	if at.IsZero() {
		at = time.Now()
	}
	return at, ttl
}

// Close ends the socket, and the waiting of all that wait for it.
func (s *Socket) Close() error {
	s.once.Do(func() {
		close(s.closing)
		s.sending.RLock()
		_, _ = unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 1}) // not 0 in either byte order
		s.sending.RUnlock()
	})
	<-s.pumped
	return s.err
}

// release closes the descriptors, when nobody sends any more.
func (s *Socket) release() error {
	s.sending.Lock()
	defer s.sending.Unlock()
	var errs []error
	for _, fd := range []*int{&s.fd, &s.wake} {
		if *fd >= 0 {
			errs = append(errs, unix.Close(*fd))
			*fd = -1
		}
	}
	return errors.Join(errs...)
}
