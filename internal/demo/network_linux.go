package demo

import (
	"net/netip"
	"time"

	"servicetraceroute/internal/scenario"
)

// The names of what the demo asks for.
const (
	client  = "client"
	server  = "server"
	webPort = 443
	webName = "www.example.com"
)

// network is client - home - isp - 3-way ECMP - core - 3-way ECMP - edge
// (firewall) - server, in addresses reserved for documentation.
func network() scenario.Network {
	router := func(name string) scenario.Node { return scenario.Node{Name: name, Kind: scenario.Router} }
	edge := router("edge")
	edge.Firewall = &scenario.Firewall{AllowTCP: []uint16{webPort}}
	n := scenario.Network{
		Name: "demo",
		Nodes: []scenario.Node{
			{Name: client, Kind: scenario.Host}, router("home"), router("isp"), router("core"), edge,
			{Name: server, Kind: scenario.Host},
		},
		Links: []scenario.Link{
			{A: client, B: "home", Prefix4: netip.MustParsePrefix("192.0.2.0/29")},
			{A: "home", B: "isp", Prefix4: netip.MustParsePrefix("192.0.2.8/29"), Delay: 5 * time.Millisecond},
		},
	}
	net4 := netip.MustParseAddr("198.51.100.0")
	wire := func(a, b string) {
		n.Links = append(n.Links, scenario.Link{A: a, B: b, Prefix4: netip.PrefixFrom(net4, 29)})
		for range 8 {
			net4 = net4.Next()
		}
	}
	for _, branch := range []string{"east", "mid", "west"} {
		n.Nodes = append(n.Nodes, router("a-"+branch), router("b-"+branch))
		wire("isp", "a-"+branch)
		wire("a-"+branch, "core")
		wire("core", "b-"+branch)
		wire("b-"+branch, "edge")
	}
	n.Links = append(n.Links, scenario.Link{
		A: "edge", B: server, Prefix4: netip.MustParsePrefix("203.0.113.0/29"), Delay: 3 * time.Millisecond,
	})
	return n
}
