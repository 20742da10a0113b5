package inject

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/wire"
)

// Raw sends whole IP packets through the kernel's own routing, as those of new flows go
// (raw(7), IPPROTO_RAW: the header is the caller's). The kernel looks at addresses alone
// and at no port: rules and equal uplinks of this very host that go by ports are not
// followed. It is for flows of our own, never for probes in an application's flow.
type Raw struct {
	mu     sync.Mutex
	v4, v6 int
}

// OpenRaw opens the sockets in the calling thread's network namespace. Errors match
// os.ErrPermission without CAP_NET_RAW.
func OpenRaw() (*Raw, error) {
	v4, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("inject: open raw socket: %w", err)
	}
	v6, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if errors.Is(err, syscall.EAFNOSUPPORT) {
		v6, err = -1, nil // a kernel without IPv6 has no such flows either
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("inject: open raw socket: %w", err), unix.Close(v4))
	}
	return &Raw{v4: v4, v6: v6}, nil
}

// Send puts one packet on its way. The packet may be reused when it returns.
func (r *Raw) Send(packet []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ip wire.Packet
	if err := ip.Decode(packet, len(packet)); err != nil {
		return fmt.Errorf("inject: send: %w", err)
	}
	fd, to := r.v4, unix.Sockaddr(&unix.SockaddrInet6{Addr: ip.Dst.As16()})
	if ip.Version == 4 {
		to = &unix.SockaddrInet4{Addr: ip.Dst.As4()}
	} else {
		fd = r.v6
	}
	if fd < 0 {
		return net.ErrClosed
	}
	if err := unix.Sendto(fd, packet, 0, to); err != nil {
		return fmt.Errorf("inject: send: %w", err)
	}
	return nil
}

// Close closes the sockets.
func (r *Raw) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	for _, fd := range []*int{&r.v4, &r.v6} {
		if *fd >= 0 {
			err = errors.Join(err, unix.Close(*fd))
			*fd = -1
		}
	}
	return err
}
