package selftest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
)

// suite is a self-test that runs.
type suite struct {
	cfg      Config
	rec      *Record
	lab      *lab.Lab
	bench    *Bench
	tcp, udp peer.Server
	nodes    map[netip.Addr]string // whose address it is
	before   things                // at the client, before the first Tracer
	names    []string              // that the record must not hold
	done     int                   // flows
}

// Run tries what cfg says and judges it. It makes a network of namespaces and removes
// it, however it ends; the process must be allowed to open labs, see lab.Enter. The
// error is about what kept it from trying: harm is in the record. When ctx ends, so does
// Run, with ctx's error.
func Run(ctx context.Context, cfg Config) (*Record, error) {
	s := &suite{cfg: cfg.withDefaults(), rec: newRecord(time.Now()), names: namesHere()}
	if err := s.rec.System.describe(cfg.Version, s.names...); err != nil {
		return nil, err
	}
	s.cfg.Progress(0, s.total(), "building the network")
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	err := s.pairs(ctx)
	if closed := s.close(); err != nil || closed != nil {
		return nil, errors.Join(err, closed)
	}
	s.notTried()
	s.rec.Judge()
	return s.rec, nil
}

// close removes the network and looks whether all of it is gone.
func (s *suite) close() error {
	namespaces, err := spacesOf(s.lab)
	if err != nil {
		return errors.Join(err, s.lab.Close())
	}
	defer namespaces.close()
	if err := s.lab.Close(); err != nil {
		return err
	}
	if n := namespaces.inhabitants(); n > 0 {
		s.rec.LeftBehind = append(s.rec.LeftBehind, fmt.Sprintf("%d processes in the test's network namespaces", n))
	}
	return nil
}

// total is how many flows there will be, if none is tried again.
func (s *suite) total() int {
	n := 0
	for _, p := range s.rec.Pairs {
		n += 2 * max(len(p.Tries), 1)
	}
	return n + 2*(len(s.cfg.plan)-len(s.rec.Pairs))
}

// start builds the network, without a firewall where the kernel has none.
func (s *suite) start(ctx context.Context) error {
	n := network(true)
	opts := lab.Options{OneProcessor: true}
	l, err := lab.Start(ctx, n, opts)
	if err != nil && ctx.Err() == nil {
		n = network(false)
		plain, again := lab.Start(ctx, n, opts)
		if again != nil {
			return err
		}
		s.rec.NotTried = append(s.rec.NotTried, "a stateful firewall: "+public(err.Error(), s.names...))
		l, err = plain, nil
	}
	if err != nil {
		return err
	}
	s.lab = l
	s.bench = &Bench{Client: l.Node(client), Server: l.Node(server), Slow: l.Link(slow)}
	if n.Nodes[2].Firewall != nil {
		s.bench.Firewall = l.Node(firewall)
	}
	s.rec.Network = Network{
		Routers: len(routers(n)), DelayMS: float64(delay) / float64(time.Millisecond), BitRate: bitRate, Firewall: s.bench.Firewall != nil,
	}
	if err := s.furnish(ctx); err != nil {
		return errors.Join(err, l.Close())
	}
	return nil
}

// furnish sets the hosts, starts their servers and looks at what is there.
func (s *suite) furnish(ctx context.Context) (err error) {
	sys := &s.rec.System
	host := hostSettings()
	for _, end := range []*lab.Node{s.bench.Server, s.bench.Client} {
		sys.Sysctls = applySettings(ctx, end, host)
	}
	sys.Congestion = cmp.Or(s.cfg.Congestion, sys.Sysctls["net.ipv4.tcp_congestion_control"])
	if err := s.bench.Settle(ctx); err != nil {
		return err
	}
	layout := s.lab.Layout()
	if sys.Offloads, err = s.bench.Client.Offloads(layout.Nodes[client].Interfaces[0].Name); err != nil {
		return err
	}
	s.nodes = map[netip.Addr]string{}
	for name, n := range layout.Nodes {
		for _, i := range n.Interfaces {
			s.nodes[i.Addr4.Addr()], s.nodes[i.Addr6.Addr()] = name, name
		}
	}
	s.tcp, err = peer.ServeTCP(ctx, s.bench.Server, peer.TCPConfig{Port: tcpPort, Congestion: sys.Congestion})
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.EPERM): // tcp(7), TCP_CONGESTION; EACCES is bind's
		return fmt.Errorf("congestion control %q: %w", sys.Congestion, ErrCongestion)
	case err != nil:
		return err
	}
	if s.udp, err = peer.ServeUDP(ctx, s.bench.Server, peer.UDPConfig{Port: udpPort}); err != nil {
		return err
	}
	s.before, err = thingsAt(s.bench.Client)
	s.rec.Compared = compared()
	return err
}

// compared names the counters that Excess compares.
func compared() []string {
	return slices.DeleteFunc(slices.Clone(peer.Harm), func(name string) bool { return slices.Contains(whenClosed, name) })
}

// pairs runs all of them, each until it is decided.
func (s *suite) pairs(ctx context.Context) error {
	for i, p := range s.cfg.plan {
		for len(p.Tries) == 0 || p.undecided() {
			t, err := s.try(ctx, &p, i+len(p.Tries))
			if err != nil {
				return err
			}
			p.Tries = append(p.Tries, t)
		}
		s.rec.Pairs = append(s.rec.Pairs, p)
	}
	return nil
}

// try runs both twins of a pair, beginning with another one each time.
func (s *suite) try(ctx context.Context, p *Pair, turn int) (t Try, err error) {
	for i := range 2 {
		traced := (turn+i)%2 == 1
		how := "untraced"
		if traced {
			how = "traced"
		}
		s.cfg.Progress(s.done, max(s.total(), s.done+2-i), fmt.Sprintf("%s, %s", p.name(), how))
		f, calm, err := s.flow(ctx, p, traced)
		if err != nil {
			return t, err
		}
		s.done++
		t.Busy = t.Busy || !calm
		if traced {
			t.Traced = f
		} else {
			t.Untraced = f
		}
	}
	return t, nil
}

// flow runs one flow, with a Tracer beside it or with none at all.
func (s *suite) flow(ctx context.Context, p *Pair, traced bool) (f Flow, calm bool, err error) {
	var w *watch
	if traced {
		if w, err = s.watch(ctx); err != nil {
			return f, false, err
		}
	}
	o, err := s.bench.Measure(ctx, func(ctx context.Context) error {
		if p.Proto == "udp" {
			return s.exchange(ctx, p, &f)
		}
		return s.connection(ctx, p, &f)
	}, nil)
	if w != nil {
		err = errors.Join(err, w.end(&f, s))
	}
	if err != nil {
		return f, false, err
	}
	f.Counters = o.Sum(peer.Harm)
	for name, v := range o.Sum(peer.Jitter) {
		f.Counters[TailLoss+name] = v
	}
	f.Conntrack = int64(o.Conntrack / time.Second)
	if f.Datagrams != nil {
		f.Datagrams.arrived(o.Moved[1])
	}
	return f, o.Calm(), nil
}

// connection runs a TCP flow.
func (s *suite) connection(ctx context.Context, p *Pair, f *Flow) error {
	life := s.cfg.life()
	w := scenario.Workload{Traffic: trafficOf[p.Traffic], IPv6: p.Family == "ipv6"}
	switch w.Traffic {
	case scenario.RequestResponse:
		w.Bytes, w.Every, w.Duration = 400, 100*time.Millisecond, life
	case scenario.Idle:
		w.Bytes, w.Duration = 100, life
	default:
		w.Bytes = int64(float64(bitRate) / 8 * 0.8 * life.Seconds()) // the rest is its slow start
	}
	flows, err := peer.Run(ctx, s.bench.Client, peer.RunConfig{
		Workload: w, Seed: 7, Socket: peer.Socket{Congestion: s.rec.System.Congestion},
		Server: netip.AddrPortFrom(s.bench.Server.Addr(w.IPv6), s.tcp.Addr.Port()),
	})
	if err != nil {
		return err
	}
	got := flows[0]
	f.Intact, f.Failure = got.Intact, public(got.Error, s.names...)
	f.Bytes, f.BitRate = max(got.Sent, got.Received), int64(got.BitRate)
	f.Latency = inMS(got.Latency.P50)
	return ctx.Err()
}

// exchange runs a UDP flow.
func (s *suite) exchange(ctx context.Context, p *Pair, f *Flow) error {
	const size, every = 200, 100 * time.Millisecond
	got, err := peer.RunExchange(ctx, s.bench.Client, peer.ExchangeConfig{
		Server: netip.AddrPortFrom(s.bench.Server.Addr(p.Family == "ipv6"), s.udp.Addr.Port()),
		Count:  int(s.cfg.life() / every), Size: size, Every: every,
	})
	if err != nil {
		return err
	}
	errs := append(got.SendErrors, got.RecvErrors...)
	f.Datagrams = &Datagrams{Sent: got.Sent, Answered: got.Answered, Wrong: got.Wrong, Errors: got.SendErrorCount + got.RecvErrorCount}
	f.Intact = got.Answered == got.Sent && got.Wrong == 0 && f.Datagrams.Errors == 0
	if !f.Intact {
		f.Failure = fmt.Sprintf("%d of %d datagrams answered, %d others", got.Answered, got.Sent, got.Wrong)
		if len(errs) > 0 {
			f.Failure += ": " + public(errs[0], s.names...)
		}
	}
	f.Bytes, f.Latency = int64(got.Answered*size), inMS(got.Latency.P50)
	return ctx.Err()
}

// arrived takes what the server's kernel counted.
func (d *Datagrams) arrived(moved peer.Counters) {
	d.Delivered = int(moved["Udp.InDatagrams"] + moved["Udp6.InDatagrams"])
	d.Stray = int(moved["Udp.NoPorts"] + moved["Udp.InErrors"] + moved["Udp6.NoPorts"] + moved["Udp6.InErrors"])
}

func inMS(d time.Duration) float64 {
	return float64(d.Round(time.Microsecond)) / float64(time.Millisecond)
}

// notTried says what this suite never does.
func (s *suite) notTried() {
	s.rec.NotTried = append(s.rec.NotTried, "loss: in so few flows chance does more than tracing could")
	if s.rec.System.UserNamespace {
		s.rec.NotTried = append(s.rec.NotTried, "this machine's own TCP settings: only root sees them; the defaults were used")
	}
}
