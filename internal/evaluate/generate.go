package evaluate

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"time"

	"servicetraceroute/internal/scenario"
)

// Generate draws an Internet. The first client and the first server are called "client" and
// "server", the others have a number.
func Generate(s Shares) (World, error) {
	if err := s.check(); err != nil {
		return World{}, err
	}
	g := generator{World: World{Shares: s, Network: scenario.Network{Name: "evaluate"}}}
	g.routers()
	g.links()
	g.hosts()
	g.Network.Destinations = append(append(g.Network.Destinations, g.Clients...), g.Servers...)
	return g.World, nil
}

// generator builds a World up.
type generator struct {
	World
}

// random returns a stream for one kind of choice.
func (g *generator) random(purpose string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(purpose))
	return rand.New(rand.NewPCG(g.Shares.Seed, h.Sum64()))
}

// pick chooses a share of n. With a larger share come others, but none goes.
func (g *generator) pick(purpose string, n int, share float64) []bool {
	picked := make([]bool, n)
	for _, i := range g.random(purpose).Perm(n)[:int(math.Round(share*float64(n)))] {
		picked[i] = true
	}
	return picked
}

func (g *generator) router(n scenario.Node) {
	n.Kind = scenario.Router
	g.Network.Nodes = append(g.Network.Nodes, n)
	g.Count.Routers++
	if n.Silent {
		g.Count.Silent++
	}
	if n.ICMP.KernelDefaults {
		g.Count.Limited++
	}
}

// plain are routers of which shares are silent and limited.
func (g *generator) plain(purpose string, names []string) {
	silent := g.pick("silent "+purpose, len(names), g.Shares.Silent)
	limited := g.pick("limited "+purpose, len(names), g.Shares.Limited)
	for i, name := range names {
		n := scenario.Node{Name: name, Silent: silent[i]}
		n.ICMP.KernelDefaults = limited[i] && !silent[i]
		g.router(n)
	}
}

func base(i int) string { return fmt.Sprintf("r%d", i) }

func (g *generator) routers() {
	names := make([]string, g.Shares.Routers)
	for i := range names {
		names[i] = base(i)
	}
	g.plain("routers", names)
}

// edge is a link of the base graph.
type edge struct{ a, b int }

// edges are a random tree, in which each router hangs on one of those before it, and half as
// many links across.
func (g *generator) edges() (all []edge) {
	rng := g.random("graph")
	have := map[edge]bool{}
	add := func(e edge) bool {
		e = edge{min(e.a, e.b), max(e.a, e.b)}
		if e.a == e.b || have[e] {
			return false
		}
		have[e] = true
		all = append(all, e)
		return true
	}
	n := g.Shares.Routers
	for i := 1; i < n; i++ {
		add(edge{rng.IntN(i), i})
	}
	for across, tries := 0, 0; across < n/2 && tries < 8*n; tries++ {
		if add(edge{rng.IntN(n), rng.IntN(n)}) {
			across++
		}
	}
	return all
}

// links draws the base graph's links. Costs are such that two different ways hardly ever cost
// the same: equal ones come from balanced links.
func (g *generator) links() {
	s, edges := g.Shares, g.edges()
	balanced := g.pick("balanced", len(edges), s.Balanced)
	asymmetric := g.pick("asymmetric", len(edges), s.Asymmetric)
	lossy := g.pick("lossy", len(edges), s.Lossy)
	rng := g.random("costs")
	g.Count.Links = len(edges)
	var within []string
	for i, e := range edges {
		there, back := 10_000+rng.IntN(90_000), 10_000+rng.IntN(90_000)
		if !asymmetric[i] {
			back = there
		} else {
			g.Count.Asymmetric++
		}
		l := scenario.Link{A: base(e.a), B: base(e.b), CostAB: there, CostBA: back, Delay: delay(rng)}
		if lossy[i] {
			g.Count.Lossy++
			l.Loss = s.Loss
		}
		if !balanced[i] {
			g.Network.Links = append(g.Network.Links, l)
			continue
		}
		g.Count.Balanced++
		for w := range s.Width {
			name := fmt.Sprintf("b%dw%d", i, w)
			within = append(within, name)
			g.balance(l, name)
		}
	}
	g.plain("within", within)
}

// balance puts one of the routers into a link that stand between its ends.
func (g *generator) balance(l scenario.Link, name string) {
	first, second := l, l
	first.B, first.CostBA, first.Delay = name, 1, l.Delay/2
	second.A, second.CostAB, second.Delay, second.Loss = name, 1, l.Delay-l.Delay/2, 0
	g.Network.Links = append(g.Network.Links, first, second)
}

// delay is that of a link: mostly short, sometimes of another continent. It has odd
// nanoseconds, so that no two packets come at one instant.
func delay(rng *rand.Rand) time.Duration {
	return 100*time.Microsecond + time.Duration(min(rng.ExpFloat64(), 6)*float64(2500*time.Microsecond))
}

// hosts hang on routers of the base graph, each behind a router of its own.
func (g *generator) hosts() {
	s, rng := g.Shares, g.random("hosts")
	nats, walls := g.pick("nat", s.Clients, s.NATs), g.pick("firewall", s.Servers, s.Firewalls)
	for i := range s.Clients {
		host, home := numbered("client", i), fmt.Sprintf("home%d", i)
		n := scenario.Node{Name: home}
		at := base(rng.IntN(s.Routers))
		if nats[i] {
			n.NAT = &scenario.NAT{Outside: home + "-" + at, IPv6: true}
			g.Network.Destinations = append(g.Network.Destinations, home) // what comes back is sent there
			g.Count.NATs++
		}
		g.router(n)
		g.host(host, home, at, rng)
		g.Clients = append(g.Clients, host)
	}
	for i := range s.Servers {
		host, gate := numbered("server", i), fmt.Sprintf("gate%d", i)
		n := scenario.Node{Name: gate}
		if walls[i] {
			n.Firewall = &scenario.Firewall{AllowTCP: []uint16{Port}}
			g.Count.Firewalls++
		}
		g.router(n)
		g.host(host, gate, base(rng.IntN(s.Routers)), rng)
		g.Servers = append(g.Servers, host)
	}
}

func (g *generator) host(name, gate, at string, rng *rand.Rand) {
	g.Network.Nodes = append(g.Network.Nodes, scenario.Node{Name: name, Kind: scenario.Host})
	g.Network.Links = append(g.Network.Links,
		scenario.Link{A: name, B: gate, Delay: delay(rng) / 4}, scenario.Link{A: gate, B: at, Delay: delay(rng)})
}

func numbered(name string, i int) string {
	if i == 0 {
		return name
	}
	return fmt.Sprintf("%s%d", name, i)
}
