package servicetraceroute_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"servicetraceroute"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/trace"
)

// wired is a host with two cables to a router's bridge, and a server behind that:
//
//	[host  p0, p1] == [br0 192.0.2.254  router  198.51.100.254] -- server 198.51.100.1
type wired struct{ host, router, server *nstest.NS }

func newWired(t *testing.T) *wired {
	t.Helper()
	labtest.Require(t)
	w := &wired{nstest.New(t), nstest.New(t), nstest.New(t)}
	for i := range 2 {
		nstest.Veth(t, nstest.End{NS: w.host, Name: fmt.Sprint("p", i)}, nstest.End{NS: w.router, Name: fmt.Sprint("p", i)})
	}
	nstest.Veth(t, nstest.End{NS: w.router, Name: "eth1", Addrs: []string{"198.51.100.254/24"}},
		nstest.End{NS: w.server, Name: "eth0", Addrs: []string{"198.51.100.1/24"}})
	w.router.Must(t, func() error { return bridge("br0", "192.0.2.254/24", "p0", "p1") })
	w.router.Sysctl(t, "net/ipv4/ip_forward", "1")
	w.server.Route(t, "0.0.0.0/0", "198.51.100.254")
	echoes(t, w.server, serverAddr)
	return w
}

const wiredPath = "192.0.2.254 198.51.100.1"

// A packet that passes a bridge and its port is seen twice, and traced once: where it
// leaves.
func TestBridgeSeesTwice(t *testing.T) {
	t.Parallel()
	w := newWired(t)
	w.host.Must(t, func() error { return bridge("br0", "192.0.2.1/24", "p0") })
	w.host.Route(t, "0.0.0.0/0", "192.0.2.254")
	talk(t, w.host, serverAddr)
	s := watchFor(t, servicetraceroute.Config{}, w.host, serverAddr.Addr(), 4*time.Second, nil)
	s.one(t, wiredPath, "p0")
}

// So is one of a bond, which goes on at the other cable when one fails.
func TestBondSeesTwice(t *testing.T) {
	w := newWired(t)
	err := w.host.Do(func() error {
		bond := netlink.NewLinkBond(netlink.LinkAttrs{Name: "bond0"})
		bond.Mode, bond.Miimon = netlink.BOND_MODE_ACTIVE_BACKUP, 50
		return enslave(bond, "192.0.2.1/24", "p0", "p1")
	})
	if errors.Is(err, syscall.EOPNOTSUPP) {
		t.Skip("this kernel has no bonds; TestFailover does with a bridge what a bond does")
	}
	if err != nil {
		t.Fatal(err)
	}
	w.failsOver(t, func() error { return setLink("p0", false) })
}

// Of two cables under one master the other takes over, as in a bond: flows are seen
// at the master and at the cable in use, and their probes leave by that.
func TestFailover(t *testing.T) {
	t.Parallel()
	w := newWired(t)
	w.host.Must(t, func() error { return bridge("br0", "192.0.2.1/24", "p0") })
	w.failsOver(t, func() error {
		master, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		for _, name := range []string{"p0", "p1"} {
			port, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if name == "p0" {
				err = netlink.LinkSetNoMaster(port)
			} else {
				err = netlink.LinkSetMaster(port, master)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// failsOver traces a flow at p0 and, after fail, a new one at p1.
func (w *wired) failsOver(t *testing.T, fail func() error) {
	t.Helper()
	w.host.Route(t, "0.0.0.0/0", "192.0.2.254")
	first := talk(t, w.host, serverAddr)
	second := make(chan netip.AddrPort, 1)
	s := watchFor(t, servicetraceroute.Config{}, w.host, serverAddr.Addr(), 9*time.Second, func() {
		time.Sleep(4 * time.Second)
		if err := w.host.Do(fail); err != nil {
			t.Error(err)
		}
		time.Sleep(500 * time.Millisecond)
		second <- talk(t, w.host, serverAddr)
	})
	at := map[netip.AddrPort]string{}
	for _, tr := range s.traces {
		at[tr.Flow.Src] = tr.Flow.Interface
		if path(tr) != wiredPath || !tr.Reached {
			t.Errorf("%v: %v", tr.Flow, tr)
		}
	}
	if last := <-second; len(s.traces) != 2 || at[first] != "p0" || at[last] != "p1" {
		t.Errorf("%d traces, at %v", len(s.traces), at)
	}
	if len(s.traces) > 0 && s.traces[0].Observed.Retransmits != 0 {
		t.Errorf("%d retransmissions before anything failed", s.traces[0].Observed.Retransmits)
	}
}

func setLink(name string, up bool) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if up {
		return netlink.LinkSetUp(link)
	}
	return netlink.LinkSetDown(link)
}

// Interfaces go down and come up, are deleted and made again with another number:
// capture goes on, also where it is limited to one by its name, and costs nothing
// meanwhile.
func TestInterfacesComeAndGo(t *testing.T) {
	t.Parallel()
	for name, interfaces := range map[string][]string{"all": nil, "one": {"up0"}, "two": {"lo", "up0"}} {
		t.Run(name, func(t *testing.T) {
			labtest.Require(t)
			w := &wired{host: nstest.New(t), router: nstest.New(t), server: nstest.New(t)}
			nstest.Veth(t, nstest.End{NS: w.router, Name: "eth1", Addrs: []string{"198.51.100.254/24"}},
				nstest.End{NS: w.server, Name: "eth0", Addrs: []string{"198.51.100.1/24"}})
			w.router.Sysctl(t, "net/ipv4/ip_forward", "1")
			w.server.Route(t, "0.0.0.0/0", "198.51.100.254")
			echoes(t, w.server, serverAddr)
			uplink := func() {
				nstest.Veth(t, nstest.End{NS: w.host, Name: "up0", Addrs: []string{"192.0.2.1/24"}},
					nstest.End{NS: w.router, Name: "down0", Addrs: []string{"192.0.2.254/24"}})
				w.host.Route(t, "0.0.0.0/0", "192.0.2.254")
			}
			uplink()
			comeAndGo(t, w, interfaces, uplink)
		})
	}
}

func comeAndGo(t *testing.T, w *wired, interfaces []string, uplink func()) {
	t.Helper()
	tracer, err := servicetraceroute.New(servicetraceroute.Config{
		NetNS: fmt.Sprintf("/proc/self/fd/%d", w.host.FD()), Interfaces: interfaces,
		Defaults: servicetraceroute.Params{Timeout: time.Second},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer tracer.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	traces := make(chan *trace.Trace, 16)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ev, err := range tracer.Watch(ctx, servicetraceroute.Selection{Hosts: []string{serverAddr.Addr().String()}}) {
			if err != nil {
				t.Error(err)
			}
			if tr, ok := ev.(*trace.Trace); ok {
				traces <- tr
			}
		}
	}()
	defer func() { cancel(); <-done }()
	expect := func(when string) {
		t.Helper()
		src := talk(t, w.host, serverAddr)
		for deadline := time.After(10 * time.Second); ; {
			select {
			case tr := <-traces:
				if tr.Flow.Src != src {
					continue // what the link took with it
				}
				if path(tr) != wiredPath || tr.Flow.Interface != "up0" || !tr.Reached {
					t.Errorf("%s: %q, %v", when, path(tr), tr)
				}
				return
			case <-deadline:
				t.Fatalf("%s: no trace of %v", when, src)
			}
		}
	}
	expect("at first")
	w.host.Must(t, func() error { return setLink("up0", false) })
	least := time.Hour
	for range 8 { // other tests are busy in this process, too, but not all the time
		var before, after syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
		time.Sleep(time.Second)
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
		busy := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
		if least = min(least, time.Duration(busy)); least <= 300*time.Millisecond {
			break
		}
	}
	if least > 300*time.Millisecond {
		t.Errorf("%v of processor time in each second without a link", least)
	}
	w.host.Must(t, func() error { return setLink("up0", true) })
	w.host.Route(t, "0.0.0.0/0", "192.0.2.254")
	expect("after down and up")
	w.host.Must(t, func() error {
		link, err := netlink.LinkByName("up0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	time.Sleep(200 * time.Millisecond)
	uplink()
	time.Sleep(2500 * time.Millisecond) // names are looked up each second
	expect("after it was made again")
}
