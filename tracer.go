package servicetraceroute

import (
	"context"
	crand "crypto/rand"
	"encoding/hex"
	"errors"
	"iter"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/engine"
	"servicetraceroute/internal/evidence"
	"servicetraceroute/internal/netns"
	"servicetraceroute/internal/owner"
	"servicetraceroute/internal/service"
	"servicetraceroute/trace"
)

// Tracer watches flows and traces them. Its methods may be called from any
// goroutine. Two Tracers in one process do not disturb each other.
type Tracer struct {
	cfg     Config
	log     *slog.Logger
	source  Source
	backend string // which one that is
	reason  string // and why
	sink    Sink
	local   *localAddrs
	owners  *owner.Watcher // nil without Config.Processes
	sockets *owner.Sockets // nil: they cannot be asked
	finder  *owner.Finder  // nil with them: records name those processes alone that owners tells

	commands chan func(now time.Time) // run by the loop, which owns the engine
	closing  chan struct{}
	once     sync.Once
	done     chan struct{} // the loop has ended
	err      error         // why, valid after done

	// Owned by the loop.
	clock     *capture.Clock // of packets of a Config.Source
	batch     []Packet       // of such packets
	engine    *engine.Engine
	watches   map[*engine.Watch]*subscription
	rule      *dropRule
	minute    time.Time
	pcap      *evidence.Writer // nil: none is kept
	pcapErr   error            // of writing it, valid after done
	results   results
	unread    uint64 // records dropped since their reader was too slow
	blind     bool   // connection tracking may not be asked
	blindTold bool   // in the log
}

// New opens packet sockets and, where it can, eBPF programs in place of the one that
// captures (or takes the Config's Source and Sink), and starts watching, so that
// flows that begin from now on are known from their handshake. Privileges may be
// dropped as soon as it returned, except those that Config.Processes names. The caller
// must Close it.
//
// A UDP flow whose socket hears of ICMP errors (IP_RECVERR), or over IPv6 may (the kernel
// does not tell), is probed only where those about probes can be dropped first. For such flows
// a Tracer with CAP_NET_ADMIN puts a rule of its own into the network namespace's nf_tables
// when the first one appears. The rule is gone after Close, and when the process dies. Without
// the capability, also when it is dropped later, these flows are refused
// (trace.ReasonRecvErr), and the Logger is told once. The same holds for flows that this host
// only forwards (Selection.Directions), whose clients would hear of those errors; they are
// refused for trace.ReasonCapability.
//
// Errors match os.ErrPermission when the process may not open packet sockets and
// errors.ErrUnsupported where this system cannot capture.
func New(cfg Config) (*Tracer, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	var t *Tracer
	if err := netns.Do(cfg.NetNS, func() (err error) { t, err = open(cfg); return err }); err != nil {
		return nil, err
	}
	go t.loop()
	return t, nil
}

// open makes the descriptors on the calling thread, in whose network namespace
// they are and stay.
func open(cfg Config) (*Tracer, error) {
	o, err := openIO(cfg)
	if err != nil {
		return nil, err
	}
	source, sink := o.source, o.sink
	if cfg.Budget == nil {
		cfg.Budget = NewBudget(cfg.Rate) // who probes beside the engine shares it
	}
	t := &Tracer{
		cfg: cfg, log: cfg.Logger, source: source, sink: sink, backend: o.backend, reason: o.reason, local: newLocalAddrs(source),
		commands: make(chan func(time.Time), 16), closing: make(chan struct{}), done: make(chan struct{}),
		watches: map[*engine.Watch]*subscription{}, clock: capture.NewClock(),
	}
	ec := engine.Config{
		Rate: cfg.Rate, HopRate: cfg.HopRate, Exclude: cfg.Exclude, Loopback: cfg.Loopback, NoProbe: cfg.NoProbe,
		Label: cfg.Label, Local: t.local.contains(), InterfaceName: source.InterfaceName, Evidence: cfg.Pcap != nil,
		NetNS: cfg.NetNS, Budget: cfg.Budget, NoDNS: cfg.NoDNS, Follow: o.follower(cfg),
	}
	if s, ok := sink.(interface{ Intact(dst netip.Addr) bool }); ok {
		ec.Intact = s.Intact
	}
	if ec.Seed = cfg.seed; ec.Seed == [32]byte{} {
		if _, err := crand.Read(ec.Seed[:]); err != nil {
			return nil, errors.Join(err, source.Close())
		}
	}
	if err := t.openOwners(); err != nil {
		err = errors.Join(err, source.Close())
		if sink != nil {
			err = errors.Join(err, sink.Close())
		}
		return nil, err
	}
	t.openSockets()
	t.rule = openRule(cfg)
	ec.Finds = t.finder != nil
	ec.Tracked, ec.CanDrop = t.sockets != nil && t.sockets.Tracks(), t.rule.readyForwarded
	now := time.Now()
	t.engine, t.minute = engine.New(now, ec), now
	t.openPcap()
	return t, nil
}

// Close stops all traces, joins every goroutine and closes the sockets, or the
// Config's Source and Sink. Watches that run end with what they found. It returns
// what ended the Tracer before, if anything did, and errors of closing and of
// Config.Pcap; calling it again returns the same. Where applications must not hear of
// answers that may be under way it takes up to a second.
func (t *Tracer) Close() error {
	t.once.Do(func() {
		close(t.closing)
		t.wakeLoop()
	})
	<-t.done
	return errors.Join(t.err, t.pcapErr)
}

// Stats returns the counters since New; after Close they are zero.
func (t *Tracer) Stats() trace.Stats {
	var s trace.Stats
	if t.do(func(now time.Time) { s = *t.stats(now) }) != nil {
		return trace.Stats{}
	}
	return s
}

// Watch traces every flow that the selection names, as it appears, and yields
// records until ctx ends (which is no error) or the selection's own limits are
// reached: a *trace.Flow when a flow is selected or refused, a *trace.Trace for each
// trace, a *trace.Stats each minute. The traces in progress when it ends are yielded
// with what they found, and the last record is *trace.Stats. An error ends the
// sequence and comes with a nil record; Check finds some of them before.
//
// The watch begins with the loop over it and ends with it, also by break. A loop body
// that takes long delays no trace: up to 65536 records wait, newer ones are dropped,
// counted and logged. Several Watches may run; a flow that more than one of them selects
// belongs to the one that began first. Trace and TraceConn come before Watches.
func (t *Tracer) Watch(ctx context.Context, sel Selection) iter.Seq2[trace.Event, error] {
	return func(yield func(trace.Event, error) bool) {
		if err := t.sees(); err != nil {
			yield(nil, err)
			return
		}
		w, err := sel.watch(ctx, t.cfg)
		if err != nil && ctx.Err() != nil { // while names were resolved
			s := t.Stats()
			yield(&s, nil)
			return
		}
		if err != nil {
			yield(nil, err)
			return
		}
		s, err := t.subscribe(w, sel.Idle)
		if err != nil {
			yield(nil, err)
			return
		}
		over := false
		defer func() {
			if !over { // by break, or by a panic of the loop's body
				t.unsubscribe(s, trace.StopCancelled)
			}
		}()
		if sel.Ready != nil {
			sel.Ready()
		}
		if !s.stream(ctx, yield) {
			return
		}
		over = true
		last := t.unsubscribe(s, stopOf(ctx))
		for _, ev := range s.rest() {
			if !yield(ev, nil) {
				return
			}
		}
		if last != nil && !yield(last, nil) {
			return
		}
		if s.failure != nil {
			yield(nil, s.failure)
		}
	}
}

// Trace traces one flow, which may exist already; of the argument only Proto, Src and
// Dst are read. Src is this host's end or, of a flow that it only forwards, the client
// behind it, as that calls itself. Source port 0 waits for the first flow that
// matches the rest (where a Watch has those that exist, for the first that begins), a zero
// source address matches any. A flow that shows no packet
// has to be waited for, see TraceConn for one of this process.
//
// When ctx ends the partial trace is returned, and no error.
func (t *Tracer) Trace(ctx context.Context, flow trace.Flow) (*trace.Trace, error) {
	if err := t.sees(); err != nil {
		return nil, err
	}
	w, err := flowWatch(flow, t.cfg)
	if err != nil {
		return nil, err
	}
	t.translated(w)
	return t.one(ctx, w, flow.Tuple)
}

// one waits for the first trace of a watch.
func (t *Tracer) one(ctx context.Context, w *engine.Watch, flow trace.Tuple) (*trace.Trace, error) {
	s, err := t.subscribe(w, 0)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	var found *trace.Trace
	take := func(ev trace.Event, _ error) bool {
		tr, ok := ev.(*trace.Trace)
		if ok && found == nil {
			found = tr
		}
		return !ok
	}
	s.stream(ctx, take)
	stop := stopOf(ctx)
	t.unsubscribe(s, stop)
	for _, ev := range s.rest() {
		take(ev, nil)
	}
	if found == nil && s.failure != nil {
		return nil, s.failure
	}
	if found == nil {
		found = t.nothing(w, flow, stop)
		found.Start = start
	}
	return found, nil
}

// stopOf is why traces stop when ctx has ended.
func stopOf(ctx context.Context) trace.Stop {
	if why, ok := context.Cause(ctx).(because); ok {
		return trace.Stop(why)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return trace.StopDeadline
	}
	return trace.StopCancelled
}

// nothing is the trace of a flow that showed too little for a first probe.
func (t *Tracer) nothing(w *engine.Watch, flow trace.Tuple, stop trace.Stop) *trace.Trace {
	var id [8]byte
	_, _ = crand.Read(id[:]) // never fails
	now := time.Now()
	flow.NAT = w.Selector.Flow.NAT
	tr := &trace.Trace{
		ID: hex.EncodeToString(id[:]), Label: t.cfg.Label, Start: now, End: now, Algorithm: w.Params.Algorithm,
		Flow: flow, Hops: []trace.Hop{}, Stop: stop, Observed: trace.Observed{RTT: -1},
	}
	if stop == trace.StopRefused {
		tr.Reason = trace.ReasonNoState
	}
	if s, v := w.Selector.Match(flow, &service.Known{}); v == service.Yes {
		tr.Service = &s
	}
	return tr
}

// localAddrs answers which addresses are this host's own. It belongs to the loop.
type localAddrs struct {
	list func() ([]netip.Addr, error)
	set  map[netip.Addr]struct{}
	read time.Time
}

// newLocalAddrs asks the source, if it can tell.
func newLocalAddrs(source Source) *localAddrs {
	lister, ok := source.(interface {
		LocalAddrs() ([]netip.Addr, error)
	})
	if !ok {
		return &localAddrs{}
	}
	return &localAddrs{list: lister.LocalAddrs}
}

// contains returns the question as a function, nil when nobody can answer it.
func (l *localAddrs) contains() func(netip.Addr) bool {
	if l.list == nil {
		return nil
	}
	return func(a netip.Addr) bool {
		if _, ok := l.set[a]; ok {
			return true
		}
		// Addresses come and go; ask again, though not for every foreign packet.
		if now := time.Now(); now.Sub(l.read) > time.Second {
			l.read = now
			l.refresh()
		}
		_, ok := l.set[a]
		return ok || a.IsLoopback()
	}
}

func (l *localAddrs) refresh() {
	addrs, err := l.list()
	if err != nil {
		return // the old set is the best there is
	}
	l.set = make(map[netip.Addr]struct{}, len(addrs))
	for _, a := range addrs {
		l.set[a] = struct{}{}
	}
}
