//go:build linux

package servicetraceroute_test

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/selftest"
	"servicetraceroute/trace"
)

const (
	briefPath   = 11 // the TTL of the server
	briefSilent = 5  // a router that never answers
	// briefEvery keeps flows apart: a router that has not been asked before is asked once a
	// second after a burst of 6.
	briefEvery = 1500 * time.Millisecond
)

// briefWay is a path of ten routers, without limits on ICMP errors.
func briefWay(rtt time.Duration) scenario.Network {
	n := scenario.Network{Name: "brief" + rtt.String(), Nodes: []scenario.Node{{Name: "client", Kind: scenario.Host}}}
	last := "client"
	for i := 1; i < briefPath; i++ {
		name := fmt.Sprintf("r%d", i)
		n.Nodes = append(n.Nodes, scenario.Node{Name: name, Kind: scenario.Router, Silent: i == briefSilent})
		k := scenario.Link{A: last, B: name}
		if i == 3 || i == 6 || i == 9 {
			k.Delay = rtt / 6
		}
		n.Links, last = append(n.Links, k), name
	}
	n.Nodes = append(n.Nodes, scenario.Node{Name: "server", Kind: scenario.Host})
	n.Links = append(n.Links, scenario.Link{A: last, B: "server"})
	return n
}

// briefPorts is how many ports flows began at.
var briefPorts atomic.Int32

// brief is one kind of flow that does not live long: a handshake and then exchanges without
// a pause, so many round trips in all, until it is closed.
type brief struct {
	rtt   time.Duration
	trips int
	after bool // traced with AfterClose
}

// briefly is what became of such flows.
type briefly struct {
	flows, all, complete int // all: with every hop that answers; complete: with the destination
	hops                 int // that were shown, of all flows together
	took                 time.Duration
}

// TestShortFlows measures what is found of flows that live some round trips.
func TestShortFlows(t *testing.T) {
	long(t)
	trips, flows := []int{3, 5}, 2
	if full() {
		trips, flows = []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 20
	}
	cells := map[brief]briefly{}
	var labs sync.WaitGroup
	var judged []func()
	for _, rtt := range []time.Duration{20 * time.Millisecond, 60 * time.Millisecond} {
		for _, after := range []bool{false, true} {
			f := newBareField(t, briefWay(rtt), servicetraceroute.Config{})
			echoing(t, f.lab.Node("server"))
			var all found
			kinds, own := map[netip.AddrPort]brief{}, map[brief]briefly{}
			labs.Go(func() { all = f.briefly(brief{rtt: rtt, after: after}, trips, flows, own, kinds) })
			judged = append(judged, func() { // when no flow is left to disturb
				f.judge(f.truth(), all.traces)
				f.sum(all, own, kinds)
				maps.Copy(cells, own)
			})
		}
	}
	labs.Wait()
	for _, judge := range judged {
		judge()
	}
	evidence(t, "shortflows", briefTable(cells))
	for _, after := range []bool{false, true} {
		var sum briefly
		for c, b := range cells {
			if c.trips >= 3 && c.after == after {
				sum.flows, sum.all = sum.flows+b.flows, sum.all+b.all
			}
		}
		if sum.flows == 0 || sum.all*100 < sum.flows*95 {
			t.Errorf("after the close %t: %d of %d flows of 3 round trips and more have every hop", after, sum.all, sum.flows)
		}
	}
}

// echoing answers whatever comes to the server, until its client is done.
func echoing(t *testing.T, server *lab.Node) {
	t.Helper()
	err := server.Do(func() error {
		ln, err := net.Listen("tcp", ":443")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(c, c)
					_ = c.Close()
				}()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// briefly runs flows of each number of round trips, IPv6 every other time, and notes in cells
// how many there were and in kinds which is which.
func (f *field) briefly(kind brief, trips []int, flows int, cells map[brief]briefly, kinds map[netip.AddrPort]brief) found {
	stop := f.watch(servicetraceroute.Selection{Every: -1, Params: servicetraceroute.Params{AfterClose: kind.after}})
	for i := range flows {
		for _, n := range trips {
			kind.trips = n
			local, took, err := f.apart(n, i%2 == 1)
			if err != nil {
				f.t.Errorf("%d round trips: %v", n, err)
				continue
			}
			b := cells[kind]
			b.flows, b.took = b.flows+1, b.took+took
			cells[kind], kinds[local] = b, kind
		}
	}
	time.Sleep(3 * time.Second) // what goes on behind the last one's close
	return stop()
}

// sum adds to the cells what the traces show.
func (f *field) sum(all found, cells map[brief]briefly, kinds map[netip.AddrPort]brief) {
	for _, tr := range all.traces {
		kind, ok := kinds[tr.Flow.Src]
		if !ok {
			continue
		}
		delete(kinds, tr.Flow.Src)
		b := cells[kind]
		missing := briefMissing(tr)
		b.hops += briefPath - 2 - len(missing)
		if len(missing) == 0 {
			b.all++
		} else {
			f.t.Logf("%+v: %v are missing: %v", kind, missing, describe(tr))
		}
		if tr.Complete && tr.Reached {
			b.complete++
		}
		cells[kind] = b
	}
	for local, kind := range kinds {
		f.t.Logf("%+v: no trace of %v", kind, local)
	}
}

// apart is one flow with the pause behind it. A small run has no flows to lose to a machine
// that stalls: there such a one is tried again.
func (f *field) apart(trips int, ipv6 bool) (local netip.AddrPort, took time.Duration, err error) {
	for range 5 {
		began := time.Now()
		ctx, cancel := context.WithCancel(f.t.Context())
		stalled := make(chan time.Duration, 1)
		go func() { stalled <- selftest.Stalls(ctx) }()
		local, took, err = f.exchanges(trips, ipv6)
		cancel()
		stall := <-stalled
		time.Sleep(time.Until(began.Add(briefEvery)))
		if err != nil || full() || stall < shortStall {
			break
		}
	}
	return local, took, err
}

// exchanges is one flow of so many round trips: its own end, and how long it lived.
func (f *field) exchanges(trips int, ipv6 bool) (local netip.AddrPort, took time.Duration, err error) {
	began := time.Now()
	var c net.Conn
	err = f.lab.Node("client").Do(func() (err error) {
		// Never a port twice: the kernel's own choice comes back after TIME-WAIT, and what was
		// traced once is not again.
		at := netip.AddrPortFrom(f.lab.Node("client").Addr(ipv6), uint16(20000+briefPorts.Add(1)))
		d := net.Dialer{Timeout: 5 * time.Second, Control: onSocket(from(at))}
		c, err = d.DialContext(f.t.Context(), "tcp", netip.AddrPortFrom(f.lab.Node("server").Addr(ipv6), 443).String())
		return err
	})
	if err != nil {
		return local, 0, err
	}
	defer c.Close()
	message := make([]byte, 300)
	for range trips - 1 {
		if _, err := c.Write(message); err != nil {
			return local, 0, err
		}
		if _, err := io.ReadFull(c, message); err != nil {
			return local, 0, err
		}
	}
	return c.LocalAddr().(*net.TCPAddr).AddrPort(), time.Since(began), nil
}

// briefMissing are the routers that answer, and that a trace does not show.
func briefMissing(tr *trace.Trace) (ttls []int) {
	for ttl := 1; ttl < briefPath; ttl++ {
		shown := slices.ContainsFunc(tr.Hops, func(h trace.Hop) bool { return h.TTL == ttl && len(h.Replies) > 0 })
		if !shown && ttl != briefSilent {
			ttls = append(ttls, ttl)
		}
	}
	return ttls
}

// briefTable sums up.
func briefTable(cells map[brief]briefly) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Flows that live some round trips\n\n%d hops, of which TTL %d is silent; no limits on ICMP errors, no loss, the way back as long as the way there. "+
		"A flow is a handshake and then exchanges of 300 bytes without a pause; its life is counted from its SYN to its FIN, which its client sends first. IPv4 and IPv6 in turns, "+
		"%v from one flow to the next, one tracer for all with and one for all without `--after-close`. \"Hops\": routers shown, on average; \"every hop\": all %d that answer are. \"To the destination\": the trace is complete, the destination proven, which takes "+
		"an answer of its own, and an attempt 0.6 s. Without that proof nothing goes to TTL %d and beyond after the close. Every shown hop was held against what the routers sent.\n\n"+
		"| RTT | life in RTTs | mean life | flows | hops | every hop | to the destination | flows with `--after-close` | hops | every hop | to the destination |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
		briefPath, briefSilent, briefEvery, briefPath-2, briefPath-1)
	var rows []brief
	for c := range cells {
		if !c.after {
			rows = append(rows, c)
		}
	}
	slices.SortFunc(rows, func(a, b brief) int { return cmp.Or(cmp.Compare(a.rtt, b.rtt), a.trips-b.trips) })
	mean := func(b briefly) float64 { return float64(b.hops) / float64(max(b.flows, 1)) }
	share := func(n, of int) string { return fmt.Sprintf("%.0f %%", 100*float64(n)/float64(max(of, 1))) }
	for _, c := range rows {
		off := cells[c]
		c.after = true
		on := cells[c]
		fmt.Fprintf(&b, "| %v | %d | %.0f ms | %d | %.1f | %s | %s | %d | %.1f | %s | %s |\n", c.rtt, c.trips,
			(off.took+on.took).Seconds()*1000/float64(max(off.flows+on.flows, 1)), off.flows, mean(off), share(off.all, off.flows), share(off.complete, off.flows),
			on.flows, mean(on), share(on.all, on.flows), share(on.complete, on.flows))
	}
	return b.String()
}
