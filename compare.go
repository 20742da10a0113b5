package servicetraceroute

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/inject"
	"servicetraceroute/internal/netns"
	"servicetraceroute/internal/sibling"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// ErrNoCompare is matched by errors of Compare about traces that nothing can be held
// beside: of flows that were refused, whose path changed meanwhile, or that this host only
// forwards (a sibling would have to pretend to be their client).
var ErrNoCompare = errors.New("no comparison")

// CompareConfig configures a Comparer. The zero value is the documented default.
type CompareConfig struct {
	// Siblings is the most of one protocol for one trace; 0 is 96, what the stopping rule
	// wants for 16 ways at one place.
	Siblings int
	// Confidence at which the ways at one place are enumerated, between 0 and 1; 0 is 0.95.
	Confidence float64
	// Timeout of a sibling's probe; 0 is 1 s.
	Timeout time.Duration
	// MaxSilent is after how many silent hops in a row a sibling ends; 0 is 3, negative: after none.
	MaxSilent int
	// Budget bounds the probes per second together with whoever shares it; nil is the
	// Tracer's: siblings and traces stay below its Rate together.
	Budget *Budget
}

// The ports of siblings: above those that Linux gives to applications by itself
// (net.ipv4.ip_local_port_range; where that reaches farther, none of theirs).
const firstSiblingPort, lastSiblingPort = 61000, 65535

// Comparer traces Paris-style siblings of flows that a Tracer has traced: new flows to the
// same destination, over TCP (SYNs to the flow's port), UDP (to port 33434) and ICMP (echo
// requests), each with a flow identifier of its own that stays constant within it. Its
// methods may be called from any goroutine; one trace is compared at a time.
//
// At most 3 siblings of each protocol reach a destination whose distance the trace proved, by
// TCP with one SYN each; the others stop one hop short. This host's kernel answers what comes
// back for a SYN by a reset, since it has no such socket. No application hears of siblings.
type Comparer struct {
	t   *Tracer
	cfg CompareConfig

	mu      sync.Mutex // held while a trace is compared
	send    *inject.Raw
	answers *capture.Answers
	own     ownFlows
	ports   inject.Ports // of the siblings of the trace that is compared
	counted sync.Mutex
	stats   CompareStats
}

// CompareStats count what a Comparer did.
type CompareStats struct {
	Compared  uint64 // traces
	Divergent uint64 // of those, with siblings that took another way
	Skipped   uint64 // traces that nothing can be held beside (ErrNoCompare)
	Dropped   uint64 // traces that were not compared, since too many waited or the time was over
	Sent      uint64 // probes
	Failed    uint64 // probes that could not be sent
	Matched   uint64 // answers
	Unmatched uint64 // answers that fit no probe under way
	// Divergence is the sum over the traces compared of the share of their siblings that
	// took another way.
	Divergence float64
}

// NewComparer opens the sockets beside a Tracer's own, in its network namespace.
// Privileges may be dropped as soon as it returned. The Tracer no longer sees the packets
// of siblings, of its newest Comparer: it has one at a time. The caller must Close it, before
// the Tracer.
//
// Errors match os.ErrPermission without CAP_NET_RAW, and errors.ErrUnsupported for a Tracer
// with a Source of its own, or where this system has no such sockets.
func NewComparer(t *Tracer, cfg CompareConfig) (*Comparer, error) {
	switch {
	case t.cfg.Source != nil:
		return nil, fmt.Errorf("compare: a Tracer with a Source of its own: %w", errors.ErrUnsupported)
	case cfg.Siblings < 0:
		return nil, errors.New("compare: Siblings: negative")
	case cfg.Confidence < 0 || cfg.Confidence >= 1:
		return nil, errors.New("compare: Confidence: not between 0 and 1")
	case cfg.Timeout < 0:
		return nil, errors.New("compare: Timeout: negative")
	}
	if cfg.Budget == nil {
		cfg.Budget = t.cfg.Budget
	}
	c := &Comparer{t: t, cfg: cfg}
	if err := netns.Do(t.cfg.NetNS, c.open); err != nil {
		return nil, err
	}
	err := t.do(func(time.Time) { t.engine.Ignore(c.own.has) })
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Comparer) open() (err error) {
	if c.send, err = inject.OpenRaw(); err != nil {
		return err
	}
	c.answers, err = capture.OpenAnswers(capture.PortRange{First: firstSiblingPort, Last: lastSiblingPort})
	if err != nil {
		return errors.Join(err, c.send.Close())
	}
	return nil
}

// Close closes the sockets. It waits for a comparison in progress.
func (c *Comparer) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.send == nil {
		return nil
	}
	err := errors.Join(c.send.Close(), c.answers.Close())
	c.send = nil
	return err
}

// Stats returns the counters since NewComparer.
func (c *Comparer) Stats() CompareStats {
	c.counted.Lock()
	defer c.counted.Unlock()
	return c.stats
}

func (c *Comparer) count(f func(*CompareStats)) {
	c.counted.Lock()
	defer c.counted.Unlock()
	f(&c.stats)
}

// Compare traces siblings of the trace's flow and holds them beside it. When ctx ends it
// returns what it has, and no error.
func (c *Comparer) Compare(ctx context.Context, tr *trace.Trace) (*trace.Compare, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.send == nil {
		return nil, net.ErrClosed
	}
	cfg, err := c.session(tr)
	if err != nil {
		c.count(func(s *CompareStats) { s.Skipped++ })
		return nil, err
	}
	defer c.ports.Release()
	s := sibling.New(cfg)
	err = c.run(ctx, s)
	done := s.Counters()
	c.count(func(t *CompareStats) {
		t.Sent, t.Failed = t.Sent+done.Sent, t.Failed+done.Failed
		t.Matched, t.Unmatched = t.Matched+done.Matched, t.Unmatched+done.Unmatched
	})
	if err != nil {
		return nil, err
	}
	out := sibling.Compare(tr, s.Siblings())
	out.Time = time.Now()
	c.count(func(t *CompareStats) {
		t.Compared++
		t.Divergence += out.Divergence
		if out.Divergent {
			t.Divergent++
		}
	})
	return out, nil
}

// session is what siblings of the trace's flow are like.
func (c *Comparer) session(tr *trace.Trace) (cfg sibling.Config, err error) {
	key := tr.Flow.FlowKey
	switch {
	case tr.Stop == trace.StopRefused:
		return cfg, fmt.Errorf("compare: flow %v was refused: %w", key, ErrNoCompare)
	case tr.Mixed: // the hops that were asked first may be the old path's
		return cfg, fmt.Errorf("compare: the path of flow %v changed while it was traced: %w", key, ErrNoCompare)
	case tr.Flow.Direction == trace.Transit:
		return cfg, fmt.Errorf("compare: flow %v is another host's: %w", key, ErrNoCompare)
	case !key.IsValid() || key.Src.Port() == 0:
		return cfg, fmt.Errorf("compare: trace without a flow: %w", ErrNoCompare)
	}
	cfg = sibling.Config{
		Src: key.Src.Addr(), Dst: key.Dst.Addr(), Port: key.Dst.Port(), HopRate: c.t.cfg.HopRate,
		Siblings: c.cfg.Siblings, Confidence: c.cfg.Confidence, Timeout: c.cfg.Timeout, MaxSilent: c.cfg.MaxSilent,
		FirstPort: firstSiblingPort, LastPort: lastSiblingPort, NotPort: key.Src.Port(),
	}
	cfg.Take = func(proto string, port uint16) bool {
		if !c.hold(proto, netip.AddrPortFrom(cfg.Src, port)) {
			return false
		}
		c.own.add(ownFlow{port, cfg.Dst})
		return true
	}
	if tr.Reached && tr.Destination != nil {
		cfg.Distance = tr.Destination.TTL
	}
	if n := len(tr.Hops); n > 0 { // no farther than the flow's own probes were to go
		cfg.FirstTTL = tr.Hops[0].TTL
		if tr.Stop == trace.StopMaxTTL || tr.Stop == trace.StopBorder {
			cfg.MaxTTL = tr.Hops[n-1].TTL
		}
	}
	_, err = crand.Read(cfg.Seed[:])
	return cfg, err
}

// hold keeps a port from applications until the comparison is over, and reports whether none
// has it. Where the Tracer's namespace can no longer be entered none is kept: there is only
// that Linux gives none above 61000 by itself.
func (c *Comparer) hold(proto string, at netip.AddrPort) (free bool) {
	protocol, ok := map[string]uint8{sibling.TCP: wire.ProtoTCP, sibling.UDP: wire.ProtoUDP}[proto]
	if !ok {
		return true // echo requests have none
	}
	free = true
	_ = netns.Do(c.t.cfg.NetNS, func() error {
		free = c.ports.Hold(protocol, at)
		return nil
	})
	return free
}

// run drives a session to its end.
func (c *Comparer) run(ctx context.Context, s *sibling.Session) error {
	granted := false // by the budget, for the next probe
	for ctx.Err() == nil {
		now := time.Now()
		until := now
		if !granted {
			wait := c.cfg.Budget.Take(now)
			granted, until = wait == 0, now.Add(wait)
		}
		if granted {
			packet, at, over := s.Next(now)
			if over {
				return nil
			}
			until = at
			if packet != nil {
				granted = false
				if err := c.send.Send(packet); err != nil {
					s.Failed()
					c.t.log.Debug("sibling's probe not sent", "err", err)
				}
			}
		}
		if wake := now.Add(longestWait); until.After(wake) {
			until = wake
		}
		a, ok, err := c.answers.Read(until)
		if err != nil {
			return err
		}
		if ok {
			s.Take(sibling.Received{From: a.From, Proto: a.Proto, TTL: a.TTL, Transport: a.Data, Time: a.Time})
		}
	}
	s.End(stopOf(ctx))
	return nil
}

// longestWait is how late the end of a context is noticed.
const longestWait = 50 * time.Millisecond

// ownFlows knows the flows that are siblings, for the Tracer, which asks for each packet
// it sees. The last ones stay known when they are over: their answers may come late.
type ownFlows struct {
	mu    sync.RWMutex
	known map[ownFlow]struct{}
	order []ownFlow // by age
}

// ownFlow is a sibling's local port and destination.
type ownFlow struct {
	port   uint16
	remote netip.Addr
}

const maxOwnFlows = 4096

func (o *ownFlows) add(f ownFlow) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.known[f]; ok {
		return
	}
	if o.known == nil {
		o.known = map[ownFlow]struct{}{}
	}
	if len(o.order) == maxOwnFlows {
		delete(o.known, o.order[0])
		o.order = o.order[1:]
	}
	o.known[f] = struct{}{}
	o.order = append(o.order, f)
}

// has reports whether the port is that of a sibling to remote.
func (o *ownFlows) has(local uint16, remote netip.Addr) bool {
	if local < firstSiblingPort {
		return false
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	_, ok := o.known[ownFlow{local, remote}]
	return ok
}
