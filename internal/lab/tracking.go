//go:build linux

package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The rules of nodes that filter and translate, by the names of their counters.
const (
	RuleEstablished = "established" // forwarded: conntrack knows the flow
	RuleInvalid     = "invalid"     // dropped: conntrack calls it invalid
	RuleInside      = "inside"      // forwarded: a new flow from the inside
	RuleAllowed     = "allowed"     // forwarded: a SYN to an allowed port
	RuleDropped     = "dropped"     // dropped: none of the above
	RuleMasquerade  = "masquerade"  // a new flow that was given another source
	RuleSilenced    = "silenced"    // an ICMP error of the node's own that was dropped
)

// Counter is how many packets and bytes a rule matched.
type Counter struct{ Packets, Bytes uint64 }

// Counters returns the counters of the node's firewall, NAT and silence, by the
// names of the rules; rules of one name are added up.
func (n *Node) Counters(ctx context.Context) (map[string]Counter, error) {
	var c map[string]Counter
	err := n.Call(ctx, "lab/counters", nil, &c)
	return c, err
}

func ruleCounters(context.Context, struct{}) (map[string]Counter, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	sum := map[string]Counter{}
	for _, c := range chains {
		if c.Table.Name != tableName {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return nil, fmt.Errorf("nftables: chain %s: %w", c.Name, err)
		}
		for _, r := range rules {
			name, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			for _, e := range r.Exprs {
				if counter, ok := e.(*expr.Counter); ok {
					sum[name] = Counter{sum[name].Packets + counter.Packets, sum[name].Bytes + counter.Bytes}
				}
			}
		}
	}
	return sum, nil
}

// Tracked is a connection in a node's conntrack table.
type Tracked struct {
	Protocol           uint8          // IPPROTO_…
	Src, Dst           netip.AddrPort // as the first packet came in
	ReplySrc, ReplyDst netip.AddrPort // as an answer comes in: differs behind NAT
	// Timeout is what the entry has left if nothing more is seen of the
	// connection, in whole seconds.
	Timeout time.Duration
}

// Conntrack returns the node's tracked connections of both families.
func (n *Node) Conntrack(ctx context.Context) ([]Tracked, error) {
	var t []Tracked
	err := n.Call(ctx, "lab/conntrack", nil, &t)
	return t, err
}

func conntrack(context.Context, struct{}) ([]Tracked, error) {
	var all []Tracked
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		for tries := 0; errors.Is(err, netlink.ErrDumpInterrupted) && tries < 5; tries++ {
			flows, err = netlink.ConntrackTableList(netlink.ConntrackTable, family)
		}
		if err != nil {
			return nil, fmt.Errorf("conntrack: %w", err)
		}
		for _, f := range flows {
			all = append(all, Tracked{
				Protocol: f.Forward.Protocol,
				Src:      addrPort(f.Forward.SrcIP, f.Forward.SrcPort), Dst: addrPort(f.Forward.DstIP, f.Forward.DstPort),
				ReplySrc: addrPort(f.Reverse.SrcIP, f.Reverse.SrcPort), ReplyDst: addrPort(f.Reverse.DstIP, f.Reverse.DstPort),
				Timeout: time.Duration(f.TimeOut) * time.Second,
			})
		}
	}
	return all, nil
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}

// ConntrackStats returns the node's conntrack statistics ("invalid", "drop",
// "insert_failed", …) summed over the processors, by the names that
// /proc/net/stat/nf_conntrack gives them.
func (n *Node) ConntrackStats(ctx context.Context) (map[string]uint64, error) {
	var s map[string]uint64
	err := n.Call(ctx, "lab/conntrack-stats", nil, &s)
	return s, err
}

func conntrackStats(context.Context, struct{}) (map[string]uint64, error) {
	b, err := os.ReadFile("/proc/self/net/stat/nf_conntrack")
	if err != nil {
		return nil, err
	}
	return parseStats(b)
}

// parseStats reads a table of hexadecimal numbers: a line of names, then one
// line for each processor.
func parseStats(table []byte) (map[string]uint64, error) {
	lines := bufio.NewScanner(bytes.NewReader(table))
	lines.Scan()
	names := strings.Fields(lines.Text())
	sum := make(map[string]uint64, len(names))
	for lines.Scan() {
		for i, field := range strings.Fields(lines.Text()) {
			v, err := strconv.ParseUint(field, 16, 64)
			if err != nil || i >= len(names) {
				return nil, fmt.Errorf("conntrack statistics: line %q", lines.Text())
			}
			if names[i] == "entries" { // of the whole table, repeated for each processor
				sum[names[i]] = v
				continue
			}
			sum[names[i]] += v
		}
	}
	return sum, lines.Err()
}
