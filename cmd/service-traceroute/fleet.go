package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/netns"
	"servicetraceroute/internal/output"
	"servicetraceroute/internal/privilege"
	"servicetraceroute/trace"
)

const (
	maxNetns  = 256
	fleetRing = 1 << 20         // of each namespace: 256 MiB in all, at most
	lookEvery = 2 * time.Second // for namespaces that came or went
	goneAfter = 2               // looks without a namespace: a list is no snapshot
)

// fleet has a Tracer in every network namespace of the machine. It follows them as
// they come and go: a namespace that only our own sockets keep alive is left.
//
// Watch runs in one goroutine, which owns the members; each member's watch has
// another one. Stats and Close may come from any.
type fleet struct {
	cfg    servicetraceroute.Config
	stderr io.Writer
	own    netns.ID
	untold map[netns.ID]bool // could not be opened, and that was said
	more   int               // that many were too many, and that was said

	mu      sync.Mutex // over what Stats reads, and SetSelection
	members map[netns.ID]*member
	changed *servicetraceroute.Selection // in place of that of Watch; nil: none
	ended   trace.Stats                  // of members that are no more
	started time.Time
}

// member is one namespace.
type member struct {
	id     netns.ID
	name   string // empty: our own
	tracer *servicetraceroute.Tracer
	cancel context.CancelFunc // nil: its watch was not started
	absent int                // looks in a row that did not find it
	begun  bool               // its watch has
	last   *trace.Stats       // when its tracer was closed
	err    error              // of closing it
}

// news is what a member's watch says. Without event it has ended.
type news struct {
	from  *member
	event trace.Event
	err   error
}

// openFleet opens tracers in the namespaces that exist now.
func openFleet(cfg servicetraceroute.Config, stderr io.Writer) (*fleet, error) {
	own, err := netns.Own()
	if err != nil {
		return nil, err
	}
	if held, err := privilege.Held(); err == nil && held&(1<<privilege.SysAdmin) == 0 {
		return nil, &netns.AccessError{Where: everyNetns, Err: errNoAdmin}
	}
	cfg.RingBytes, cfg.Budget = fleetRing, servicetraceroute.NewBudget(cfg.Rate)
	if cfg.Backend == servicetraceroute.BackendAuto {
		cfg.Backend = servicetraceroute.BackendAFPacket // of many namespaces each would take a table and a ring of its own
	}
	f := &fleet{
		cfg: cfg, stderr: stderr, own: own, untold: map[netns.ID]bool{}, members: map[netns.ID]*member{},
		started: time.Now(), ended: trace.Stats{Traces: trace.TraceStats{ByStop: map[trace.Stop]uint64{}}},
	}
	if err := f.look(); len(f.members) == 0 {
		return nil, err
	}
	return f, nil
}

// look opens tracers in new namespaces and marks those that are gone. The error is
// that of the last namespace that could not be opened.
func (f *fleet) look() (failure error) {
	list, more := netns.List(maxNetns)
	if more != f.more {
		fmt.Fprintf(f.stderr, "%d network namespaces are beyond the limit of %d and not watched\n", more, maxNetns)
		f.more = more
	}
	present := map[netns.ID]bool{}
	for _, ns := range list {
		present[ns.ID] = true
		if f.members[ns.ID] == nil && !f.untold[ns.ID] && len(f.members) < maxNetns {
			if err := f.open(ns); err != nil {
				failure = err
				f.untold[ns.ID] = true
				if !errors.Is(err, servicetraceroute.ErrNoInterface) { // --interface names one that only some have
					fmt.Fprintf(f.stderr, "network namespace %s is not watched: %s\n", output.Escape(ns.Name), output.Escape(err.Error()))
				}
			}
		}
		ns.Close()
	}
	for id := range f.untold {
		if !present[id] {
			delete(f.untold, id)
		}
	}
	for id, m := range f.members {
		m.absent++
		if present[id] {
			m.absent = 0
		}
	}
	return failure
}

func (f *fleet) open(ns *netns.Namespace) error {
	m, cfg := &member{id: ns.ID}, f.cfg
	if ns.ID != f.own {
		m.name, cfg.NetNS = ns.Name, ns.Path()
	}
	var err error
	if m.tracer, err = servicetraceroute.New(cfg); err != nil {
		return err
	}
	f.mu.Lock()
	f.members[ns.ID] = m
	f.mu.Unlock()
	return nil
}

// Watch is that of a Tracer, in all namespaces. The names of the selection are
// resolved in our own.
func (f *fleet) Watch(ctx context.Context, sel servicetraceroute.Selection) iter.Seq2[trace.Event, error] {
	return func(yield func(trace.Event, error) bool) {
		inner, cancel := context.WithCancel(ctx)
		all := make(chan news)
		var work sync.WaitGroup
		defer func() { // also when yield wants no more: nobody may be left waiting
			cancel()
			go func() { work.Wait(); close(all) }()
			for range all {
			}
		}()
		first := sel
		first.Ready = afterAll(len(f.members), sel.Ready)
		sel.Ready = nil // of members that come later nobody waits
		f.start(inner, first, all, &work)
		looks, minute := time.NewTicker(lookEvery), time.NewTicker(time.Minute)
		defer looks.Stop()
		defer minute.Stop()
		for {
			select {
			case n := <-all:
				if !f.take(n, yield) {
					return
				}
			case <-looks.C:
				if now := f.present(sel); ctx.Err() == nil && !f.late(now) {
					_ = f.look() // said there
					f.start(inner, now, all, &work)
				}
			case <-minute.C:
				if s := f.Stats(); !yield(&s, nil) {
					return
				}
			}
			if over := ctx.Err() != nil || f.late(f.present(sel)); over && f.running() == 0 {
				last := f.Stats()
				yield(&last, nil)
				return
			}
		}
	}
}

// SetSelection is that of a Tracer, in all namespaces; those that come later get the new
// selection. Where it fails in one, the others may have it already.
func (f *fleet) SetSelection(ctx context.Context, sel servicetraceroute.Selection) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.members {
		if m.last != nil || !m.begun { // over, or told when it begins
			continue
		}
		if err := m.tracer.SetSelection(ctx, sel); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
	}
	f.changed = &sel
	return nil
}

// present is the selection in force.
func (f *fleet) present(first servicetraceroute.Selection) servicetraceroute.Selection {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.changed != nil {
		return *f.changed
	}
	return first
}

// afterAll returns what calls f when it was called for the n-th time; n calls may come at
// the same time.
func afterAll(n int, f func()) func() {
	if f == nil {
		return nil
	}
	left := new(atomic.Int64)
	left.Store(int64(n))
	return func() {
		if left.Add(-1) == 0 {
			f()
		}
	}
}

// start begins the watches of new members and ends those of members that are gone.
func (f *fleet) start(ctx context.Context, sel servicetraceroute.Selection, all chan<- news, work *sync.WaitGroup) {
	if sel.StopNewAfter > 0 {
		// Of a namespace that came later less is left.
		sel.StopNewAfter = max(sel.StopNewAfter-time.Since(f.started), 1)
	}
	for _, m := range f.members {
		if m.absent >= goneAfter && m.cancel != nil {
			m.cancel()
		}
		if m.cancel != nil {
			continue
		}
		var inner context.Context
		inner, m.cancel = context.WithCancel(ctx)
		sel, told := sel, sel.Ready
		sel.Ready = func() {
			f.begun(inner, m)
			if told != nil {
				told()
			}
		}
		work.Go(func() {
			defer m.cancel()
			for ev, err := range m.tracer.Watch(inner, sel) {
				all <- news{m, ev, err}
			}
			// Here, so that all close at the same time: each waits for the kernel.
			last := m.tracer.Stats()
			f.mu.Lock()
			m.last = &last
			f.mu.Unlock()
			m.err = m.tracer.Close()
			all <- news{from: m}
		})
	}
}

// begun tells a member whose watch begins what changed since it was started.
func (f *fleet) begun(ctx context.Context, m *member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m.begun = true
	if f.changed != nil {
		_ = m.tracer.SetSelection(ctx, *f.changed) // it was right for others
	}
}

// take hands on what a member says; false when yield wants no more.
func (f *fleet) take(n news, yield func(trace.Event, error) bool) bool {
	switch ev := n.event.(type) {
	case *trace.Stats: // ours are of all
		return true
	case *trace.Trace:
		ev.Flow.NetNS = n.from.name
	case *trace.Flow:
		ev.NetNS = n.from.name
	case nil:
		if n.err != nil {
			return yield(nil, n.err)
		}
		f.leave(n.from)
		return true
	}
	return yield(n.event, n.err)
}

// leave keeps the counters of a member whose watch has ended.
func (f *fleet) leave(m *member) {
	if m.err != nil {
		fmt.Fprintf(f.stderr, "network namespace %s: %s\n", output.Escape(m.name), output.Escape(m.err.Error()))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.members, m.id)
	m.last.Flows.Live = 0
	f.ended.Backend, f.ended.Reason = m.last.Backend, m.last.Reason
	sum(reflect.ValueOf(&f.ended).Elem(), reflect.ValueOf(*m.last))
}

// late reports whether no new trace may begin.
func (f *fleet) late(sel servicetraceroute.Selection) bool {
	return sel.StopNewAfter > 0 && time.Since(f.started) > sel.StopNewAfter
}

func (f *fleet) running() int { return len(f.members) }

// Stats are the sums over all namespaces, also those that are gone.
func (f *fleet) Stats() trace.Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	total := trace.Stats{Traces: trace.TraceStats{ByStop: map[trace.Stop]uint64{}}}
	total.Backend, total.Reason = f.ended.Backend, f.ended.Reason
	sum(reflect.ValueOf(&total).Elem(), reflect.ValueOf(f.ended))
	for _, m := range f.members {
		s := m.last
		if s == nil {
			now := m.tracer.Stats()
			s = &now
		}
		total.Backend, total.Reason = s.Backend, s.Reason
		sum(reflect.ValueOf(&total).Elem(), reflect.ValueOf(*s))
	}
	total.Time, total.Uptime, total.Label = time.Now(), time.Since(f.started), f.cfg.Label
	return total
}

// Close closes the members whose watch was never started, or has not ended.
func (f *fleet) Close() (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.members {
		err = errors.Join(err, m.tracer.Close())
	}
	clear(f.members)
	return err
}

// sum adds all counters of from, whichever there are, to those of to.
func sum(to, from reflect.Value) {
	switch to.Kind() {
	case reflect.Uint64:
		to.SetUint(to.Uint() + from.Uint())
	case reflect.Pointer:
		if from.IsNil() {
			return
		}
		if to.IsNil() {
			to.Set(reflect.New(to.Type().Elem()))
		}
		sum(to.Elem(), from.Elem())
	case reflect.Map:
		for _, key := range from.MapKeys() {
			n := from.MapIndex(key).Uint()
			if old := to.MapIndex(key); old.IsValid() {
				n += old.Uint()
			}
			to.SetMapIndex(key, reflect.ValueOf(n))
		}
	case reflect.Struct:
		for i := range to.NumField() {
			if to.Field(i).CanSet() {
				sum(to.Field(i), from.Field(i))
			}
		}
	}
}
