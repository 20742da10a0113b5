//go:build linux

package servicetraceroute_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// dial opens a TCP connection in the client's namespace.
func (f *field) dial(port uint16, ipv6 bool) net.Conn {
	f.t.Helper()
	var conn net.Conn
	err := f.lab.Node("client").Do(func() (err error) {
		// To a literal address, net.Dial makes the socket on the calling thread.
		conn, err = net.DialTimeout("tcp", netip.AddrPortFrom(f.lab.Node("server").Addr(ipv6), port).String(), 5*time.Second)
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func keepalive(t *testing.T, conn net.Conn) (values [2]int) {
	t.Helper()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		values[0], _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE)
		values[1], _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
	})
	if err != nil {
		t.Fatal(err)
	}
	return values
}

// TestTraceConn traces connections of this process: one that talks, one that has
// been quiet since before the tracer was there, one that is over.
func TestTraceConn(t *testing.T) {
	t.Parallel()
	f := newBareField(t, ladder(1, scenario.ICMPLimit{}), servicetraceroute.Config{})
	if _, err := peer.ServeHTTPS(t.Context(), f.lab.Node("server"), peer.HTTPSConfig{Port: 443}); err != nil {
		t.Fatal(err)
	}
	whole := func(t *testing.T, tr *trace.Trace, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		f.judge(f.truth(), []*trace.Trace{tr})
		if !tr.Reached || !tr.Complete || tr.Destination.TTL != 4 || tr.Service.By != trace.ByConnection {
			t.Error(describe(tr))
		}
	}
	for _, ipv6 := range []bool{false, true} {
		conn := tls.Client(f.dial(443, ipv6), &tls.Config{InsecureSkipVerify: true})
		if err := conn.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		tr, err := f.tracer.TraceConn(t.Context(), conn)
		whole(t, tr, err)

		quiet := f.dial(443, ipv6)
		c := tls.Client(quiet, &tls.Config{InsecureSkipVerify: true})
		if err := c.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		// Its session tickets are read, and all acknowledged.
		req, _ := http.NewRequest(http.MethodGet, "https://server/bytes/10", nil)
		if err := req.Write(c); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAtLeast(c, make([]byte, 4096), 10); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		before := keepalive(t, quiet)
		late := f.open(servicetraceroute.Config{})
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		tr, err = late.TraceConn(ctx, c)
		cancel()
		whole(t, tr, err)
		if after := keepalive(t, quiet); after != before {
			t.Errorf("keepalive options were %v and are %v", before, after)
		}
		// It still works.
		if err := req.Write(c); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAtLeast(c, make([]byte, 4096), 10); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("over", func(t *testing.T) {
		conn := f.dial(443, false)
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if tr, err := f.tracer.TraceConn(ctx, conn); err != nil || tr.Stop != trace.StopFlowClosed || ctx.Err() != nil {
			t.Errorf("%v, %v", tr, err)
		}
		_ = conn.Close()
		if tr, err := f.tracer.TraceConn(ctx, conn); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed here: %v, %v", tr, err)
		}
	})
	t.Run("no path", func(t *testing.T) {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		if tr, err := f.tracer.TraceConn(t.Context(), a); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%v, %v", tr, err)
		}
		var conn *net.UDPConn
		if err := f.lab.Node("client").Do(func() (err error) { conn, err = net.ListenUDP("udp", nil); return err }); err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if tr, err := f.tracer.TraceConn(t.Context(), conn); !errors.Is(err, errors.ErrUnsupported) || errors.Is(err, net.ErrClosed) {
			t.Errorf("not connected: %v, %v", tr, err)
		}
	})
	// Nothing makes a UDP peer speak.
	t.Run("quiet UDP", func(t *testing.T) {
		var udp net.Conn
		err := f.lab.Node("client").Do(func() (err error) {
			udp, err = net.Dial("udp", netip.AddrPortFrom(f.lab.Node("server").Addr(false), 9).String())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if tr, err := f.tracer.TraceConn(ctx, udp); err != nil || tr.Stop != trace.StopDeadline || tr.Flow.Proto != trace.UDP {
			t.Errorf("%v, %v", tr, err)
		}
	})
	t.Run("ended context", func(t *testing.T) {
		conn := f.dial(443, false)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if tr, err := f.tracer.TraceConn(ctx, conn); err != nil || tr.Stop != trace.StopCancelled {
			t.Errorf("%v, %v", tr, err)
		}
	})
}
