package hello

import (
	"bufio"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
)

func http1(lines ...string) []byte { return []byte(strings.Join(lines, "\r\n") + "\r\n\r\n") }

func TestHTTP(t *testing.T) {
	named := Hello{Kind: KindHTTP, Name: "www.example.org"}
	none, bad := Hello{Kind: KindHTTP}, Hello{Kind: KindHTTP, BadName: true}
	proxied := Hello{Kind: KindHTTP, Name: "www.example.org", Proxy: true}
	tests := []struct {
		name   string
		stream []byte
		status Status
		want   Hello
	}{
		{"origin", http1("GET /where?q=now HTTP/1.1", "Host: www.example.org"), Done, named},
		{"other fields around", http1("POST / HTTP/1.1", "Accept: */*", "hOsT:\t WWW.Example.ORG.:8080 \t", "Host-Id: 1", "X: y"), Done, named},
		{"HTTP/1.0 without Host", http1("GET / HTTP/1.0"), Done, none},
		{"empty Host", http1("GET / HTTP/1.1", "Host:"), Done, none},
		{"all of the server", http1("OPTIONS * HTTP/1.1", "Host: www.example.org"), Done, named},
		{"to a proxy", http1("GET http://www.example.org/pub?x=http://a/ HTTP/1.1", "Host: other.example"), Done, proxied},
		{"to a proxy, no path", http1("GET http://www.example.org?q HTTP/1.1", "Host: other.example"), Done, proxied},
		{"tunnel", http1("CONNECT www.example.org:443 HTTP/1.1", "Host: other.example"), Done, proxied},
		{"upgrade to HTTP/2", http1("GET / HTTP/1.1", "Host: www.example.org", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"), Done, named},
		{"empty lines before", append([]byte("\r\n\r\n"), http1("GET / HTTP/1.1", "Host: www.example.org")...), Done, named},
		{"line feeds alone", []byte("GET / HTTP/1.1\nHost: www.example.org\n\n"), Done, named},
		{"IPv4 address", http1("GET / HTTP/1.1", "Host: 192.0.2.1:80"), Done, none},
		{"IPv6 address", http1("GET / HTTP/1.1", "Host: [2001:db8::1]:80"), Done, none},
		{"continued field", http1("GET / HTTP/1.1", "Cookie: a=b;", " c=d", "Host: www.example.org"), Done, named},

		{"user in front", http1("GET http://www.example.org@other.example/ HTTP/1.1"), Done, Hello{Kind: KindHTTP, BadName: true, Proxy: true}},
		{"no host's name", http1("GET / HTTP/1.1", "Host: a\x1b[2Jb"), Done, bad},
		{"port of letters", http1("GET / HTTP/1.1", "Host: www.example.org:http"), Done, bad},
		{"bracket left open", http1("GET / HTTP/1.1", "Host: [2001:db8::1"), Done, bad},
		{"no address", http1("GET / HTTP/1.1", "Host: 192.0.2.256"), Done, bad},

		{"two Hosts", http1("GET / HTTP/1.1", "Host: a.example", "Host: a.example"), Not, Hello{}},
		{"continued Host", http1("GET / HTTP/1.1", "Host: a.example", " .b.example"), Not, Hello{}},
		{"continued request line", http1("GET / HTTP/1.1", " Host: a.example"), Not, Hello{}},
		{"blank before the colon", http1("GET / HTTP/1.1", "Host : a.example"), Not, Hello{}},
		{"field without a colon", http1("GET / HTTP/1.1", "Host"), Not, Hello{}},
		{"HTTP/2 with prior knowledge", []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Not, Hello{}},
		{"HTTP/0.9", []byte("GET /\r\n"), Not, Hello{}},
		{"other protocols", []byte("SSH-2.0-OpenSSH_9.6\r\n"), Not, Hello{}},
		{"like HTTP", http1("INVITE sip:a@b.example SIP/2.0", "Host: a.example"), Not, Hello{}},
		{"relative target", http1("GET where HTTP/1.1", "Host: a.example"), Not, Hello{}},
		{"two blanks", http1("GET  / HTTP/1.1", "Host: a.example"), Not, Hello{}},
		{"long method", http1(strings.Repeat("M", maxMethod+1)+" / HTTP/1.1", "Host: a.example"), Not, Hello{}},
		{"too many empty lines", append([]byte("\r\n\r\n\r\n"), http1("GET / HTTP/1.1", "Host: a.example")...), Not, Hello{}},
		{"head beyond the limit", http1("GET / HTTP/1.1", "Host: a.example", "Cookie: "+strings.Repeat("c", MaxStream)), Not, Hello{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, read := range []func([]byte) (Hello, Status){HTTP, First} {
				h, s := read(test.stream)
				if s != test.status || !reflect.DeepEqual(h, test.want) {
					t.Errorf("%v, %+v", s, h)
				}
			}
			if test.status == Not {
				return
			}
			for n := range test.stream {
				if h, s := First(test.stream[:n]); s != More || !reflect.DeepEqual(h, Hello{}) {
					t.Fatalf("%v after %q", s, test.stream[:n])
				}
			}
		})
	}
}

// What cannot become a request is known before its first line ends.
func TestNotHTTPEarly(t *testing.T) {
	for _, stream := range []string{"", "GET /\x00", "GET / HTTP/2", "GET / HTTP/1.1x", "G\x00", "SSH-2.0-x\r", "PRI * HTTP/2"} {
		_, s := HTTP([]byte(stream))
		if want := map[bool]Status{true: More, false: Not}[stream == ""]; s != want {
			t.Errorf("%v after %q", s, stream)
		}
	}
}

func TestAgreesWithNetHTTP(t *testing.T) {
	for _, proxy := range []bool{false, true} {
		ours, theirs := net.Pipe()
		read := make(chan []byte)
		go func() {
			r := bufio.NewReader(ours)
			var stream []byte
			for {
				line, err := r.ReadBytes('\n')
				stream = append(stream, line...)
				if err != nil || len(line) == 2 {
					read <- stream
					return
				}
			}
		}()
		u := &url.URL{Scheme: "http", Host: "www.example.org:8080", Path: "/x"}
		req := &http.Request{Method: http.MethodGet, URL: u, Host: u.Host, Header: http.Header{"A": {"b"}}}
		write := req.Write
		if proxy {
			write = req.WriteProxy
		}
		if err := write(theirs); err != nil {
			t.Fatal(err)
		}
		if h, s := First(<-read); s != Done || h.Name != "www.example.org" || h.Proxy != proxy {
			t.Errorf("%v, %+v", s, h)
		}
		_, _ = ours.Close(), theirs.Close()
	}
}
