package ladder

import (
	"net/netip"
	"time"

	"servicetraceroute/trace"
)

// patience is how long an attempt is waited for at most: at 1 s (RFC 6298 section 2.1,
// TCP_TIMEOUT_INIT) the kernel would send the SYN again.
const patience = 900 * time.Millisecond

// Config says how a path is climbed. Every field must be set, but for Borders, Gap and MaxSilent.
type Config struct {
	FirstTTL, MaxTTL int
	Probes           int           // SYNs per TTL, at most: as long as none is answered
	MaxSilent        int           // silent hops in a row; 0: no limit
	Timeout          time.Duration // of one SYN; 0.9 s at most are waited
	Gap              time.Duration // least time between two SYNs
	Borders          []netip.Prefix
}

// Wait is how long one SYN is waited for.
func (c Config) Wait() time.Duration { return min(c.Timeout, patience) }

// Answer is what became of one SYN.
type Answer struct {
	Kind     trace.ReplyKind // 0: silence
	Addr     netip.Addr
	RTT      time.Duration
	ReplyTTL int // of an ICMP error; 0: not known
}

// Climb is the state of one trace. The zero value is invalid, see NewClimb.
type Climb struct {
	cfg    Config
	dst    netip.Addr
	hops   []trace.Hop
	silent int // hops in a row, up to now
	stop   trace.Stop
	dest   *trace.Destination
}

// NewClimb begins at the first TTL.
func NewClimb(cfg Config, dst netip.Addr) *Climb {
	return &Climb{cfg: cfg, dst: dst}
}

// Next is the TTL of the next SYN; false when the trace is over.
func (c *Climb) Next() (ttl int, ok bool) {
	if c.stop != 0 {
		return 0, false
	}
	return c.top().TTL, true
}

// top is the hop that is being asked.
func (c *Climb) top() *trace.Hop {
	n := len(c.hops)
	if n == 0 || c.settled(c.hops[n-1]) {
		c.hops = append(c.hops, trace.Hop{TTL: c.cfg.FirstTTL + n, Replies: []trace.Reply{}})
		n++
	}
	return &c.hops[n-1]
}

// settled reports whether nothing more is asked of a hop.
func (c *Climb) settled(h trace.Hop) bool { return len(h.Replies) > 0 || h.Sent >= c.cfg.Probes }

// Take takes in what became of the SYN with Next's TTL.
func (c *Climb) Take(a Answer) {
	h := c.top()
	h.Sent++
	if a.Kind != 0 {
		h.Replies = append(h.Replies, trace.Reply{Addr: a.Addr, RTT: a.RTT, Kind: a.Kind, ReplyTTL: a.ReplyTTL})
		c.silent = 0
		c.answered(h.TTL, a)
	} else if c.settled(*h) {
		c.silent++
	}
	switch {
	case c.stop != 0 || !c.settled(*h):
	case c.cfg.MaxSilent > 0 && c.silent >= c.cfg.MaxSilent:
		c.stop = trace.StopSilentHops
	case h.TTL >= c.cfg.MaxTTL:
		c.stop = trace.StopMaxTTL
	}
}

// answered decides whether an answer ends the trace.
func (c *Climb) answered(ttl int, a Answer) {
	by := trace.DestinationByICMP
	switch a.Kind {
	case trace.TimeExceeded, trace.PacketTooBig:
		if c.isBorder(a.Addr) {
			c.stop = trace.StopBorder
		}
		return
	case trace.TCPAck, trace.TCPRst:
		by = trace.DestinationByAck
	case trace.NetUnreachable, trace.HostUnreachable:
		c.stop = trace.StopUnreachable // routers alone say that, also behind a destination NAT
		return
	default:
		if a.Addr != c.dst {
			c.stop = trace.StopUnreachable
			return
		}
	}
	c.stop = trace.StopDestination
	c.dest = &trace.Destination{TTL: ttl, RTT: a.RTT, By: by}
}

func (c *Climb) isBorder(a netip.Addr) bool {
	for _, p := range c.cfg.Borders {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Cut ends the trace before its time, unless it is over.
func (c *Climb) Cut(stop trace.Stop) {
	if c.stop == 0 {
		c.stop = stop
	}
}

// Stop is why the trace is over; 0: it is not.
func (c *Climb) Stop() trace.Stop { return c.stop }

// Into writes what was found into a record: Algorithm, Hops, Reached, Stop, Destination,
// Complete, Mixed and PathID.
func (c *Climb) Into(t *trace.Trace) {
	t.Algorithm, t.Stop = trace.PacketByPacket, c.stop
	t.Hops = []trace.Hop{}
	for _, h := range c.hops {
		if h.Sent > 0 {
			t.Hops = append(t.Hops, h)
		}
	}
	t.Reached, t.Destination = c.dest != nil, c.dest
	if t.Complete = c.complete(); t.Complete {
		end := c.hops[len(c.hops)-1].TTL
		if c.dest != nil {
			end = c.dest.TTL - 1
		}
		t.PathID = trace.PathID(t.Hops, end)
	}
}

// complete reports whether nothing is missing up to the end of the path: each hop was
// asked until it answered, or as often as it may be.
func (c *Climb) complete() bool {
	switch c.stop {
	case trace.StopDestination, trace.StopUnreachable, trace.StopBorder, trace.StopMaxTTL:
		return c.cfg.FirstTTL == 1
	}
	return false
}
