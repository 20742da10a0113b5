package socket

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/wire"
)

// sendTries bounds how often a datagram is tried again whose place an error took.
const sendTries = 16

// Stand tells that the connection stands: from now on the application hears of no ICMP error
// (RFC 9000 section 14.2.1: anybody can send them).
func (s *Socket) Stand() { s.standing.Store(true) }

// Interface is the name of the interface at which its packets leave.
func (s *Socket) Interface() string { return s.name }

// ReadFrom implements net.PacketConn. Until Stand it returns the error that ICMP reports, if
// that is final (syscall.ECONNREFUSED).
func (s *Socket) ReadFrom(b []byte) (int, net.Addr, error) {
	n, err := s.Read(b)
	return n, s.peer, err
}

// Read implements net.Conn: one datagram, of which as much as b has room for.
func (s *Socket) Read(b []byte) (int, error) {
	passed := s.reading.passed()
	switch { // in this order, whatever else there is
	case isClosed(s.closing):
		return 0, net.ErrClosed
	case isClosed(passed):
		return 0, os.ErrDeadlineExceeded
	}
	select {
	case data := <-s.data:
		return copy(b, data), nil
	case err := <-s.refused:
		return 0, &net.OpError{Op: "read", Net: "udp", Source: s.addr, Addr: s.peer, Err: err}
	case <-s.closing:
		return 0, net.ErrClosed
	case <-passed:
		return 0, os.ErrDeadlineExceeded
	}
}

// WriteTo implements net.PacketConn; the address is the peer's.
func (s *Socket) WriteTo(b []byte, _ net.Addr) (int, error) { return s.Write(b) }

// Write implements net.Conn. It waits for room for a second at most; what then has none is
// as good as lost on the way.
func (s *Socket) Write(b []byte) (int, error) {
	s.queue.put(s.flow.sent(time.Now(), systemTTL, b))
	err := s.send(b, nil, 0)
	switch {
	case err == nil, errors.Is(err, unix.EAGAIN):
		return len(b), nil
	case errors.Is(err, net.ErrClosed):
		return 0, err
	}
	var errno syscall.Errno
	if s.standing.Load() && errors.As(err, &errno) && hearsay(errno) {
		return len(b), nil
	}
	return 0, &net.OpError{Op: "write", Net: "udp", Source: s.addr, Addr: s.peer, Err: err}
}

// send sends one datagram. An error that the socket heard before comes in place of sending,
// once.
func (s *Socket) send(b, control []byte, flags int) (err error) {
	s.sending.RLock()
	defer s.sending.RUnlock()
	return s.sendLocked(b, control, flags)
}

func (s *Socket) sendLocked(b, control []byte, flags int) (err error) {
	if s.fd < 0 || isClosed(s.closing) {
		return net.ErrClosed
	}
	for range sendTries {
		_, err = unix.SendmsgN(s.fd, b, control, nil, flags)
		var errno syscall.Errno
		if err == nil || !errors.As(err, &errno) || errno != unix.EINTR && !hearsay(errno) {
			return err
		}
	}
	return err
}

// hearsay reports whether an error is what a router or the peer's host says.
func hearsay(errno syscall.Errno) bool {
	switch errno {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EACCES, unix.EPROTO, unix.ENOPROTOOPT, unix.EMSGSIZE,
		unix.EOPNOTSUPP, unix.EHOSTDOWN, unix.ENONET:
		return true
	}
	return false
}

// final reports whether an ICMP error ends the making of a connection. Routes come back.
func final(k wire.ICMPKind) bool {
	return k == wire.PortUnreachable || k == wire.AdminProhibited || k == wire.OtherUnreachable
}

// LocalAddr implements net.Conn.
func (s *Socket) LocalAddr() net.Addr { return s.addr }

// RemoteAddr implements net.Conn.
func (s *Socket) RemoteAddr() net.Addr { return s.peer }

// SetDeadline implements net.Conn, as SetReadDeadline.
func (s *Socket) SetDeadline(t time.Time) error { return s.SetReadDeadline(t) }

// SetReadDeadline implements net.Conn.
func (s *Socket) SetReadDeadline(t time.Time) error {
	s.reading.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn. It has no effect: see Write.
func (s *Socket) SetWriteDeadline(time.Time) error { return nil }

// SetReadBuffer is a wish of quic-go: buffers for gigabits are not needed here, nor a
// complaint that they are not to be had.
func (s *Socket) SetReadBuffer(int) error { return nil }

// SetWriteBuffer is the other one.
func (s *Socket) SetWriteBuffer(int) error { return nil }

func sockaddr(a netip.AddrPort) (unix.Sockaddr, error) {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, nil
	}
	to := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if zone := a.Addr().Zone(); zone != "" {
		ifi, err := byZone(zone)
		if err != nil {
			return nil, err
		}
		to.ZoneId = uint32(ifi.Index)
	}
	return to, nil
}

// byZone finds an interface by its name or its number.
func byZone(zone string) (*net.Interface, error) {
	ifi, err := net.InterfaceByName(zone)
	if n, bad := strconv.Atoi(zone); err != nil && bad == nil {
		ifi, err = net.InterfaceByIndex(n)
	}
	if err != nil {
		return nil, fmt.Errorf("zone %s: %w", zone, err)
	}
	return ifi, nil
}
