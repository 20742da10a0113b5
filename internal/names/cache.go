package names

import (
	"net/netip"
	"slices"
	"time"
)

const (
	// Grace is how long a name outlives its time to live: applications keep
	// addresses for longer than they may.
	Grace = 5 * time.Minute
	// QueryLife is how long an answer is waited for at least.
	QueryLife = 30 * time.Second
	// maxJoined bounds the names Of returns where targets lead to an address.
	maxJoined = 64
)

// Limits bound a Cache. The zero value of a field stands for its default.
type Limits struct {
	Addresses int // addresses with names; 65536
	Names     int // names of one address; 16
	Targets   int // names that HTTPS and SVCB records point to; 4096
	Bytes     int // of all names, roughly; 32 MiB. A sixteenth of it is for targets
	Queries   int // questions remembered, at least 2; 16384
}

// Stats count since the beginning.
type Stats struct {
	Queries   uint64 // questions for addresses
	Answers   uint64 // that named an address, or led to a name
	Other     uint64 // messages that say nothing about addresses
	Malformed uint64
	Unasked   uint64 // answers that nobody was seen to ask for
	Repeated  uint64 // answers to what was answered already

	// What the limits cost.
	QueriesDropped   uint64 // questions forgotten early: their answers are Unasked
	AddressesDropped uint64 // addresses, and targets, that made room for others
	NamesDropped     uint64 // of an address with too many
	RecordsDropped   uint64 // of an answer with too many, or too long ones
}

// Cache knows by which names addresses were asked for. Make one with New. Not safe
// for concurrent use.
type Cache struct {
	addrs   book[netip.Addr]
	targets book[string]
	asked   asked
	stats   Stats
	joined  []Name
	q       question // scratch
}

// New returns an empty cache. Negative limits count as 1.
func New(l Limits) *Cache {
	or := func(n, standard int) int {
		if n == 0 {
			return standard
		}
		return max(n, 1)
	}
	bytes, names := or(l.Bytes, 32<<20), or(l.Names, 16)
	return &Cache{
		addrs: book[netip.Addr]{
			pages: map[netip.Addr]*page[netip.Addr]{},
			limit: or(l.Addresses, 65536), perPage: names, maxBytes: bytes,
		},
		targets: book[string]{
			pages: map[string]*page[string]{},
			limit: or(l.Targets, 4096), perPage: names, maxBytes: bytes / 16,
		},
		asked: newAsked(or(l.Queries, 16384)),
	}
}

// Query takes in a message from a client to a server; what is no question for
// addresses changes nothing. The caller should leave out questions that outsiders
// ask a server of this host: they would only push out those that matter.
func (c *Cache) Query(now time.Time, client, server netip.AddrPort, msg []byte) {
	q := &c.q
	switch readQuestion(msg, q) {
	case malformed:
		c.stats.Malformed++
		return
	case other:
		c.stats.Other++
		return
	}
	if q.flags&flagQR != 0 || q.an > 0 {
		c.stats.Other++
		return
	}
	c.stats.Queries++
	c.asked.ask(now, c.asked.key(client, server, q))
}

// Answer takes in a message from a server to a client, if Query saw the question
// and this is its first answer. It reports whether anything was learned. The message
// is not kept.
func (c *Cache) Answer(now time.Time, client, server netip.AddrPort, msg []byte) bool {
	if !c.isAnswer(msg) {
		return false
	}
	k := c.asked.key(client, server, &c.q)
	switch c.asked.look(now, k) {
	case unasked:
		c.stats.Unasked++
		return false
	case answered:
		c.stats.Repeated++
		return false
	}
	learned, v := c.learn(now, msg)
	if v != malformed { // which the client would not take for an answer either
		c.asked.close(k)
	}
	return learned
}

// Learn takes in an answer without asking whether anybody wanted it.
func (c *Cache) Learn(now time.Time, msg []byte) bool {
	if !c.isAnswer(msg) {
		return false
	}
	learned, _ := c.learn(now, msg)
	return learned
}

// isAnswer reads the question into c.q.
func (c *Cache) isAnswer(msg []byte) bool {
	v := readQuestion(msg, &c.q)
	if v == useful && c.q.flags&flagQR == 0 {
		v = other
	}
	switch v {
	case malformed:
		c.stats.Malformed++
	case other:
		c.stats.Other++
	}
	return v == useful
}

func (c *Cache) learn(now time.Time, msg []byte) (learned bool, v verdict) {
	var a answer
	if c.q.flags&rcodeMask != 0 {
		v = other
	} else {
		a, v = readAnswer(msg, &c.q)
	}
	switch v {
	case malformed:
		c.stats.Malformed++
		return false, v
	case other:
		c.stats.Other++
		return false, v
	}
	c.stats.RecordsDropped += a.dropped
	for _, found := range a.addrs {
		c.addrs.add(now, found.addr, Name{Chain: found.chain, Until: now.Add(found.ttl + Grace)})
	}
	for _, t := range a.targets {
		c.targets.add(now, t.chain[len(t.chain)-1], Name{Chain: t.chain, Until: now.Add(t.ttl + Grace)})
	}
	learned = len(a.addrs)+len(a.targets) > 0
	if learned {
		c.stats.Answers++
	}
	return learned, v
}

// Of returns the names of an address, the one heard of least recently first, and
// nil if there are none; IPv4 and IPv4-mapped addresses are the same, zones do not
// matter. The slice belongs to the cache until the next call of any method; the
// chains in it may be kept.
func (c *Cache) Of(now time.Time, addr netip.Addr) []Name {
	found := c.addrs.get(now, addr.Unmap().WithZone(""))
	if len(found) == 0 || len(c.targets.pages) == 0 {
		return found
	}
	return c.join(now, found)
}

// join adds the names that lead, by HTTPS and SVCB records, to the ones found. Records
// and addresses are asked for apart and in any order, so only here both are known.
func (c *Cache) join(now time.Time, found []Name) []Name {
	clear(c.joined)
	c.joined = append(c.joined[:0], found...)
	for i := 0; i < len(c.joined); i++ {
		end := c.joined[i]
		for _, lead := range c.targets.get(now, end.Asked()) {
			chain, ok := link(lead.Chain, end.Chain)
			if !ok {
				continue
			}
			until := lead.Until
			if end.Until.Before(until) {
				until = end.Until
			}
			if !c.joining(Name{chain, until, true}) {
				c.stats.NamesDropped++
				return c.joined
			}
		}
	}
	return c.joined
}

// joining adds one name, unless it is there, and reports false when there are too many.
func (c *Cache) joining(n Name) bool {
	for i, there := range c.joined {
		switch {
		case begins(there.Chain, n.Chain):
			return true
		case begins(n.Chain, there.Chain):
			c.joined[i] = n
			return true
		}
	}
	if len(c.joined) == maxJoined {
		return false
	}
	c.joined = append(c.joined, n)
	return true
}

// link puts two chains together, of which one ends where the other begins. It
// refuses long ones and those that lead back.
func link(lead, end []string) ([]string, bool) {
	if len(lead)+len(end)-1 > maxChain {
		return nil, false
	}
	back := func(name string) bool { return slices.Contains(lead, name) }
	if slices.ContainsFunc(end[1:], back) {
		return nil, false
	}
	return slices.Concat(lead, end[1:]), true
}

// Expire forgets some of what is over. Call it now and then, to give memory back;
// what is over is never returned, whether it was called or not.
func (c *Cache) Expire(now time.Time) {
	c.addrs.expire(now)
	c.targets.expire(now)
}

// Len is the number of addresses held.
func (c *Cache) Len() int { return len(c.addrs.pages) }

// Stats returns the counts so far.
func (c *Cache) Stats() Stats {
	s := c.stats
	s.QueriesDropped = c.asked.dropped
	s.AddressesDropped = c.addrs.evicted + c.targets.evicted
	s.NamesDropped += c.addrs.dropped + c.targets.dropped
	return s
}
