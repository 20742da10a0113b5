package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// keepAliveQUIC is after how long without a packet from the peer QUIC asks for one (a
// PING frame, RFC 9000 section 10.1.2).
const keepAliveQUIC = time.Second

// quicConn is a QUIC connection with a socket of its own.
type quicConn struct {
	*quic.Conn
	transport *quic.Transport
	socket    carrier
}

// carrier is a connected UDP socket as quic-go takes one.
type carrier interface {
	net.PacketConn
	carried() net.Conn // what a Tracer traces
	stand()            // the connection stands: from now on ICMP is hearsay
}

// openCarrier connects such a socket.
type openCarrier func(addr netip.AddrPort) (carrier, error)

// connectQUIC opens a connection as an HTTP/3 client does, to the first of the target's
// addresses that answers.
func (f *dialFlags) connectQUIC(ctx context.Context, to target, open openCarrier) (*dialed, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	network := "ip"
	switch {
	case f.v4:
		network = "ip4"
	case f.v6:
		network = "ip6"
	}
	port, err := net.LookupPort("tcp", to.port) // by whose names it was checked
	if err != nil {
		return nil, failed(err, "")
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, network, to.host)
	if err != nil {
		return nil, connectFailed(err)
	}
	if literal, ok := zoned(to.host); ok {
		addrs = []netip.Addr{literal}
	}
	var first error
	for i, addr := range addrs {
		// Each has its share of what is left.
		end, _ := ctx.Deadline()
		share, cancel := context.WithTimeout(ctx, time.Until(end)/time.Duration(len(addrs)-i))
		q, err := f.handshakeQUIC(share, netip.AddrPortFrom(addr.Unmap(), uint16(port)), to, open)
		cancel()
		if err == nil {
			return &dialed{conn: q.socket.carried(), quic: q, to: to, got: make(chan struct{}), asked: f.request, took: time.Since(start)}, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, quicFailed(first)
}

// handshakeQUIC connects to one address.
func (f *dialFlags) handshakeQUIC(ctx context.Context, addr netip.AddrPort, to target, open openCarrier) (*quicConn, error) {
	socket, err := open(addr)
	if err != nil {
		return nil, err
	}
	q := &quicConn{socket: socket, transport: &quic.Transport{Conn: socket}}
	q.Conn, err = q.transport.Dial(ctx, socket.carried().RemoteAddr(), &tls.Config{
		ServerName: f.serverName(to), NextProtos: []string{http3.NextProtoH3}, InsecureSkipVerify: f.insecure,
	}, &quic.Config{KeepAlivePeriod: keepAliveQUIC, HandshakeIdleTimeout: connectTimeout, DisablePathMTUDiscovery: true})
	if err != nil {
		_ = q.transport.Close()
		_ = socket.Close()
		var errno syscall.Errno
		switch {
		case errors.As(err, &errno):
			err = errno // the rest says that the connection is closed now
		case errors.Is(err, context.DeadlineExceeded):
			err = os.ErrDeadlineExceeded // in the words of TCP
		}
		return nil, fmt.Errorf("dial quic %v: %w", addr, err)
	}
	socket.stand()
	return q, nil
}

// close tells the peer, and waits for nobody.
func (q *quicConn) close() {
	_ = q.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "")
	_ = q.transport.Close()
	_ = q.socket.Close()
}

func quicFailed(err error) error {
	var cert *tls.CertificateVerificationError
	var timeout net.Error
	var protocol *quic.TransportError
	switch {
	case errors.As(err, &cert):
		return failed(err, "--insecure traces all the same; --sni NAME asks for another name")
	case refused(err):
		return failed(err, "the host answers, but nothing listens on that UDP port; without --quic the connection is TCP")
	case errors.As(err, &protocol) && protocol.ErrorCode.IsCryptoError():
		return failed(err, "the server speaks QUIC, but perhaps not HTTP/3 or not for that name (--sni NAME)")
	case errors.As(err, &timeout) && timeout.Timeout():
		return failed(err, "nothing answers QUIC there: is the port right, or does a firewall drop UDP? Without --quic the connection is TCP")
	}
	return failed(err, "without --quic the connection is TCP")
}

// datagrams is a connected UDP socket as quic-go takes one. It shows no descriptor, so
// that quic-go sets no options: buffers for gigabits are not needed here, nor a complaint
// that they are not to be had.
//
// A connected socket hears what ICMP says of its flow, if that is final (udp(7)). While
// the connection is made that is an answer. Afterwards it is none, as RFC 9000 section
// 14.2.1 wants: anybody can send it.
type datagrams struct {
	conn     *net.UDPConn
	standing atomic.Bool
}

// openDatagrams connects one.
func openDatagrams(addr netip.AddrPort) (carrier, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, err
	}
	return &datagrams{conn: conn}, nil
}

func (d *datagrams) carried() net.Conn { return d.conn }

func (d *datagrams) stand() { d.standing.Store(true) }

// ReadFrom implements net.PacketConn.
func (d *datagrams) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, err := d.conn.Read(b)
		if err == nil || !d.hearsay(err) {
			return n, d.conn.RemoteAddr(), err
		}
	}
}

// WriteTo implements net.PacketConn. An error that the socket heard before comes in place
// of sending, once.
func (d *datagrams) WriteTo(b []byte, _ net.Addr) (int, error) {
	n, err := d.conn.Write(b)
	if err != nil && d.hearsay(err) {
		n, err = d.conn.Write(b)
	}
	if err != nil && d.hearsay(err) {
		return len(b), nil // as good as lost on the way
	}
	return n, err
}

// hearsay reports whether an error is what a router or the peer's host says of a
// connection that stands.
func (d *datagrams) hearsay(err error) bool {
	var errno syscall.Errno
	if !d.standing.Load() || !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EACCES, syscall.EPROTO, syscall.ENOPROTOOPT, syscall.EMSGSIZE:
		return true
	}
	return false
}

// SetReadBuffer is one of quic-go's wishes.
func (d *datagrams) SetReadBuffer(int) error { return nil }

// SetWriteBuffer is the other one.
func (d *datagrams) SetWriteBuffer(int) error { return nil }

// LocalAddr implements net.PacketConn.
func (d *datagrams) LocalAddr() net.Addr { return d.conn.LocalAddr() }

// Close implements net.PacketConn.
func (d *datagrams) Close() error { return d.conn.Close() }

// SetDeadline implements net.PacketConn.
func (d *datagrams) SetDeadline(t time.Time) error { return d.conn.SetDeadline(t) }

// SetReadDeadline implements net.PacketConn.
func (d *datagrams) SetReadDeadline(t time.Time) error { return d.conn.SetReadDeadline(t) }

// SetWriteDeadline implements net.PacketConn.
func (d *datagrams) SetWriteDeadline(t time.Time) error { return d.conn.SetWriteDeadline(t) }

// zoned reads an address with a zone, which the resolver would forget.
func zoned(host string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(host)
	return a, err == nil && a.Zone() != ""
}
