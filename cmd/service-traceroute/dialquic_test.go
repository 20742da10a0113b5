package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// nobody is the socket of a connection to a port where nobody listens.
func nobody(t *testing.T) *datagrams {
	t.Helper()
	l, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialUDP("udp", nil, l.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return &datagrams{conn: conn}
}

// What ICMP says answers an attempt to connect, and does not end what stands.
func TestHearsay(t *testing.T) {
	d, b := nobody(t), make([]byte, 10)
	if _, err := d.WriteTo(b, nil); err != nil {
		t.Fatal(err)
	}
	_ = d.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, _, err := d.ReadFrom(b); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("while it is made: %v", err)
	}
	d.standing.Store(true)
	for range 5 {
		if n, err := d.WriteTo(b, nil); err != nil || n != len(b) {
			t.Errorf("writing: %d, %v", n, err)
		}
	}
	_ = d.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, _, err := d.ReadFrom(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reading: %v", err)
	}
	_ = d.Close()
	if _, _, err := d.ReadFrom(b); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// An attempt that fails leaves no socket behind, and says so at once where it can.
func TestQUICRefused(t *testing.T) {
	to := nobody(t).conn.RemoteAddr().(*net.UDPAddr).AddrPort()
	ctx, cancel := context.WithTimeout(t.Context(), connectTimeout)
	defer cancel()
	f := &dialFlags{insecure: true}
	q, err := f.handshakeQUIC(ctx, netip.AddrPortFrom(to.Addr().Unmap(), to.Port()), target{"localhost", "443"}, openDatagrams)
	if q != nil || !errors.Is(err, syscall.ECONNREFUSED) || !refused(err) {
		t.Errorf("%v", err)
	}
	var said *failure
	if !errors.As(quicFailed(err), &said) || said.hint == "" {
		t.Errorf("%v", said)
	}
	if err := quicFailed(&tls.CertificateVerificationError{Err: errors.New("expired")}); !errors.As(err, &said) || said.hint[:10] != "--insecure" {
		t.Errorf("%v", err)
	}
}

// The peer is told of the end, as HTTP/3 does.
func TestQUICClose(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := quic.ListenAddr("127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{http3.NextProtoH3},
	}, &quic.Config{MaxIdleTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), connectTimeout)
	defer cancel()
	f := &dialFlags{insecure: true}
	q, err := f.handshakeQUIC(ctx, l.Addr().(*net.UDPAddr).AddrPort(), target{"localhost", "443"}, openDatagrams)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	q.close()
	<-peer.Context().Done()
	var closed *quic.ApplicationError
	if how := context.Cause(peer.Context()); !errors.As(how, &closed) || closed.ErrorCode != quic.ApplicationErrorCode(http3.ErrCodeNoError) {
		t.Errorf("it ended: %v", how)
	}
}
