package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"
)

// reluctant is a connection to a peer that neither reads nor closes.
func reluctant(t *testing.T, hurry context.Context) *courteous {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := newCourteous(hurry, conn.(*net.TCPConn))
	t.Cleanup(func() { peer.Close(); c.Close() })
	return c
}

// within wants f to end a while before what a farewell takes when nobody hurries.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if took := time.Since(start); took > 800*time.Millisecond {
		t.Errorf("%s took %v", what, took)
	}
}

// After Ctrl-C a peer that does not close, or takes nothing, is not waited for.
func TestHurry(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := reluctant(t, ctx)
	cancel()
	within(t, "closing afterwards", func() { _ = c.Close() })

	ctx, cancel = context.WithCancel(t.Context())
	c = reluctant(t, ctx)
	time.AfterFunc(50*time.Millisecond, cancel)
	within(t, "closing when it comes", func() { _ = c.Close() })

	ctx, cancel = context.WithCancel(t.Context())
	c = reluctant(t, ctx)
	written := make(chan error, 1)
	go func() {
		for {
			if _, err := c.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
				written <- err
				return
			}
		}
	}()
	select {
	case err := <-written:
		t.Fatal(err)
	case <-time.After(200 * time.Millisecond): // its buffers are full
	}
	cancel()
	within(t, "a write", func() { <-written })
	within(t, "the farewell of TLS", func() { // it has its own idea of deadlines
		_ = c.SetWriteDeadline(time.Now().Add(5 * time.Second))
		_, _ = c.Write(make([]byte, 1<<20))
	})
	within(t, "closing", func() { _ = c.Close() })
}

// Ctrl-C ends a handshake that the peer does not take part in.
func TestHurryInHandshake(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	secure := tls.Client(reluctant(t, ctx), &tls.Config{InsecureSkipVerify: true})
	time.AfterFunc(50*time.Millisecond, cancel)
	within(t, "the handshake", func() {
		if secure.HandshakeContext(ctx) == nil {
			t.Error("there was a handshake")
		}
	})
}

// TestParseTarget: a zone ends with the bracket, and the port is behind it.
func TestParseTarget(t *testing.T) {
	for text, want := range map[string]target{
		"www.example.com":      {"www.example.com", "443"},
		"www.example.com:8443": {"www.example.com", "8443"},
		"192.0.2.1":            {"192.0.2.1", "443"},
		"192.0.2.1:80":         {"192.0.2.1", "80"},
		"2001:db8::7":          {"2001:db8::7", "443"},
		"[2001:db8::7]":        {"2001:db8::7", "443"},
		"[2001:db8::7]:80":     {"2001:db8::7", "80"},
		"fe80::1%eth0":         {"fe80::1%eth0", "443"},
		"[fe80::1%eth0]":       {"fe80::1%eth0", "443"},
		"[fe80::1%eth0]:80":    {"fe80::1%eth0", "80"},
		"[fe80::1%2]:http":     {"fe80::1%2", "http"},
	} {
		if got, err := parseTarget(text, "443"); got != want || err != nil {
			t.Errorf("%q: %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{":443", "[fe80::1%eth0", "[fe80::1%eth0]x", "[::1]:nosuchport", "a:b:c"} {
		if got, err := parseTarget(text, "443"); err == nil {
			t.Errorf("%q is %+v", text, got)
		}
	}
	if a, ok := zoned("fe80::1%eth0"); !ok || a.Zone() != "eth0" {
		t.Errorf("%v, %v", a, ok)
	}
	for _, host := range []string{"2001:db8::7", "192.0.2.1", "www.example.com"} {
		if a, ok := zoned(host); ok {
			t.Errorf("%q has the zone of %v", host, a)
		}
	}
}
