package ladder

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/trace"
)

// TestConnectLate: over the loopback interface the connection stands when connect(2) returns, and
// is there although the time is over by then.
func TestConnectLate(t *testing.T) {
	for _, at := range []string{"127.0.0.1:443", "[::1]:443"} {
		nstest.New(t).Must(t, func() error {
			listener, err := net.Listen("tcp", at)
			if err != nil {
				return err
			}
			defer listener.Close()
			l, err := Open(netip.MustParseAddrPort(at))
			if err != nil {
				return err
			}
			defer l.Close()
			for _, ttl := range []int{1, 0} {
				a, conn, err := l.Connect(t.Context(), ttl, 1)
				if err != nil || conn == nil || a.Kind != trace.TCPAck {
					return fmt.Errorf("%s, TTL %d: %+v, %v: %w", at, ttl, a, conn, err)
				}
				_ = conn.SetLinger(0) // its port is for the next one
				_ = conn.Close()
			}
			_, conn, err := l.Connect(t.Context(), 0, time.Second)
			if err == nil {
				err = conn.Close()
			}
			return err
		})
	}
}
