package probe

import (
	"hash/maphash"
	"net/netip"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/trace"
)

// What flows have in common: their near hops. docs/decisions/0049-share.md has the reasons
// and what the numbers are worth.

const (
	agreeing     = 10               // witnesses, of different flows or to different destinations
	witnessFor   = time.Minute      // a witness counts
	disputeFor   = 10 * time.Minute // a TTL at which somebody saw something else is not shared
	lookEvery    = 3 * time.Second  // somebody looks, at what is agreed upon
	ownLookEvery = 20 * time.Second // and at the destination itself, where others' flows agree
	maxGroups    = 1024
)

// Way is what flows share that may share their near hops, too. With an invalid Dst it is
// that of flows to anywhere.
type Way struct {
	Src, Dst  netip.Addr
	Interface int
	NextHop   capture.HardwareAddr
}

func (w Way) anywhere() Way {
	w.Dst = netip.Addr{}
	return w
}

// Sight is the one router that a trace saw at one TTL.
type Sight struct {
	Addr     netip.Addr
	RTT      time.Duration
	ReplyTTL int
	Trace    string // the id of that trace; empty: nothing was seen
}

// Common knows which hops flows have in common. Its groups are the flows of one Way to one
// destination, and those to anywhere.
type Common struct {
	seed     maphash.Seed
	groups   map[Way]*group
	disputes uint64
}

// group is what the witnesses of one way agree upon.
type group struct {
	hops       []agreement // from TTL 1 on
	disputed   int         // the lowest TTL at which one saw something else
	disputedAt time.Time
	looked     time.Time // when the newest probe left that bears witness, or a trace began to look
	used       time.Time
}

// agreement is what all witnesses saw at one TTL, as the newest one measured it.
type agreement struct {
	Sight
	at time.Time
	by [agreeing]witness // the newest
}

// witness is who bore witness, and when.
type witness struct {
	who uint64
	at  time.Time
}

// NewCommon returns one that knows nothing.
func NewCommon() *Common { return &Common{seed: maphash.MakeSeed(), groups: map[Way]*group{}} }

// Len is the number of groups.
func (c *Common) Len() int { return len(c.groups) }

// Disputes counts what was agreed upon until somebody saw something else.
func (c *Common) Disputes() uint64 { return c.disputes }

// Learn takes in the way from TTL 1 on as a trace of the flow saw it, all by its own probes,
// of which the newest left then.
func (c *Common) Learn(now, sent time.Time, w Way, flow trace.FlowKey, path []Sight) {
	c.learn(now, sent, c.group(now, w), maphash.Comparable(c.seed, flow), path)
	c.learn(now, sent, c.group(now, w.anywhere()), maphash.Comparable(c.seed, w.Dst), path)
}

func (c *Common) learn(now, sent time.Time, g *group, who uint64, path []Sight) {
	if sent.After(g.looked) {
		g.looked = sent
	}
	for i, s := range path {
		ttl := i + 1
		if g.inDispute(now, ttl) {
			return
		}
		if c.differs(now, g, ttl, s.Addr) {
			return
		}
		if i < len(g.hops) && g.hops[i].Addr != s.Addr {
			g.hops = g.hops[:i] // nobody bears witness to that any more
		}
		if i == len(g.hops) {
			g.hops = append(g.hops, agreement{})
		}
		g.hops[i].bear(now, who, s)
	}
}

// bear notes a witness, in place of what it said before or of the oldest.
func (a *agreement) bear(now time.Time, who uint64, s Sight) {
	a.Sight, a.at = s, now
	at := 0
	for i := range a.by {
		if a.by[i].who == who {
			at = i
			break
		}
		if a.by[i].at.Before(a.by[at].at) {
			at = i
		}
	}
	a.by[at] = witness{who, now}
}

// Differs takes in what a trace saw at one TTL (an invalid address: nothing), and reports
// whether those to its destination had agreed upon something else.
func (c *Common) Differs(now time.Time, w Way, ttl int, seen netip.Addr) bool {
	if g := c.groups[w.anywhere()]; g != nil {
		c.differs(now, g, ttl, seen)
	}
	g := c.groups[w]
	return g != nil && c.differs(now, g, ttl, seen)
}

// differs ends the agreement of a group from that TTL on, if there was another one.
func (c *Common) differs(now time.Time, g *group, ttl int, seen netip.Addr) bool {
	if ttl > len(g.hops) || g.hops[ttl-1].Addr == seen || now.Sub(g.hops[ttl-1].at) >= witnessFor {
		return false
	}
	g.hops = g.hops[:ttl-1]
	g.disputed, g.disputedAt = ttl, now
	c.disputes++
	return true
}

func (g *group) inDispute(now time.Time, ttl int) bool {
	return g.disputed > 0 && ttl >= g.disputed && now.Sub(g.disputedAt) < disputeFor
}

// Shared returns what a flow on that way need not ask for at that TTL, since others saw it;
// due tells that it is time for somebody to look.
func (c *Common) Shared(now time.Time, w Way, ttl int) (s Sight, due, ok bool) {
	own := c.groups[w]
	if own == nil || !own.agree(now, ttl, 1) {
		return s, false, false
	}
	s = own.hops[ttl-1].Sight
	if own.agree(now, ttl, agreeing) {
		own.used = now
		return s, now.Sub(own.looked) >= lookEvery, true
	}
	all := c.groups[w.anywhere()]
	if all == nil || !all.agree(now, ttl, agreeing) || !own.sameAs(all, ttl) {
		return Sight{}, false, false
	}
	own.used, all.used = now, now
	return s, now.Sub(all.looked) >= lookEvery || now.Sub(own.looked) >= ownLookEvery, true
}

// Looks tells that a trace on that way begins to look itself.
func (c *Common) Looks(now time.Time, w Way) {
	c.group(now, w).looked = now
	c.group(now, w.anywhere()).looked = now
}

// agree reports whether so many witnesses agree upon that TTL, and so upon all below: each
// saw these, too.
func (g *group) agree(now time.Time, ttl, enough int) bool {
	if ttl < 1 || ttl > len(g.hops) {
		return false
	}
	n := 0
	for _, w := range g.hops[ttl-1].by {
		if !w.at.IsZero() && now.Sub(w.at) < witnessFor {
			n++
		}
	}
	return n >= enough
}

// sameAs reports whether two groups agree upon the same, up to that TTL. Both know so much.
func (g *group) sameAs(other *group, ttl int) bool {
	for i := range ttl {
		if g.hops[i].Addr != other.hops[i].Addr {
			return false
		}
	}
	return true
}

// group returns that of a way. Where there are too many it forgets one, the least recently
// used of those it happens to look at.
func (c *Common) group(now time.Time, w Way) *group {
	g := c.groups[w]
	if g == nil {
		if len(c.groups) >= maxGroups {
			c.forget()
		}
		g = &group{}
		c.groups[w] = g
	}
	g.used = now
	return g
}

func (c *Common) forget() {
	var oldest Way
	var at time.Time
	scanned := 0
	for w, g := range c.groups {
		if scanned == 0 || g.used.Before(at) {
			oldest, at = w, g.used
		}
		if scanned++; scanned >= pruneScan {
			break
		}
	}
	delete(c.groups, oldest)
}
