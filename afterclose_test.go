//go:build linux

package servicetraceroute_test

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// closable is a path of six routers, behind whose second one, a firewall that tracks
// connections, some answer, and the fourth is silent: traces of short flows want more.
func closable() scenario.Network {
	n := scenario.Network{Name: "closable", Nodes: []scenario.Node{{Name: "client", Kind: scenario.Host}}}
	last := "client"
	for i := 1; i <= 6; i++ {
		r := scenario.Node{Name: fmt.Sprintf("r%d", i), Kind: scenario.Router, Silent: i == 4}
		if i == 2 {
			r.Firewall = &scenario.Firewall{AllowTCP: []uint16{443}}
		}
		n.Nodes = append(n.Nodes, r)
		n.Links = append(n.Links, scenario.Link{A: last, B: r.Name, Delay: 3 * time.Millisecond})
		last = r.Name
	}
	n.Nodes = append(n.Nodes, scenario.Node{Name: "server", Kind: scenario.Host})
	n.Links = append(n.Links, scenario.Link{A: last, B: "server"})
	return n
}

// from binds a socket to a port of the client, also one whose last connection is in
// TIME-WAIT (ip(7), SO_REUSEADDR in socket(7)).
func from(at netip.AddrPort) func(fd int) error {
	return func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if at.Addr().Is4() {
			return unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()})
		}
		return unix.Bind(fd, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()})
	}
}

// shut is a flow that was closed as soon as it stood, and whose tuple the next one took.
type shut struct{ closed, reused time.Time }

// TestAfterCloseDoesNoHarm goes on with flows that were closed as soon as they stood: hops
// answer, the peer never does, and the next connection with the same addresses and ports
// ends that and is no worse for it.
func TestAfterCloseDoesNoHarm(t *testing.T) {
	t.Parallel()
	f := newBareField(t, closable(), servicetraceroute.Config{})
	client := f.lab.Node("client")
	dropInvalid(t, client)
	before := f.counters()
	// One after the other most of the path is asked after the close; then a silent router's
	// TTL is, until the next connection begins.
	slow := f.shuts(45001, servicetraceroute.Params{AfterClose: true, Algorithm: trace.PacketByPacket, Timeout: 300 * time.Millisecond})
	for tr, s := range slow {
		if len(tr.Hops) < 5 || len(tr.Hops[4].Replies) == 0 || !tr.Hops[4].Replies[0].Exchange.Sent.After(s.closed) {
			t.Errorf("TTL 5 was not asked after the close\n%v", describe(tr))
		}
		if len(tr.Hops) > 6 {
			t.Errorf("TTL %d was asked; the server is at 7\n%v", len(tr.Hops), describe(tr))
		}
	}
	quick := f.shuts(45011, servicetraceroute.Params{AfterClose: true, Probes: 20})
	for tr, s := range quick {
		if len(tr.Hops) < 4 || tr.Hops[3].Sent < 2 {
			t.Errorf("the silent hop was not asked again\n%v", describe(tr))
		}
		if tr.End.Before(s.reused.Add(-10*time.Millisecond)) || tr.End.After(s.reused.Add(500*time.Millisecond)) {
			t.Errorf("it ended %v after the next connection began\n%v", tr.End.Sub(s.reused), describe(tr))
		}
	}
	after := f.counters()
	for _, name := range []string{"Tcp.OutRsts", "Tcp.RetransSegs", "Tcp.EstabResets", "TcpExt.TWKilled"} {
		for i, end := range []string{"client", "server"} {
			if n := after[i][name] - before[i][name]; n != 0 {
				t.Errorf("%s of the %s rose by %d", name, end, n)
			}
		}
	}
	if n := invalidDropped(t, client); n != 0 {
		t.Errorf("the client's own firewall found %d packets invalid", n)
	}
}

// shuts opens flows from some ports on over both families, closed by either end first, and
// returns their traces, but for those of the next flows of their tuples. Where the machine stands
// still the end of one may be seen together with its beginning: then all are tried again.
func (f *field) shuts(port uint16, p servicetraceroute.Params) map[*trace.Trace]shut {
	f.t.Helper()
	for tries := 2; ; tries-- {
		first, untraced := f.shut(port, p)
		if len(untraced) > 0 && tries > 0 {
			port += 100
			continue
		}
		if len(untraced) > 0 {
			f.t.Errorf("no trace of %v", untraced)
		}
		return first
	}
}

// shut is shuts, once.
func (f *field) shut(port uint16, p servicetraceroute.Params) (first map[*trace.Trace]shut, untraced map[netip.AddrPort]shut) {
	f.t.Helper()
	stop := f.watch(servicetraceroute.Selection{Every: time.Nanosecond, Params: p})
	client := f.lab.Node("client")
	flows := map[netip.AddrPort]shut{}
	for i := range uint16(4) {
		ipv6, serverFirst := i%2 == 1, i/2 == 1
		at := netip.AddrPortFrom(client.Addr(ipv6), port+i)
		f.connect(ipv6, from(at)).end(f.t, serverFirst)
		s := shut{closed: time.Now()}
		time.Sleep(2 * time.Second)
		s.reused = time.Now()
		f.connect(ipv6, from(at)).chat(f.t, 10)
		flows[at] = s
	}
	all := stop()
	f.judge(f.truth(), all.traces)
	first = map[*trace.Trace]shut{}
	for _, tr := range all.traces {
		s, ok := flows[tr.Flow.Src]
		if !ok || tr.Start.After(s.reused) {
			continue // the next one's
		}
		delete(flows, tr.Flow.Src)
		first[tr] = s
		if tr.Stop != trace.StopFlowClosed || tr.Complete || tr.Reached || tr.Impact != (trace.Impact{}) {
			f.t.Errorf("%v", describe(tr))
		}
	}
	return first, flows
}

// end closes both ends.
func (p pipe) end(t testing.TB, serverFirst bool) {
	t.Helper()
	a, b := p.client, p.server
	if serverFirst {
		a, b = b, a
	}
	first := a.Close()
	_, err := io.Copy(io.Discard, b) // until it hears of it
	if err := cmp.Or(first, err, b.Close()); err != nil {
		t.Error(err)
	}
	time.Sleep(50 * time.Millisecond)
}

// chat exchanges messages and closes.
func (p pipe) chat(t testing.TB, messages int) {
	t.Helper()
	go func() { _, _ = io.Copy(p.server, p.server) }()
	buf := make([]byte, 500)
	_ = p.client.SetDeadline(time.Now().Add(10 * time.Second))
	for i := range messages {
		if _, err := p.client.Write(buf); err != nil {
			t.Errorf("message %d: %v", i, err)
			return
		}
		if _, err := io.ReadFull(p.client, buf); err != nil {
			t.Errorf("message %d: %v", i, err)
			return
		}
	}
}
