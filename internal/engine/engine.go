package engine

import (
	"container/heap"
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/names"
	"servicetraceroute/internal/owner"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/quic"
	"servicetraceroute/internal/service"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// Config of an Engine. Rate and HopRate must be positive.
type Config struct {
	Rate, HopRate int // probes per second: of all, ceiling per responder
	Exclude       []netip.Prefix
	Loopback      bool
	NoProbe       bool
	Label         string
	NetNS         string  // of every flow's tuple
	Budget        *Budget // in place of Rate; nil: one of its own
	// Local reports whether an address is this host's own; nil: unknown, then a
	// packet's direction decides.
	Local func(netip.Addr) bool
	// InterfaceName names interfaces in records; nil: no names.
	InterfaceName func(index int) string
	Seed          [32]byte // of the random offsets, identifications and trace ids
	NoDNS         bool     // names from DNS answers do not count
	Evidence      bool     // say what each packet is; the caller takes that by Evidence after every Step
	Tracked       bool     // connections are tracked here: the caller answers Places
	Finds         bool     // the caller answers Wonders
	// CanDrop reports whether Probe.DropErrors can be done here; nil: it cannot. Then
	// forwarded flows are not probed.
	CanDrop func() bool
	// Intact reports whether all datagrams to dst are intact: the sink cannot send damaged ones
	// (probe.CraftUDP) there. nil: it can.
	Intact func(dst netip.Addr) bool
	// Follow has the source show all packets of a flow or, once more, only how it begins and
	// ends. nil: all packets of all flows are shown.
	Follow capture.Follower
	// Replay: packets and time are those of a file, see replay.go. Nothing is sent.
	Replay bool
}

const (
	maxFlows  = 1 << 18
	maxRuns   = 16384 // traces in progress
	flowIdle  = 10 * time.Minute
	tick      = time.Second // longest time between two looks at everything
	headroom  = 64          // bytes of one crafted probe, at most
	burstPart = 20          // the process's probe burst is this part of its rate
)

// Probe is one packet to be sent. Packet is valid until the next Step.
type Probe struct {
	Packet    []byte
	Interface int
	NextHop   capture.HardwareAddr
	// DropErrors: an application, or the client of a forwarded flow, would hear of the ICMP
	// errors about it. They have to be dropped where packets come in, from before it is
	// sent; else it must not be.
	DropErrors bool
	sent       *probe.Sent
}

// Record is an event for one watch.
type Record struct {
	Watch *Watch
	Event trace.Event
}

// Actions are what a Step wants done. They are reused by the next Step.
type Actions struct {
	Probes []Probe
	// Wake is when Step has to be called again even if no packet comes.
	Wake time.Time
}

// Engine traces flows. It is not safe for concurrent use.
type Engine struct {
	cfg     Config
	rng     *rand.Rand
	table   *flow.Table
	sent    *probe.Table
	buckets *probe.Buckets
	watches []*Watch
	runs    runQueue
	sweeps  sweepQueue
	// triggers are the flows whose traces a trigger begins; they are looked at triggersAt.
	triggers   map[*flow.Flow]struct{}
	triggersAt time.Time
	runsTo     map[netip.AddrPort][]*run // by destination: a flood of errors must not search
	breaker    breaker
	common     *probe.Common // nil: no trace shares anything
	path       []probe.Sight // for it, as the packet at hand tells
	names      *names.Cache
	quic       *quic.Decoder
	moves      moves        // of QUIC connections
	idSeed     maphash.Seed // of the hashes of their ids
	// expected are flows whose first words are awaited, listening how many are read of
	// those that this host opened, accepted of those that it accepted.
	expected            []expectation
	listening, accepted int
	about               service.Known                              // what the selectors are told at the moment
	paused              bool                                       // no new traces
	ours                func(local uint16, remote netip.Addr) bool // see Ignore
	freed               bool                                       // a flow is no longer traced for which a watch waits

	early     early
	questions []Question
	scales    []Question
	hearings  []Question
	wonders   []owner.Query
	places    []trace.FlowKey
	transit   bool                         // some watch may select forwarded flows
	distances map[netip.Addr]knownDistance // of destinations, by TCP
	lostAt    time.Time                    // when packets were last lost before they came here

	budget   *Budget
	grantAt  time.Time // when a held-back probe may go; zero: none waits
	newWaits bool
	wishes   []*wish // that were granted, for others to come

	actions Actions
	records []Record
	// nameless are records to come; whether one waits for too long is looked at namelessAt.
	nameless   map[question]nameless
	namelessAt time.Time
	buf        []byte
	stats      trace.Stats
	start      time.Time
	epoch      uint64

	follows    map[*flow.Flow]struct{} // those that are shown whole
	showLessAt time.Time

	evidence  []Evidence // since the last call of Evidence
	segmentAt int        // of the flow's packet at hand, in evidence
	serial    uint64     // of probes and replies
	ration    ration

	guessed  bool // the file did not tell the way of the packet at hand
	replayed int  // probes of replayed traces in progress

	// Decoding targets, so that a packet costs no allocation.
	ip  wire.Packet
	tcp wire.TCP
	udp wire.UDP
}

// New returns an engine that starts at now.
func New(now time.Time, cfg Config) *Engine {
	e := &Engine{
		cfg:     cfg,
		rng:     rand.New(rand.NewChaCha8(cfg.Seed)),
		table:   flow.NewTable(maxFlows, flowIdle),
		sent:    probe.NewTable(),
		buckets: probe.NewBuckets(cfg.HopRate),
		names:   names.New(names.Limits{}),
		quic:    quic.NewDecoder(quic.Limits{}),
		idSeed:  maphash.MakeSeed(),
		breaker: breaker{}, runsTo: map[netip.AddrPort][]*run{}, nameless: map[question]nameless{}, distances: map[netip.Addr]knownDistance{},
		budget: cfg.Budget, start: now, follows: map[*flow.Flow]struct{}{},
		triggers: map[*flow.Flow]struct{}{},
	}
	if e.budget == nil {
		e.budget = NewBudget(cfg.Rate)
	}
	e.table.OnRemove = e.removed
	e.stats.Traces.ByStop = map[trace.Stop]uint64{}
	return e
}

// Step takes in captured packets and the present time and returns what to do.
func (e *Engine) Step(now time.Time, packets []capture.Packet) *Actions {
	e.actions.Probes = e.actions.Probes[:0]
	e.buf = e.buf[:0]
	for i := range packets {
		e.packet(&packets[i])
	}
	e.sent.Expire(now)
	e.table.Expire(now)
	e.names.Expire(now)
	e.advance(now)
	e.sayNameless(now)
	e.unheard(heardUntil(now, packets))
	e.release(now)
	e.showLess(now)
	e.actions.Wake = e.wake(now)
	return &e.actions
}

// heardUntil is the time up to which everything that was captured was taken in: behind a
// flood of packets others may wait.
func heardUntil(now time.Time, packets []capture.Packet) time.Time {
	if n := len(packets); n > 0 && packets[n-1].Time.Before(now) {
		return packets[n-1].Time
	}
	return now
}

// Dropped tells that the capture lost packets: what is known of flows may be old.
func (e *Engine) Dropped(now time.Time, total, seen uint64) {
	lost := total > e.stats.Packets.Dropped
	e.stats.Packets.Dropped, e.stats.Packets.Seen = total, seen
	if !lost {
		return
	}
	e.lostAt = now
	for _, r := range e.runs {
		r.loseSync(now)
	}
}

// Hidden tells that the capture passes only packets from or to these prefixes now.
// What is known of other flows would grow old unnoticed, so it is forgotten: such a
// flow counts as joined late when it shows itself again.
func (e *Engine) Hidden(except []netip.Prefix) {
	e.table.Forget(func(f *flow.Flow) bool {
		for _, p := range except {
			if p.Contains(f.Key.Dst.Addr()) || p.Contains(f.Key.Src.Addr()) {
				return false
			}
		}
		return true
	})
}

// advance lets every trace whose time has come do what is due.
func (e *Engine) advance(now time.Time) {
	for len(e.runs) > 0 && !e.runs[0].wake.After(now) {
		if r := e.runs[0]; e.cfg.Replay {
			e.follow(now, r)
		} else {
			e.work(now, r)
		}
	}
	e.claims(now)
	for _, w := range e.watches {
		e.retraceDue(now, w)
	}
	e.sweepDue(now)
	e.triggersDue(now)
}

// release sends what the responders' allowances permit.
func (e *Engine) release(now time.Time) {
	if !e.newWaits && (e.grantAt.IsZero() || e.grantAt.After(now)) {
		return
	}
	e.newWaits = false
	e.grantAt = e.buckets.Release(now, func() bool { return e.budget.available(now) })
	if at := now.Add(e.budget.wait()); !e.grantAt.IsZero() && at.After(e.grantAt) {
		e.grantAt = at
	}
}

func (e *Engine) wake(now time.Time) time.Time {
	at := now.Add(tick)
	if len(e.runs) > 0 && e.runs[0].wake.Before(at) {
		at = e.runs[0].wake
	}
	if len(e.triggers) > 0 && e.triggersAt.Before(at) {
		at = e.triggersAt
	}
	if len(e.sweeps) > 0 && e.sweeps[0].at.Before(at) {
		at = e.sweeps[0].at
	}
	if !e.grantAt.IsZero() && e.grantAt.Before(at) {
		at = e.grantAt
	}
	if until := e.heardBy(now); !until.IsZero() && until.Before(at) {
		at = until
	}
	if len(e.nameless) > 0 && now.Add(namelessLook).Before(at) {
		at = now.Add(namelessLook)
	}
	for _, w := range e.watches {
		if !w.retraceAt.IsZero() && w.retraceAt.Before(at) {
			at = w.retraceAt
		}
	}
	return at
}

// Stats returns the counters so far.
func (e *Engine) Stats(now time.Time) *trace.Stats {
	s := e.stats
	s.Time, s.Uptime, s.Label = now, now.Sub(e.start), e.cfg.Label
	dns, quic := e.names.Stats(), e.quic.Stats()
	s.Services.Cut += quic.Dropped
	s.Services.Limited = quic.Limited
	s.Services.Forgotten = dns.QueriesDropped + dns.AddressesDropped + dns.NamesDropped + dns.RecordsDropped
	s.Services.Malformed = dns.Malformed + quic.Malformed + quic.Failed
	s.Flows.Live, s.Flows.Evicted = uint64(e.table.Len()), e.table.Evicted()
	s.Traces.ByStop = make(map[trace.Stop]uint64, len(e.stats.Traces.ByStop))
	for k, v := range e.stats.Traces.ByStop {
		s.Traces.ByStop[k] = v
	}
	return &s
}

// emit queues a record.
func (e *Engine) emit(w *Watch, ev trace.Event) {
	e.records = append(e.records, Record{w, ev})
}

// Records hands out what was found since the last call.
func (e *Engine) Records() []Record {
	out := e.records
	e.records = nil
	return out
}

// runQueue is a heap of traces by the time at which they have something to do.
type runQueue []*run

func (q runQueue) Len() int           { return len(q) }
func (q runQueue) Less(i, j int) bool { return q[i].wake.Before(q[j].wake) }
func (q runQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push implements heap.Interface.
func (q *runQueue) Push(x any) {
	r := x.(*run)
	r.index = len(*q)
	*q = append(*q, r)
}

// Pop implements heap.Interface.
func (q *runQueue) Pop() any {
	old := *q
	r := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	r.index = -1
	return r
}

// schedule sets when a trace is looked at next.
func (e *Engine) schedule(r *run, at time.Time) {
	r.wake = at
	if r.index >= 0 {
		heap.Fix(&e.runs, r.index)
	}
}
