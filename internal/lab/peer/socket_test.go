//go:build linux

package peer

import (
	"context"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// An option that silently is not set would make the tests that need it worthless.
func TestSocketOptions(t *testing.T) {
	s := Socket{RecvErr: true, ReceiveBuffer: 8 << 10, Congestion: "reno", Nagle: true}
	for _, host := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		conn, err := s.dialer(0).DialContext(context.Background(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.Control(func(fd uintptr) {
			level, opt := unix.IPPROTO_IP, unix.IP_RECVERR
			if host[0] == '[' {
				level, opt = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
			}
			if v, err := unix.GetsockoptInt(int(fd), level, opt); v != 1 || err != nil {
				t.Errorf("%s: RECVERR is %d, %v", host, v, err)
			}
			if v, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF); v != 16<<10 || err != nil {
				t.Errorf("%s: SO_RCVBUF is %d, %v", host, v, err)
			}
			if v, err := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); v != "reno" || err != nil {
				t.Errorf("%s: TCP_CONGESTION is %q, %v", host, v, err)
			}
			// The listener offers no MPTCP, and neither does the client.
			if v, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL); v != unix.IPPROTO_TCP || err != nil {
				t.Errorf("%s: SO_PROTOCOL is %d, %v", host, v, err)
			}
		})
	}
}
