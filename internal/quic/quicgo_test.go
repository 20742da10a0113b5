package quic

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	quicgo "github.com/quic-go/quic-go"

	"servicetraceroute/internal/hello"
)

// sent is one datagram between two ends, in the order they were sent.
type sent struct {
	byClient bool
	data     []byte
}

// link joins a client's and a server's socket in memory and writes down what goes
// over it.
type link struct {
	mu   sync.Mutex
	sent []sent
	lose func(sent, int) bool // the nth of its sender's; nil: none
	n    map[bool]int
}

// end is a socket on a link.
type end struct {
	link     *link
	client   bool
	other    *end
	in       chan []byte
	closed   chan struct{}
	once     sync.Once
	mu       sync.Mutex
	deadline time.Time
	changed  chan struct{}
}

func newLink(lose func(sent, int) bool) (l *link, client, server *end) {
	l = &link{lose: lose, n: map[bool]int{}}
	of := func(client bool) *end {
		return &end{link: l, client: client, in: make(chan []byte, 1000), closed: make(chan struct{}), changed: make(chan struct{})}
	}
	client, server = of(true), of(false)
	client.other, server.other = server, client
	return l, client, server
}

func (e *end) LocalAddr() net.Addr {
	if e.client {
		return &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 40510}
	}
	return &net.UDPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 443}
}

func (e *end) WriteTo(b []byte, _ net.Addr) (int, error) {
	s := sent{e.client, bytes.Clone(b)}
	e.link.mu.Lock()
	lost := e.link.lose != nil && e.link.lose(s, e.link.n[e.client])
	e.link.n[e.client]++
	if !lost {
		e.link.sent = append(e.link.sent, s)
	}
	e.link.mu.Unlock()
	if !lost {
		select {
		case e.other.in <- s.data:
		default:
		}
	}
	return len(b), nil
}

func (e *end) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		e.mu.Lock()
		deadline, changed := e.deadline, e.changed
		e.mu.Unlock()
		var late <-chan time.Time
		if !deadline.IsZero() {
			timer := time.NewTimer(time.Until(deadline))
			defer timer.Stop()
			late = timer.C
		}
		select {
		case data := <-e.in:
			return copy(b, data), e.other.LocalAddr(), nil
		case <-e.closed:
			return 0, nil, net.ErrClosed
		case <-late:
			return 0, nil, os.ErrDeadlineExceeded
		case <-changed:
		}
	}
}

func (e *end) SetReadDeadline(t time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.deadline = t
	close(e.changed)
	e.changed = make(chan struct{})
	return nil
}

func (e *end) SetDeadline(t time.Time) error    { return e.SetReadDeadline(t) }
func (e *end) SetWriteDeadline(time.Time) error { return nil }
func (e *end) Close() error                     { e.once.Do(func() { close(e.closed) }); return nil }

// certificate is one that nobody checks.
func certificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// talk is a connection of a real client to a real server.
type talk struct {
	name     string
	sni      string
	protos   []string
	client   []quicgo.Version // nil: version 1
	server   []quicgo.Version // nil: version 1
	classic  bool             // a small key share, so that the hello fits in one datagram
	begins   bool             // again, after the server's first answer
	retry    bool
	idLength int // of the server's ids
	lose     func(sent, int) bool
}

// run connects, sends a little, hangs up, and returns all datagrams and the name
// that the server heard.
func (k talk) run(t *testing.T) (all []sent, heard string) {
	t.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true") // there is no socket
	cert := certificate(t)
	synctest.Test(t, func(t *testing.T) {
		l, client, server := newLink(k.lose)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		st := &quicgo.Transport{Conn: server, ConnectionIDLength: k.idLength, VerifySourceAddress: func(net.Addr) bool { return k.retry }}
		serverTLS := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: k.protos, GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
			heard = i.ServerName
			return nil, nil
		}}
		listener, err := st.Listen(serverTLS, &quicgo.Config{Versions: k.server})
		if err != nil {
			t.Fatal(err)
		}
		ct := &quicgo.Transport{Conn: client}
		clientTLS := &tls.Config{ServerName: k.sni, NextProtos: k.protos, InsecureSkipVerify: true}
		if k.classic {
			clientTLS.CurvePreferences = []tls.CurveID{tls.X25519}
		}
		conn, err := ct.Dial(ctx, server.LocalAddr(), clientTLS, &quicgo.Config{Versions: k.client})
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := listener.Accept(ctx)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.CloseWithError(0, "")
		<-accepted.Context().Done()
		_, _, _, _ = ct.Close(), st.Close(), client.Close(), server.Close()
		l.mu.Lock()
		all = l.sent
		l.mu.Unlock()
	})
	return all, heard
}

func talks() []talk {
	v1, v2 := []quicgo.Version{quicgo.Version1}, []quicgo.Version{quicgo.Version2}
	long := strings.Repeat(strings.Repeat("n", 49)+".", 5) + "xyz"
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprintf("%s-%02d", strings.Repeat("p", 97), i))
	}
	first := func(s sent, n int) bool { return s.byClient && n == 0 }
	second := func(s sent, n int) bool { return s.byClient && n == 1 }
	h3 := []string{"h3"}
	return []talk{
		{name: "version 1", sni: "www.example.com", protos: h3},
		{name: "version 2", sni: "www.example.com", protos: h3, client: v2, server: v2},
		{name: "one datagram", sni: "www.example.com", protos: h3, classic: true},
		{name: "one datagram, version 2", sni: "www.example.com", protos: h3, classic: true, client: v2, server: v2},
		{name: "long name", sni: long, protos: h3},
		{name: "many datagrams", sni: "www.example.com", protos: many},
		{name: "many datagrams, version 2", sni: "www.example.com", protos: many, client: v2, server: v2},
		{name: "retry", sni: "www.example.com", protos: h3, begins: true, retry: true},
		{name: "retry, version 2", sni: "www.example.com", protos: h3, begins: true, retry: true, client: v2, server: v2},
		{name: "retry, long ids, many datagrams", sni: "www.example.com", protos: many, begins: true, retry: true, idLength: 18},
		{name: "version negotiation", sni: "www.example.com", protos: h3, begins: true, client: append(v2, v1...), server: v1},
		{name: "first datagram lost", sni: "www.example.com", protos: h3, lose: first},
		{name: "second datagram lost", sni: "www.example.com", protos: h3, lose: second},
	}
}

// replay hands datagrams to a new Conn until its hello is known; after is the number
// of the client's datagrams that it took.
func replay(all []sent) (c *Conn, h hello.Hello, s hello.Status, after int) {
	c = newConn()
	for _, d := range all {
		if !d.byClient {
			c.Server(d.data)
			continue
		}
		after++
		if h, s = c.Client(start, d.data); s == hello.Done {
			break
		}
	}
	return c, h, s, after
}

// half is all but what the client sent after its first datagram with the same keys: a
// hello of two datagrams is not whole when it begins again.
func half(all []sent) []sent {
	var first, p Packet
	_, _ = first.Decode(all[0].data)
	return append(slices.Clone(all[:1]), slices.DeleteFunc(slices.Clone(all[1:]), func(s sent) bool {
		_, err := p.Decode(s.data)
		return s.byClient && err == nil && p.Version == first.Version && bytes.Equal(p.DCID, first.DCID)
	})...)
}

func TestAgreesWithQUICGo(t *testing.T) {
	for _, k := range talks() {
		t.Run(k.name, func(t *testing.T) {
			all, heard := k.run(t)
			if heard != k.sni {
				t.Fatalf("the server heard %q", heard)
			}
			c, h, s, after := replay(all)
			want(t, h, s, hello.Done, k.sni)
			if !slices.Equal(h.ALPN, k.protos[:min(len(k.protos), hello.MaxALPN)]) && len(k.protos[0]) <= hello.MaxALPNID {
				t.Errorf("protocols %q", h.ALPN)
			}
			st := c.d.Stats()
			t.Logf("known after %d datagrams of the client, %+v", after, st)
			if st.Seen != st.Decrypted || st.Malformed+st.Dropped != 0 {
				t.Errorf("%+v", st)
			}
			if !k.begins {
				// The client's datagrams in the other order, and again.
				client := slices.DeleteFunc(slices.Clone(all), func(s sent) bool { return !s.byClient })
				slices.Reverse(client)
				_, h, s, _ = replay(append(client, client...))
				want(t, h, s, hello.Done, k.sni)
			}
		})
	}
}

// After a Retry, and after Version Negotiation, the client begins again, with other
// keys.
func TestBeginsAgain(t *testing.T) {
	for _, k := range talks() {
		if !k.begins {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			all, _ := k.run(t)
			c, h, s, after := replay(half(all))
			want(t, h, s, hello.Done, k.sni)
			st := c.d.Stats()
			t.Logf("known after %d datagrams of the client, %+v", after, st)
			if after < 3 || st.Failed != 0 || (st.Retries == 1) != k.retry || (st.Incomplete == 0) != k.retry {
				t.Errorf("%+v", st)
			}
			if k.retry && k.idLength < MinDCID {
				// Without the Retry nobody can tell the new id from a made-up one.
				only := slices.DeleteFunc(half(all), func(s sent) bool { return !s.byClient })
				_, h, s, _ = replay(only)
				want(t, h, s, hello.More, "")
			}
		})
	}
}
