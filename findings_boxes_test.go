//go:build linux

package servicetraceroute_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"servicetraceroute"
	"servicetraceroute/trace"
)

// TestFindingsRewritten: a box between two routers that changes sequence numbers, and does not
// change them back where they are quoted.
func TestFindingsRewritten(t *testing.T) {
	t.Parallel()
	n := chain(4)
	n.Links[2].SeqShift, n.Links[2].QuotesUntranslated = 0x89abcdef, true // between r2 and r3
	boxField(t, n).look(t, usual(), spot{trace.SeqRewritten, 2, 3, "shifted by 2309737967"})
}

// TestFindingsForwarded: a router that exchanges the destination of flows, and lets the errors
// of those beyond it bear the address that the client knows.
func TestFindingsForwarded(t *testing.T) {
	t.Parallel()
	f := boxField(t, chain(4))
	f.public = map[bool]netip.Addr{false: netip.MustParseAddr("203.0.113.80"), true: netip.MustParseAddr("2001:db8:ff::80")}
	for _, public := range f.public {
		f.forward(public, "r2", "client", "r1")
	}
	l := usual()
	for ipv6, public := range f.public {
		l.families = []bool{ipv6}
		f.look(t, l, spot{trace.NATDst, 1, 2, "answer as " + public.String()})
	}
}

// TestFindingsMoved: the route changes while the routers are asked, once: several answer at one
// TTL, and none again after another did.
func TestFindingsMoved(t *testing.T) {
	t.Parallel()
	f := boxField(t, diamond(2))
	var flips []func() // back and forth
	for _, ipv6 := range []bool{false, true} {
		b := box{f, "r1", ipv6}
		rule := b.detour(t, "mb", func(r *netlink.Rule) { r.IifName = b.iface("r1", "client") })
		there := true
		flips = append(flips, func() {
			change := netlink.RuleAdd
			if there {
				change = netlink.RuleDel
			}
			there = !there
			if err := f.lab.Node("r1").Do(func() error { return change(rule) }); err != nil {
				t.Error(err)
			}
		})
	}
	l := oneByOne()
	l.sel.Params = servicetraceroute.Params{Algorithm: trace.Concurrent, Probes: 6, ProbeInterval: 400 * time.Millisecond}
	var from, to time.Time
	l.during = func() {
		time.Sleep(time.Second)
		from = time.Now()
		for _, flip := range flips {
			flip()
		}
		to = time.Now()
	}
	// The kernel's lock for routes may be held for long by labs that begin or end: then the last
	// of the six probes is gone.
	l.missed = func(tr *trace.Trace) bool {
		first, last := tr.Start.Add(l.sel.Params.ProbeInterval), tr.Start.Add(4*l.sel.Params.ProbeInterval)
		if from.After(first) && to.Before(last) {
			return false
		}
		t.Logf("the route changed from %v to %v after the trace began", from.Sub(tr.Start), to.Sub(tr.Start))
		return true
	}
	f.look(t, l, spot{trace.MultiResponder, 1, 2, ", "})
}
