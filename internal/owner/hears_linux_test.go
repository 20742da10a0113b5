package owner

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/trace"
)

// A connected socket hears of refusals. The kernel tells of IP_RECVERR, not of IPV6_RECVERR:
// over IPv6 any socket may hear all.
func TestEars(t *testing.T) {
	ns := nstest.New(t)
	for name, test := range map[string]struct {
		network, addr        string
		level, option, value int
		want                 Ears
	}{
		"IPv4":                {"udp4", "127.0.0.1:9", unix.IPPROTO_IP, unix.IP_RECVERR, 0, HearsRefusals},
		"IPv4, IP_RECVERR":    {"udp4", "127.0.0.1:9", unix.IPPROTO_IP, unix.IP_RECVERR, 1, HearsAll},
		"IPv4, unconnected":   {"", "127.0.0.1:9", unix.IPPROTO_IP, unix.IP_RECVERR, 0, Deaf},
		"IPv6":                {"udp6", "[::1]:9", unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 0, HearsAll},
		"IPv6, IPV6_RECVERR":  {"udp6", "[::1]:9", unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1, HearsAll},
		"IPv6, gone by then":  {"udp6", "[::1]:9", 0, 0, -1, HearsAll},
		"IPv4, gone, as well": {"udp4", "127.0.0.1:9", 0, 0, -1, HearsAll},
	} {
		t.Run(name, func(t *testing.T) {
			var conn net.Conn
			var s *Sockets
			ns.Must(t, func() (err error) {
				set := func(_, _ string, rc syscall.RawConn) error {
					var refused error
					err := rc.Control(func(fd uintptr) {
						if test.value >= 0 {
							refused = unix.SetsockoptInt(int(fd), test.level, test.option, test.value)
						}
					})
					return errors.Join(err, refused)
				}
				if test.network == "" {
					var unconnected net.PacketConn
					listen := net.ListenConfig{Control: set}
					unconnected, err = listen.ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
					conn, _ = unconnected.(*net.UDPConn)
				} else {
					dial := net.Dialer{Control: set}
					conn, err = dial.Dial(test.network, test.addr)
				}
				if err != nil {
					return err
				}
				s, err = OpenSockets()
				return err
			})
			defer conn.Close()
			defer s.Close()
			key := trace.FlowKey{
				Proto: trace.UDP, Src: conn.LocalAddr().(*net.UDPAddr).AddrPort(), Dst: netip.MustParseAddrPort(test.addr),
			}
			if test.value < 0 {
				conn.Close()
			}
			got, err := s.Ears(key, 1)
			if got != test.want || (err != nil) != (test.value < 0) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}
