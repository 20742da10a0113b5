//go:build linux

package whole

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/trace"
)

// resets are the resets that client and server have sent.
func (f *field) resets(t *testing.T) (n int64) {
	t.Helper()
	for _, name := range []string{"client", "server"} {
		c, err := peer.ReadCounters(t.Context(), f.Node(name))
		if err != nil {
			t.Fatal(err)
		}
		n += c["Tcp.OutRsts"]
	}
	return n
}

// dialed runs a command that dials, again where the server repeated a segment while a probe
// might have been why: on a short path it does so where this machine is late, and the trace
// ends without a destination, as it has to.
func (f *field) dialed(t *testing.T, command ...string) (r result) {
	t.Helper()
	for range 3 {
		r = f.run(t, nil, command...)
		line, _, _ := strings.Cut(r.stdout, "\n")
		ev, err := trace.Unmarshal([]byte(line))
		if tr, ok := ev.(*trace.Trace); err != nil || !ok || !tr.Impact.Aborted || tr.Impact.Retransmits == 0 || tr.Impact.RSTs > 0 {
			return r
		}
		t.Logf("a retransmission near a reaching probe: %s", line)
	}
	return r
}

// dial opens connections of its own, of every kind, and leaves them as an
// application should.
func (f *field) dial(t *testing.T) {
	if _, err := peer.ServeHTTPS(t.Context(), f.Node("server"), peer.HTTPSConfig{Port: 80, Plain: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.ServeHTTPS(t.Context(), f.Node("server"), peer.HTTPSConfig{Port: 8443, HTTP1: true}); err != nil {
		t.Fatal(err)
	}
	plain := netip.AddrPortFrom(f.server, 80).String()
	before := f.resets(t)
	v6 := f.Node("server").Addr(true)
	for _, test := range []struct {
		name   string
		where  string
		flags  []string
		stderr string
	}{
		{"TLS", fmt.Sprint(f.server), []string{"--insecure"}, "TLS 1.3, h2"},
		{"TLS, IPv6", netip.AddrPortFrom(v6, 443).String(), []string{"--insecure"}, "TLS 1.3, h2"},
		{"a request over h2", fmt.Sprintf("%v:443", f.server), []string{"--insecure", "--request", "--sni", "www.example.com"}, "answer: HTTP/2.0"},
		{"no HTTP/2", fmt.Sprintf("%v:8443", f.server), []string{"--insecure"}, "TLS 1.3, http/1.1"},
		{"a request over HTTP/1.1", fmt.Sprintf("%v:8443", f.server), []string{"--insecure", "--request"}, "answer: HTTP/1.1"},
		{"TCP alone", fmt.Sprint(f.server), []string{"--plain"}, "TCP"},
		{"a request over TCP", plain, []string{"--plain", "--request"}, "answer: HTTP/1.1"},
	} {
		r := f.dialed(t, append([]string{f.bin, "dial", test.where, "--output", "json", "--label", "x"}, test.flags...)...)
		if r.status != 0 || !strings.Contains(r.stderr, test.stderr) {
			t.Errorf("%s: status %d after %v\n%s%s", test.name, r.status, r.took, r.stderr, r.stdout)
			continue
		}
		line, _, _ := strings.Cut(r.stdout, "\n")
		ev, err := trace.Unmarshal([]byte(line))
		tr, ok := ev.(*trace.Trace)
		if err != nil || !ok || !tr.Reached || !tr.Complete || tr.Destination.TTL != 3 || tr.Service.By != trace.ByDial || tr.Label != "x" {
			t.Errorf("%s: %v\n%s", test.name, err, r.stdout)
		}
	}
	if n := f.resets(t) - before; n != 0 {
		t.Errorf("%d resets were sent", n)
	}
	for _, test := range []struct {
		where  string
		flags  []string
		status int
		want   []string
	}{
		{fmt.Sprintf("%v:9", f.server), nil, 1, []string{"error: ", "connection refused", "hint: "}},
		{fmt.Sprint(f.server), nil, 1, []string{"error: TLS handshake: ", "hint: --insecure"}},
		{"no.such.name.invalid", nil, 1, []string{"error: ", "no.such.name.invalid", "hint: "}},
		{plain, nil, 1, []string{"error: TLS handshake: ", "hint: ", "--plain"}},
	} {
		r := f.run(t, nil, append([]string{f.bin, "dial", test.where}, test.flags...)...)
		for _, w := range test.want {
			if r.status != test.status || !strings.Contains(r.stderr, w) {
				t.Errorf("%v: status %d, no %q in\n%s", test.where, r.status, w, r.stderr)
			}
		}
	}
}
