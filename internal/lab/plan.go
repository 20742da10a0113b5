//go:build linux

package lab

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"servicetraceroute/internal/scenario"
)

// defaultMTU is Ethernet's.
const defaultMTU = 1500

// nodeConfig is everything that a node's process has to know to become the node.
// It is worked out by the controller (planNode) and applied by the node.
type nodeConfig struct {
	Sysctls    []sysctl // in order; written before any interface but lo exists
	Lo         []netip.Addr
	Veths      []veth
	Interfaces []ifaceConfig
	Routes     []routeConfig
	PortRoutes []portRouteConfig
	Silent     bool
	Firewall   *firewallConfig
	NAT        *natConfig
}

type sysctl struct {
	Name, Value string // "net.ipv4.ip_forward"
}

// veth is a pair that this node makes: one end for itself and one straight into
// the namespace of another process.
type veth struct {
	Name, Peer   string
	MAC, PeerMAC string
	MTU          int
	PeerPid      int
	PeerNode     string // of whom PeerPid is the process
}

type ifaceConfig struct {
	Name       string
	Addrs      []netip.Prefix
	Neighbours []neighbour
	// Raw ends carry frames exactly as they would be on a wire: no segments
	// left to be cut, no checksums left to be filled in.
	Raw bool
}

type neighbour struct {
	Addr netip.Addr
	MAC  string
}

type routeConfig struct {
	Prefix netip.Prefix
	Via    []nextHop
	Src    netip.Addr // the node's own address, when it has one
}

type nextHop struct {
	Dev string
	Via netip.Addr
}

type portRouteConfig struct {
	DstPort uint16
	Table   int
	Dev     string
	Routes  []routeConfig // the default routes of Table
}

type firewallConfig struct {
	AllowTCP []uint16
	Inside   string // an interface
}

type natConfig struct {
	Outside     string // an interface
	FullyRandom bool
	IPv6        bool
}

// mac returns the hardware address of an end of the i-th link. It is locally
// administered and the same in every lab, so neighbours can be told in advance.
func mac(l *scenario.Layout, it *scenario.Interface) string {
	i := linkIndex(l.Network, it.Link)
	end := 0xa
	if l.Links[it.Link].B == it {
		end = 0xb
	}
	return fmt.Sprintf("02:5e:00:%02x:%02x:%02x", i>>8, i&0xff, end)
}

// linkIndex returns the position of a link in the description, or -1.
func linkIndex(n scenario.Network, name string) int {
	return slices.IndexFunc(n.Links, func(k scenario.Link) bool {
		return k.Name == name || k.Name == "" && k.A+"-"+k.B == name
	})
}

// planNode works out what a node has to configure. Of a plain link's two ends A
// makes the pair.
func planNode(l *scenario.Layout, name string, opts Options) nodeConfig {
	n := l.Nodes[name]
	c := nodeConfig{
		Sysctls: nodeSysctls(n.Node),
		Lo:      n.Node.Addrs,
		Routes:  planRoutes(n),
		Silent:  n.Node.Silent,
	}
	for _, it := range n.Interfaces {
		ll := l.Links[it.Link]
		if it == ll.A && !ll.Link.Impaired() {
			c.Veths = append(c.Veths, veth{
				Name: it.Name, MAC: mac(l, it), MTU: mtu(ll.Link),
				Peer: it.Peer.Name, PeerMAC: mac(l, it.Peer), PeerNode: it.Peer.Node,
			})
		}
		c.Interfaces = append(c.Interfaces, ifaceConfig{
			Name:  it.Name,
			Addrs: []netip.Prefix{it.Addr4, it.Addr6},
			Neighbours: []neighbour{
				{it.Peer.Addr4.Addr(), mac(l, it.Peer)}, {it.Peer.Addr6.Addr(), mac(l, it.Peer)},
			},
			Raw: opts.NoOffload || ll.Link.Impaired(),
		})
	}
	if f := n.Node.Firewall; f != nil {
		c.Firewall = &firewallConfig{AllowTCP: f.AllowTCP}
		if f.Inside != "" {
			c.Firewall.Inside = n.Interface(f.Inside).Name
		}
	}
	if nat := n.Node.NAT; nat != nil {
		c.NAT = &natConfig{Outside: n.Interface(nat.Outside).Name, FullyRandom: nat.FullyRandom, IPv6: nat.IPv6}
	}
	for i, p := range n.Node.PortRoutes {
		c.PortRoutes = append(c.PortRoutes, planPortRoute(n, i, p))
	}
	return c
}

// planLink works out what the process between the two ends of an impaired link
// has to configure: it makes both pairs and forwards frames, so it has no
// addresses and no IPv6.
func planLink(l *scenario.Layout, ll *scenario.LinkLayout) nodeConfig {
	c := nodeConfig{Sysctls: []sysctl{{"net.ipv6.conf.all.disable_ipv6", "1"}, {"net.ipv6.conf.default.disable_ipv6", "1"}}}
	for i, it := range []*scenario.Interface{ll.A, ll.B} {
		end := linkEnds[i]
		c.Veths = append(c.Veths, veth{
			Name: end, MAC: fmt.Sprintf("02:5e:01:%02x:%02x:%02x", linkIndex(l.Network, ll.Name)>>8, linkIndex(l.Network, ll.Name)&0xff, i),
			MTU: mtu(ll.Link), Peer: it.Name, PeerMAC: mac(l, it), PeerNode: it.Node,
		})
		c.Interfaces = append(c.Interfaces, ifaceConfig{Name: end, Raw: true})
	}
	return c
}

// linkEnds are the interfaces of a link's own process, towards A and towards B.
var linkEnds = [2]string{"a0", "b0"}

func mtu(l scenario.Link) int {
	if l.MTU > 0 {
		return l.MTU
	}
	return defaultMTU
}

func planRoutes(n *scenario.NodeLayout) []routeConfig {
	routes := make([]routeConfig, 0, len(n.Routes))
	for _, r := range n.Routes {
		c := routeConfig{Prefix: r.Prefix, Src: ownAddr(n.Node, r.Prefix.Addr().Is6())}
		for _, it := range r.Via {
			c.Via = append(c.Via, nextHop{it.Name, gateway(it, r.Prefix.Addr().Is6())})
		}
		routes = append(routes, c)
	}
	return routes
}

func planPortRoute(n *scenario.NodeLayout, i int, p scenario.PortRoute) portRouteConfig {
	it := n.Interface(p.Via)
	c := portRouteConfig{DstPort: p.DstPort, Table: 1000 + i, Dev: it.Name}
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		prefix := netip.MustParsePrefix(all)
		is6 := prefix.Addr().Is6()
		c.Routes = append(c.Routes, routeConfig{
			Prefix: prefix, Via: []nextHop{{it.Name, gateway(it, is6)}}, Src: ownAddr(n.Node, is6),
		})
	}
	return c
}

func gateway(it *scenario.Interface, ipv6 bool) netip.Addr {
	if ipv6 {
		return it.Peer.Addr6.Addr()
	}
	return it.Peer.Addr4.Addr()
}

// ownAddr returns the node's identity address of a family; invalid when it has none.
func ownAddr(n scenario.Node, ipv6 bool) netip.Addr {
	for _, a := range n.Addrs {
		if a.Is6() == ipv6 {
			return a
		}
	}
	return netip.Addr{}
}

// nodeSysctls are the kernel settings of a node, see ip-sysctl.rst and
// icmp-sysctl in the kernel's Documentation/networking.
func nodeSysctls(n scenario.Node) []sysctl {
	s := []sysctl{
		// Nobody but the lab configures addresses and routes, and nothing is
		// sent that no test asked for: no duplicate detection, no solicitations,
		// no link-local addresses (addr_gen_mode 1 is "none").
		{"net.ipv6.conf.default.accept_dad", "0"},
		{"net.ipv6.conf.default.dad_transmits", "0"},
		{"net.ipv6.conf.default.accept_ra", "0"},
		{"net.ipv6.conf.default.autoconf", "0"},
		{"net.ipv6.conf.default.router_solicitations", "0"},
		{"net.ipv6.conf.default.addr_gen_mode", "1"},
		// Asymmetric paths are wanted. The stricter of "all" and the interface's
		// own value counts.
		{"net.ipv4.conf.all.rp_filter", "0"},
		{"net.ipv4.conf.default.rp_filter", "0"},
		// Two labs, or two runs in one, must not learn from each other.
		{"net.ipv4.tcp_no_metrics_save", "1"},
		{"net.ipv6.auto_flowlabels", "1"},
		// Without a seed of its own every router would hash alike, and the second
		// of two balancers in a row would only ever see the flows that the first
		// one sent its way (polarisation).
		{"net.ipv4.fib_multipath_hash_seed", strconv.FormatUint(uint64(hashSeed(n.Name)), 10)},
	}
	s = append(s, hashSysctls(n.Hash)...)
	if n.Kind == scenario.Router {
		s = append(s, routerSysctls(n)...)
	}
	return s
}

// hashSeed is never 0, which asks the kernel for a seed that all namespaces share.
func hashSeed(node string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(node))
	return h.Sum32() | 1
}

// hashSysctls choose what equal-cost routes are picked by: policy 3 is the fields
// of fib_multipath_hash_fields (ip-sysctl.rst): 0x01 source address, 0x02
// destination address, 0x04 protocol, 0x08 flow label, 0x10 source port, 0x20
// destination port.
//
// Policy 1, the 5-tuple, would be wrong here. It takes the hash that the packet
// already has (skb->l4_hash), and veth leaves that in place: the sending socket's
// random one, of which nothing on a real wire would tell. Every router would then
// balance alike, and a packet that another socket sends for the same flow, as a
// probe is, would take another path. Policy 0 is no better for "addresses only":
// it hashes the flow label too in IPv6.
func hashSysctls(h scenario.Hash) []sysctl {
	const addresses, label, ports = 0x03, 0x08, 0x04 | 0x10 | 0x20
	v4, v6 := addresses|ports, addresses|ports
	switch h {
	case scenario.HashFlowLabel:
		v6 |= label
	case scenario.HashL3:
		v4, v6 = addresses, addresses
	}
	return []sysctl{
		{"net.ipv4.fib_multipath_hash_fields", strconv.Itoa(v4)},
		{"net.ipv4.fib_multipath_hash_policy", "3"},
		{"net.ipv6.fib_multipath_hash_fields", strconv.Itoa(v6)},
		{"net.ipv6.fib_multipath_hash_policy", "3"},
	}
}

func routerSysctls(n scenario.Node) []sysctl {
	s := []sysctl{
		// First, because a change of ip_forward resets the interfaces' settings.
		{"net.ipv4.ip_forward", "1"},
		{"net.ipv6.conf.all.forwarding", "1"},
		{"net.ipv6.conf.default.forwarding", "1"},
		// Routers on the Internet mostly answer from the interface the packet
		// came in by.
		{"net.ipv4.icmp_errors_use_inbound_ifaddr", "1"},
		{"net.ipv4.conf.all.send_redirects", "0"},
		{"net.ipv4.conf.default.send_redirects", "0"},
		{"net.ipv4.conf.all.rp_filter", "0"},
		{"net.ipv4.conf.default.rp_filter", "0"},
	}
	return append(s, icmpSysctls(n.ICMP)...)
}

// icmpSysctls write nothing for the kernel's own limits: a new namespace has them.
func icmpSysctls(l scenario.ICMPLimit) []sysctl {
	if l.KernelDefaults {
		return nil
	}
	interval := strconv.FormatInt(l.Interval.Round(time.Millisecond).Milliseconds(), 10)
	const unlimited = "1000000"
	return []sysctl{
		{"net.ipv4.icmp_ratelimit", interval},
		{"net.ipv6.icmp.ratelimit", interval},
		{"net.ipv4.icmp_msgs_per_sec", unlimited},
		{"net.ipv4.icmp_msgs_burst", unlimited},
	}
}
