package evaluate

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"servicetraceroute/internal/scenario"
)

// chain is a client, so many balanced links of these widths in a row, and a server.
func chain(widths ...int) scenario.Network {
	n := scenario.Network{Nodes: []scenario.Node{{Name: "client", Kind: scenario.Host}, {Name: "r0", Kind: scenario.Router}}, Links: []scenario.Link{{A: "client", B: "r0"}}}
	for i, width := range widths {
		to := fmt.Sprintf("r%d", i+1)
		n.Nodes = append(n.Nodes, scenario.Node{Name: to, Kind: scenario.Router})
		for w := range width {
			m := fmt.Sprintf("m%d.%d", i, w)
			n.Nodes = append(n.Nodes, scenario.Node{Name: m, Kind: scenario.Router})
			n.Links = append(n.Links, scenario.Link{A: fmt.Sprintf("r%d", i), B: m}, scenario.Link{A: m, B: to})
		}
	}
	n.Nodes = append(n.Nodes, scenario.Node{Name: "server", Kind: scenario.Host})
	n.Links = append(n.Links, scenario.Link{A: fmt.Sprintf("r%d", len(widths)), B: "server"})
	return n
}

func silence(n scenario.Network, names ...string) scenario.Network {
	for i := range n.Nodes {
		for _, name := range names {
			n.Nodes[i].Silent = n.Nodes[i].Silent || strings.HasPrefix(n.Nodes[i].Name, name)
		}
	}
	return n
}

// Two flows pick the same way at each of the balancers with probability 1/width.
func TestDiffer(t *testing.T) {
	third := 2.0 / 3
	for _, c := range []struct {
		name            string
		net             scenario.Network
		other, shown    float64
		hops, balancers float64
	}{
		{"no balancer", chain(1, 1), 0, 0, 5, 0},
		{"one", chain(4), 0.75, 0.75, 3, 1},
		{"two", chain(2, 5), 1 - 0.5*0.2, 1 - 0.5*0.2, 5, 2},
		{"three", chain(2, 3, 4), 1 - 1.0/24, 1 - 1.0/24, 7, 3},
		// The next router answers from the link by which a probe came.
		{"silent within", silence(chain(3), "m"), third, third, 3, 1},
		{"silent behind", silence(chain(3), "r1"), third, third, 3, 1},
		{"all silent", silence(chain(3), "m", "r1"), third, 0, 3, 1},
		// Seen only when at least one of the two is m0.0 and ... no: both must answer.
		{"one within and behind", silence(chain(3), "m0.0", "r1"), third, 2.0 / 9, 3, 1},
		{"the first of two is silent", silence(chain(3, 2), "m0", "r1"), 1 - 1.0/6, 0.5, 5, 2},
	} {
		l, err := c.net.Layout()
		if err != nil {
			t.Fatal(err)
		}
		for _, ipv6 := range []bool{false, true} {
			got, err := Differ(l, "client", "server", ipv6)
			if err != nil {
				t.Fatal(err)
			}
			for what, v := range map[string][2]float64{"other": {got.Other, c.other}, "shown": {got.Shown, c.shown}, "hops": {got.Hops, c.hops}, "balancers": {got.Balancers, c.balancers}} {
				if math.Abs(v[0]-v[1]) > 1e-12 {
					t.Errorf("%s: %s is %v, want %v", c.name, what, v[0], v[1])
				}
			}
		}
	}
}

// Ways of unequal length: what lies behind the shorter one's end is not compared.
func TestDifferUnequal(t *testing.T) {
	n := chain(2)
	n.Nodes = append(n.Nodes, scenario.Node{Name: "x", Kind: scenario.Router})
	for i := range n.Links {
		if l := &n.Links[i]; l.A == "m0.0" {
			l.CostAB = 2
		} else if l.A == "m0.1" {
			l.B = "x"
		}
	}
	n.Links = append(n.Links, scenario.Link{A: "x", B: "r1"})
	l, err := silence(n, "m", "x", "r1").Layout()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Differ(l, "client", "server", false)
	if err != nil || got.Other != 0.5 || got.Shown != 0 || got.Hops != 3.5 {
		t.Errorf("%+v, %v", got, err)
	}
}

// Against flows that pick at random, in an Internet that was drawn.
func TestDifferDrawn(t *testing.T) {
	s := shares()
	s.Balanced = 0.4
	w, err := Generate(s)
	if err != nil {
		t.Fatal(err)
	}
	l, err := w.Network.Layout()
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for _, server := range w.Servers {
		odds, err := Differ(l, "client", server, false)
		if err != nil {
			t.Fatal(err)
		}
		k := walker{layout: l, to: server, addr: l.Nodes[server].Addr(false), ways: map[string][]place{}}
		const tries = 4000
		shown := 0
		for range tries {
			a, b := k.draw(t, rng), k.draw(t, rng)
			for i := range min(len(a), len(b)) {
				if a[i].answer.IsValid() && b[i].answer.IsValid() && a[i].answer != b[i].answer {
					shown++
					break
				}
			}
		}
		got := float64(shown) / tries
		if sigma := math.Sqrt(odds.Shown * (1 - odds.Shown) / tries); math.Abs(got-odds.Shown) > 4*sigma+1e-9 {
			t.Errorf("%s: %v, drawn %v", server, odds.Shown, got)
		}
	}
}

// draw is one flow's way.
func (w *walker) draw(t *testing.T, rng *rand.Rand) (way []place) {
	at := "client"
	for at != w.to {
		ways, err := w.from(at)
		if err != nil {
			t.Fatal(err)
		}
		p := ways[rng.IntN(len(ways))]
		way, at = append(way, p), p.node
	}
	return way
}

func TestDifferNoRoute(t *testing.T) {
	n := chain(2)
	n.Links = n.Links[:len(n.Links)-1]
	l, err := n.Layout()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Differ(l, "client", "server", false); err == nil {
		t.Error("no error without a route")
	}
	if _, err := Differ(l, "client", "nobody", false); err == nil {
		t.Error("no error without a node")
	}
}
