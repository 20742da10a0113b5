//go:build linux

package whole

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"servicetraceroute"
	"servicetraceroute/internal/lab/observe"
	"servicetraceroute/internal/socket"
	"servicetraceroute/trace"
)

// quicFence is the highest TTL that is probed where the server is at serverTTL.
const quicFence = serverTTL - 2

// TestSockQUIC dials QUIC as a user without any capability.
func TestSockQUIC(t *testing.T) {
	t.Parallel()
	othersExist(t)
	f := newBalanced(t)
	f.serveQUIC(t, 443, http3.NextProtoH3)
	t.Run("paths", f.sockQUICPaths)
	t.Run("ends", f.sockQUICEnds)
	t.Run("bytes", f.sockQUICBytes)
	t.Run("interrupted", f.sockInterrupted)
}

// Each hop up to the fence is the router that the connection's own packets passed there.
func (f *field) sockQUICPaths(t *testing.T) {
	var traces []*trace.Trace
	v6 := f.Node("server").Addr(true)
	for range 3 {
		for _, test := range []struct {
			flags     []string
			algorithm trace.Algorithm
		}{
			{[]string{f.server.String(), "--request"}, trace.Adaptive},
			{[]string{f.server.String(), "--backend", "sock", "--algorithm", "hop-by-hop"}, trace.HopByHop},
			{[]string{v6.String(), "--backend", "sock", "--request"}, trace.Adaptive},
			{[]string{v6.String(), "--algorithm", "concurrent"}, trace.Concurrent},
		} {
			r := f.nobody(t, append([]string{"dial", "--quic", "--insecure", "--output", "json", "--label", "x"}, test.flags...)...)
			tr, s := r.read(t)
			asked := test.flags[1] == "--backend"
			picked := strings.Contains(r.stderr, "packets cannot be seen (") && strings.Contains(r.stderr, "operation not permitted") &&
				strings.Contains(r.stderr, "tracing by the connection's own socket instead")
			if r.status != 0 || !strings.Contains(r.stderr, "connected: ") || picked == asked ||
				test.flags[len(test.flags)-1] == "--request" && !strings.Contains(r.stderr, "answer: HTTP/3.0 200 OK") {
				t.Errorf("%v: status %d\n%s", test.flags, r.status, r.stderr)
			}
			if s.Backend != "sock" || (s.Reason == "asked for") != asked || !asked && !strings.HasPrefix(s.Reason, "auto: ") || s.Probes.Sent < quicFence ||
				s.Replies.Matched < quicFence || s.Replies.Unmatched != 0 || s.Packets.Malformed != 0 || s.Packets.Dropped != 0 {
				t.Errorf("%v: %+v", test.flags, s)
			}
			if tr.Stop != trace.StopFence || tr.Reached || tr.Algorithm != test.algorithm || len(tr.Hops) != quicFence || tr.Label != "x" || tr.Service.By != trace.ByDial ||
				tr.Flow.Interface != "eth0" || tr.Process == nil || tr.Process.Name != "service-traceroute" || tr.Process.Cgroup == "" {
				t.Errorf("%v: %s", test.flags, r.stdout)
			}
			traces = append(traces, tr)
		}
	}
	f.sockTruth(t, 17, traces, func(tr *trace.Trace, h trace.Hop, answered []observe.Hop, nodes []string) {
		if len(h.Replies) == 0 || len(answered) != 1 || answered[0].Node != nodes[h.TTL-1] {
			t.Errorf("%v: TTL %d shows %+v; %v answered, the connection passed %v", tr.Flow, h.TTL, h.Replies, answered, nodes)
			return
		}
		for _, reply := range h.Replies {
			if reply.Addr != answered[0].Addr || reply.RTT <= 0 || reply.RTT > 200*time.Millisecond || reply.ReplyTTL != 65-h.TTL || len(reply.Changes) != 0 {
				t.Errorf("%v: TTL %d shows %+v, %v answered", tr.Flow, h.TTL, reply, answered)
			}
		}
	})
}

// A port where nobody listens, and a trace that ends early.
func (f *field) sockQUICEnds(t *testing.T) {
	closed := netip.AddrPortFrom(f.server, 9).String()
	r := f.nobody(t, "dial", "--quic", "--backend", "sock", closed)
	if r.status != 1 || !strings.Contains(r.stderr, "connection refused\nhint: the host answers") || r.took > 5*time.Second {
		t.Errorf("status %d after %v\n%s", r.status, r.took, r.stderr)
	}
	for _, test := range []struct {
		flags []string
		stop  trace.Stop
		hops  int
	}{
		{[]string{"--max-ttl", "2"}, trace.StopMaxTTL, 2},
		{[]string{"--border", "0.0.0.0/0"}, trace.StopBorder, 1},
		{[]string{"--exclude", f.server.String()}, trace.StopRefused, 0},
		{[]string{"--udp-probe", "off"}, trace.StopRefused, 0},
	} {
		r := f.nobody(t, append([]string{"dial", "--quic", "--insecure", "--output", "json", f.server.String(), "--request"}, test.flags...)...)
		tr, _ := r.read(t)
		if r.status != 0 || !strings.Contains(r.stderr, "answer: HTTP/3.0 200 OK") || tr.Stop != test.stop || len(tr.Hops) != test.hops || tr.Flow.Interface != "eth0" {
			t.Errorf("%v: status %d\n%s%s", test.flags, r.status, r.stdout, r.stderr)
		}
	}
}

// counted counts the datagrams that pass a socket of an application.
type counted struct {
	net.PacketConn
	in, out, strange atomic.Int64
}

func (c *counted) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.PacketConn.ReadFrom(b)
	if err == nil {
		c.in.Add(1)
		if n < 21 {
			c.strange.Add(1)
		}
	}
	return n, from, err
}

func (c *counted) WriteTo(b []byte, to net.Addr) (int, error) {
	c.out.Add(1)
	return c.PacketConn.WriteTo(b, to)
}

// What a traced connection carries comes back as it was sent, and its peer's application
// gets what ours sent and not one datagram more, however often it is traced.
func (f *field) sockQUICBytes(t *testing.T) {
	sent := make([]byte, 3_000_000)
	_, _ = rand.Read(sent)
	served, ended := f.echoQUIC(t, 8443)
	for _, server := range []netip.Addr{f.server, f.Node("server").Addr(true)} {
		var own *socket.Socket
		var tracer *servicetraceroute.Tracer
		before := served.in.Load()
		err := f.Node("client").Do(func() (err error) {
			if own, err = socket.Open(netip.AddrPortFrom(server, 8443)); err != nil {
				return err
			}
			tracer, err = servicetraceroute.New(servicetraceroute.Config{Source: own.Source(), Sink: own.Sink()})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		ours := &counted{PacketConn: own}
		transport := &quic.Transport{Conn: ours}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		q, err := transport.Dial(ctx, own.RemoteAddr(), &tls.Config{NextProtos: []string{http3.NextProtoH3}, InsecureSkipVerify: true},
			&quic.Config{DisablePathMTUDiscovery: true, KeepAlivePeriod: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		own.Stand()
		var work sync.WaitGroup
		work.Go(func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "https://server/", bytes.NewReader(sent))
			resp, err := new(http3.Transport).NewClientConn(q).RoundTrip(req)
			if err != nil {
				t.Error(err)
				return
			}
			got, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%v: %d bytes came back, %v", server, len(got), err)
			}
		})
		probes := 0
		for range 2 {
			tr, err := tracer.TraceConn(ctx, own)
			if err != nil || tr.Stop != trace.StopFence || len(tr.Hops) != quicFence {
				t.Errorf("%v: %+v, %v", server, tr, err)
				continue
			}
			for _, h := range tr.Hops {
				probes += h.Sent
			}
		}
		work.Wait()
		_ = q.CloseWithError(0, "")
		cancel()
		<-ended // the server has read what came before
		_ = transport.Close()
		if err := tracer.Close(); err != nil {
			t.Error(err)
		}
		_ = own.Close()
		if got, out := served.in.Load()-before, ours.out.Load(); got > out || served.strange.Load() > 0 || probes < quicFence {
			t.Errorf("%v: the server got %d datagrams of %d, %d are strange; %d probes were sent", server, got, out, served.strange.Load(), probes)
		} else {
			t.Logf("%v: the server got %d datagrams of %d; %d probes", server, got, out, probes)
		}
	}
}

// echoQUIC serves HTTP/3 that sends back what it gets. ended has a value for each connection
// that ended.
func (f *field) echoQUIC(t *testing.T, port int) (served *counted, ended <-chan struct{}) {
	t.Helper()
	served = &counted{}
	if err := f.Node("server").Do(func() (err error) {
		served.PacketConn, err = net.ListenUDP("udp", &net.UDPAddr{Port: port})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	l, err := quic.Listen(served, &tls.Config{Certificates: []tls.Certificate{certificate(t)}, NextProtos: []string{http3.NextProtoH3}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	server := &http3.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		all, _ := io.ReadAll(r.Body)
		_, _ = w.Write(all)
	})}
	over := make(chan struct{}, 16)
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
				over <- struct{}{}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		_ = served.Close()
		work.Wait()
	})
	return served, over
}

// Ctrl-C ends a handshake that nobody answers at once, and the user is told: over TCP with
// the records of the path that is known by then.
func (f *field) sockInterrupted(t *testing.T) {
	if err := f.Node("server").Do(func() error {
		mute, err := net.Listen("tcp", ":7443") // the kernel accepts, nobody speaks
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = mute.Close() })
		deaf, err := net.ListenUDP("udp", &net.UDPAddr{Port: 7443})
		if err == nil {
			t.Cleanup(func() { _ = deaf.Close() })
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	where := netip.AddrPortFrom(f.server, 7443).String()
	for _, test := range []struct {
		flags  []string
		after  time.Duration
		status int
		stderr string
	}{
		{nil, 3 * time.Second, 0, "\ninterrupted before the TLS handshake with " + where + " was over\n"},
		{[]string{"--quic"}, time.Second, 1, "error: interrupted before the connection to " + where + " was there\n"},
	} {
		promptly(t, strings.Join(test.flags, " "), func() time.Duration {
			argv := append([]string{f.bin, "dial", "--backend", "sock", "--output", "json", "--timeout", "200ms", where}, test.flags...)
			p := start(t, f.Node("client").Do, asNobody, argv...)
			time.Sleep(test.after)
			status, took := p.signal(t, syscall.SIGINT, false)
			if told := p.stderr.String(); status != test.status || !strings.Contains(told, test.stderr) || strings.Contains(told, "hint: --plain") {
				t.Errorf("%v: status %d\n%s", test.flags, status, told)
			}
			if test.status == 0 {
				tr, _ := result{status, p.stdout.String(), p.stderr.String(), took}.read(t)
				if tr.Stop != trace.StopDestination {
					t.Errorf("%s", p.stdout.String())
				}
			}
			return took
		})
	}
}
