package probe

import (
	"container/heap"
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"time"

	"servicetraceroute/internal/wire"
)

// Lifetime is how long a sent probe is remembered at least, and its identifiers are
// not used again.
const Lifetime = 3 * time.Second

// lifetime is that of a probe whose answer is waited for so long.
func lifetime(timeout time.Duration) time.Duration { return max(Lifetime, timeout+time.Second) }

// Sent is one probe that left. Of a datagram only the ends, TTL, TOS, flow label and ID
// of the TCPProbe count.
type Sent struct {
	wire.TCPProbe
	Nonce    Nonce     // of a datagram: what its payload says
	Len      int       // of the whole packet
	At       time.Time // when it left: our clock, then the kernel's own timestamp
	TTL      int
	Attempt  int
	Leg      int    // of the trace: raised by each restart
	Serial   uint64 // in the evidence; 0: none is kept
	UDP      bool
	Damaged  bool // of a datagram: no host takes it in
	Stamped  bool // At is the kernel's
	Reaching bool
	Answered bool
	Acked    bool // by the destination's acknowledgement, which might have been another's
	Unsent   bool // it did not leave after all
	Timeout  bool // it was given up, an answer is late
	doubted  bool // an answer came that is not believed yet
	within   bool // what every Linux router permits: if it is missing, it was lost
	holds    uint8
	Bucket   *Bucket
	Place    Place
	// Owner is the engine's trace, nil once the probe is forgotten: buckets look at
	// their newest probes for longer, and must not keep whole traces for that.
	Owner any
}

// Hold keeps a probe from being used for another one when its table forgets it. Whoever keeps
// it for longer than one call has to hold it, and drops it when it keeps it no more, or never.
func (s *Sent) Hold() { s.holds = min(s.holds+1, neverFree) }

// Drop ends a Hold.
func (s *Sent) Drop() {
	if s.holds < neverFree {
		s.holds--
	}
}

const neverFree = 100 // so many holds are no longer counted

// sentKey is what a quote always holds of a TCP probe. The destination's port
// and address are part of it so that two flows may use one sequence number.
type sentKey struct {
	dst netip.AddrPort
	seq uint32
}

// Table holds the probes that left not long ago. A reply is ours only if it is
// about one of these, whatever it looks like.
type Table struct {
	bySeq   map[uint64]*Sent // segments, by the hashes of their keys: that of two is not the same
	seed    maphash.Seed
	byNonce map[Nonce]*Sent  // datagrams
	ids     map[uint16]*Sent // IPv4
	queue   expiries
	free    []*Sent // forgotten, and held by nobody
	newest  expiry  // on its way into the queue: there it would have to be allocated
}

// expiries is a heap of probes by the time at which they are forgotten.
type expiries []expiry

type expiry struct {
	at   time.Time
	sent *Sent
}

func (q expiries) Len() int           { return len(q) }
func (q expiries) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q expiries) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *expiries) Push(x any)        { *q = append(*q, *x.(*expiry)) }
func (q *expiries) Pop() any {
	old := *q
	old[len(old)-1] = expiry{}
	*q = old[:len(old)-1]
	return nil // whoever pops has looked at the first
}

// NewTable returns an empty table.
func NewTable() *Table {
	return &Table{bySeq: map[uint64]*Sent{}, seed: maphash.MakeSeed(), byNonce: map[Nonce]*Sent{}, ids: map[uint16]*Sent{}}
}

// Taken reports whether a sequence number towards dst is in use.
func (t *Table) Taken(dst netip.AddrPort, seq uint32) bool {
	return t.segment(dst, seq) != nil
}

func (t *Table) hash(dst netip.AddrPort, seq uint32) uint64 {
	return maphash.Comparable(t.seed, sentKey{dst, seq})
}

// segment is the probe with that key, or nil.
func (t *Table) segment(dst netip.AddrPort, seq uint32) *Sent {
	if s := t.bySeq[t.hash(dst, seq)]; s != nil && s.Seq == seq && s.Dst == dst {
		return s
	}
	return nil
}

// Len is the number of remembered probes.
func (t *Table) Len() int { return len(t.bySeq) + len(t.byNonce) }

// IDs is the number of IPv4 identifications that are outstanding.
func (t *Table) IDs() int { return len(t.ids) }

// NewID returns an IPv4 identification that is not zero and not outstanding.
func (t *Table) NewID(rng *rand.Rand) uint16 {
	for range 64 {
		id := uint16(1 + rng.IntN(0xffff))
		if _, used := t.ids[id]; !used && id != swap16(id) {
			return id
		}
	}
	return uint16(1 + rng.IntN(0xffff))
}

// New returns a probe to be filled in. To send one costs no allocation where others were
// forgotten.
func (t *Table) New() *Sent {
	n := len(t.free)
	if n == 0 {
		return &Sent{}
	}
	s := t.free[n-1]
	t.free = t.free[:n-1]
	*s = Sent{}
	return s
}

// maxFree bounds what is kept for probes to come.
const maxFree = 1 << 14

// Add remembers s, for Lifetime or a second longer than its answer is waited for.
func (t *Table) Add(now time.Time, s *Sent, timeout time.Duration) {
	if s.UDP {
		t.byNonce[s.Nonce] = s
	} else {
		t.bySeq[t.hash(s.Dst, s.Seq)] = s
	}
	if s.Src.Addr().Is4() {
		t.ids[s.ID] = s
	}
	t.newest = expiry{now.Add(lifetime(timeout)), s}
	heap.Push(&t.queue, &t.newest)
}

// Each yields every probe that is remembered.
func (t *Table) Each(yield func(*Sent) bool) {
	for _, x := range t.queue {
		if !yield(x.sent) {
			return
		}
	}
}

// Expire forgets what is too old.
func (t *Table) Expire(now time.Time) {
	for len(t.queue) > 0 && !t.queue[0].at.After(now) {
		s := t.queue[0].sent
		heap.Pop(&t.queue)
		s.Owner = nil
		if t.byNonce[s.Nonce] == s {
			delete(t.byNonce, s.Nonce)
		}
		if k := t.hash(s.Dst, s.Seq); t.bySeq[k] == s {
			delete(t.bySeq, k)
		}
		if t.ids[s.ID] == s {
			delete(t.ids, s.ID)
		}
		if s.holds == 0 && len(t.free) < maxFree {
			t.free = append(t.free, s)
		}
	}
}

// Own returns the probe that this captured packet is a copy of, or nil. The
// tracker must not learn from our own packets.
func (t *Table) Own(ip *wire.Packet, s *wire.TCP) *Sent {
	if s.PayloadLen != 0 || s.Flags != wire.ACK {
		return nil
	}
	p := t.segment(netip.AddrPortFrom(ip.Dst, s.DstPort), s.Seq)
	if p == nil || p.Src != netip.AddrPortFrom(ip.Src, s.SrcPort) {
		return nil
	}
	if ip.Version == 4 && ip.ID != p.ID {
		return nil
	}
	return p
}

// OwnForwarded is Own for a copy whose source was translated on its way out.
func (t *Table) OwnForwarded(ip *wire.Packet, s *wire.TCP) bool {
	if s.PayloadLen != 0 || s.Flags != wire.ACK {
		return false
	}
	p := t.segment(netip.AddrPortFrom(ip.Dst, s.DstPort), s.Seq)
	return p != nil && (ip.Version == 6 || ip.ID == p.ID)
}

// Verdict says how well a quote fits a probe.
type Verdict uint8

// The verdicts.
const (
	NoMatch Verdict = iota
	// Exact: everything that the quote holds is as it was sent.
	Exact
	// Doubtful: the sequence number is that of a probe, but what should confirm
	// it does not. Several probes must agree before this counts.
	Doubtful
)

// Match finds the probe that a quote is about. The quoted sequence number is the
// key, exactly as sent. It alone is a weak proof, since an outsider may guess
// numbers near a flow's: see confirm for what has to come with it.
func (t *Table) Match(q *wire.Quote) (*Sent, Verdict) {
	if q.Proto == wire.ProtoUDP {
		return t.matchUDP(q)
	}
	if !q.HasSeq || q.Proto != protoTCP {
		return nil, NoMatch
	}
	s := t.segment(netip.AddrPortFrom(q.Dst, q.DstPort), q.Seq)
	if s == nil {
		return nil, NoMatch
	}
	return s, s.confirm(q)
}

const protoTCP = 6

// confirm holds the rest of a quote against the probe. In IPv4 the identification
// (which some routers swap) or the timestamp has to agree; in IPv6 the timestamp,
// and for probes without one the flow label. Whatever else is quoted must agree
// too. The acknowledgement number alone proves nothing: every packet of the flow
// has it.
func (s *Sent) confirm(q *wire.Quote) Verdict {
	switch {
	case !s.lengthFits(q):
		return NoMatch
	case q.HasTCPHeader && q.TCPAck != s.Ack:
		return Doubtful
	case q.HasTimestamp && !s.timestampFits(q):
		return Doubtful
	case q.Version == 4 && s.idFits(q), s.timestampFits(q):
		return Exact
	case q.Version == 6 && q.HasTCPHeader && !s.Timestamp && q.FlowLabel == s.FlowLabel:
		return Exact
	}
	return Doubtful
}

// idFits compares the IPv4 identification.
func (s *Sent) idFits(q *wire.Quote) bool { return q.ID == s.ID || q.ID == swap16(s.ID) }

// timestampFits compares the timestamp's value. Its echo is left out: a SYN proxy
// rewrites it.
func (s *Sent) timestampFits(q *wire.Quote) bool {
	return s.Timestamp && q.HasTimestamp && q.TSVal == s.TSVal
}

// lengthFits compares the quoted length, which tells an application's segment
// from our empty one. Some routers quote it in their own byte order.
func (s *Sent) lengthFits(q *wire.Quote) bool {
	return q.Len == s.Len || q.Len == int(swap16(uint16(s.Len)))
}

func swap16(v uint16) uint16 { return v>>8 | v<<8 }

// Identified reports whether a quote with the probe's sequence number shows its
// identification too, where there is one.
func (s *Sent) Identified(q *wire.Quote) bool { return q.Version == 6 || s.idFits(q) }

// Differences names what the path changed in the quoted probe.
func (s *Sent) Differences(q *wire.Quote) (d Differences) {
	d.NATSrc = q.Src != s.Src.Addr()
	d.NATDst = q.Dst != s.Dst.Addr()
	d.NATPort = q.HasPorts && (q.SrcPort != s.Src.Port() || q.DstPort != s.Dst.Port())
	d.Seq = q.HasSeq && q.Seq != s.Seq
	d.DSCP = q.TOS&^ecnMask != s.TOS&^ecnMask
	d.ECN = q.TOS&ecnMask != 0
	return d
}

// Differences between a quote and the probe as sent.
type Differences struct{ NATSrc, NATDst, NATPort, Seq, DSCP, ECN bool }
