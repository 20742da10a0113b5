package simnet

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"servicetraceroute/internal/scenario"
)

// Net is a running network. Its methods may be called from any goroutine.
type Net struct {
	opts  Options
	epoch time.Time
	wake  chan struct{} // capacity 1: events were added from outside
	stop  chan struct{}
	done  chan struct{}
	once  sync.Once

	mu        sync.Mutex // held for moments only, never while waiting
	now       int64      // of the event that is running
	seq       uint64
	events    heap
	layout    *scenario.Layout
	nodes     map[string]*node
	flows     []*Flow // but the forgotten ones
	forgotten uint64
	truth     *Truth
	free      []*packet
	scratch   []byte // payload being made
	closed    bool

	withheld int // ICMP errors that a limit forbade
}

// New builds a network and starts its time.
func New(n scenario.Network, opts Options) (*Net, error) {
	layout, err := n.Layout()
	if err != nil {
		return nil, err
	}
	for _, l := range n.Links {
		if l.Rewrites() {
			return nil, errRewrites(nameOf(l))
		}
	}
	for name, o := range opts.Nodes {
		if layout.Nodes[name] == nil {
			return nil, fmt.Errorf("simnet: Options.Nodes: no node %q", name)
		}
		if to := layout.Nodes[o.Forward]; o.Forward != "" && (to == nil || to.Node.Kind != scenario.Host) {
			return nil, fmt.Errorf("simnet: Options.Nodes[%q].Forward: no host %q", name, o.Forward)
		}
	}
	s := &Net{
		opts: opts.withDefaults(), epoch: time.Now(), layout: layout, nodes: map[string]*node{},
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	s.truth = newTruth(s)
	for i, d := range n.Nodes {
		s.nodes[d.Name] = newNode(s, i, layout.Nodes[d.Name])
	}
	for i, d := range n.Links {
		s.addLink(i, layout.Links[nameOf(d)])
	}
	go s.run()
	return s, nil
}

// errRewrites refuses links that are middleboxes: here they are options of nodes.
func errRewrites(link string) error {
	return fmt.Errorf("simnet: link %q: SeqShift, QuotesUntranslated and ShortQuotes are NodeOptions here: %w", link, errors.ErrUnsupported)
}

// nameOf is a link's name as Layout knows it.
func nameOf(l scenario.Link) string {
	if l.Name != "" {
		return l.Name
	}
	return l.A + "-" + l.B
}

// Close stops time and joins the Net's goroutine. Taps return net.ErrClosed, flows
// that have not ended never will.
func (n *Net) Close() {
	n.once.Do(func() { close(n.stop) })
	<-n.done
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	for _, nd := range n.nodes {
		for _, t := range nd.taps {
			t.shut()
		}
	}
}

// run lets events happen when their time has come.
func (n *Net) run() {
	defer close(n.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		var fire <-chan time.Time
		if next, ok := n.step(); ok {
			timer.Reset(next)
			fire = timer.C
		}
		select {
		case <-fire:
		case <-n.wake:
		case <-n.stop:
			return
		}
	}
}

// step runs all events that are due and returns how long it is to the next one.
func (n *Net) step() (wait time.Duration, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	due := n.clock()
	for len(n.events) > 0 && n.events[0].at <= due {
		e := n.events.pop()
		n.now = e.at
		if e.way != nil {
			e.way.to.node.receive(e.p, e.way.to)
		} else {
			e.run()
		}
	}
	if len(n.events) == 0 {
		return 0, false
	}
	return time.Duration(n.events[0].at - due), true
}

func (n *Net) clock() int64 { return int64(time.Since(n.epoch)) }

// time is what a clock on the wall shows. Like a kernel's timestamp it has no
// monotonic part.
func (n *Net) time(at int64) time.Time { return n.epoch.Round(0).Add(time.Duration(at)) }

// at has an event happen. The caller holds the lock.
func (n *Net) at(at int64, run func()) {
	n.seq++
	n.events.push(event{at: max(at, n.now), seq: n.seq, run: run})
}

func (n *Net) arrive(at int64, w *way, p *packet) {
	n.seq++
	n.events.push(event{at: max(at, n.now), seq: n.seq, way: w, p: p})
}

// outside has something happen that was asked for from outside the event loop. It
// happens a nanosecond later, so that whatever the loop does at this same instant
// has happened before, in every run. The caller holds the lock.
func (n *Net) outside(run func()) {
	n.at(max(n.clock(), n.now)+1, run)
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// SetLink changes a link now: its costs, state, delay, rate or loss. Routes follow
// at once. Packets that are under way on it still arrive.
func (n *Net) SetLink(name string, change func(*scenario.Link)) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var refused error
	err := n.layout.SetLink(name, func(l *scenario.Link) {
		was := *l
		if change(l); l.Rewrites() {
			*l, refused = was, errRewrites(name)
		}
	})
	if err = cmp.Or(err, refused); err != nil {
		return err
	}
	n.layout.Reroute()
	for _, nd := range n.nodes {
		nd.reroute()
	}
	return nil
}

// Layout returns the network's addresses. Routes in it change with SetLink.
func (n *Net) Layout() *scenario.Layout { return n.layout }

// Addr returns a node's address of a family; invalid for an unknown node.
func (n *Net) Addr(node string, ipv6 bool) netip.Addr {
	l := n.layout.Nodes[node]
	if l == nil {
		return netip.Addr{}
	}
	return l.Addr(ipv6)
}

// random returns a source of its own for each purpose: one more number drawn for
// one must not change the others.
func (n *Net) random(purpose string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(purpose))
	return rand.New(rand.NewPCG(n.opts.Seed, h.Sum64()))
}

// mix is the finalizer of splitmix64: every input bit changes half of the output.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Withheld is how many ICMP errors the nodes' limits forbade so far.
func (n *Net) Withheld() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.withheld
}
