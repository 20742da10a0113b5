package classic

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Tracer holds the sockets of classic traceroutes. It is for one goroutine.
type Tracer struct{ send, icmp, tcp int }

// Open makes the sockets in the calling thread's network namespace. They are
// routed like any other new flow's: that is the point.
func Open() (*Tracer, error) {
	t := &Tracer{-1, -1, -1}
	for _, s := range []struct {
		fd    *int
		proto int
	}{{&t.send, unix.IPPROTO_RAW}, {&t.icmp, unix.IPPROTO_ICMP}, {&t.tcp, unix.IPPROTO_TCP}} {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, s.proto)
		if err != nil {
			t.Close()
			return nil, fmt.Errorf("classic: open raw socket: %w", err)
		}
		*s.fd = fd
	}
	return t, nil
}

// Close closes the sockets.
func (t *Tracer) Close() {
	for _, fd := range []int{t.send, t.icmp, t.tcp} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// Run makes one traceroute.
func (t *Tracer) Run(ctx context.Context, c Config) ([]Hop, error) {
	to := unix.SockaddrInet4{Addr: c.Dst.As4()}
	send := func(b []byte) error {
		if err := unix.Sendto(t.send, b, 0, &to); err != nil && err != unix.ENOBUFS {
			return fmt.Errorf("classic: send: %w", err)
		}
		return nil
	}
	buf := make([]byte, 2048)
	receive := func(deadline time.Time) []byte {
		fds := []unix.PollFd{{Fd: int32(t.icmp), Events: unix.POLLIN}, {Fd: int32(t.tcp), Events: unix.POLLIN}}
		wait := unix.NsecToTimespec(max(time.Until(deadline), 0).Nanoseconds())
		if n, err := unix.Ppoll(fds, &wait, nil); n <= 0 || err != nil {
			return nil
		}
		for _, fd := range fds {
			if fd.Revents&unix.POLLIN == 0 {
				continue
			}
			if n, _, err := unix.Recvfrom(int(fd.Fd), buf, 0); err == nil && n > 0 {
				return buf[:n]
			}
		}
		return nil
	}
	return run(ctx, c, send, receive)
}
