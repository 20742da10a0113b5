//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"servicetraceroute/internal/lab/link"
	"servicetraceroute/internal/scenario"
)

// Options change how a lab is made. The zero value is the default.
type Options struct {
	// NoOffload turns segmentation and checksum offloads off on every interface.
	// By default only the ends of impaired links are without, because the process
	// in between forwards frames as they are.
	NoOffload bool
	// LoseAll lets the loss of links strike any packet. By default it strikes TCP
	// segments with payload, and equal ones in equal flows (see internal/lab/link),
	// so that what probes did to a flow can be told from what loss did.
	LoseAll bool
	// OneProcessor keeps all of the lab's processes on one processor. Between two,
	// each with a queue of its own, frames now and then overtake each other, which a
	// flow without SACK takes for loss.
	OneProcessor bool
	// Stderr takes what the nodes' processes print, which is nothing as long as
	// they do not crash. Nil is os.Stderr.
	Stderr io.Writer
}

// Lab is a running network. Its methods may be called from any goroutine.
type Lab struct {
	opts     Options
	registry *registry
	forker   *forker
	nodes    map[string]*Node // by name of the node
	links    map[string]*Node // by name of the impaired link

	mu     sync.Mutex // held while routes change
	layout *scenario.Layout

	closing sync.Once
	closed  error
	done    chan struct{} // closed when Close begins
}

// Start builds the network and returns when every link of it carries packets.
// The lab lives until Close, not until ctx ends. Leftovers of earlier labs whose
// controllers are gone are removed first.
func Start(ctx context.Context, n scenario.Network, opts Options) (*Lab, error) {
	layout, err := n.Layout()
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	sweep(os.TempDir())
	reg, err := newRegistry(os.TempDir())
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if opts.Stderr == nil {
		opts.Stderr = os.Stderr
	}
	l := &Lab{
		opts: opts, registry: reg, forker: newForker(opts.OneProcessor), layout: layout,
		nodes: map[string]*Node{}, links: map[string]*Node{}, done: make(chan struct{}),
	}
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("lab: %w", err), l.Close())
	}
	return l, nil
}

// build starts the processes and leads them through the stages of becoming the
// network. Within a stage all work side by side; a stage begins when the one
// before is complete everywhere.
func (l *Lab) build(ctx context.Context) error {
	if err := l.startNodes(); err != nil {
		return err
	}
	configs := l.plan()
	for _, stage := range []string{"lab/prepare", "lab/wire", "lab/configure", "lab/ready"} {
		var all parallel
		for n, c := range configs {
			all.Go(func() error { return n.Call(ctx, stage, c, nil) })
		}
		if err := all.Wait(); err != nil {
			return err
		}
	}
	return l.startLinks(ctx)
}

// startNodes starts one process for each node and each impaired link.
func (l *Lab) startNodes() error {
	for name, at := range l.layout.Nodes {
		n, err := startNode(l, name)
		if err != nil {
			return fmt.Errorf("node %s: %w", name, err)
		}
		n.addr4, n.addr6 = at.Addr(false), at.Addr(true)
		l.nodes[name] = n
	}
	for name, link := range l.layout.Links {
		if !link.Link.Impaired() {
			continue
		}
		n, err := startNode(l, "link "+name)
		if err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
		l.links[name] = n
	}
	return nil
}

func (l *Lab) plan() map[*Node]nodeConfig {
	configs := make(map[*Node]nodeConfig, len(l.nodes)+len(l.links))
	for name, n := range l.nodes {
		configs[n] = planNode(l.layout, name, l.opts)
	}
	for name, n := range l.links {
		configs[n] = planLink(l.layout, l.layout.Links[name])
	}
	for _, c := range configs {
		for i := range c.Veths {
			c.Veths[i].PeerPid = l.nodes[c.Veths[i].PeerNode].Pid()
		}
	}
	return configs
}

// closeGrace is how long nodes may take to end by themselves.
const closeGrace = time.Second

// Close ends everything that runs in the lab and returns when it is gone.
func (l *Lab) Close() error {
	l.closing.Do(func() {
		close(l.done)
		all := append(slices.Collect(maps.Values(l.nodes)), slices.Collect(maps.Values(l.links))...)
		for _, n := range all {
			n.end()
		}
		for _, n := range all {
			n.awaitEnd()
		}
		l.forker.close()
		if err := l.registry.remove(); err != nil {
			l.closed = fmt.Errorf("lab: close: %w", err)
		}
	})
	return l.closed
}

// Layout returns the network's addresses and routes as they are now. The value
// is not changed any more; SetLink makes a new one.
func (l *Lab) Layout() *scenario.Layout {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.layout
}

// Node returns a node by its name in the description. It panics when there is no
// such node: the names are the caller's own.
func (l *Lab) Node(name string) *Node {
	n := l.nodes[name]
	if n == nil {
		panic(fmt.Sprintf("lab: no node %q in network %q", name, l.layout.Network.Name))
	}
	return n
}

// Link returns the process between the two ends of an impaired link, where the
// roles "link/…" are played; nil for a plain link.
func (l *Lab) Link(name string) *Node { return l.links[name] }

// startLinks lets the processes of impaired links forward.
func (l *Lab) startLinks(ctx context.Context) error {
	var all parallel
	for name, n := range l.links {
		all.Go(func() error { return link.Forward(ctx, n, l.impairment(l.layout, name)) })
	}
	return all.Wait()
}

func (l *Lab) impairment(layout *scenario.Layout, name string) link.Config {
	k := layout.Links[name].Link
	return link.Config{
		A: linkEnds[0], B: linkEnds[1], Delay: k.Delay, Jitter: k.Jitter, Rate: k.Rate, Queue: k.Queue,
		Loss: k.Loss, LossSeed: uint64(linkIndex(layout.Network, name)), LoseAll: l.opts.LoseAll,
		SeqShift: k.SeqShift, QuotesUntranslated: k.QuotesUntranslated, ShortQuotes: k.ShortQuotes,
	}
}
