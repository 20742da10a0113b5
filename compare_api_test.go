//go:build linux

package servicetraceroute

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/trace"
)

// What cannot be compared is refused, and counted.
func TestNoCompare(t *testing.T) {
	key := trace.FlowKey{Proto: trace.TCP, Src: netip.MustParseAddrPort("192.0.2.1:61007"), Dst: netip.MustParseAddrPort("203.0.113.7:443")}
	c := &Comparer{t: &Tracer{}}
	for name, tr := range map[string]*trace.Trace{
		"refused":   {Flow: trace.Tuple{FlowKey: key, Direction: trace.Out}, Stop: trace.StopRefused},
		"forwarded": {Flow: trace.Tuple{FlowKey: key, Direction: trace.Transit}, Stop: trace.StopDestination},
		"moved":     {Flow: trace.Tuple{FlowKey: key, Direction: trace.Out}, Stop: trace.StopDestination, Mixed: true},
		"no flow":   {Stop: trace.StopCancelled},
	} {
		if _, err := c.session(tr); !errors.Is(err, ErrNoCompare) {
			t.Errorf("%s: %v", name, err)
		}
	}
	cfg, err := c.session(&trace.Trace{Flow: trace.Tuple{FlowKey: key, Direction: trace.In}, Reached: true, Destination: &trace.Destination{TTL: 9}})
	if err != nil || cfg.Distance != 9 || cfg.NotPort != 61007 || cfg.Port != 443 || cfg.Src != key.Src.Addr() || cfg.Dst != key.Dst.Addr() {
		t.Errorf("%+v, %v", cfg, err)
	}
	cfg, err = c.session(&trace.Trace{Flow: trace.Tuple{FlowKey: key, Direction: trace.Out}, Stop: trace.StopMaxTTL, Hops: []trace.Hop{{TTL: 2}, {TTL: 3}}})
	if err != nil || cfg.FirstTTL != 2 || cfg.MaxTTL != 3 {
		t.Errorf("siblings of a trace from TTL 2 to 3 go from %d to %d: %v", cfg.FirstTTL, cfg.MaxTTL, err)
	}
	if _, err := c.Compare(context.Background(), &trace.Trace{}); err == nil {
		t.Error("compared without sockets")
	}
}

// The Tracer's question knows a bounded number of siblings, the newest.
func TestOwnFlows(t *testing.T) {
	var o ownFlows
	dst, other := netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("203.0.113.8")
	for i := range 2 * maxOwnFlows {
		o.add(ownFlow{uint16(firstSiblingPort + i%maxOwnFlows), []netip.Addr{dst, other}[i/maxOwnFlows]})
	}
	if len(o.known) != maxOwnFlows || len(o.order) != maxOwnFlows {
		t.Errorf("%d known", len(o.known))
	}
	if o.has(firstSiblingPort, dst) || !o.has(firstSiblingPort, other) || o.has(firstSiblingPort-1, other) {
		t.Error("not the newest")
	}
}

// Siblings and traces stay below one rate together.
func TestComparerSharesTheBudget(t *testing.T) {
	ns := nstest.New(t)
	var tracer *Tracer
	ns.Must(t, func() (err error) { tracer, err = New(Config{Rate: 10}); return err })
	defer func() {
		if err := tracer.Close(); err != nil {
			t.Error(err)
		}
	}()
	var c *Comparer
	ns.Must(t, func() (err error) { c, err = NewComparer(tracer, CompareConfig{}); return err })
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	if tracer.cfg.Budget == nil || c.cfg.Budget != tracer.cfg.Budget {
		t.Errorf("budgets %p and %p", c.cfg.Budget, tracer.cfg.Budget)
	}
}
