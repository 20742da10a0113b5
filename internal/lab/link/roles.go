//go:build linux

package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"servicetraceroute/internal/lab/node"
)

// Config describes the link between two interfaces of one namespace. The zero
// values are those of a plain wire.
type Config struct {
	A, B   string        // names of the interfaces
	Delay  time.Duration // one way
	Jitter time.Duration // added to Delay, uniform in [0, Jitter], never reorders
	Rate   int64         // bit/s each way, of whole Ethernet frames without checksum
	Queue  int           // bytes that wait for Rate; 0: 256 KiB
	// Loss is the share of TCP segments with payload that is lost, each way. Which
	// ones follows from LossSeed, the way and the segment's place in its flow
	// alone: equal flows lose equal segments, see Segment.Anchor.
	Loss     float64
	LossSeed uint64
	// LoseAll makes Loss strike any frame. ARP and neighbour discovery are spared
	// unless Loss is 1, which is a cut cable.
	LoseAll bool
	// What the link rewrites, see scenario.Link.
	SeqShift           uint32
	QuotesUntranslated bool
	ShortQuotes        bool
}

func (c Config) validate() error {
	switch {
	case c.A == "" || c.B == "" || c.A == c.B:
		return fmt.Errorf("link: interfaces %q and %q: want two different ones", c.A, c.B)
	case c.Delay < 0 || c.Jitter < 0 || c.Delay+c.Jitter > maxDelay:
		return fmt.Errorf("link: Delay %v and Jitter %v: want 0 to %v together", c.Delay, c.Jitter, maxDelay)
	case c.Rate < 0 || c.Queue < 0:
		return errors.New("link: Rate and Queue must not be negative")
	case !(c.Loss >= 0 && c.Loss <= 1): // also not a number
		return fmt.Errorf("link: Loss %v: want 0 to 1", c.Loss)
	}
	return nil
}

func (c Config) name() string { return c.A + "-" + c.B }

// Stats count what a link did since it started.
type Stats struct {
	AB, BA Counts
	// Lost are the TCP segments lost, the newest 4096.
	Lost []Segment
}

// Counts are frames of one way. Every frame received is forwarded, lost, dropped
// or still on its way.
type Counts struct {
	Received  uint64
	Forwarded uint64
	Lost      uint64 // by Loss
	Queue     uint64 // dropped: the queue was full
	Overflow  uint64 // dropped: more than 64 MiB under way
	Oversize  uint64 // dropped: longer than the MTU, an offload is on at the far end
	Failed    uint64 // dropped: the kernel did not take it
	// Shortened are errors whose quotes were cut. They are counted above as well.
	Shortened uint64
	// Late were sent more than a millisecond after their time, because the machine
	// was busy. They are in Forwarded as well.
	Late uint64
	// Missed were dropped before the link saw them; it was too slow.
	Missed uint64
	// Unfinished arrived without a checksum, from a far end with that offload, and
	// got one. They are counted above as well.
	Unfinished uint64
}

// Segment is a lost TCP segment. Seq is relative to the first segment that this
// way saw of the flow, which is 0 for its SYN.
type Segment struct {
	Src, Dst netip.AddrPort
	Seq      uint32
	Len      int
	// Anchor is the byte by which the segment was judged, relative like Seq: the
	// first one in it of those that lie Block apart from 1 on, else its own first.
	Anchor     uint32
	Occurrence int // 0: lost at its first transmission
}

// Roles returns a node's abilities as a link.
func Roles() node.Roles {
	l := &links{byName: map[string]*emulator{}}
	return node.Roles{
		"link/forward": node.Role(l.forward),
		"link/set":     node.Role(l.set),
		"link/stats":   node.Role(l.stats),
		"link/stop":    node.Role(l.stop),
	}
}

// Forward starts a link. It lasts until Stop or the node's end. Both interfaces
// must be up; IPv6 is turned off on them, for a wire has no addresses.
func Forward(ctx context.Context, c node.Caller, cfg Config) error {
	return c.Call(ctx, "link/forward", cfg, nil)
}

// Set changes a running link: A and B name it, all else is replaced. What is
// under way already arrives as it would have.
func Set(ctx context.Context, c node.Caller, cfg Config) error {
	return c.Call(ctx, "link/set", cfg, nil)
}

// ReadStats returns the counters of the link between interfaces a and b.
func ReadStats(ctx context.Context, c node.Caller, a, b string) (Stats, error) {
	return node.Call[Stats](ctx, c, "link/stats", Config{A: a, B: b})
}

// Stop ends the link between interfaces a and b; what is under way is lost.
func Stop(ctx context.Context, c node.Caller, a, b string) error {
	return c.Call(ctx, "link/stop", Config{A: a, B: b}, nil)
}

// none is the result of a role that has none.
type none struct{}

// links is the state of one node.
type links struct {
	mu     sync.Mutex
	byName map[string]*emulator
}

func (l *links) forward(ctx context.Context, cfg Config) (none, error) {
	if err := cfg.validate(); err != nil {
		return none{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byName[cfg.name()] != nil {
		return none{}, fmt.Errorf("link: %s runs already", cfg.name())
	}
	e, err := newEmulator(cfg)
	if err != nil {
		return none{}, fmt.Errorf("link: %s: %w", cfg.name(), err)
	}
	l.byName[cfg.name()] = e
	context.AfterFunc(node.Background(ctx), e.stop)
	go e.run()
	return none{}, nil
}

func (l *links) find(cfg Config) (*emulator, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.byName[cfg.name()]; e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("link: no link %s", cfg.name())
}

func (l *links) set(_ context.Context, cfg Config) (none, error) {
	if err := cfg.validate(); err != nil {
		return none{}, err
	}
	e, err := l.find(cfg)
	if err != nil {
		return none{}, err
	}
	e.set(cfg)
	return none{}, nil
}

func (l *links) stats(_ context.Context, cfg Config) (Stats, error) {
	e, err := l.find(cfg)
	if err != nil {
		return Stats{}, err
	}
	return e.stats(), nil
}

func (l *links) stop(ctx context.Context, cfg Config) (none, error) {
	e, err := l.find(cfg)
	if err != nil {
		return none{}, err
	}
	l.mu.Lock()
	delete(l.byName, cfg.name())
	l.mu.Unlock()
	e.stop()
	select {
	case <-e.done:
		return none{}, nil
	case <-ctx.Done():
		return none{}, ctx.Err()
	}
}
