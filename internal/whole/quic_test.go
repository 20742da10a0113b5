//go:build linux

package whole

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"servicetraceroute/trace"
)

// certificate is one that nobody trusts.
func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serveQUIC serves HTTP/3, or another protocol that nobody speaks, at a UDP port of the
// server. It returns how the connections ended, as they do.
func (f *field) serveQUIC(t *testing.T, port int, alpn string) (ended <-chan error) {
	t.Helper()
	var conn *net.UDPConn
	if err := f.Node("server").Do(func() (err error) {
		conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: port})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, NextProtos: []string{alpn}}
	l, err := quic.Listen(conn, config, nil)
	if err != nil {
		t.Fatal(err)
	}
	server := &http3.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })}
	how := make(chan error, 16)
	var work sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	work.Go(func() {
		for {
			q, err := l.Accept(ctx)
			if err != nil {
				return
			}
			work.Go(func() {
				_ = server.ServeQUICConn(q)
				<-q.Context().Done()
				how <- context.Cause(q.Context())
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		_ = conn.Close()
		work.Wait()
	})
	return how
}

// dialQUIC opens QUIC connections and traces them up to two hops before the server, which
// is told when they end.
func (f *field) dialQUIC(t *testing.T) {
	ended := f.serveQUIC(t, 443, http3.NextProtoH3)
	f.serveQUIC(t, 8443, "other")
	if err := f.Node("server").Do(func() error {
		deaf, err := net.ListenUDP("udp", &net.UDPAddr{Port: 9443})
		if err == nil {
			t.Cleanup(func() { _ = deaf.Close() })
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	v6 := f.Node("server").Addr(true)
	for _, test := range []struct {
		name   string
		where  string
		flags  []string
		stderr string
	}{
		{"IPv4", fmt.Sprint(f.server), nil, "QUIC v1, h3"},
		{"IPv6", netip.AddrPortFrom(v6, 443).String(), nil, "QUIC v1, h3"},
		{"a request", fmt.Sprint(f.server), []string{"--request", "--sni", "www.example.com"}, "answer: HTTP/3.0 200 OK"},
	} {
		r := f.run(t, nil, append([]string{f.bin, "dial", "--quic", "--insecure", test.where, "--output", "json"}, test.flags...)...)
		if r.status != 0 || !strings.Contains(r.stderr, test.stderr) {
			t.Errorf("%s: status %d after %v\n%s%s", test.name, r.status, r.took, r.stderr, r.stdout)
			continue
		}
		line, _, _ := strings.Cut(r.stdout, "\n")
		ev, err := trace.Unmarshal([]byte(line))
		tr, ok := ev.(*trace.Trace)
		// Of three hops the first is two before the server.
		if err != nil || !ok || tr.Stop != trace.StopFence || tr.Reached || len(tr.Hops) != 1 || len(tr.Hops[0].Replies) == 0 ||
			tr.Flow.Proto != trace.UDP || tr.Service.By != trace.ByDial || tr.Process == nil || tr.Process.Name != "service-traceroute" {
			t.Errorf("%s: %v\n%s", test.name, err, r.stdout)
		}
		var closed *quic.ApplicationError
		if how := <-ended; !errors.As(how, &closed) || !closed.Remote || closed.ErrorCode != quic.ApplicationErrorCode(http3.ErrCodeNoError) {
			t.Errorf("%s: the connection ended: %v", test.name, how)
		}
	}
	for _, test := range []struct {
		where string
		flags []string
		want  []string
	}{
		{fmt.Sprintf("%v:9", f.server), nil, []string{"error: dial quic ", "connection refused", "hint: "}},
		{fmt.Sprint(f.server), nil, []string{"error: dial quic ", "certificate", "hint: --insecure"}},
		{fmt.Sprintf("%v:8443", f.server), []string{"--insecure"}, []string{"error: dial quic ", "hint: ", "HTTP/3"}},
		{"no.such.name.invalid", nil, []string{"error: ", "no.such.name.invalid", "hint: "}},
		{fmt.Sprintf("%v:9443", f.server), []string{"--duration", "300ms"}, []string{"error: dial quic ", "i/o timeout", "hint: nothing answers QUIC there"}},
	} {
		r := f.run(t, nil, append([]string{f.bin, "dial", "--quic", test.where}, test.flags...)...)
		for _, w := range test.want {
			if r.status != 1 || !strings.Contains(r.stderr, w) {
				t.Errorf("%v: status %d, no %q in\n%s", test.where, r.status, w, r.stderr)
			}
		}
	}
}
