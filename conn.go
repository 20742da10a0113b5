package servicetraceroute

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"servicetraceroute/internal/engine"
	"servicetraceroute/trace"
)

const (
	// quietFor is how long TraceConn waits for a packet of the connection itself.
	quietFor = 200 * time.Millisecond
	// patience is how long it waits for the peer's answer to keepalives.
	patience = 5 * time.Second
	// keepaliveEvery is a little more than the second for which the kernel wants a
	// connection to be idle.
	keepaliveEvery = 1100 * time.Millisecond
	// lookEvery is how often it looks whether that came.
	lookEvery = 50 * time.Millisecond
)

// TraceConn traces the flow of a connection of this process: a *net.TCPConn, a connected
// *net.UDPConn, or what wraps one and has a NetConn method, like *tls.Conn. The
// connection stays the caller's, who may use it meanwhile: nothing is read from it,
// written to it or closed. The Tracer must have been made in the connection's network
// namespace.
//
// A connection that is quiet shows no sequence numbers. When it showed none for
// 200 ms, TraceConn asks the kernel for its own keepalive, which the peer's kernel
// answers and which adds nothing to the stream, and puts the options back as soon as
// the trace has begun. When nobody answers for 5 s the trace stops as flow-idle; when not
// even the keepalives were seen, it is refused for no-state: the connection is in another
// network namespace, or its addresses are translated on this host and the process has no
// CAP_NET_ADMIN, with which the kernel tells how. No keepalive is asked for on a
// connection with TCP_USER_TIMEOUT, which an unanswered one could end, nor of UDP, nor
// outside Linux: there the trace waits for traffic until ctx ends.
//
// A UDP flow is probed up to the fence only, short of the peer, after two exchanges, and
// not at all when its socket would hear of ICMP errors about probes, see New.
// Params.UDPProbe need not be UDPAlways for it: this flow was asked for.
//
// When ctx ends the partial trace is returned, and no error. A connection that
// either side has closed gives a trace that stopped as flow-closed; after this
// process's Close, an error that matches net.ErrClosed. What is neither TCP nor UDP gives one
// that matches errors.ErrUnsupported. With BackendSock every trace is refused, for
// trace.ReasonCapability.
func (t *Tracer) TraceConn(ctx context.Context, conn net.Conn) (*trace.Trace, error) {
	flow, raw, err := connFlow(conn)
	if err != nil {
		return nil, fmt.Errorf("servicetraceroute: TraceConn: %w", err)
	}
	w, err := flowWatch(trace.Flow{Tuple: flow}, t.cfg)
	if err != nil {
		return nil, err
	}
	if t.sees() != nil {
		return t.unseen(w, flow), nil
	}
	t.translated(w)
	if raw != nil && connClosed(raw) {
		return t.nothing(w, flow, trace.StopFlowClosed), nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	roused := make(chan struct{})
	go func() {
		defer close(roused)
		if stop := t.rouse(ctx, w, raw); stop != 0 {
			cancel(because(stop))
		}
	}()
	tr, err := t.one(ctx, w, flow)
	cancel(nil)
	<-roused // the socket's options are as they were
	return tr, err
}

// because ends a context for a trace's reason.
type because trace.Stop

func (b because) Error() string { return trace.Stop(b).String() }

// rouse makes a quiet connection show itself. It returns when it has, or ctx
// has ended; or why there will be no trace.
func (t *Tracer) rouse(ctx context.Context, w *engine.Watch, raw syscall.RawConn) trace.Stop {
	look := time.NewTimer(quietFor)
	defer look.Stop()
	var asked, since time.Time // when a keepalive was last asked for, and first; zero: never
	var again func()
	for {
		select {
		case <-ctx.Done():
			return 0
		case <-look.C:
		}
		shown, settled, known := false, false, false
		err := t.do(func(time.Time) { shown, settled, known = t.engine.Shown(w) })
		if err != nil || shown && (settled || asked.IsZero()) {
			return 0
		}
		switch {
		case raw == nil:
		case connClosed(raw):
			return trace.StopFlowClosed
		case asked.IsZero():
			asked = time.Now()
			var undo func()
			if again, undo = keepAlive(raw); undo != nil {
				defer undo()
				since = asked
			}
		case since.IsZero():
		case time.Since(since) > patience && shown:
			return 0 // it speaks for itself by now
		case time.Since(since) > patience && !known:
			return trace.StopRefused // our own keepalives pass with other addresses, or elsewhere
		case time.Since(since) > patience:
			return trace.StopFlowIdle
		case shown && time.Since(asked) > keepaliveEvery:
			again()
			asked = time.Now()
		}
		look.Reset(lookEvery)
	}
}

// connFlow is the flow of a connection, seen from this end, and its socket if that
// can be had.
func connFlow(conn net.Conn) (flow trace.Tuple, raw syscall.RawConn, err error) {
	if conn == nil {
		return flow, nil, errors.New("no connection")
	}
	for {
		inner, ok := conn.(interface{ NetConn() net.Conn })
		if !ok || inner.NetConn() == nil {
			break
		}
		conn = inner.NetConn()
	}
	local, remote, proto := conn.LocalAddr(), conn.RemoteAddr(), trace.TCP
	switch a := remote.(type) {
	case *net.TCPAddr:
	case *net.UDPAddr:
		proto = trace.UDP
	case nil:
		return flow, nil, fmt.Errorf("%v is not connected: %w", local, errors.ErrUnsupported)
	default:
		return flow, nil, fmt.Errorf("a %s connection has no path: %w", a.Network(), errors.ErrUnsupported)
	}
	src, dst := addrPort(local), addrPort(remote)
	if !src.IsValid() || !dst.IsValid() {
		return flow, nil, fmt.Errorf("%v to %v is not a connection", local, remote)
	}
	if sc, ok := conn.(syscall.Conn); ok {
		if raw, err = sc.SyscallConn(); err == nil {
			err = raw.Control(func(uintptr) {})
		}
		if err != nil {
			return flow, nil, err // closed
		}
	}
	return trace.Tuple{FlowKey: trace.FlowKey{Proto: proto, Src: src, Dst: dst}}, raw, nil
}

// addrPort is an address as packets have it: without zone, IPv4 as IPv4.
func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return onWire(a.AddrPort())
	case *net.UDPAddr:
		return onWire(a.AddrPort())
	}
	return netip.AddrPort{}
}
