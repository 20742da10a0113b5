package evaluate

import (
	"fmt"
	"math"

	"servicetraceroute/internal/scenario"
)

// Shares describe an Internet to be drawn. The zero values of the shares mean none; Routers,
// Clients and Servers must be set. A share is between 0 and 1, and exact: so many of all,
// rounded, whatever the seed.
type Shares struct {
	// Seed chooses everything that is left to chance. Each kind of choice has a stream of
	// its own: with another share of balanced links the graph, the silent routers and so on
	// stay the same.
	Seed uint64
	// Routers of the base graph: a random tree, and half as many links across. To these come
	// the routers within balanced links, and one router before each host.
	Routers, Clients, Servers int

	// Balanced is the share of the base graph's links that are balanced: at both their
	// ends a router spreads flows, by a hash of addresses, protocol and ports, over Width
	// routers that stand between them. Width is at least 2 where there are any.
	Balanced float64
	Width    int
	// Asymmetric is the share of the base graph's links that cost differently each way, so
	// that flows come back another way than they go.
	Asymmetric float64
	// Silent is the share of routers (of the base graph, and within balanced links) that
	// never answer, Limited the share of those that limit their ICMP errors as Linux does.
	Silent, Limited float64
	// Firewalls is the share of servers behind a stateful firewall that lets new connections
	// to port 443 in and nothing else, NATs the share of clients behind address translation.
	Firewalls, NATs float64
	// Lossy is the share of the base graph's links that lose Loss of the segments with
	// payload, each way.
	Lossy, Loss float64
}

// World is an Internet that was drawn.
type World struct {
	Shares  Shares
	Network scenario.Network
	Clients []string // names of hosts
	Servers []string
	// What there is of each kind.
	Count Count
}

// Count is how many there are of each kind.
type Count struct {
	Routers, Links              int // all routers; the base graph's links
	Balanced, Asymmetric, Lossy int // of those links
	Silent, Limited             int // routers
	Firewalls, NATs             int
}

// Port is where the servers of a World listen.
const Port = 443

func (s Shares) check() error {
	if s.Routers < 2 || s.Clients < 1 || s.Servers < 1 {
		return fmt.Errorf("evaluate: %d routers, %d clients, %d servers: at least 2, 1 and 1 are needed", s.Routers, s.Clients, s.Servers)
	}
	if s.Balanced > 0 && (s.Width < 2 || s.Width > 64) {
		return fmt.Errorf("evaluate: width %d: between 2 and 64 where links are balanced", s.Width)
	}
	for _, share := range []struct {
		name  string
		value float64
	}{
		{"balanced", s.Balanced}, {"asymmetric", s.Asymmetric}, {"silent", s.Silent}, {"limited", s.Limited},
		{"firewalls", s.Firewalls}, {"NATs", s.NATs}, {"lossy", s.Lossy}, {"loss", s.Loss},
	} {
		if math.IsNaN(share.value) || share.value < 0 || share.value > 1 {
			return fmt.Errorf("evaluate: %s: %v is no share between 0 and 1", share.name, share.value)
		}
	}
	return nil
}
