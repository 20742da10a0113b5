//go:build linux

package peer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"strconv"
	"time"

	"servicetraceroute/internal/lab/node"
)

// HTTPSConfig describes a web server.
type HTTPSConfig struct {
	Port       uint16   // 0: any
	Names      []string // in the certificate
	Plain      bool     // HTTP without TLS
	HTTP1      bool     // no HTTP/2
	MPTCP      bool     // offer Multipath TCP
	Congestion string   // TCP_CONGESTION; empty: cubic where there is one
}

// ServeHTTPS starts a web server for HTTP/1.1 and HTTP/2 with a self-signed
// certificate. It answers
//
//	/bytes/N   the first N bytes of the stream of seed 0 (?after=3ms: not at once)
//	/slow/N    the same, spread over one second (?for=10s: over that time)
//	/echo      the request's body
func ServeHTTPS(ctx context.Context, c node.Caller, cfg HTTPSConfig) (Server, error) {
	return node.Call[Server](ctx, c, "peer/https", cfg)
}

const (
	maxBody  = 1 << 30
	maxSlow  = 10 * time.Minute
	slowStep = 50 * time.Millisecond
)

func (p *peer) https(ctx context.Context, cfg HTTPSConfig) (Server, error) {
	srv := &http.Server{
		Handler: webHandler(), ReadHeaderTimeout: stall, IdleTimeout: maxSlow,
		// Its log would end up among the node's messages to the controller.
		ErrorLog: log.New(io.Discard, "", 0),
	}
	if cfg.HTTP1 {
		srv.Protocols = new(http.Protocols)
		srv.Protocols.SetHTTP1(true)
	}
	if !cfg.Plain {
		cert, err := selfSigned(cfg.Names)
		if err != nil {
			return Server{}, fmt.Errorf("certificate: %w", err)
		}
		srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	ln, err := listen(ctx, cfg.Port, cfg.MPTCP, cfg.Congestion)
	if err != nil {
		return Server{}, err
	}
	return p.start(ctx, ln.Addr(), nil, func(life context.Context) {
		srv.BaseContext = func(net.Listener) context.Context { return life }
		defer context.AfterFunc(life, func() { srv.Close() })()
		serve := srv.Serve
		if !cfg.Plain {
			serve = func(l net.Listener) error { return srv.ServeTLS(l, "", "") }
		}
		_ = serve(ln) // always returns an error, after Close ErrServerClosed
	})
}

func webHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, err := bodySize(r)
		var after time.Duration
		if s := r.URL.Query().Get("after"); s != "" && err == nil {
			after, err = time.ParseDuration(s)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if after > 0 && !sleep(r.Context(), min(after, maxSlow)) {
			return
		}
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_, _ = io.CopyN(w, newStream(0), n) // the client may leave
	})
	mux.HandleFunc("GET /slow/{n}", slow)
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength >= 0 {
			w.Header().Set("Content-Length", strconv.FormatInt(r.ContentLength, 10))
		}
		_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 always is
		_, _ = io.Copy(w, http.MaxBytesReader(w, r.Body, maxBody))
	})
	return mux
}

func bodySize(r *http.Request) (int64, error) {
	n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
	if err == nil && (n < 0 || n > maxBody) {
		err = fmt.Errorf("%d bytes: at most %d", n, int64(maxBody))
	}
	return n, err
}

// slow spreads a body over time in small, flushed pieces.
func slow(w http.ResponseWriter, r *http.Request) {
	n, err := bodySize(r)
	total := time.Second
	if f := r.URL.Query().Get("for"); f != "" && err == nil {
		total, err = time.ParseDuration(f)
	}
	if err == nil && (total <= 0 || total > maxSlow) {
		err = fmt.Errorf("for=%v: more than 0, at most %v", total, maxSlow)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	flush := http.NewResponseController(w)
	src := newStream(0)
	steps := max(int64(total/slowStep), 1)
	for i, sent := int64(1), int64(0); i <= steps; i++ {
		m, err := io.CopyN(w, src, n*i/steps-sent)
		sent += m
		if err != nil || flush.Flush() != nil || !sleep(r.Context(), slowStep) {
			return
		}
	}
}

func selfSigned(names []string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "lab"}, DNSNames: names,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
