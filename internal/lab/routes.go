//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeChange leads from one routing table to another.
type routeChange struct {
	Set    []routeConfig
	Remove []netip.Prefix
}

func (c routeChange) empty() bool { return len(c.Set) == 0 && len(c.Remove) == 0 }

// diffRoutes returns what has to change so that old becomes new.
func diffRoutes(old, new []routeConfig) routeChange {
	was := make(map[netip.Prefix]routeConfig, len(old))
	for _, r := range old {
		was[r.Prefix] = r
	}
	var c routeChange
	for _, r := range new {
		if o, ok := was[r.Prefix]; !ok || !reflect.DeepEqual(o, r) {
			c.Set = append(c.Set, r)
		}
		delete(was, r.Prefix)
	}
	for _, r := range old {
		if _, gone := was[r.Prefix]; gone {
			c.Remove = append(c.Remove, r.Prefix)
		}
	}
	return c
}

func changeRoutes(_ context.Context, c routeChange) (any, error) {
	h, err := kernel()
	if err != nil {
		return nil, err
	}
	return nil, setRoutes(h, c)
}

// setRoutes replaces routes one by one. Each replacement is one request with
// NLM_F_REPLACE (rtnetlink(7)), so that no packet finds the prefix unrouted.
func setRoutes(h *netlink.Handle, c routeChange) error {
	index, err := interfaceIndexes(h)
	if err != nil {
		return err
	}
	for _, r := range c.Set {
		if err := h.RouteReplace(kernelRoute(r, index, unix.RT_TABLE_MAIN)); err != nil {
			return fmt.Errorf("route to %s: %w", r.Prefix, err)
		}
	}
	for _, p := range c.Remove {
		err := h.RouteDel(&netlink.Route{Dst: ipNet(p), Table: unix.RT_TABLE_MAIN})
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("route to %s: remove: %w", p, err)
		}
	}
	return nil
}

func kernelRoute(r routeConfig, index map[string]int, table int) *netlink.Route {
	k := &netlink.Route{Dst: ipNet(r.Prefix), Table: table, Protocol: unix.RTPROT_STATIC}
	if r.Src.IsValid() {
		k.Src = r.Src.AsSlice()
	}
	if len(r.Via) == 1 {
		k.LinkIndex, k.Gw = index[r.Via[0].Dev], r.Via[0].Via.AsSlice()
		return k
	}
	for _, v := range r.Via {
		k.MultiPath = append(k.MultiPath, &netlink.NexthopInfo{LinkIndex: index[v.Dev], Gw: v.Via.AsSlice()})
	}
	return k
}

func interfaceIndexes(h *netlink.Handle) (map[string]int, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, err
	}
	index := make(map[string]int, len(links))
	for _, l := range links {
		index[l.Attrs().Name] = l.Attrs().Index
	}
	return index, nil
}

// addPortRoute is "ip rule add iif lo ipproto tcp dport N lookup T" for both
// families, with a default route in table T. "iif lo" is how ip-rule(8) says
// "sent by this host".
func addPortRoute(h *netlink.Handle, i int, p portRouteConfig) error {
	index, err := interfaceIndexes(h)
	if err != nil {
		return err
	}
	for _, r := range p.Routes {
		if err := h.RouteReplace(kernelRoute(r, index, p.Table)); err != nil {
			return fmt.Errorf("table %d: %w", p.Table, err)
		}
		rule := netlink.NewRule()
		rule.Priority = 1000 + i
		rule.Table = p.Table
		rule.IifName = "lo"
		rule.IPProto = unix.IPPROTO_TCP
		rule.Dport = netlink.NewRulePortRange(p.DstPort, p.DstPort)
		rule.Family = unix.AF_INET
		if r.Prefix.Addr().Is6() {
			rule.Family = unix.AF_INET6
		}
		if err := h.RuleAdd(rule); err != nil {
			return fmt.Errorf("rule: %w", err)
		}
	}
	return nil
}
