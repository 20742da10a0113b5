package main

import (
	"context"
	crand "crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/ladder"
	"servicetraceroute/internal/output"
	"servicetraceroute/internal/owner"
	"servicetraceroute/internal/privilege"
	"servicetraceroute/internal/route"
	"servicetraceroute/trace"
)

// checkSock refuses what --backend sock cannot do.
func (f *dialFlags) checkSock(cfg servicetraceroute.Config) error {
	switch {
	case cfg.Backend != servicetraceroute.BackendSock:
	case f.pcap.file != "":
		return usage(errors.New("--backend sock: it sees no packets, so --pcap has nothing to write"), "leave one of them away")
	case f.disorders(cfg):
		return usage(f.orderless("--backend sock"), "leave one of them away, or --algorithm packet-by-packet")
	}
	return nil
}

// disorders reports whether an order of probes was asked for that connecting SYN by SYN does
// not have.
func (f *dialFlags) disorders(cfg servicetraceroute.Config) bool {
	return !f.quic && f.ordered && cfg.Defaults.Algorithm != trace.PacketByPacket
}

func (f *dialFlags) orderless(why string) error {
	return fmt.Errorf("%s: it connects SYN by SYN, so TCP is traced packet by packet and --algorithm %s cannot be had", why, f.algorithm)
}

// tracer opens what sees packets; without one, and no error, dial does without, and why is
// the reason.
func (f *dialFlags) tracer(cfg servicetraceroute.Config) (t *servicetraceroute.Tracer, reason string, err error) {
	if cfg.Backend == servicetraceroute.BackendSock {
		return nil, "asked for", nil
	}
	t, err = servicetraceroute.New(cfg)
	if err == nil {
		return t, "", nil
	}
	if cfg.Backend != servicetraceroute.BackendAuto || f.pcap.file != "" || !errors.Is(err, os.ErrPermission) {
		return nil, "", openFailed(err)
	}
	if f.disorders(cfg) {
		return nil, "", failed(f.orderless(fmt.Sprintf("packets cannot be seen (%v), and of the back end sock", err)), "without --algorithm it traces")
	}
	return nil, "auto: " + err.Error(), nil
}

// sockDial is dial where no packets are seen: over TCP it connects SYN by SYN
// (internal/ladder), a QUIC connection's own socket is its Tracer's source and sink
// (internal/socket).
type sockDial struct {
	*dialFlags
	cfg    servicetraceroute.Config
	reason string
	to     target
	stderr io.Writer
	start  time.Time
}

// run connects, writes the records, and does with the connection what dial does.
func (d *sockDial) run(ctx context.Context, stdout io.Writer) (err error) {
	if d.cfg.Backend != servicetraceroute.BackendSock {
		way := "connecting SYN by SYN"
		if d.quic {
			way = "tracing by the connection's own socket"
		}
		fmt.Fprintf(d.stderr, "packets cannot be seen (%s): %s instead, as --backend sock\n", strings.TrimPrefix(d.reason, "auto: "), way)
	}
	if !d.quic {
		d.reported.Params.Timeout = d.ladderConfig().Wait()
	}
	w, done, err := d.open(ctx, stdout, d.stderr, d.verbose)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	if err := privilege.Drop(); err != nil {
		return failed(err, "")
	}
	user := ctx
	if d.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.duration)
		defer cancel()
	}
	fmt.Fprintf(d.stderr, "connecting to %s; Ctrl-C stops\n", output.Escape(d.masked(d.to.String())))
	if d.quic {
		return d.runQUIC(ctx, user, w)
	}
	return d.runTCP(ctx, user, w)
}

// runTCP is run over TCP.
func (d *sockDial) runTCP(ctx, user context.Context, w output.Writer) error {
	tr, conn, failure := d.climb(ctx)
	if tr == nil {
		if _, ended := endedBy(user); ended {
			failure = failed(fmt.Errorf("interrupted before the connection to %v was there", d.to), "")
		}
		return failure
	}
	var c *dialed
	if conn != nil {
		if c, failure = d.secure(ctx, newCourteous(user, conn), d.to, d.start); failure == nil {
			defer c.close()
			fmt.Fprintf(d.stderr, "connected: %s\n", output.Escape(d.masked(c.String())))
			if d.request {
				go c.get(ctx, d.stderr)
			}
		} else if _, ended := endedBy(user); ended {
			failure = nil // there are records
			fmt.Fprintf(d.stderr, "interrupted before the TLS handshake with %s was over\n", output.Escape(d.masked(d.to.String())))
		}
	}
	for _, ev := range []trace.Event{tr, d.stats(tr)} { // also when nothing came of the connection
		if err := w.Write(ev); err != nil {
			return failed(fmt.Errorf("write: %w", err), "")
		}
	}
	if failure == nil && c != nil {
		c.answered(ctx)
	}
	return failure
}

// climb traces and connects. There is a trace as soon as there is a way to the target; with
// one, no connection and no error, ctx has ended.
func (d *sockDial) climb(ctx context.Context) (*trace.Trace, *net.TCPConn, error) {
	l, dst, err := d.ladder(ctx)
	if err != nil {
		return nil, nil, connectFailed(err)
	}
	defer l.Close()
	d.start = time.Now()
	tr := d.blank(trace.FlowKey{Proto: trace.TCP, Src: withoutZone(l.Local()), Dst: withoutZone(dst)})
	tr.Flow.Interface = leavesAt(tr.Flow.FlowKey, dst.Addr().Zone())
	var conn *net.TCPConn
	if tr.Reason = d.refuses(tr.Flow.FlowKey); tr.Reason != 0 {
		tr.Stop = trace.StopRefused
	} else {
		var c *ladder.Climb
		if c, conn, err = ladder.Run(ctx, d.ladderConfig(), l, withoutZone(dst).Addr()); err != nil {
			return nil, nil, connectFailed(err)
		}
		c.Into(tr)
	}
	tr.End = time.Now()
	if conn != nil {
		tr.Observed.RTT = tr.Destination.RTT
		return tr, keptBusy(conn), nil
	}
	if ctx.Err() != nil {
		return tr, nil, nil
	}
	// The trace is over, the connection is still to be made.
	a, conn, err := l.Connect(ctx, 0, connectTimeout)
	switch {
	case ctx.Err() != nil && conn == nil:
		return tr, nil, nil
	case err != nil:
		return tr, nil, connectFailed(err)
	}
	tr.Observed.RTT = a.RTT
	if tr.Destination == nil && tr.Stop != trace.StopBorder && tr.Stop != trace.StopUnreachable && tr.Stop != trace.StopRefused {
		tr.Destination = &trace.Destination{RTT: a.RTT, By: trace.DestinationByPassive}
	}
	return tr, keptBusy(conn), nil
}

// ladder finds the target's first address that there is a way to.
func (d *sockDial) ladder(ctx context.Context) (l *ladder.Ladder, dst netip.AddrPort, err error) {
	network := "ip"
	switch {
	case d.v4:
		network = "ip4"
	case d.v6:
		network = "ip6"
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", d.to.port)
	if err != nil {
		return nil, dst, err
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, network, d.to.host)
	if err != nil {
		return nil, dst, err
	}
	if literal, ok := zoned(d.to.host); ok {
		addrs = []netip.Addr{literal}
	}
	for _, a := range addrs {
		dst = netip.AddrPortFrom(a.Unmap(), uint16(port))
		if l, err = ladder.Open(dst); err == nil {
			return l, dst, nil
		}
	}
	return nil, dst, err
}

// ladderConfig are the flags in the ladder's terms. No responder is asked more often than
// --hop-rate allows, though each SYN may be another's.
func (d *sockDial) ladderConfig() ladder.Config {
	p := d.cfg.Defaults
	return ladder.Config{
		FirstTTL: p.FirstTTL, MaxTTL: p.MaxTTL, Probes: p.Probes, MaxSilent: max(p.MaxSilent, 0), Timeout: p.Timeout,
		Gap: time.Second / time.Duration(min(d.cfg.Rate, d.cfg.HopRate)), Borders: p.Borders,
	}
}

// refuses is why nothing is probed, as with the other back ends; 0: it is.
func (d *sockDial) refuses(k trace.FlowKey) trace.Reason {
	dst := k.Dst.Addr()
	switch {
	case !d.cfg.Loopback && (dst.IsLoopback() || dst == k.Src.Addr()):
		return trace.ReasonLoopback
	case slices.ContainsFunc(d.cfg.Exclude, func(p netip.Prefix) bool { return p.Contains(dst) }):
		return trace.ReasonExcluded
	}
	return 0
}

// blank is a trace of which nothing is known yet but whose it is.
func (d *sockDial) blank(k trace.FlowKey) *trace.Trace {
	var id [8]byte
	_, _ = crand.Read(id[:]) // never fails
	tr := &trace.Trace{
		ID: hex.EncodeToString(id[:]), Label: d.cfg.Label, Start: d.start, Algorithm: trace.PacketByPacket,
		Flow: trace.Tuple{FlowKey: k, Direction: trace.Out}, Process: owner.Self(),
		Service: &trace.Service{Name: d.to.String(), By: trace.ByDial, Value: d.to.String()},
		Hops:    []trace.Hop{}, Observed: trace.Observed{RTT: -1},
	}
	return tr
}

// stats are the counters of a run with one trace.
func (d *sockDial) stats(tr *trace.Trace) *trace.Stats {
	now := time.Now()
	s := &trace.Stats{
		Time: now, Label: d.cfg.Label, Uptime: now.Sub(d.start), Backend: servicetraceroute.BackendSock.String(), Reason: d.reason,
		Flows: trace.FlowStats{Live: 1, Matched: 1}, Traces: trace.TraceStats{Started: 1, Done: 1, ByStop: map[trace.Stop]uint64{tr.Stop: 1}},
	}
	if tr.Stop == trace.StopRefused {
		s.Probes.Refused = 1
	}
	for _, h := range tr.Hops {
		s.Probes.Sent += uint64(h.Sent)
		s.Replies.Matched += uint64(len(h.Replies))
	}
	return s
}

// keptBusy is the connection with dial's keepalives; without them it is one all the same.
func keptBusy(conn *net.TCPConn) *net.TCPConn {
	_ = conn.SetKeepAliveConfig(keepalives)
	return conn
}

// leavesAt is the interface at which a flow's packets leave; empty: it is not known. Of a
// link-local address its zone tells.
func leavesAt(k trace.FlowKey, zone string) string {
	if zone != "" {
		if n, err := strconv.Atoi(zone); err == nil {
			if ifi, err := net.InterfaceByIndex(n); err == nil {
				return ifi.Name
			}
		}
		return zone
	}
	_, name, err := route.Interface(k)
	if err != nil {
		return ""
	}
	return name
}

// withoutZone is an address as packets have it.
func withoutZone(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().WithZone(""), a.Port())
}
