package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/classic"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/trace"
)

const (
	downloadBytes = 8 << 20
	downloadRate  = 2 << 20 // bytes/s: four seconds
	wholeDemo     = 18 * time.Second
)

// Run builds the network, downloads, traces and cleans up. It tells on talk what
// it does. The process must be allowed to open labs, see lab.Enter.
func Run(ctx context.Context, talk io.Writer) (*Result, error) {
	ctx, cancel := context.WithTimeout(ctx, wholeDemo)
	defer cancel()
	fmt.Fprintln(talk, "building a small Internet on this machine: 12 network namespaces, real kernels …")
	l, err := lab.Start(ctx, network(), lab.Options{})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	web, err := peer.ServeHTTPS(ctx, l.Node(server), peer.HTTPSConfig{Port: webPort, Names: []string{webName}})
	if err != nil {
		return nil, err
	}
	_ = web
	var tracer *servicetraceroute.Tracer
	var old *classic.Tracer
	err = l.Node(client).Do(func() (err error) {
		if tracer, err = servicetraceroute.New(servicetraceroute.Config{}); err != nil {
			return err
		}
		old, err = classic.Open()
		return err
	})
	if tracer != nil {
		defer tracer.Close()
	}
	if err != nil {
		return nil, err
	}
	defer old.Close()
	return observe(ctx, l, tracer, old, talk)
}

// observe runs the download and the three traceroutes.
func observe(ctx context.Context, l *lab.Lab, tracer *servicetraceroute.Tracer, old *classic.Tracer, talk io.Writer) (*Result, error) {
	src, dst := l.Node(client).Addr(false), l.Node(server).Addr(false)
	res := &Result{}
	download := make(chan error, 1)
	fmt.Fprintf(talk, "a client downloads %d MiB from https://%s (%v) and is traced meanwhile …\n", downloadBytes>>20, webName, dst)
	go func() { download <- res.download(ctx, l.Node(client), dst) }()
	tr, err := first(ctx, tracer, dst)
	if err != nil {
		return nil, errors.Join(err, <-download)
	}
	res.Trace = tr
	fmt.Fprintln(talk, "classic traceroutes to the same address: UDP, and TCP SYN to port 443 …")
	if res.UDP, err = old.Run(ctx, classic.Config{Proto: classic.UDP, Src: src, Dst: dst, MaxTTL: 10}); err != nil {
		return nil, errors.Join(err, <-download)
	}
	if res.TCP, err = old.Run(ctx, classic.Config{Proto: classic.TCP, Src: src, Dst: dst, Port: webPort, MaxTTL: 10}); err != nil {
		return nil, errors.Join(err, <-download)
	}
	return res, <-download
}

// first returns the trace of the first flow to dst.
func first(ctx context.Context, t *servicetraceroute.Tracer, dst netip.Addr) (*trace.Trace, error) {
	for ev, err := range t.Watch(ctx, servicetraceroute.Selection{Hosts: []string{dst.String()}}) {
		if err != nil {
			return nil, err
		}
		if tr, ok := ev.(*trace.Trace); ok {
			return tr, nil
		}
	}
	return nil, errors.New("demo: the download's flow was not seen")
}

// download fetches the file and compares it with what the server must have sent.
func (r *Result) download(ctx context.Context, n *lab.Node, dst netip.Addr) error {
	start := time.Now()
	got, err := peer.Get(ctx, n, peer.GetConfig{
		URL:   fmt.Sprintf("https://%s/bytes/%d", webName, downloadBytes),
		Hosts: map[string]netip.Addr{webName: dst}, Rate: downloadRate,
		// HTTP/2 clients keep sending window updates, whose acknowledgements often
		// hide the server's answer to a probe: the distance would take longer.
		Proto: peer.HTTP1,
	})
	if err != nil {
		return err
	}
	r.Took = time.Since(start)
	for _, g := range got {
		if g.Error != "" {
			return errors.New("demo: download: " + g.Error)
		}
		r.Bytes += g.Bytes
		r.Intact = g.Intact
	}
	return nil
}
