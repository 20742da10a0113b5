package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"servicetraceroute"
	"servicetraceroute/internal/output"
	"servicetraceroute/internal/privilege"
	"servicetraceroute/trace"
)

const dialHelp = `Open a connection and trace inside it: for when no application is at hand.

Usage:  service-traceroute dial HOST[:PORT] [flags]

The connection is TLS (ALPN h2, http/1.1), to port 443 unless told otherwise.
Keepalives keep it just busy enough to be traced; it is closed cleanly.

Connection: --plain (TCP alone, port 80)  --quic (QUIC, ALPN h3, over UDP)
            --request (send an HTTP request)  --sni NAME  -4  -6
            --insecure (do not verify the certificate)
How:        --algorithm packet-by-packet|hop-by-hop|concurrent|adaptive
            --probes 3  --max-ttl 32 --timeout 2s --max-silent 5 --border PREFIX
Limits:     --duration 30s  --rate 1000 probes/s  --hop-rate 200 per router
Output:     --output text|json|reference|scamper  -o FILE  --privacy  -v
            --pcap FILE  --config FILE      All, explained: dial --help-all
Without privileges: --backend sock: TCP SYN by SYN before the data, QUIC by the
            connection's own socket

Examples:
  service-traceroute dial www.example.com
  service-traceroute dial 203.0.113.7:8443 --sni www.example.com --request
  service-traceroute dial --plain [2001:db8::7]:25
  service-traceroute dial --quic www.example.com
`

// connectTimeout bounds the connection and, once more, its TLS handshake.
const connectTimeout = 10 * time.Second

// keepalives are the kernel's: they show our numbers when the connection is idle, and make
// the peer speak, without which no probe may reach it.
var keepalives = net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second}

// dialFlags are the flags of dial as the user wrote them.
type dialFlags struct {
	probeFlags
	resultFlags
	configuration
	plain, quic, request, insecure, v4, v6 bool
	ordered                                bool // --algorithm was given
	sni                                    string
	duration                               time.Duration
}

func newDialCommand() *cobra.Command {
	var f dialFlags
	cmd := &cobra.Command{
		Use:   "dial HOST[:PORT]",
		Short: "open a connection and trace inside it",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usage(fmt.Errorf("dial needs one HOST:PORT, not %d arguments", len(args)), "for example: service-traceroute dial www.example.com:443")
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.ordered = cmd.Flags().Changed("algorithm")
			return f.run(cmd.Context(), args[0], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&f.plain, "plain", false, "TCP alone, no TLS")
	fl.BoolVar(&f.quic, "quic", false, "QUIC (ALPN h3) over UDP, traced up to two hops before the peer")
	fl.BoolVar(&f.request, "request", false, "send an HTTP request (GET /) and read the answer")
	fl.BoolVar(&f.insecure, "insecure", false, "do not verify the server's certificate")
	fl.StringVar(&f.sni, "sni", "", "`NAME` that the server is asked for, and the certificate must have; default: the host")
	fl.BoolVarP(&f.v4, "ipv4", "4", false, "only IPv4")
	fl.BoolVarP(&f.v6, "ipv6", "6", false, "only IPv6")
	fl.DurationVar(&f.duration, "duration", 30*time.Second, "end after so long with what was found; 0: no limit")
	f.probeFlags.connects = true
	f.probeFlags.declare(cmd)
	f.resultFlags.declare(cmd)
	helpText(cmd, dialHelp)
	return configurable(cmd, &f.configuration)
}

// target is where dial connects to.
type target struct{ host, port string }

func (t target) String() string { return net.JoinHostPort(t.host, t.port) }

// parseTarget reads HOST, HOST:PORT or [ADDR]:PORT.
func parseTarget(text, port string) (target, error) {
	literal := text
	if inner, ok := strings.CutPrefix(text, "["); ok { // a zone may be anything, but what is behind the bracket
		if literal, ok = strings.CutSuffix(inner, "]"); !ok || strings.Contains(literal, "]") {
			literal = ""
		}
	}
	if a, err := netip.ParseAddr(literal); err == nil {
		return target{a.String(), port}, nil
	}
	if !strings.Contains(text, ":") {
		return target{text, port}, nil
	}
	host, port, err := net.SplitHostPort(text)
	if err == nil && host == "" {
		err = errors.New("the host is missing")
	}
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		return target{}, usage(fmt.Errorf("%q is not HOST:PORT: %w", text, err), "for example www.example.com:443 or [2001:db8::7]:443")
	}
	return target{host, port}, nil
}

// config checks the flags and turns them into the library's terms.
func (f *dialFlags) config(stderr io.Writer) (cfg servicetraceroute.Config, err error) {
	switch {
	case f.v4 && f.v6:
		return cfg, usage(errors.New("-4 and -6 exclude each other"), "")
	case f.plain && f.quic:
		return cfg, usage(errors.New("--plain is TCP alone: --quic does not go with it"), "")
	case f.plain && (f.sni != "" || f.insecure):
		return cfg, usage(errors.New("--plain has no TLS: --sni and --insecure do not go with it"), "")
	}
	if err := notNegative("duration", f.duration); err != nil {
		return cfg, err
	}
	if err := f.probeFlags.apply(&cfg); err != nil {
		return cfg, err
	}
	if err := f.checkSock(cfg); err != nil {
		return cfg, err
	}
	return cfg, f.resultFlags.apply(&cfg, stderr)
}

// run connects, traces and closes.
func (f *dialFlags) run(ctx context.Context, where string, stdout, stderr io.Writer) (err error) {
	cfg, err := f.config(stderr)
	if err != nil {
		return err
	}
	port := "443"
	if f.plain {
		port = "80"
	}
	to, err := parseTarget(where, port)
	if err != nil {
		return err
	}
	packets, err := f.pcap.config(&cfg, f.file)
	if err != nil {
		return err
	}
	tracer, reason, err := f.tracer(cfg)
	if err != nil {
		return err
	}
	if tracer == nil {
		d := &sockDial{dialFlags: f, cfg: cfg, reason: reason, to: to, stderr: stderr}
		return d.run(ctx, stdout)
	}
	defer func() { err = packets.end(err, tracer.Close()) }()
	if err := packets.open(ctx, stdout, stderr); err != nil {
		return err
	}
	w, done, err := f.open(ctx, stdout, stderr, f.verbose)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	if err := privilege.Drop(translations()...); err != nil {
		return failed(err, "")
	}
	user := ctx
	if f.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.duration)
		defer cancel()
	}
	fmt.Fprintf(stderr, "connecting to %s; Ctrl-C stops\n", output.Escape(f.masked(to.String())))
	c, err := f.connect(ctx, user, to)
	if _, ended := endedBy(user); ended && err != nil {
		return failed(fmt.Errorf("interrupted before the connection to %v was there", to), "")
	}
	if err != nil {
		return err
	}
	defer c.close()
	fmt.Fprintf(stderr, "connected: %s\n", output.Escape(f.masked(c.String())))
	if f.request {
		go c.get(ctx, stderr)
	}
	tr, err := tracer.TraceConn(ctx, c.conn)
	if err != nil {
		return failed(err, "")
	}
	found := *tr
	found.Service = &trace.Service{Name: to.String(), By: trace.ByDial, Value: to.String()}
	stats := tracer.Stats()
	for _, ev := range []trace.Event{&found, &stats} {
		if err := w.Write(ev); err != nil {
			return failed(fmt.Errorf("write: %w", err), "")
		}
	}
	if found.Reason == trace.ReasonNoState {
		fmt.Fprintln(stderr, "hint: no packet with the connection's own addresses was seen: does this host translate them (NAT)? "+
			"As root the kernel tells how; trace --host shows the flow as it leaves")
	}
	c.answered(ctx)
	return nil
}

// connect opens the connection and says what helps when it cannot be had. When user
// has ended, the end of the connection is in a hurry.
func (f *dialFlags) connect(ctx, user context.Context, to target) (*dialed, error) {
	if f.quic {
		return f.connectQUIC(ctx, to, openDatagrams)
	}
	network := "tcp"
	switch {
	case f.v4:
		network = "tcp4"
	case f.v6:
		network = "tcp6"
	}
	d := net.Dialer{Timeout: connectTimeout, KeepAliveConfig: keepalives}
	start := time.Now()
	conn, err := d.DialContext(ctx, network, to.String())
	if err != nil {
		return nil, connectFailed(err)
	}
	return f.secure(ctx, newCourteous(user, conn.(*net.TCPConn)), to, start)
}

// secure makes of a connection what was asked for: with TLS, or as it is.
func (f *dialFlags) secure(ctx context.Context, tcp *courteous, to target, start time.Time) (*dialed, error) {
	c := &dialed{conn: tcp, to: to, plain: f.plain, got: make(chan struct{}), asked: f.request}
	if f.plain {
		c.took = time.Since(start)
		return c, nil
	}
	secure := tls.Client(tcp, &tls.Config{ServerName: f.serverName(to), NextProtos: []string{"h2", "http/1.1"}, InsecureSkipVerify: f.insecure})
	hello, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := secure.HandshakeContext(hello); err != nil {
		_ = tcp.Close()
		return nil, handshakeFailed(err)
	}
	c.conn, c.took = secure, time.Since(start)
	return c, nil
}

// serverName is whom the server is asked for.
func (f *dialFlags) serverName(to target) string {
	if f.sni != "" {
		return f.sni
	}
	return to.host
}

func connectFailed(err error) error {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &dns):
		return failed(err, "give the address itself, or check the name")
	case errors.As(err, &timeout) && timeout.Timeout():
		return failed(err, "nothing answers there: is the port right, or does a firewall drop it?")
	case refused(err):
		return failed(err, "the host answers, but nothing listens on that port")
	}
	return failed(err, "")
}

func handshakeFailed(err error) error {
	var cert *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	err = fmt.Errorf("TLS handshake: %w", err)
	switch {
	case errors.As(err, &cert):
		return failed(err, "--insecure traces all the same; --sni NAME asks for another name")
	case errors.As(err, &record):
		return failed(err, "the server does not speak TLS there: --plain")
	}
	return failed(err, "--plain makes a connection without TLS")
}
