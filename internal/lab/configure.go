//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernel is a node's netlink socket. It is opened by the first role that needs
// it, in the node's process, and lives as long as that.
var kernel = sync.OnceValues(func() (*netlink.Handle, error) { return netlink.NewHandle(unix.NETLINK_ROUTE) })

// prepare writes the node's settings and brings up its loopback. It is done in
// all nodes before any of them makes a link: an interface copies the "default"
// settings of its namespace at the moment it appears there.
func prepare(_ context.Context, c nodeConfig) (any, error) {
	for _, s := range c.Sysctls {
		if err := writeSysctl(s.Name, s.Value); err != nil {
			return nil, err
		}
	}
	h, err := kernel()
	if err != nil {
		return nil, err
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("lo: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("lo up: %w", err)
	}
	for _, a := range c.Lo {
		if err := addAddr(h, lo, netip.PrefixFrom(a, a.BitLen())); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// wire makes the links of which this node has to make both ends.
func wire(_ context.Context, c nodeConfig) (any, error) {
	h, err := kernel()
	if err != nil {
		return nil, err
	}
	for _, v := range c.Veths {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = v.Name, v.MTU
		if attrs.HardwareAddr, err = net.ParseMAC(v.MAC); err != nil {
			return nil, err
		}
		pair := netlink.NewVeth(attrs)
		pair.PeerName, pair.PeerMTU = v.Peer, uint32(v.MTU)
		pair.PeerNamespace = netlink.NsPid(v.PeerPid)
		if pair.PeerHardwareAddr, err = net.ParseMAC(v.PeerMAC); err != nil {
			return nil, err
		}
		if err := h.LinkAdd(pair); err != nil {
			return nil, fmt.Errorf("link %s to %s of %s: %w", v.Name, v.Peer, v.PeerNode, err)
		}
	}
	return nil, nil
}

// configure gives the interfaces their addresses and neighbours and sets routes,
// rules and filters.
func configure(_ context.Context, c nodeConfig) (any, error) {
	h, err := kernel()
	if err != nil {
		return nil, err
	}
	for _, it := range c.Interfaces {
		if err := configureInterface(h, it); err != nil {
			return nil, fmt.Errorf("%s: %w", it.Name, err)
		}
	}
	if err := setRoutes(h, routeChange{Set: c.Routes}); err != nil {
		return nil, err
	}
	for i, p := range c.PortRoutes {
		if err := addPortRoute(h, i, p); err != nil {
			return nil, fmt.Errorf("port route to %d: %w", p.DstPort, err)
		}
	}
	return nil, installFilters(c)
}

func configureInterface(h *netlink.Handle, c ifaceConfig) error {
	link, err := h.LinkByName(c.Name)
	if err != nil {
		return err
	}
	if c.Raw {
		if err := disableOffloads(c.Name); err != nil {
			return fmt.Errorf("offloads: %w", err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("up: %w", err)
	}
	for _, a := range c.Addrs {
		if err := addAddr(h, link, a); err != nil {
			return err
		}
	}
	for _, n := range c.Neighbours {
		hw, err := net.ParseMAC(n.MAC)
		if err != nil {
			return err
		}
		err = h.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: n.Addr.AsSlice(), HardwareAddr: hw,
		})
		if err != nil {
			return fmt.Errorf("neighbour %s: %w", n.Addr, err)
		}
	}
	return nil
}

func addAddr(h *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := h.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("address %s: %w", p, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// ready waits until all interfaces carry packets. An interface that is up drops
// what it is given until the kernel's link watch has seen the other end come up
// too, which happens in a work queue some time after the last LinkSetUp.
func ready(ctx context.Context, c nodeConfig) (any, error) {
	h, err := kernel()
	if err != nil {
		return nil, err
	}
	for _, it := range c.Interfaces {
		for {
			link, err := h.LinkByName(it.Name)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", it.Name, err)
			}
			if link.Attrs().OperState == netlink.OperUp {
				break
			}
			select {
			case <-ctx.Done():
				return nil, fmt.Errorf("%s is %s: %w", it.Name, link.Attrs().OperState, ctx.Err())
			case <-time.After(time.Millisecond):
			}
		}
	}
	return nil, nil
}

// sysctlPath turns "net.ipv4.tcp_sack" into the file's path. Names with slashes
// are taken as they are, for interfaces with dots in their names.
func sysctlPath(name string) string {
	if !strings.Contains(name, "/") {
		name = strings.ReplaceAll(name, ".", "/")
	}
	return "/proc/sys/" + name
}

func writeSysctl(name, value string) error {
	// Not O_CREATE: a setting that this kernel does not have is to be told so.
	f, err := os.OpenFile(sysctlPath(name), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("sysctl %s=%s: %w", name, value, err)
	}
	return nil
}

func readSysctl(name string) (string, error) {
	b, err := os.ReadFile(sysctlPath(name))
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", name, err)
	}
	return strings.TrimSpace(string(b)), nil
}
