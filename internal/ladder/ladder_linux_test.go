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

// TestOwnWord: when no neighbour answers, this host says so itself. It is no hop.
func TestOwnWord(t *testing.T) {
	for _, test := range []struct{ at, absent string }{
		{"10.9.0.1/24", "10.9.0.77:443"}, {"fd09::1/64", "[fd09::77]:443"},
	} {
		t.Run(test.absent, func(t *testing.T) {
			t.Parallel()
			ns, peer := nstest.New(t), nstest.New(t)
			nstest.Veth(t, nstest.End{NS: ns, Name: "eth0", Addrs: []string{test.at}}, nstest.End{NS: peer, Name: "eth0"})
			ns.Must(t, func() error {
				l, err := Open(netip.MustParseAddrPort(test.absent))
				if err != nil {
					return err
				}
				defer l.Close()
				begin := time.Now()
				a, conn, err := l.Connect(t.Context(), 2, 10*time.Second)
				if err != nil || conn != nil || a.Kind != 0 || a.Addr.IsValid() {
					return fmt.Errorf("%+v, %v: %w", a, conn, err)
				}
				if took := time.Since(begin); took > 9*time.Second {
					t.Errorf("it said nothing in %v", took)
				}
				return nil
			})
		})
	}
}

// TestLinkLocal: an address with a zone is reached by its interface's name and by its number.
func TestLinkLocal(t *testing.T) {
	ns, peer := nstest.New(t), nstest.New(t)
	nstest.Veth(t, nstest.End{NS: ns, Name: "eth0", Addrs: []string{"fe80::9:1/64"}}, nstest.End{NS: peer, Name: "eth0", Addrs: []string{"fe80::9:2/64"}})
	peer.Must(t, func() error {
		listener, err := net.Listen("tcp", "[fe80::9:2%eth0]:443")
		if err == nil {
			t.Cleanup(func() { listener.Close() })
		}
		return err
	})
	for _, zone := range []string{"eth0", "2"} {
		ns.Must(t, func() error {
			l, err := Open(netip.MustParseAddrPort("[fe80::9:2%" + zone + "]:443"))
			if err != nil {
				return err
			}
			defer l.Close()
			a, conn, err := l.Connect(t.Context(), 0, time.Second)
			if err != nil || conn == nil || a.Kind != trace.TCPAck {
				return fmt.Errorf("%s: %+v, %v: %w", zone, a, conn, err)
			}
			return conn.Close()
		})
	}
}
