package owner

import (
	"errors"
	"fmt"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"servicetraceroute/trace"
)

// diag is a sock_diag(7) socket. The kernel answers within the call that asks, so
// nothing here waits.
type diag struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	req []byte
	buf [4096]byte
}

func openDiag() (*diag, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil, err
	}
	return &diag{fd: fd}, nil
}

// ask asks for one socket, and for one attribute beside what is always told.
func (d *diag) ask(key trace.FlowKey, ifindex, attribute int) (answer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seq++
	d.req = appendRequest(d.req[:0], d.seq, key, ifindex, attribute)
	for {
		err := unix.Sendto(d.fd, d.req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return answer{}, err
		}
	}
	// What an earlier question left behind, if anything, comes first.
	for range 16 {
		n, _, err := unix.Recvfrom(d.fd, d.buf[:], 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return answer{}, err
		}
		a, err := parseAnswer(d.buf[:n], d.seq)
		if !errors.Is(err, errStale) {
			return a, err
		}
	}
	return answer{}, errStale
}

// Sockets asks the kernel about the sockets of one network namespace. It takes no
// privilege but where addresses are translated on this host: there CAP_NET_ADMIN, or
// such flows stay unknown. Its methods may be called from any goroutine.
type Sockets struct {
	diag *diag
	nat  *translations // nil: nothing is translated
}

// OpenSockets opens it in the network namespace of the calling thread.
func OpenSockets() (*Sockets, error) {
	d, err := openDiag()
	if err != nil {
		return nil, fmt.Errorf("owner: open sock_diag: %w", err)
	}
	nat, err := openTranslations()
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return &Sockets{d, nat}, nil
}

// OnWire is the key with which a socket's flow is on the wire. That is the socket's own
// where nothing is translated, and where it cannot be known.
func (s *Sockets) OnWire(socket trace.FlowKey) trace.FlowKey {
	if wire, ok := s.nat.outside(socket); ok {
		return wire
	}
	return socket
}

// Tracks reports whether connections were tracked here when it was opened.
func (s *Sockets) Tracks() bool { return s.nat != nil }

// Connection tells what connection tracking knows of a flow that is on the wire as wire,
// seen from this host. Without CAP_NET_ADMIN the error matches os.ErrPermission.
func (s *Sockets) Connection(wire trace.FlowKey) (Connection, error) {
	c, err := s.nat.ask(turned(wire))
	if err != nil {
		return c, fmt.Errorf("owner: connection of %v: %w", wire, err)
	}
	return c, nil
}

// Handshake tells how a local socket's connection was agreed upon. Interface is the
// one at which the flow is seen, the key that on the wire. A flow that is none of this
// host's is an error.
func (s *Sockets) Handshake(key trace.FlowKey, ifindex int) (Handshake, error) {
	a, err := s.ask(key, ifindex, diagInfo)
	if err == nil && !a.hasInfo {
		err = errShort
	}
	if err != nil {
		return Handshake{}, fmt.Errorf("owner: handshake of %v: %w", key, err)
	}
	return a.handshake, nil
}

// Ears tells what a local UDP socket hears of the ICMP errors about its flow. An error says
// that it is none of this host's, or not known; then it may hear all. One behind this host, of
// a flow that the host translates, may; and one of an IPv6 flow, since the kernel's word is
// about IP_RECVERR alone (Linux 6.18, inet_diag_msg_attrs_fill).
func (s *Sockets) Ears(key trace.FlowKey, ifindex int) (Ears, error) {
	a, err := s.diag.ask(key, ifindex, 0)
	if errors.Is(err, errGone) {
		if socket, ok := s.nat.inside(key); ok {
			if a, err = s.diag.ask(socket, ifindex, 0); errors.Is(err, errGone) {
				return HearsAll, nil
			}
		}
	}
	ipv6 := key.Src.Addr().Is6()
	if err == nil && !a.hasSockOpt && !ipv6 {
		err = errShort // a kernel that does not tell
	}
	switch {
	case err != nil:
		return HearsAll, fmt.Errorf("owner: options of the socket of %v: %w", key, err)
	case a.recvErr || ipv6:
		return HearsAll, nil
	case a.state == tcpEstablished: // of UDP: connected
		return HearsRefusals, nil
	}
	return Deaf, nil
}

// ask asks for the socket of a flow on the wire, by what the socket itself calls it where
// that is translated.
func (s *Sockets) ask(key trace.FlowKey, ifindex, attribute int) (answer, error) {
	a, err := s.diag.ask(key, ifindex, attribute)
	if errors.Is(err, errGone) {
		if socket, ok := s.nat.inside(key); ok {
			a, err = s.diag.ask(socket, ifindex, attribute)
		}
	}
	return a, err
}

// Close closes it.
func (s *Sockets) Close() error { return errors.Join(s.diag.close(), s.nat.close()) }

func (d *diag) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return unix.Close(d.fd)
}

// timespec reads the kernel's struct timespec of a control message.
func timespec(data []byte) (time.Time, bool) {
	var ts unix.Timespec
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&ts)), unsafe.Sizeof(ts))
	if len(data) < len(raw) {
		return time.Time{}, false
	}
	copy(raw, data) // data need not be aligned
	return time.Unix(ts.Unix()), true
}
