package evaluate

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"servicetraceroute/internal/scenario"
)

func shares() Shares {
	return Shares{Seed: 3, Routers: 40, Clients: 3, Servers: 8, Balanced: 0.25, Width: 3, Asymmetric: 0.5, Silent: 0.1, Limited: 0.2, Firewalls: 0.5, NATs: 0.34, Lossy: 0.1, Loss: 0.01}
}

// The shares are exact, and what is drawn is what the counts say.
func TestGenerate(t *testing.T) {
	w, err := Generate(shares())
	if err != nil {
		t.Fatal(err)
	}
	// A tree of 40 and 20 links across.
	within := 15 * 3
	want := Count{Routers: 40 + within + 3 + 8, Links: 59, Balanced: 15, Asymmetric: 30, Lossy: 6, Silent: 4 + 5, Firewalls: 4, NATs: 1}
	got := w.Count
	if got.Limited < 10 || got.Limited > 8+9 { // of those that are not silent
		t.Errorf("%d limited", got.Limited)
	}
	if got.Limited = 0; got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	var asymmetric, lossy int // of the links that are not balanced, and of one way through each that is
	for _, l := range w.Network.Links {
		there, back := l.CostAB, l.CostBA
		if strings.HasSuffix(l.B, "w0") { // the costs of the two ways stand at its two ends
			back = w.Network.Links[slices.IndexFunc(w.Network.Links, func(k scenario.Link) bool { return k.A == l.B })].CostBA
		} else if strings.HasPrefix(l.A, "b") || strings.HasPrefix(l.B, "b") {
			continue
		}
		if there != back {
			asymmetric++
		}
		if l.Loss > 0 {
			lossy++
		}
	}
	if asymmetric != want.Asymmetric || lossy != want.Lossy {
		t.Errorf("%d links asymmetric, %d lossy, want %+v", asymmetric, lossy, want)
	}
	var count Count
	for _, n := range w.Network.Nodes {
		if n.Kind == scenario.Router {
			count.Routers++
		}
		if n.Silent {
			count.Silent++
		}
		if n.Firewall != nil {
			count.Firewalls++
		}
		if n.NAT != nil {
			count.NATs++
		}
	}
	if count.Routers != want.Routers || count.Silent != want.Silent || count.Firewalls != want.Firewalls || count.NATs != want.NATs {
		t.Errorf("drawn: %+v, want %+v", count, want)
	}
	layout, err := w.Network.Layout()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range w.Clients {
		for _, s := range w.Servers {
			if _, err := Differ(layout, c, s, true); err != nil {
				t.Error(err)
			}
		}
	}
}

// The same seed draws the same Internet, another seed another one.
func TestGenerateSeed(t *testing.T) {
	a, _ := Generate(shares())
	b, _ := Generate(shares())
	if !reflect.DeepEqual(a, b) {
		t.Error("the same seed drew two")
	}
	s := shares()
	s.Seed++
	if b, _ = Generate(s); reflect.DeepEqual(a.Network, b.Network) {
		t.Error("the seed does nothing")
	}
}

// With more balanced links the graph stays, and what was balanced remains so.
func TestGenerateMore(t *testing.T) {
	few := shares()
	many := few
	many.Balanced = 0.5
	a, _ := Generate(few)
	b, _ := Generate(many)
	if b.Count.Balanced != 30 { // of 59
		t.Errorf("%d balanced", b.Count.Balanced)
	}
	names := func(w World) (all []string) {
		for _, n := range w.Network.Nodes {
			all = append(all, fmt.Sprint(n.Name, n.Silent && !strings.HasPrefix(n.Name, "b"), n.NAT != nil, n.Firewall != nil))
		}
		return all
	}
	more := names(b)
	for _, n := range names(a) {
		if !slices.Contains(more, n) {
			t.Errorf("%s is gone", n)
		}
	}
}

func TestGenerateBad(t *testing.T) {
	for want, change := range map[string]func(*Shares){
		"routers":  func(s *Shares) { s.Routers = 1 },
		"servers":  func(s *Shares) { s.Servers = 0 },
		"width":    func(s *Shares) { s.Width = 1 },
		"silent":   func(s *Shares) { s.Silent = 1.1 },
		"balanced": func(s *Shares) { s.Balanced = -0.1 },
	} {
		s := shares()
		change(&s)
		if _, err := Generate(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
