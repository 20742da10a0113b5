package servicetraceroute

import (
	"context"
	crand "crypto/rand"
	"errors"
	"iter"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"servicetraceroute/internal/engine"
	"servicetraceroute/trace"
)

// Tracer watches flows and traces them. Its methods may be called from any
// goroutine. Two Tracers in one process do not disturb each other.
type Tracer struct {
	cfg    Config
	log    *slog.Logger
	source Source
	sink   Sink
	local  *localAddrs

	commands chan func(now time.Time) // run by the loop, which owns the engine
	closing  chan struct{}
	once     sync.Once
	done     chan struct{} // the loop has ended
	err      error         // why, valid after done

	// Owned by the loop.
	engine  *engine.Engine
	watches map[*engine.Watch]*subscription
	minute  time.Time
}

// New opens the packet sockets (or takes the Config's) and starts watching.
// Privileges may be dropped as soon as it returned. The caller must Close it.
//
// Errors match os.ErrPermission when the process may not open packet sockets and
// errors.ErrUnsupported where this system cannot capture.
func New(cfg Config) (*Tracer, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	source, sink, err := openIO(cfg)
	if err != nil {
		return nil, err
	}
	t := &Tracer{
		cfg: cfg, log: cfg.Logger, source: source, sink: sink, local: newLocalAddrs(source),
		commands: make(chan func(time.Time), 16), closing: make(chan struct{}), done: make(chan struct{}),
		watches: map[*engine.Watch]*subscription{},
	}
	ec := engine.Config{
		Rate: cfg.Rate, HopRate: cfg.HopRate, Exclude: cfg.Exclude, Loopback: cfg.Loopback, NoProbe: cfg.NoProbe,
		Label: cfg.Label, Local: t.local.contains(), InterfaceName: source.InterfaceName,
	}
	if _, err := crand.Read(ec.Seed[:]); err != nil {
		return nil, errors.Join(err, source.Close())
	}
	now := time.Now()
	t.engine, t.minute = engine.New(now, ec), now
	go t.loop()
	return t, nil
}

// Close stops all traces, joins every goroutine and closes the sockets.
func (t *Tracer) Close() error {
	t.once.Do(func() {
		close(t.closing)
		t.wakeLoop()
	})
	<-t.done
	return t.err
}

// Stats returns the counters since New.
func (t *Tracer) Stats() trace.Stats {
	var s trace.Stats
	if t.do(func(now time.Time) { s = *t.stats(now) }) != nil {
		return trace.Stats{}
	}
	return s
}

// Watch traces every flow that the selection names, as it appears, and yields
// records until ctx ends (which is no error) or the selection's own limits are
// reached. The traces in progress when it ends are yielded with what they found,
// and the last record is *trace.Stats. An error ends the sequence.
func (t *Tracer) Watch(ctx context.Context, sel Selection) iter.Seq2[trace.Event, error] {
	return func(yield func(trace.Event, error) bool) {
		w, err := sel.watch(ctx, t.cfg)
		if err != nil {
			yield(nil, err)
			return
		}
		s, err := t.subscribe(w, sel.Idle)
		if err != nil {
			yield(nil, err)
			return
		}
		if !s.stream(ctx, yield) {
			t.unsubscribe(s, trace.StopCancelled)
			return
		}
		stop := trace.StopCancelled
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			stop = trace.StopDeadline
		}
		last := t.unsubscribe(s, stop)
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

// Trace traces one flow. Source port 0 waits for the first flow that matches the
// rest. When ctx ends the partial trace is returned, and no error.
func (t *Tracer) Trace(ctx context.Context, flow trace.Flow) (*trace.Trace, error) {
	w, err := flowWatch(flow, t.cfg)
	if err != nil {
		return nil, err
	}
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
	t.unsubscribe(s, trace.StopCancelled)
	for _, ev := range s.rest() {
		take(ev, nil)
	}
	if found == nil && s.failure != nil {
		return nil, s.failure
	}
	if found == nil {
		found = &trace.Trace{
			Label: t.cfg.Label, Start: start, End: time.Now(), Algorithm: w.Params.Algorithm, Flow: flow.Tuple,
			Hops: []trace.Hop{}, Stop: trace.StopCancelled, Observed: trace.Observed{RTT: -1},
		}
	}
	return found, nil
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
