package scenario

import (
	"fmt"
	"net/netip"
	"slices"
)

// Layout is a network with its addresses and routes worked out.
type Layout struct {
	Network Network
	Nodes   map[string]*NodeLayout
	Links   map[string]*LinkLayout
}

// NodeLayout is one node's interfaces and routes.
type NodeLayout struct {
	Node       Node
	Interfaces []*Interface // in the order of Network.Links
	Routes     []Route      // one per destination prefix not directly attached
}

// LinkLayout is one link's two ends.
type LinkLayout struct {
	Name string
	Link Link
	A, B *Interface
}

// Interface is one end of a link.
type Interface struct {
	Name  string // eth0, eth1, … within its node
	Node  string
	Link  string
	Addr4 netip.Prefix // the address with its subnet's length
	Addr6 netip.Prefix
	Peer  *Interface
}

// Route leads to a prefix by one or several equal-cost next hops.
type Route struct {
	Prefix netip.Prefix
	Via    []*Interface // this node's own interfaces; the gateway is each one's Peer
}

// Interface returns the node's end of the named link, or nil.
func (n *NodeLayout) Interface(link string) *Interface {
	for _, i := range n.Interfaces {
		if i.Link == link {
			return i
		}
	}
	return nil
}

// Addr returns the address at which the node is reached over IPv4 (or IPv6):
// its own if it has one, else that of its first interface.
func (n *NodeLayout) Addr(ipv6 bool) netip.Addr {
	for _, a := range n.Node.Addrs {
		if a.Is6() == ipv6 {
			return a
		}
	}
	if len(n.Interfaces) == 0 {
		return netip.Addr{}
	}
	if ipv6 {
		return n.Interfaces[0].Addr6.Addr()
	}
	return n.Interfaces[0].Addr4.Addr()
}

// Layout checks the description and works out addresses and routes. Link i has
// the subnets 10.200+(i/64).(4*i).0/30 style unless it names its own; routes are
// shortest paths over the links that are not Down, all of equal cost kept.
func (n Network) Layout() (*Layout, error) {
	l := &Layout{Network: n, Nodes: map[string]*NodeLayout{}, Links: map[string]*LinkLayout{}}
	for _, node := range n.Nodes {
		if node.Name == "" || node.Kind == 0 || l.Nodes[node.Name] != nil {
			return nil, fmt.Errorf("scenario: node %q: needs a unique name and a kind", node.Name)
		}
		l.Nodes[node.Name] = &NodeLayout{Node: node}
	}
	for i, link := range n.Links {
		if err := l.addLink(i, link); err != nil {
			return nil, err
		}
	}
	if err := l.checkNames(); err != nil {
		return nil, err
	}
	l.Reroute()
	return l, nil
}

func (l *Layout) addLink(i int, link Link) error {
	name := link.name()
	a, b := l.Nodes[link.A], l.Nodes[link.B]
	if a == nil || b == nil || a == b {
		return fmt.Errorf("scenario: link %q: needs two different nodes of the network", name)
	}
	if l.Links[name] != nil {
		return fmt.Errorf("scenario: link %q: named twice", name)
	}
	p4, p6 := link.Prefix4, link.Prefix6
	if !p4.IsValid() {
		p4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200, byte(i / 64), byte(i % 64 * 4)}), 30)
	}
	if !p6.IsValid() {
		a16 := [16]byte{0: 0xfd, 5: 0xc8, 6: byte(i >> 8), 7: byte(i)}
		p6 = netip.PrefixFrom(netip.AddrFrom16(a16), 64)
	}
	end := func(n *NodeLayout, host4, host6 netip.Addr) *Interface {
		it := &Interface{
			Name: fmt.Sprintf("eth%d", len(n.Interfaces)), Node: n.Node.Name, Link: name,
			Addr4: netip.PrefixFrom(host4, p4.Bits()), Addr6: netip.PrefixFrom(host6, p6.Bits()),
		}
		n.Interfaces = append(n.Interfaces, it)
		return it
	}
	first4, first6 := p4.Masked().Addr().Next(), p6.Masked().Addr().Next()
	ia := end(a, first4, first6)
	ib := end(b, first4.Next(), first6.Next())
	ia.Peer, ib.Peer = ib, ia
	l.Links[name] = &LinkLayout{Name: name, Link: link, A: ia, B: ib}
	return nil
}

func (l *Layout) checkNames() error {
	for _, name := range l.Network.Destinations {
		if l.Nodes[name] == nil {
			return fmt.Errorf("scenario: destinations: no node %q", name)
		}
	}
	for _, n := range l.Network.Nodes {
		at := l.Nodes[n.Name]
		if f := n.Firewall; f != nil && f.Inside != "" && at.Interface(f.Inside) == nil {
			return fmt.Errorf("scenario: node %q: firewall: no link %q", n.Name, f.Inside)
		}
		if n.NAT != nil && at.Interface(n.NAT.Outside) == nil {
			return fmt.Errorf("scenario: node %q: NAT: no link %q", n.Name, n.NAT.Outside)
		}
		for _, r := range n.PortRoutes {
			if at.Interface(r.Via) == nil {
				return fmt.Errorf("scenario: node %q: port route: no link %q", n.Name, r.Via)
			}
		}
	}
	return nil
}

// SetLink changes a link's costs or state; call Reroute afterwards.
func (l *Layout) SetLink(name string, change func(*Link)) error {
	ll := l.Links[name]
	if ll == nil {
		return fmt.Errorf("scenario: no link %q", name)
	}
	change(&ll.Link)
	return nil
}

// destination is a prefix and the nodes that own it.
type destination struct {
	prefix netip.Prefix
	owners []string
}

func (l *Layout) destinations() []destination {
	var all []destination
	wanted := func(names ...string) bool {
		only := l.Network.Destinations
		return len(only) == 0 || slices.ContainsFunc(names, func(name string) bool { return slices.Contains(only, name) })
	}
	for _, link := range l.Network.Links {
		ll := l.Links[link.name()]
		owners := []string{ll.A.Node, ll.B.Node}
		if !wanted(owners...) {
			continue
		}
		all = append(all,
			destination{ll.A.Addr4.Masked(), owners}, destination{ll.A.Addr6.Masked(), owners})
	}
	for _, n := range l.Network.Nodes {
		if !wanted(n.Name) {
			continue
		}
		for _, a := range n.Addrs {
			all = append(all, destination{netip.PrefixFrom(a, a.BitLen()), []string{n.Name}})
		}
	}
	return all
}

// Reroute works all routes out again.
func (l *Layout) Reroute() {
	for _, n := range l.Nodes {
		n.Routes = nil
	}
	for _, d := range l.destinations() {
		dist := l.distances(d.owners)
		for _, node := range l.Network.Nodes {
			if slices.Contains(d.owners, node.Name) {
				continue
			}
			n := l.Nodes[node.Name]
			if via := l.nextHops(n, dist); len(via) > 0 {
				n.Routes = append(n.Routes, Route{Prefix: d.prefix, Via: via})
			}
		}
	}
}

const unreachable = 1 << 30

// distances returns each node's cost to the nearest of owners. Hosts are never
// passed through. The networks are small: relaxing until nothing changes is fine.
func (l *Layout) distances(owners []string) map[string]int {
	dist := make(map[string]int, len(l.Nodes))
	for name := range l.Nodes {
		dist[name] = unreachable
	}
	for _, o := range owners {
		dist[o] = 0
	}
	for changed := true; changed; {
		changed = false
		for _, ll := range l.Links {
			changed = l.relax(dist, ll, ll.A, ll.Link.CostAB) || changed
			changed = l.relax(dist, ll, ll.B, ll.Link.CostBA) || changed
		}
	}
	return dist
}

// relax lets the node at end from learn the way through its peer.
func (l *Layout) relax(dist map[string]int, ll *LinkLayout, from *Interface, cost int) bool {
	peer := from.Peer.Node
	if ll.Link.Down || dist[peer] == unreachable || !l.passes(peer, dist) {
		return false
	}
	if d := dist[peer] + max(cost, 1); d < dist[from.Node] {
		dist[from.Node] = d
		return true
	}
	return false
}

// passes reports whether traffic may continue at the node: it is a router, or
// the destination itself.
func (l *Layout) passes(node string, dist map[string]int) bool {
	return dist[node] == 0 || l.Nodes[node].Node.Kind == Router
}

func (l *Layout) nextHops(n *NodeLayout, dist map[string]int) []*Interface {
	var via []*Interface
	for _, it := range n.Interfaces {
		ll := l.Links[it.Link]
		cost := ll.Link.CostAB
		if it == ll.B {
			cost = ll.Link.CostBA
		}
		peer := it.Peer.Node
		if ll.Link.Down || dist[peer] == unreachable || !l.passes(peer, dist) {
			continue
		}
		if dist[peer]+max(cost, 1) == dist[n.Node.Name] {
			via = append(via, it)
		}
	}
	return via
}
