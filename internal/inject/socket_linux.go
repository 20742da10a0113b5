package inject

import (
	"fmt"
	"net"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/capture"
)

// Socket sends by a packet socket (packet(7)): the link and the next hop are
// given with every packet, so no routing, no local NAT and no firewall hook lies
// between a probe and the wire. It implements Sink.
//
// PACKET_QDISC_BYPASS stays off: it would also bypass the taps, and the copy
// that our own tap sees carries the kernel's time of sending.
type Socket struct {
	mu   sync.Mutex
	fd   int
	addr unix.RawSockaddrLinklayer
}

// Open opens the socket in the calling thread's network namespace. It receives
// nothing. Errors match os.ErrPermission without CAP_NET_RAW.
func Open() (*Socket, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("inject: open packet socket: %w", capture.Missing(err, "packet sockets", "CONFIG_PACKET"))
	}
	return &Socket{fd: fd}, nil
}

// Send implements Sink.
func (s *Socket) Send(packet []byte, ifindex int, nextHop capture.HardwareAddr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return net.ErrClosed
	}
	if len(packet) == 0 {
		return fmt.Errorf("inject: send: empty packet: %w", syscall.EINVAL)
	}
	proto := uint16(unix.ETH_P_IP)
	if packet[0]>>4 == 6 {
		proto = unix.ETH_P_IPV6
	}
	s.addr = unix.RawSockaddrLinklayer{
		Family: unix.AF_PACKET, Protocol: proto<<8 | proto>>8, Ifindex: int32(ifindex), Halen: nextHop.Len, Addr: nextHop.Addr,
	}
	for {
		_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(&packet[0])), uintptr(len(packet)),
			0, uintptr(unsafe.Pointer(&s.addr)), unix.SizeofSockaddrLinklayer)
		switch errno {
		case 0:
			return nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			return fmt.Errorf("inject: send: %w", syscall.ENOBUFS) // the socket's own buffer is full
		default:
			return fmt.Errorf("inject: send: %w", errno)
		}
	}
}

// Close implements Sink.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return nil
	}
	err := unix.Close(s.fd)
	s.fd = -1
	return err
}
