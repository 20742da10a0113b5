package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"servicetraceroute"
	"servicetraceroute/internal/output"
	"servicetraceroute/internal/owner"
	"servicetraceroute/internal/socket"
	"servicetraceroute/trace"
)

// ownSocket is a socket that traces, as quic-go takes one.
type ownSocket struct{ *socket.Socket }

func openOwnSocket(addr netip.AddrPort) (carrier, error) {
	s, err := socket.Open(addr)
	if err != nil {
		return nil, err
	}
	return ownSocket{s}, nil
}

func (o ownSocket) carried() net.Conn { return o.Socket }

func (o ownSocket) stand() { o.Stand() }

// runQUIC connects by a socket that is the Tracer's source and sink as well.
func (d *sockDial) runQUIC(ctx, user context.Context, w output.Writer) error {
	c, err := d.connectQUIC(ctx, d.to, openOwnSocket)
	if err != nil {
		if _, ended := endedBy(user); ended {
			return failed(fmt.Errorf("interrupted before the connection to %v was there", d.to), "")
		}
		return err
	}
	defer c.close()
	fmt.Fprintf(d.stderr, "connected: %s\n", output.Escape(d.masked(c.String())))
	if d.request {
		go c.get(ctx, d.stderr)
	}
	tr, stats, err := d.traceBySocket(ctx, c)
	if err != nil {
		return failed(err, "")
	}
	for _, ev := range []trace.Event{tr, stats} {
		if err := w.Write(ev); err != nil {
			return failed(fmt.Errorf("write: %w", err), "")
		}
	}
	c.answered(ctx)
	return nil
}

// traceBySocket traces inside the connection. When it returns nothing of the Tracer is left.
func (d *sockDial) traceBySocket(ctx context.Context, c *dialed) (*trace.Trace, *trace.Stats, error) {
	own := c.quic.socket.(ownSocket)
	cfg := d.cfg
	cfg.Backend, cfg.Source, cfg.Sink = servicetraceroute.BackendAuto, own.Source(), own.Sink()
	tracer, err := servicetraceroute.New(cfg)
	if err != nil {
		return nil, nil, err
	}
	tr, err := tracer.TraceConn(ctx, c.conn)
	stats := tracer.Stats()
	if closing := tracer.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return nil, nil, err
	}
	found := *tr
	found.Service = &trace.Service{Name: d.to.String(), By: trace.ByDial, Value: d.to.String()}
	found.Process = owner.Self()
	if found.Flow.Interface == "" { // it showed too little to be traced
		found.Flow.Interface = own.Interface()
	}
	stats.Backend, stats.Reason = servicetraceroute.BackendSock.String(), d.reason
	return &found, &stats, nil
}
