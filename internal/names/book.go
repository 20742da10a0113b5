package names

import (
	"slices"
	"time"
)

// Name is a name that an address was asked for by.
type Name struct {
	// Chain begins with the name that was asked for and ends with the one that
	// owns the address: what CNAME, HTTPS and SVCB records led through. Never empty,
	// never changed.
	Chain []string
	// Until is when the answer's time to live and Grace are over.
	Until time.Time
	// Joined says that two answers were put together: an HTTPS or SVCB record led to a
	// name in the middle of Chain, whose addresses were asked for by themselves. That
	// name's own chain is then among the address's names too.
	Joined bool
}

// Asked is the name that was asked for.
func (n Name) Asked() string { return n.Chain[0] }

// Costs of what is held beside the strings' bytes, roughly.
const (
	pageCost   = 160
	nameCost   = 64
	stringCost = 16
)

func (n Name) cost() int {
	bytes := nameCost
	for _, s := range n.Chain {
		bytes += stringCost + len(s)
	}
	return bytes
}

// book keeps names by key, within bounds: what was used least recently makes room.
type book[K comparable] struct {
	pages  map[K]*page[K]
	newest *page[K]
	oldest *page[K]
	hand   *page[K] // where expire goes on, towards newest

	limit    int // pages
	perPage  int // names of a page
	maxBytes int
	bytes    int

	evicted uint64 // pages that made room while they were alive
	dropped uint64 // names that made room on their page
}

// page holds the names of one key, the one heard of least recently first.
type page[K comparable] struct {
	key          K
	names        []Name
	newer, older *page[K]
}

// add writes a name down.
func (b *book[K]) add(now time.Time, key K, n Name) {
	p := b.pages[key]
	if p == nil {
		if len(b.pages) >= b.limit {
			b.evict(now)
		}
		p = &page[K]{key: key}
		b.pages[key] = p
		b.bytes += pageCost
		b.push(p)
	} else {
		b.touch(p)
		b.sweep(now, p)
	}
	for _, old := range p.names {
		b.bytes -= old.cost()
	}
	p.names = merge(p.names, n)
	if len(p.names) > b.perPage {
		b.dropped++
		p.names = slices.Delete(p.names, 0, 1)
	}
	for _, held := range p.names {
		b.bytes += held.cost()
	}
	for b.bytes > b.maxBytes && b.oldest != p {
		b.evict(now)
	}
}

// merge puts n at the end of names. A chain that only begins or goes on another of
// them is the same name, seen by an answer that says less or more.
func merge(names []Name, n Name) []Name {
	for i := 0; i < len(names); i++ {
		old := names[i]
		if !begins(old.Chain, n.Chain) && !begins(n.Chain, old.Chain) {
			continue
		}
		if len(old.Chain) >= len(n.Chain) {
			n.Chain, n.Joined = old.Chain, old.Joined
		}
		if old.Until.After(n.Until) {
			n.Until = old.Until
		}
		names = slices.Delete(names, i, i+1)
		i--
	}
	return append(names, n)
}

func begins(long, short []string) bool {
	return len(long) >= len(short) && slices.Equal(long[:len(short)], short)
}

// get returns a key's names that are not over, nil if there are none. The slice is
// the book's, until the next call.
func (b *book[K]) get(now time.Time, key K) []Name {
	p := b.pages[key]
	if p == nil {
		return nil
	}
	b.touch(p)
	b.sweep(now, p)
	if len(p.names) == 0 {
		b.remove(p)
		return nil
	}
	return p.names
}

// sweep forgets a page's names that are over.
func (b *book[K]) sweep(now time.Time, p *page[K]) {
	p.names = slices.DeleteFunc(p.names, func(n Name) bool {
		over := now.After(n.Until)
		if over {
			b.bytes -= n.cost()
		}
		return over
	})
}

// expire goes over some pages, oldest first and round, and forgets what is over.
func (b *book[K]) expire(now time.Time) {
	for range min(sweepPages, len(b.pages)) {
		if b.hand == nil {
			b.hand = b.oldest
		}
		p := b.hand
		b.hand = p.newer
		b.sweep(now, p)
		if len(p.names) == 0 {
			b.remove(p)
		}
	}
}

// sweepPages bounds one call of expire.
const sweepPages = 64

func (b *book[K]) evict(now time.Time) {
	p := b.oldest
	b.sweep(now, p)
	if len(p.names) > 0 {
		b.evicted++
	}
	b.remove(p)
}

func (b *book[K]) remove(p *page[K]) {
	b.unlink(p)
	delete(b.pages, p.key)
	b.bytes -= pageCost
	for _, n := range p.names {
		b.bytes -= n.cost()
	}
}

func (b *book[K]) touch(p *page[K]) {
	if b.newest != p {
		b.unlink(p)
		b.push(p)
	}
}

func (b *book[K]) push(p *page[K]) {
	p.older, p.newer = b.newest, nil
	if b.newest != nil {
		b.newest.newer = p
	}
	b.newest = p
	if b.oldest == nil {
		b.oldest = p
	}
}

func (b *book[K]) unlink(p *page[K]) {
	if b.hand == p {
		b.hand = p.newer
	}
	if p.newer != nil {
		p.newer.older = p.older
	} else {
		b.newest = p.older
	}
	if p.older != nil {
		p.older.newer = p.newer
	} else {
		b.oldest = p.newer
	}
	p.older, p.newer = nil, nil
}
