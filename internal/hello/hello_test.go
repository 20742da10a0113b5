package hello

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestHostNames(t *testing.T) {
	label := strings.Repeat("x", maxLabel)
	long := strings.Join([]string{label, label, label, label[:61]}, ".")
	for in, want := range map[string]string{
		"example.com": "example.com", "EXAMPLE.Com.": "example.com", "localhost": "localhost", "xn--bcher-kva.example": "xn--bcher-kva.example",
		"r3---sn-4g5e.example": "r3---sn-4g5e.example", "my_bucket-.example": "my_bucket-.example", "1.example": "1.example",
		"a.1b": "a.1b", label: label, long: long, long + ".": long,

		"": "", ".": "", "..": "", ".a": "", "a..b": "", "a..": "", label + "x": "", long + "x": "", "1.2.3.4": "", "a.1": "", "7": "",
		"bücher.example": "", "a b": "", "a\x00b": "", "a\nb": "", "a/b": "", "a:1": "", "*.example": "", "a@b": "", "[::1]": "",
	} {
		got, ok := hostName([]byte(in))
		if got != want || ok != (want != "") {
			t.Errorf("%q: %q, %v", in, got, ok)
		}
	}
}

func TestAddresses(t *testing.T) {
	for in, want := range map[string]bool{
		"192.0.2.1": true, "0.0.0.0": true, "255.255.255.255": true,
		"192.0.2.256": false, "192.0.2": false, "192.0.2.1.": false, "192.0.2.1.5": false, "192.00.2.1": false, ".192.0.2.1": false, "": false, "999999999999999999999": false,
	} {
		if got := isIPv4([]byte(in)); got != want {
			t.Errorf("%q: %v", in, got)
		}
	}
	for in, want := range map[string]bool{
		"::": true, "2001:db8::1": true, "fe80::1%25eth0": true, "v1.x": true, "": false, "a": false, ":": false, "::\x00": false, "::]": false,
	} {
		if got := isIPLiteral([]byte(in)); got != want {
			t.Errorf("[%q]: %v", in, got)
		}
	}
}

func TestFirst(t *testing.T) {
	for _, test := range []struct {
		stream []byte
		want   Status
	}{
		{nil, More}, {[]byte{22}, More}, {[]byte("G"), More}, {[]byte("\r"), More}, {[]byte{0}, Not}, {[]byte{0x80}, Not}, {[]byte{0xff}, Not}, {[]byte(" GET"), Not},
	} {
		if _, s := First(test.stream); s != test.want {
			t.Errorf("%q: %v", test.stream, s)
		}
	}
}

// Nothing is allocated before a hello is whole, and then only what it holds.
func TestAllocations(t *testing.T) {
	stream := dialed(t, &tls.Config{ServerName: "www.example.com", NextProtos: []string{"h2", "http/1.1"}})
	request := http1("GET / HTTP/1.1", "User-Agent: x", "Host: www.example.com")
	for _, test := range []struct {
		name   string
		stream []byte
		want   float64
	}{
		{"TLS", stream, 2}, // name and list
		{"part of TLS", stream[:len(stream)-1], 0},
		{"TLS in records", rerecorded(stream, 500), 2},
		{"HTTP", request, 1},
		{"part of HTTP", request[:len(request)-1], 0},
		{"neither", []byte("\x80\x01"), 0},
	} {
		if n := testing.AllocsPerRun(100, func() { First(test.stream) }); n != test.want {
			t.Errorf("%s: %v allocations", test.name, n)
		}
	}
}

// check tests what holds for any stream.
func check(t *testing.T, read func([]byte) (Hello, Status), stream []byte) {
	h, s := read(stream)
	switch {
	case s == More && len(stream) >= MaxStream:
		t.Error("waits beyond the limit")
	case s != Done && !reflect.DeepEqual(h, Hello{}):
		t.Errorf("%v, but %+v", s, h)
	case s == Done && (h.Kind == 0 || h.BadName && h.Name != "" || len(h.ALPN) > MaxALPN):
		t.Errorf("%+v", h)
	}
	if name, ok := hostName([]byte(h.Name)); h.Name != "" && (!ok || name != h.Name) {
		t.Errorf("name %q", h.Name)
	}
	// A verdict stands, whatever follows.
	more, again := read(append(slices.Clone(stream), 'x'))
	if s != More && (again != s || !reflect.DeepEqual(more, h)) {
		t.Errorf("%v, %+v; with more %v, %+v", s, h, again, more)
	}
}

func FuzzTLS(f *testing.F) {
	good := made(sni("a.example"), alpn("h2"), extension(extECH, []byte{0}))
	f.Add(good)
	f.Add(rerecorded(good, 7))
	f.Add(dialed(f, &tls.Config{ServerName: "www.example.com"}))
	f.Add([]byte{22, 3, 1, 0, 0})
	f.Fuzz(func(t *testing.T, stream []byte) {
		check(t, TLS, stream)
		check(t, Handshake, stream)
		h, s := TLS(stream)
		if s != Done || len(stream) < recordHeader {
			return
		}
		// The same in other records says the same, where that fits.
		fragment, _, _ := record(stream)
		if _, whole := handshake(fragment, KindTLS); whole != Done || len(fragment) > MaxStream/2 {
			return
		}
		again := rerecorded(append(slices.Clone(stream[:recordHeader]), fragment...), 11)
		if h2, s2 := TLS(again); s2 != Done || !reflect.DeepEqual(h2, h) {
			t.Errorf("%+v, in other records %v, %+v", h, s2, h2)
		}
	})
}

func FuzzHTTP(f *testing.F) {
	f.Add(http1("GET / HTTP/1.1", "Host: www.example.org"))
	f.Add(http1("GET http://a.example/ HTTP/1.1", "Host: [::1]:80"))
	f.Add(http1("CONNECT a.example:443 HTTP/1.0", "A: b", " c"))
	f.Add([]byte("\r\n\nPRI * HTTP/2.0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		check(t, HTTP, stream)
		check(t, First, stream)
		h, s := HTTP(stream)
		if s != Done || h.Name == "" {
			return
		}
		// Where net/http reads the request too, it is asked for the same host.
		if r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(stream))); err == nil {
			name, _ := authority([]byte(r.Host))
			if name != h.Name {
				t.Errorf("%+v, net/http: %q", h, r.Host)
			}
		}
	})
}

func BenchmarkTLS(b *testing.B) {
	for name, test := range configs(b) {
		stream := dialed(b, test.cfg)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				TLS(stream)
			}
		})
	}
	stream := dialed(b, &tls.Config{ServerName: "www.example.com"})
	b.Run("first segment only", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			TLS(stream[:1400])
		}
	})
	spread := rerecorded(stream, 500)
	b.Run("several records", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			TLS(spread)
		}
	})
}

func BenchmarkHTTP(b *testing.B) {
	stream := http1("GET / HTTP/1.1", "User-Agent: x", "Accept: */*", "Host: www.example.com", "Cookie: "+strings.Repeat("c", 300))
	b.ReportAllocs()
	for b.Loop() {
		HTTP(stream)
	}
}
