//go:build linux

package servicetraceroute_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// option reads one of a connection's options, after it was set if value is positive.
func option(t *testing.T, conn net.Conn, level, name, value int) (got int) {
	t.Helper()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			if value > 0 {
				_ = unix.SetsockoptInt(int(fd), level, name, value)
			}
			got, _ = unix.GetsockoptInt(int(fd), level, name)
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestTraceConnWithoutAnswer shows that asking for a trace never ends a connection
// that would live without, and never waits for ever.
func TestTraceConnWithoutAnswer(t *testing.T) {
	t.Parallel()
	f := newBareField(t, ladder(1, scenario.ICMPLimit{}), servicetraceroute.Config{})
	listener := f.listen(443)
	block := func(forward string) {
		t.Helper()
		if err := f.lab.Node("r0").Sysctl(t.Context(), "net.ipv4.ip_forward", forward); err != nil {
			t.Fatal(err)
		}
	}
	mine, theirs := f.pair(listener, 443)
	patient, _ := f.pair(listener, 443)
	closed, _ := f.pair(listener, 443)
	if err := closed.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	option(t, mine, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 2)
	option(t, patient, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1000)
	time.Sleep(300 * time.Millisecond)
	late := f.open(servicetraceroute.Config{})

	if tr, err := late.TraceConn(t.Context(), closed); err != nil || tr.Stop != trace.StopFlowClosed || tr.Service.By != trace.ByConnection {
		t.Errorf("closed before the tracer came: %v, %v", tr, err)
	}
	before := [4]int{}
	names := [4][2]int{{unix.SOL_SOCKET, unix.SO_KEEPALIVE}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}}
	for i, n := range names {
		before[i] = option(t, mine, n[0], n[1], 0)
	}
	// A fresh connection on which the peer has said nothing since its SYN-ACK.
	fresh, _ := f.pair(listener, 443)
	if tr, err := f.tracer.TraceConn(t.Context(), fresh); err != nil || !tr.Complete || tr.End.Sub(tr.Start) > 5*time.Second {
		t.Errorf("fresh and silent: %+v, %v", tr, err)
	}
	block("0")
	start := time.Now()
	tr, err := late.TraceConn(t.Context(), mine)
	if took := time.Since(start); err != nil || tr.Stop != trace.StopFlowIdle || took > 8*time.Second || len(tr.ID) != 16 {
		t.Errorf("nobody answers: %+v, %v after %v", tr, err, took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if tr, err := late.TraceConn(ctx, patient); err != nil || tr.Stop != trace.StopDeadline {
		t.Errorf("with a user timeout: %+v, %v", tr, err)
	}
	block("1")
	if tr, err := late.TraceConn(t.Context(), mine); err != nil || !tr.Complete || tr.End.Sub(tr.Start) > 5*time.Second {
		t.Errorf("never spoken on: %+v, %v", tr, err)
	}
	for i, n := range names {
		if after := option(t, mine, n[0], n[1], 0); after != before[i] {
			t.Errorf("option %v was %d and is %d", n, before[i], after)
		}
	}
	if on := option(t, patient, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 0); on == 1 {
		t.Error("keepalives were asked for on a socket with a user timeout")
	}
	// It lives.
	if _, err := mine.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	_ = theirs.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(theirs, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

// listen opens a port in the server's namespace, for an end that this process owns.
func (f *field) listen(port uint16) net.Listener {
	f.t.Helper()
	var listener net.Listener
	err := f.lab.Node("server").Do(func() (err error) {
		listener, err = net.ListenTCP("tcp", &net.TCPAddr{Port: int(port)})
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = listener.Close() })
	return listener
}

// pair is both ends of a new connection.
func (f *field) pair(listener net.Listener, port uint16) (client, server net.Conn) {
	f.t.Helper()
	client = f.dial(port, false)
	server, err := listener.Accept()
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = server.Close() })
	return client, server
}
