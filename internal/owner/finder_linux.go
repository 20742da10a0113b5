package owner

import (
	"slices"
	"sync"
	"time"
)

// Finder finds whose the flows are that somebody has selected already, for their records
// alone: nobody waits for it. Its goroutine asks the kernel for the sockets of all flows
// that wait, goes through the descriptors in /proc once for all of them, and rests.
type Finder struct {
	mailbox
	sockets *Sockets
	proc    procs

	quit chan struct{}
	once sync.Once
	work sync.WaitGroup

	recent []int // the processes that were found last are likely to be next
}

// turn has room for one Finder that looks or rests: all of a process, one for each network
// namespace, cost no more than one.
var turn = make(chan struct{}, 1)

// NewFinder makes one for the flows of these sockets, which stay open until it is closed.
// Without CAP_SYS_PTRACE other users' processes stay unknown.
func NewFinder(s *Sockets) *Finder {
	x := &Finder{mailbox: mailbox{ready: make(chan struct{}, 1)}, sockets: s, proc: "/proc", quit: make(chan struct{})}
	x.work.Go(x.run)
	return x
}

// Close ends the goroutine and returns when it has.
func (x *Finder) Close() {
	x.once.Do(func() { close(x.quit) })
	x.work.Wait()
}

// run looks until Close.
func (x *Finder) run() {
	var waiting []inquiry
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-x.quit:
			return
		case <-x.ready:
		case <-timer.C:
		}
		select {
		case <-x.quit:
			return
		case turn <- struct{}{}:
		}
		for _, q := range x.take() {
			waiting = append(waiting, inquiry{Query: q})
		}
		start := time.Now()
		waiting = x.look(start, waiting)
		rest := time.After(restFactor * time.Since(start))
		select {
		case <-x.quit:
		case <-rest:
		}
		<-turn
		timer.Stop()
		if len(waiting) > 0 {
			next := slices.MinFunc(waiting, func(a, b inquiry) int { return a.due.Compare(b.due) })
			timer.Reset(max(time.Until(next.due), time.Millisecond))
		}
	}
}

// look answers what is due and returns what is to be asked again.
func (x *Finder) look(now time.Time, waiting []inquiry) (later []inquiry) {
	sockets := map[string][]Query{}
	asked := 0
	var found []Finding
	for _, q := range waiting {
		if q.due.After(now) {
			later = append(later, q)
			continue
		}
		asked++
		switch a, err := x.sockets.ask(q.Key, q.Interface, 0); {
		case err == nil && a.inode != 0:
			socket := link(a.inode)
			sockets[socket] = append(sockets[socket], q.Query)
		case err == nil && q.again(now):
			later = append(later, q)
		default:
			found = append(found, Finding{Query: q.Query})
		}
	}
	if len(sockets) > 0 {
		found = append(found, x.search(sockets)...)
	}
	for _, queries := range sockets {
		for _, q := range queries {
			found = append(found, Finding{Query: q})
		}
	}
	kept := min(len(later), maxQueries)
	for _, q := range later[kept:] {
		found = append(found, Finding{Query: q.Query})
	}
	x.put(found, asked)
	return later[:kept]
}

// search goes through the processes, and takes away from sockets what it finds.
func (x *Finder) search(sockets map[string][]Query) (found []Finding) {
	look := func(pids []int) {
		for _, pid := range pids {
			if len(sockets) == 0 {
				return
			}
			held := x.proc.holding(pid, len(sockets), func(socket string) bool { return sockets[socket] != nil })
			if len(held) == 0 {
				continue
			}
			process, _, ok := x.proc.describe(pid)
			if !ok {
				continue
			}
			x.recent = remember(x.recent, pid)
			for _, socket := range held {
				for _, q := range sockets[socket] {
					found = append(found, Finding{q, process})
				}
				delete(sockets, socket)
			}
		}
	}
	recent := slices.Clone(x.recent) // look changes it
	look(recent)
	if len(sockets) > 0 {
		alive := x.proc.all()
		slices.Sort(alive)
		slices.Reverse(alive) // who connects now has often started a moment ago
		look(slices.DeleteFunc(alive, func(p int) bool { return slices.Contains(recent, p) }))
	}
	return found
}
