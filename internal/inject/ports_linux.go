package inject

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/wire"
)

// Ports keeps local ports from applications while packets with them leave that no socket of
// the kernel's sends (see Raw): a connection that got such a port meanwhile would meet what
// those packets brought about. The zero value holds none. It is not safe for concurrent use.
type Ports struct{ held []int }

// Hold binds a port of the calling thread's network namespace as an application would, and
// reports whether it was free. protocol is wire.ProtoTCP or wire.ProtoUDP. What cannot be
// bound for another reason than that somebody has it (no descriptor is left, the address is of
// another namespace) counts as free and is not held: it is what it was without.
func (p *Ports) Hold(protocol uint8, at netip.AddrPort) (free bool) {
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port())})
	if at.Addr().Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
	}
	kind := unix.SOCK_STREAM
	if protocol == wire.ProtoUDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(protocol))
	if err != nil {
		return true
	}
	if err := unix.Bind(fd, to); err != nil {
		_ = unix.Close(fd)
		return !errors.Is(err, unix.EADDRINUSE)
	}
	p.held = append(p.held, fd)
	return true
}

// Release gives all ports back.
func (p *Ports) Release() {
	for _, fd := range p.held {
		_ = unix.Close(fd)
	}
	p.held = nil
}
