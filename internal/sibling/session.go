package sibling

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// The protocols of siblings, in the words of records.
const (
	TCP  = "tcp"
	UDP  = "udp"
	ICMP = "icmp"
)

// Protocols are all of them.
var Protocols = []string{TCP, UDP, ICMP}

// Config of a Session.
type Config struct {
	// Src and Dst are of one family. Port is where TCP's SYNs go: the flow's own.
	Src, Dst netip.Addr
	Port     uint16
	// Distance is the destination's TTL as the flow's trace proved it; 0: unknown.
	Distance  int
	FirstTTL  int           // 0: 1
	MaxTTL    int           // 0: 32
	MaxSilent int           // silent hops in a row that end a sibling; 0: 3; negative: none do
	Timeout   time.Duration // of a probe; 0: 1 s
	HopRate   int           // ceiling of probes per second and TTL; 0: 200
	// Confidence of the stopping rule, below 1; 0: 0.95.
	Confidence float64
	// Siblings is the most of one protocol, whatever the rule wants; 0: 96.
	Siblings int
	// FirstPort and LastPort are what source ports are taken from; 0: 61000 to 65535, where
	// Linux gives none to applications by itself.
	FirstPort, LastPort uint16
	NotPort             uint16 // the flow's own
	// Take is asked for each new sibling before its first probe, and answers false for a port
	// that is somebody's: then another is tried. nil: all are free.
	Take func(proto string, port uint16) bool
	Seed [32]byte
}

const (
	attempts    = 2 // of a TTL
	attemptsMet = 3 // of a TTL that answered others
	// reaching is how many siblings of each protocol may reach the destination: a SYN leaves
	// half a connection open there until this host's reset, and hosts limit their ICMP as
	// routers do. The others stop one hop short.
	reaching = 3
)

func (c Config) withDefaults() Config {
	c.FirstTTL, c.MaxTTL = cmp.Or(c.FirstTTL, 1), cmp.Or(c.MaxTTL, 32)
	c.MaxSilent, c.Timeout = cmp.Or(c.MaxSilent, 3), cmp.Or(c.Timeout, time.Second)
	c.HopRate, c.Confidence, c.Siblings = cmp.Or(c.HopRate, 200), cmp.Or(c.Confidence, 0.95), cmp.Or(c.Siblings, 96)
	c.FirstPort, c.LastPort = cmp.Or(c.FirstPort, 61000), cmp.Or(c.LastPort, 65535)
	return c
}

// Counters of a Session.
type Counters struct {
	Sent      uint64 // probes that left
	Failed    uint64 // probes that did not
	Matched   uint64 // answers that fit one
	Unmatched uint64 // answers about siblings that fit none: late, repeated, or a lie
}

// Session traces the siblings of one flow. It is not safe for concurrent use.
type Session struct {
	cfg      Config
	rng      *rand.Rand
	all      []*sibling
	live     []*sibling
	paces    map[int]*pace
	met      map[place]bool // what answered some sibling
	ports    map[uint16]*sibling
	distance map[string]int // of the destination, by protocol: a box on the way may answer for it
	stop     trace.Stop     // why it was ended early
	counters Counters
	blocked  map[string]int // by protocol: behind which TTL the siblings before ended in silence
	last     *sibling       // whose probe was handed out last
	buf      []byte
}

// place is a TTL as siblings of one protocol see it: others may be dropped before it.
type place struct {
	proto string
	ttl   int
}

// sibling is one new flow. It has at most one probe under way.
type sibling struct {
	trace.Sibling
	label    uint32 // IPv6 flow label
	checksum uint16 // ICMP, constant
	ttl      int
	attempt  int
	silent   int
	doubted  bool // since the last answer one came that does not fit
	out      probe
}

// New begins a session: its first siblings are due at once.
func New(cfg Config) *Session {
	s := &Session{cfg: cfg.withDefaults(), paces: map[int]*pace{}, met: map[place]bool{}, ports: map[uint16]*sibling{},
		blocked: map[string]int{}, distance: map[string]int{}}
	for _, proto := range Protocols {
		s.distance[proto] = cfg.Distance
	}
	s.rng = rand.New(rand.NewChaCha8(s.cfg.Seed))
	for _, proto := range Protocols {
		s.launch(proto, Enough(1, s.cfg.Confidence))
	}
	return s
}

// Counters are those so far.
func (s *Session) Counters() Counters { return s.counters }

// launch begins n more siblings of a protocol, as far as the limit lets it.
func (s *Session) launch(proto string, n int) {
	for range min(n, s.cfg.Siblings-s.count(proto)) {
		port, ok := s.port(proto)
		if !ok {
			return
		}
		x := &sibling{
			Sibling: trace.Sibling{Proto: proto, SourcePort: port, Hops: []trace.Hop{}},
			ttl:     s.cfg.FirstTTL, label: s.rng.Uint32() & 0xfffff, checksum: uint16(s.rng.Uint32()),
		}
		s.ports[port] = x
		s.all, s.live = append(s.all, x), append(s.live, x)
		s.fence(x)
	}
}

// port is one that no sibling has, nor anybody else.
func (s *Session) port(proto string) (uint16, bool) {
	span := int(s.cfg.LastPort) - int(s.cfg.FirstPort) + 1
	for range 64 {
		p := s.cfg.FirstPort + uint16(s.rng.IntN(span))
		if s.ports[p] == nil && p != s.cfg.NotPort && (s.cfg.Take == nil || s.cfg.Take(proto, p)) {
			return p, true
		}
	}
	return 0, false
}

func (s *Session) count(proto string) (n int) {
	for _, x := range s.all {
		if x.Proto == proto {
			n++
		}
	}
	return n
}

// Next returns the next probe that is due, valid until the following call, or when to
// ask again. over: all siblings have ended, and no more are wanted.
func (s *Session) Next(now time.Time) (packet []byte, at time.Time, over bool) {
	s.expire(now)
	if len(s.live) == 0 && !s.grow() {
		return nil, now, true
	}
	at = now.Add(s.cfg.Timeout)
	for _, x := range s.live {
		if !x.out.at.IsZero() {
			at = earlier(at, x.out.at.Add(s.cfg.Timeout))
			continue
		}
		p := s.pace(now, x.ttl)
		if wait := p.take(now); wait > 0 {
			at = earlier(at, now.Add(wait))
			continue
		}
		s.send(now, x)
		return s.buf, now, false
	}
	return nil, at, false
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (s *Session) pace(now time.Time, ttl int) *pace {
	if s.paces[ttl] == nil {
		s.paces[ttl] = newPace(now, float64(s.cfg.HopRate))
	}
	return s.paces[ttl]
}

// send crafts the sibling's next probe.
func (s *Session) send(now time.Time, x *sibling) {
	if x.attempt == 0 {
		x.Hops = append(x.Hops, trace.Hop{TTL: x.ttl, Replies: []trace.Reply{}})
	}
	x.attempt++
	x.hop().Sent++
	x.out = probe{at: now, ttl: x.ttl, id: uint16(1 + s.rng.IntN(0xffff)), seq: s.nextSeq(x), cookie: s.rng.Uint64()}
	s.buf = s.craft(s.buf[:0], x)
	s.last = x
	s.counters.Sent++
}

// nextSeq draws the number of a sibling's next probe, a little above the one before: for
// connection tracking of Linux before 6.1 a SYN below is none of its flow, and a NAT lets it
// out with its inside address, another way (nf_conntrack_proto_tcp.c, tcp_in_window).
func (s *Session) nextSeq(x *sibling) uint32 {
	if x.out.id == 0 { // the first one
		return s.rng.Uint32()
	}
	return x.out.seq + 1 + s.rng.Uint32()>>8
}

func (x *sibling) hop() *trace.Hop { return &x.Hops[len(x.Hops)-1] }

// Failed tells that the probe handed out last did not leave. Its sibling waits for it all
// the same, and then asks once more; one whose only SYN this was has ended in silence.
func (s *Session) Failed() {
	if s.last != nil {
		s.last.hop().Sent--
		s.counters.Sent--
		s.counters.Failed++
		s.last = nil
	}
}

// expire gives up probes whose time is over.
func (s *Session) expire(now time.Time) {
	for _, x := range slices.Clone(s.live) {
		if x.out.at.IsZero() || now.Before(x.out.at.Add(s.cfg.Timeout)) {
			continue
		}
		x.out.at = time.Time{}
		tries := attempts
		if s.met[place{x.Proto, x.ttl}] {
			tries = attemptsMet
			s.pace(now, x.ttl).missed()
		}
		switch {
		case x.Proto == TCP && s.mayReach(x): // one SYN, whatever becomes of it
			s.end(x, trace.StopSilentHops)
		case x.attempt < tries && !s.blockedBefore(x):
		default:
			if x.silent++; s.cfg.MaxSilent > 0 && x.silent >= s.cfg.MaxSilent || s.blockedBefore(x) {
				s.end(x, trace.StopSilentHops)
				continue
			}
			s.advance(x)
		}
	}
}

// mayReach reports whether the sibling's probe is one that the destination may get.
func (s *Session) mayReach(x *sibling) bool {
	d := s.distance[x.Proto]
	return d > 0 && x.ttl >= d
}

// blockedBefore reports whether all before of the sibling's protocol ended in silence
// behind the hop at which it is: to find that once more takes one probe.
func (s *Session) blockedBefore(x *sibling) bool {
	after, ok := s.blocked[x.Proto]
	return ok && x.ttl > after
}

// advance goes on to the next TTL.
func (s *Session) advance(x *sibling) {
	x.ttl++
	x.attempt = 0
	if x.ttl > s.cfg.MaxTTL {
		s.end(x, trace.StopMaxTTL)
		return
	}
	s.fence(x)
}

// fence stops a sibling before it could reach the destination, when enough of its protocol
// have.
func (s *Session) fence(x *sibling) {
	if !s.mayReach(x) {
		return
	}
	n := 0
	for _, y := range s.all {
		if y != x && y.Proto == x.Proto && (y.Reached || s.mayReach(y)) && y.Stop != trace.StopFence {
			n++
		}
	}
	if n >= reaching {
		s.end(x, trace.StopFence)
	}
}

// end ends a sibling. What was never asked is not silent, nor is what answers although a box
// on the way has rewritten the answer.
func (s *Session) end(x *sibling, why trace.Stop) {
	if why == trace.StopSilentHops && (x.doubted || x.hop().Sent == 0) {
		why = trace.StopUnknown
	}
	x.Stop = why
	s.live = slices.DeleteFunc(s.live, func(y *sibling) bool { return y == x })
}

// End stops what is under way.
func (s *Session) End(why trace.Stop) {
	for _, x := range slices.Clone(s.live) {
		s.end(x, why)
	}
	s.stop = why
}

// Siblings are all that have begun, by protocol. They are the caller's once the session
// is over.
func (s *Session) Siblings() []trace.Sibling {
	out := make([]trace.Sibling, 0, len(s.all))
	for _, proto := range Protocols {
		for _, x := range s.all {
			if x.Proto == proto {
				out = append(out, x.Sibling)
			}
		}
	}
	return out
}

// grow begins as many siblings as the rule still wants; false: none.
func (s *Session) grow() bool {
	if s.stop != 0 {
		return false
	}
	siblings := s.Siblings()
	for _, proto := range Protocols {
		if after, ok := blockedAfter(siblings, proto); ok {
			s.blocked[proto] = after
		} else {
			delete(s.blocked, proto)
		}
		s.launch(proto, wanted(siblings, proto, s.cfg.Confidence))
	}
	return len(s.live) > 0
}

// answer is what came for a sibling's probe.
type answer struct {
	from    netip.Addr
	kind    trace.ReplyKind
	ttl     uint8
	final   bool // the destination's own
	noFlow  bool // no router's Time Exceeded: nothing lies behind it
	arrived time.Time
}

// take credits an answer to the sibling.
func (s *Session) take(x *sibling, a answer) {
	s.counters.Matched++
	s.met[place{x.Proto, x.ttl}] = true
	s.pace(a.arrived, x.ttl).answered()
	h := x.hop()
	h.Replies = append(h.Replies, trace.Reply{Addr: a.from, RTT: max(a.arrived.Sub(x.out.at), 0), Kind: a.kind, ReplyTTL: int(a.ttl)})
	x.out.at, x.silent, x.doubted = time.Time{}, 0, false
	switch {
	case a.final:
		x.Reached = true
		if d := s.distance[x.Proto]; d == 0 || x.ttl < d {
			s.distance[x.Proto] = x.ttl
		}
		s.end(x, trace.StopDestination)
	case a.noFlow:
		s.end(x, trace.StopUnreachable)
	default:
		s.advance(x)
	}
}

// kinds are the words of records for what ICMP says.
var kinds = map[wire.ICMPKind]trace.ReplyKind{
	wire.TimeExceeded: trace.TimeExceeded, wire.NetUnreachable: trace.NetUnreachable, wire.HostUnreachable: trace.HostUnreachable,
	wire.PortUnreachable: trace.PortUnreachable, wire.AdminProhibited: trace.AdminProhibited, wire.OtherUnreachable: trace.Unreachable,
	wire.PacketTooBig: trace.PacketTooBig,
}
