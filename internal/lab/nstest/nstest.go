//go:build linux

// Package nstest gives the tests of a lab's roles network namespaces of their
// own, without the processes that the lab itself is made of.
package nstest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab/node"
	"servicetraceroute/internal/netns"
)

// NS is a network namespace that lives as long as its test.
type NS struct{ f *os.File }

// New makes a namespace with a loopback interface that is up. Without the
// privilege the test is skipped, or fails when SERVICE_TRACEROUTE_NO_SKIP=1. In a
// short run it is skipped in any case.
func New(t testing.TB) *NS {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a network namespace: not in a short run")
	}
	var f *os.File
	if err := netns.Thread(func() (err error) { f, err = unshare(); return err }); err != nil {
		Skip(t, "no network namespace: %v", err)
	}
	t.Cleanup(func() { f.Close() })
	return &NS{f}
}

func unshare() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	// Without it IPv6 addresses cannot be used for a second. A kernel without IPv6
	// has no such file.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, err
	}
	return os.Open("/proc/thread-self/ns/net")
}

// Skip skips the test, or fails it when SERVICE_TRACEROUTE_NO_SKIP=1: in CI
// nothing may stay untested silently.
func Skip(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("SERVICE_TRACEROUTE_NO_SKIP") == "1" {
		t.Fatalf("not allowed to skip: "+format, args...)
	}
	t.Skipf(format, args...)
}

// FD returns the namespace's descriptor.
func (n *NS) FD() int { return int(n.f.Fd()) }

// Do runs f on a thread in the namespace. Sockets that f itself opens belong to
// it; goroutines that f starts run elsewhere.
func (n *NS) Do(f func() error) error {
	return netns.Thread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("setns: %w", err)
		}
		return f()
	})
}

// Must is Do for a test that cannot go on after an error.
func (n *NS) Must(t testing.TB, f func() error) {
	t.Helper()
	if err := n.Do(f); err != nil {
		t.Fatal(err)
	}
}

// Caller returns a node that plays the roles in the namespace, or on the host
// when n is nil. Its life ends with the test.
func (n *NS) Caller(t testing.TB, roles node.Roles) node.Caller {
	life, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return &caller{n, life, roles}
}

type caller struct {
	ns    *NS
	life  context.Context
	roles node.Roles
}

// Call passes argument and result through JSON, as a lab does.
func (c *caller) Call(ctx context.Context, role string, arg, result any) error {
	f := c.roles[role]
	if f == nil {
		return fmt.Errorf("no role %q", role)
	}
	raw, err := json.Marshal(arg)
	if err != nil {
		return err
	}
	var out any
	play := func() (err error) {
		out, err = f(node.WithBackground(ctx, c.life), raw)
		return err
	}
	if c.ns == nil {
		err = play()
	} else {
		err = c.ns.Do(play)
	}
	if err != nil || result == nil {
		return err
	}
	if raw, err = json.Marshal(out); err != nil {
		return err
	}
	return json.Unmarshal(raw, result)
}

// End is one end of a link.
type End struct {
	NS    *NS
	Name  string
	Addrs []string // with prefix lengths
}

// Veth joins two namespaces. Segmentation and checksum offloads are off, so that
// what crosses is what a wire would carry.
func Veth(t testing.TB, a, b End) {
	t.Helper()
	a.NS.Must(t, func() error {
		err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: a.Name, MTU: 1500},
			PeerName:  b.Name, PeerNamespace: netlink.NsFd(b.NS.FD()),
		})
		if err != nil {
			return fmt.Errorf("veth %s: %w", a.Name, err)
		}
		return a.configure()
	})
	b.NS.Must(t, b.configure)
	for _, end := range []End{a, b} {
		end.NS.Must(t, end.ready)
	}
}

// ready waits until the kernel's link watcher has seen that the other end is there: up to
// then the link takes packets and drops them.
func (e End) ready() error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		link, err := netlink.LinkByName(e.Name)
		if err != nil {
			return err
		}
		if state := link.Attrs().OperState; state == netlink.OperUp {
			return nil
		} else if time.Now().After(end) {
			return fmt.Errorf("%s is %s", e.Name, state)
		}
	}
}

func (e End) configure() error {
	link, err := netlink.LinkByName(e.Name)
	if err != nil {
		return err
	}
	if err := OffloadsOff(e.Name); err != nil {
		return err
	}
	for _, s := range e.Addrs {
		addr, err := netlink.ParseAddr(s)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// Route adds a route through a gateway.
func (n *NS) Route(t testing.TB, prefix, gateway string) {
	t.Helper()
	n.Must(t, func() error {
		dst, err := netlink.ParseIPNet(prefix)
		if err != nil {
			return err
		}
		gw, err := netlink.ParseAddr(gateway + map[bool]string{true: "/128", false: "/32"}[dst.IP.To4() == nil])
		if err != nil {
			return err
		}
		err = netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: gw.IP})
		if errors.Is(err, syscall.EEXIST) {
			return nil
		}
		return err
	})
}

// Sysctl sets a parameter of the namespace: "net/ipv4/ip_forward".
func (n *NS) Sysctl(t testing.TB, path, value string) {
	t.Helper()
	n.Must(t, func() error { return os.WriteFile("/proc/sys/"+path, []byte(value), 0) })
}
