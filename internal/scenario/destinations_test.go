package scenario

import (
	"net/netip"
	"strings"
	"testing"
)

// Routes lead to the destinations alone where a network names some.
func TestDestinations(t *testing.T) {
	n := Network{
		Nodes: []Node{{Name: "a", Kind: Host}, {Name: "r", Kind: Router}, {Name: "s", Kind: Router}, {Name: "b", Kind: Host, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}},
		Links: []Link{{A: "a", B: "r"}, {A: "r", B: "s"}, {A: "s", B: "b"}},
	}
	routes := func() (all []string) {
		l, err := n.Layout()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range l.Nodes["a"].Routes {
			if r.Prefix.Addr().Is4() {
				all = append(all, r.Prefix.String())
			}
		}
		return all
	}
	if got := strings.Join(routes(), " "); got != "10.200.0.4/30 10.200.0.8/30 192.0.2.1/32" {
		t.Errorf("to all: %s", got)
	}
	n.Destinations = []string{"b"}
	if got := strings.Join(routes(), " "); got != "10.200.0.8/30 192.0.2.1/32" {
		t.Errorf("to b: %s", got)
	}
	n.Destinations = []string{"nobody"}
	if _, err := n.Layout(); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("%v", err)
	}
}
