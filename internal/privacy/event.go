package privacy

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"servicetraceroute/trace"
)

// writer is what records go to.
type writer interface{ Write(ev trace.Event) error }

// Filter masks records on their way to a writer. It is not safe for concurrent use.
type Filter struct {
	mask *Mask
	to   writer
}

// Filter returns a writer of records that hands them masked to w.
func (m *Mask) Filter(w writer) *Filter { return &Filter{m, w} }

// Write implements output.Writer.
func (f *Filter) Write(ev trace.Event) error { return f.to.Write(f.mask.Event(ev)) }

// Event returns a masked copy; ev and what it refers to stay as they are. A kind of
// record that is not known here panics: it would pass unmasked.
func (m *Mask) Event(ev trace.Event) trace.Event {
	switch ev := ev.(type) {
	case *trace.Trace:
		return m.trace(ev)
	case *trace.Flow:
		c := *ev
		c.Tuple, c.Service, c.Process = m.tuple(ev.Tuple), m.service(ev.Service), m.process(ev.Process)
		return &c
	case *trace.Finding:
		return m.finding(ev)
	case *trace.Change:
		c := *ev
		c.Flow, c.From, c.To = m.tuple(ev.Flow), m.addrs(ev.From), m.addrs(ev.To)
		c.Old.PathID, c.New.PathID = m.paths[ev.Old.Trace], m.paths[ev.New.Trace]
		return &c
	case *trace.Compare:
		return m.compare(ev)
	case *trace.Stats:
		c := *ev
		c.Reason = m.Text(ev.Reason)
		return &c
	}
	panic(fmt.Sprintf("privacy: a record of type %T", ev))
}

// trace masks a trace. Its path_id is that of what is shown: the true one would
// prove a guess at the path right.
func (m *Mask) trace(t *trace.Trace) *trace.Trace {
	c := *t
	c.Flow, c.Service, c.Process, c.Hops = m.tuple(t.Flow), m.service(t.Service), m.process(t.Process), m.hops(t.Hops)
	if t.PathID != "" {
		last := 0
		if n := len(c.Hops); n > 0 {
			last = c.Hops[n-1].TTL
		}
		if d := t.Destination; t.Reached && d != nil && d.TTL > 0 {
			last = d.TTL - 1
		}
		c.PathID = trace.PathID(c.Hops, last)
		m.remember(t.ID, c.PathID)
	}
	return &c
}

// remember keeps what stands for the path of a trace.
func (m *Mask) remember(id, path string) {
	if _, ok := m.paths[id]; !ok {
		m.order = append(m.order, id)
	}
	m.paths[id] = path
	if len(m.order) > maxPaths {
		delete(m.paths, m.order[0])
		m.order = slices.Delete(m.order, 0, 1)
	}
}

func (m *Mask) tuple(t trace.Tuple) trace.Tuple {
	t.FlowKey = m.key(t.FlowKey)
	if t.NAT != nil {
		nat := m.key(*t.NAT)
		t.NAT = &nat
	}
	t.Interface, t.NetNS = m.iface(t.Interface), m.Name(t.NetNS)
	return t
}

func (m *Mask) key(k trace.FlowKey) trace.FlowKey {
	return trace.FlowKey{Proto: k.Proto, Src: m.addrPort(k.Src), Dst: m.addrPort(k.Dst)}
}

// hardwareName is an interface that systemd named by its hardware address.
var hardwareName = regexp.MustCompile(`^(en|wl|ww|sl|ib)x[0-9a-f]{12}`)

// iface masks the name of an interface where it is a hardware address; others, such
// as eth0 and wg0, tell of what kind the link is.
func (m *Mask) iface(name string) string {
	if hardwareName.MatchString(name) {
		return m.Name(name)
	}
	return name
}

func (m *Mask) process(p *trace.Process) *trace.Process {
	if p == nil {
		return nil
	}
	return &trace.Process{PID: p.PID, Name: m.Name(p.Name), Cgroup: m.Name(p.Cgroup)}
}

// hops masks the addresses of hops. Names of routers spell their addresses, and an AS
// number beside a masked address tells the first bits of all addresses of that AS:
// both are left out.
func (m *Mask) hops(hops []trace.Hop) []trace.Hop {
	hops = slices.Clone(hops)
	for i := range hops {
		replies := slices.Clone(hops[i].Replies)
		for j := range replies {
			replies[j].Addr, replies[j].Name, replies[j].ASN = m.Addr(replies[j].Addr), "", 0
		}
		hops[i].Replies = replies
	}
	return hops
}

func (m *Mask) addrs(list []netip.Addr) []netip.Addr {
	list = slices.Clone(list)
	for i := range list {
		list[i] = m.Addr(list[i])
	}
	return list
}

func (m *Mask) finding(f *trace.Finding) *trace.Finding {
	c := *f
	text := m.Text
	if f.Kind == trace.InterfaceInfo {
		text = m.Name // a router's own words
	}
	c.Flow, c.Value, c.Evidence = m.tuple(f.Flow), text(f.Value), slices.Clone(f.Evidence)
	for i := range c.Evidence {
		c.Evidence[i] = text(c.Evidence[i])
	}
	return &c
}

func (m *Mask) compare(t *trace.Compare) *trace.Compare {
	c := *t
	c.Flow, c.Siblings, c.Alternatives = m.tuple(t.Flow), slices.Clone(t.Siblings), slices.Clone(t.Alternatives)
	for i := range c.Siblings {
		c.Siblings[i].Hops = m.hops(c.Siblings[i].Hops)
	}
	for i := range c.Alternatives {
		c.Alternatives[i].Addrs, c.Alternatives[i].InFlow = m.addrs(c.Alternatives[i].Addrs), m.Addr(c.Alternatives[i].InFlow)
	}
	return &c
}
