package selftest

import (
	"time"

	"servicetraceroute/internal/scenario"
)

// The nodes of the network that have a part of their own.
const (
	client   = "client"
	server   = "server"
	firewall = "fw"
	slow     = "slow" // the link
	tcpPort  = 443
	udpPort  = 4433
	delay    = 20 * time.Millisecond
	bitRate  = 20_000_000
)

// network is a path of four routers with one slow link: client, r1, the firewall, r3,
// r4, server.
func network(withFirewall bool) scenario.Network {
	n := scenario.Network{Name: "selftest", Nodes: []scenario.Node{{Name: client, Kind: scenario.Host}}}
	for _, name := range []string{"r1", firewall, "r3", "r4"} {
		n.Nodes = append(n.Nodes, scenario.Node{Name: name, Kind: scenario.Router})
	}
	n.Nodes = append(n.Nodes, scenario.Node{Name: server, Kind: scenario.Host})
	for i := range len(n.Nodes) - 1 {
		n.Links = append(n.Links, scenario.Link{A: n.Nodes[i].Name, B: n.Nodes[i+1].Name})
	}
	at := &n.Links[3]
	at.Name, at.Delay, at.Rate = slow, delay, bitRate
	if withFirewall {
		n.Nodes[2].Firewall = &scenario.Firewall{AllowTCP: []uint16{tcpPort}, Inside: "r1-" + firewall}
	}
	return n
}

// Routers are those between client and server, in the order of the path.
func routers(n scenario.Network) (names []string) {
	for _, node := range n.Nodes {
		if node.Kind == scenario.Router {
			names = append(names, node.Name)
		}
	}
	return names
}

// plan lists the kinds of flows that are run: so many over TCP, whose families
// alternate, and one or two over UDP.
func plan(tcp int, udp int) (all []Pair) {
	families := [...]string{"ipv4", "ipv6"}
	kinds := [...]string{download, requestResponse, upload, idle}
	for i := range tcp {
		all = append(all, Pair{Family: families[(i+i/len(kinds))%2], Proto: "tcp", Traffic: kinds[i%len(kinds)], Tries: []Try{}})
	}
	for i := range udp {
		all = append(all, Pair{Family: families[i%2], Proto: "udp", Traffic: datagrams, Tries: []Try{}})
	}
	return all
}

// trafficOf is what a lab's applications call it.
var trafficOf = map[string]scenario.Traffic{
	download: scenario.Download, upload: scenario.Upload, requestResponse: scenario.RequestResponse, idle: scenario.Idle,
}
