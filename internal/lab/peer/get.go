//go:build linux

package peer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"servicetraceroute/internal/lab/node"
)

// Proto is a version of HTTP. The zero value lets TLS choose, which is HTTP/2.
type Proto string

// Versions of HTTP that can be demanded.
const (
	HTTP1 Proto = "h1"
	HTTP2 Proto = "h2"
)

// GetConfig describes requests of one web client.
type GetConfig struct {
	URL   string
	Proto Proto
	// Hosts gives addresses to names, like /etc/hosts. Without an entry, names are
	// asked of Resolver, over the network.
	Hosts    map[string]netip.Addr
	Resolver netip.AddrPort
	// ServerName replaces the URL's host in TLS.
	ServerName string
	Rate       int64         // bytes/s to read at most; 0: as they come
	Count      int           // requests; 0: one, or as many as fit into For
	For        time.Duration // no new request after that time
	Pause      time.Duration // between two requests
	Reconnect  bool          // a new connection for each request
	Timeout    time.Duration // of each request; 0: 60 s
	Socket     Socket        // LocalPort is ignored
}

// Response is the outcome of one request.
type Response struct {
	Local, Remote netip.AddrPort
	Start, End    time.Time
	Proto         string // "HTTP/2.0"
	Status        int
	Bytes         int64
	SHA256        string
	Intact        bool // complete, and of /bytes/ and /slow/ the right content
	Error         string
}

// Get makes the requests one after another. A failed one is in its record.
func Get(ctx context.Context, c node.Caller, cfg GetConfig) ([]Response, error) {
	return node.Call[[]Response](ctx, c, "peer/get", cfg)
}

const maxGets = 1 << 16

func get(ctx context.Context, cfg GetConfig) ([]Response, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, err
	}
	tr, err := transport(cfg)
	if err != nil {
		return nil, err
	}
	defer tr.CloseIdleConnections()
	count := cfg.Count
	if count <= 0 {
		count = 1
		if cfg.For > 0 {
			count = maxGets
		}
	}
	client := &http.Client{Transport: tr, Timeout: cmp.Or(cfg.Timeout, stall)}
	var all []Response
	for start := time.Now(); len(all) < min(count, maxGets); {
		if len(all) > 0 && (cfg.For > 0 && time.Since(start) >= cfg.For || !sleep(ctx, cfg.Pause)) {
			break
		}
		r := Response{Start: time.Now()}
		if err := getOne(ctx, client, u, cfg.Rate, &r); err != nil {
			r.Error = err.Error()
		}
		r.End = time.Now()
		r.Intact = r.Error == ""
		all = append(all, r)
		if ctx.Err() != nil {
			break
		}
	}
	return all, nil
}

func getOne(ctx context.Context, client *http.Client, u *url.URL, rate int64, r *Response) error {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		r.Local, r.Remote = addrOf(i.Conn.LocalAddr()), addrOf(i.Conn.RemoteAddr())
	}})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	r.Proto, r.Status = resp.Proto, resp.StatusCode
	var body io.Reader = resp.Body
	if rate > 0 {
		body = &paced{ctx: ctx, r: body, rate: rate, start: time.Now()}
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", resp.Status)
	}
	return readBody(body, u.Path, r)
}

// readBody reads and hashes a body; what the server computes is computed again.
func readBody(body io.Reader, path string, r *Response) error {
	want := int64(-1)
	for _, prefix := range []string{"/bytes/", "/slow/"} {
		if rest, ok := strings.CutPrefix(path, prefix); ok {
			n, err := strconv.ParseInt(rest, 10, 64)
			if err != nil {
				return err
			}
			want = n
		}
	}
	if want >= 0 {
		check := newChecker(newStream(0))
		_, err := io.Copy(check, body)
		r.Bytes, r.SHA256 = check.n, check.hash()
		if err == nil && check.n != want {
			err = fmt.Errorf("%d bytes instead of %d", check.n, want)
		}
		if err == nil {
			err = check.err()
		}
		return err
	}
	sum := sha256.New()
	n, err := io.Copy(sum, body)
	r.Bytes, r.SHA256 = n, hex.EncodeToString(sum.Sum(nil))
	return err
}

// paced reads no faster than rate bytes per second on average.
type paced struct {
	ctx   context.Context
	r     io.Reader
	rate  int64
	start time.Time
	n     int64
}

func (p *paced) Read(b []byte) (int, error) {
	due := p.start.Add(time.Duration(float64(p.n) / float64(p.rate) * float64(time.Second)))
	if !sleep(p.ctx, time.Until(due)) {
		return 0, p.ctx.Err()
	}
	n, err := p.r.Read(b[:min(len(b), int(max(p.rate/50, 1)))])
	p.n += int64(n)
	return n, err
}

func transport(cfg GetConfig) (*http.Transport, error) {
	var protos http.Protocols
	switch cfg.Proto {
	case "":
		protos.SetHTTP1(true)
		protos.SetHTTP2(true)
	case HTTP1:
		protos.SetHTTP1(true)
	case HTTP2:
		protos.SetHTTP2(true)
		protos.SetUnencryptedHTTP2(true)
	default:
		return nil, fmt.Errorf("proto %q: want %q or %q", cfg.Proto, HTTP1, HTTP2)
	}
	sock := cfg.Socket
	sock.LocalPort = 0
	dialer := sock.dialer(0)
	dialer.Resolver = resolver(cfg.Resolver)
	return &http.Transport{
		Protocols:          &protos,
		DisableKeepAlives:  cfg.Reconnect,
		DisableCompression: true,
		// The certificate is the server's own; the lab tests paths, not trust.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: cfg.ServerName},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			if a, ok := cfg.Hosts[host]; ok {
				addr = net.JoinHostPort(a.String(), port)
			}
			return dialer.DialContext(ctx, network, addr)
		},
	}, nil
}

// resolver asks one DNS server, or is nil without one.
func resolver(server netip.AddrPort) *net.Resolver {
	if !server.IsValid() {
		return nil
	}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, server.String())
	}}
}
