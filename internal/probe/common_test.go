package probe

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/trace"
)

var commonStart = time.Unix(1_800_000_000, 0)

// commons is a Common with a time and a number of flows that go on.
type commons struct {
	*Common
	now  time.Time
	port uint16
}

func newCommons() *commons { return &commons{NewCommon(), commonStart, 40000} }

func wayTo(dst string) Way {
	return Way{Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr(dst), Interface: 2, NextHop: capture.HardwareAddr{Len: 6}}
}

// sights are routers of these last octets, as a trace saw them.
func sights(id string, octets ...byte) (path []Sight) {
	for _, o := range octets {
		path = append(path, Sight{Addr: netip.AddrFrom4([4]byte{198, 51, 100, o}), RTT: time.Millisecond, ReplyTTL: 60, Trace: id})
	}
	return path
}

// witness lets another flow bear witness.
func (c *commons) witness(w Way, octets ...byte) {
	c.port++
	c.same(w, octets...)
}

// same lets the flow before bear witness.
func (c *commons) same(w Way, octets ...byte) {
	key := trace.FlowKey{Proto: trace.TCP, Src: netip.AddrPortFrom(w.Src, c.port), Dst: netip.AddrPortFrom(w.Dst, 443)}
	c.Learn(c.now, c.now, w, key, sights(fmt.Sprint(c.port), octets...))
}

// upTo is the highest TTL that is shared.
func (c *commons) upTo(w Way) (ttl int) {
	for {
		if _, _, ok := c.Shared(c.now, w, ttl+1); !ok {
			return ttl
		}
		ttl++
	}
}

func (c *commons) want(t *testing.T, when string, w Way, ttl int) {
	t.Helper()
	if got := c.upTo(w); got != ttl {
		t.Errorf("%s: shared up to TTL %d, want %d", when, got, ttl)
	}
}

// Ten different flows to one destination agree, or none is left out.
func TestCommonFlows(t *testing.T) {
	c, w := newCommons(), wayTo("203.0.113.7")
	for range agreeing - 1 {
		c.witness(w, 1, 2, 3)
	}
	for range 20 {
		c.same(w, 1, 2, 3)
	}
	c.want(t, "nine flows", w, 0)
	c.witness(w, 1, 2)
	c.want(t, "the tenth saw two hops", w, 2)
	c.witness(w, 1, 2, 3, 4)
	c.want(t, "the eleventh saw more", w, 3)
	if s, _, _ := c.Shared(c.now, w, 2); s.Trace != fmt.Sprint(c.port) {
		t.Errorf("shown from %s, the newest is %d", s.Trace, c.port)
	}
	for name, other := range map[string]func(*Way){
		"destination": func(w *Way) { w.Dst = netip.MustParseAddr("203.0.113.8") },
		"source":      func(w *Way) { w.Src = netip.MustParseAddr("192.0.2.2") },
		"interface":   func(w *Way) { w.Interface = 3 },
		"next hop":    func(w *Way) { w.NextHop.Addr[0] = 1 },
	} {
		o := w
		other(&o)
		c.want(t, "another "+name, o, 0)
	}
	c.now = c.now.Add(witnessFor - time.Second)
	c.want(t, "within a minute", w, 3)
	c.now = c.now.Add(time.Second)
	c.want(t, "a minute later", w, 0)
}

// Where flows to ten destinations agree, one witness to a destination will do; but none does
// without it, and it has to have seen the same.
func TestCommonDestinations(t *testing.T) {
	c := newCommons()
	for i := range agreeing {
		c.witness(wayTo(fmt.Sprintf("203.0.113.%d", i)), 1, 2, 3)
	}
	w := wayTo("203.0.113.5")
	c.want(t, "ten destinations", w, 3)
	other := wayTo("203.0.113.50")
	c.want(t, "an unknown destination", other, 0)
	c.witness(other, 1, 2, 9)
	c.want(t, "its way parts", other, 2)
	c.want(t, "others, since ways part", w, 2)
	// Those to anywhere may have been forgotten, and begun anew.
	c = newCommons()
	c.witness(other, 1, 9, 3)
	delete(c.groups, other.anywhere())
	for i := range agreeing {
		c.witness(wayTo(fmt.Sprintf("203.0.113.%d", i)), 1, 2, 3)
	}
	c.want(t, "its way parts from what others agree upon later", other, 1)
	// Many flows to one destination are no more than one to it.
	c = newCommons()
	for range 3 * agreeing {
		c.witness(w, 1, 2, 3)
	}
	c.witness(other, 1, 2, 3)
	c.want(t, "ten flows to one", w, 3)
	c.want(t, "one to another", other, 0)
}

// What somebody saw otherwise is not shared any more, nor what lies behind it, for long; and
// not by the other group either.
func TestCommonDispute(t *testing.T) {
	w := wayTo("203.0.113.7")
	for name, seen := range map[string]netip.Addr{"another router": netip.MustParseAddr("198.51.100.9"), "silence": {}} {
		c := newCommons()
		for range agreeing {
			c.witness(w, 1, 2, 3)
		}
		if !c.Differs(c.now, w, 2, seen) || c.Disputes() == 0 {
			t.Errorf("%s: no difference", name)
		}
		c.want(t, name, w, 1)
		for range 2 * agreeing {
			c.witness(w, 1, 2, 3)
		}
		c.want(t, name+", others go on", w, 1)
		c.now = c.now.Add(disputeFor)
		for range agreeing {
			c.witness(w, 1, 2, 3)
		}
		c.want(t, name+", ten minutes later", w, 3)
		if c.Differs(c.now, w, 3, netip.MustParseAddr("198.51.100.3")) || c.Differs(c.now, w, 4, seen) {
			t.Errorf("%s: a difference where there is none", name)
		}
	}
	// Of what nobody bears witness to any more there is no dispute.
	c := newCommons()
	c.witness(w, 1, 2, 3)
	c.now = c.now.Add(witnessFor)
	for range agreeing {
		c.witness(w, 1, 8, 3)
	}
	if c.Disputes() != 0 {
		t.Errorf("%d disputes", c.Disputes())
	}
	c.want(t, "a new way", w, 3)
}

// Somebody looks each few seconds, however many flows there are.
func TestCommonLooks(t *testing.T) {
	c, w := newCommons(), wayTo("203.0.113.7")
	due := func() bool { _, due, ok := c.Shared(c.now, w, 1); return due && ok }
	for range agreeing {
		c.witness(w, 1)
	}
	looks := 0
	for range 300 {
		if due() {
			looks++
			c.Looks(c.now, w)
		}
		c.now = c.now.Add(100 * time.Millisecond)
	}
	if looks != 9 {
		t.Errorf("%d looks in 30 s", looks)
	}
	// Where others agree, less often to each destination.
	c = newCommons()
	for i := range agreeing {
		c.witness(wayTo(fmt.Sprintf("203.0.113.%d", i)), 1)
	}
	for range 6 {
		c.now = c.now.Add(lookEvery)
		if !due() {
			t.Errorf("nobody looks after %v", c.now.Sub(commonStart))
		}
		c.Looks(c.now, wayTo("203.0.113.1"))
		if due() {
			t.Errorf("two look after %v", c.now.Sub(commonStart))
		}
	}
	c.now = c.now.Add(lookEvery - time.Millisecond) // 21 s after the look at this one
	if !due() {
		t.Error("nobody looks at the destination itself")
	}
}

// The groups are bounded, and what is in use stays.
func TestCommonBounded(t *testing.T) {
	c, w := newCommons(), wayTo("203.0.113.7")
	for i := range 4 * maxGroups {
		if i%16 == 0 {
			for range agreeing {
				c.witness(w, 1)
			}
		}
		c.now = c.now.Add(time.Millisecond)
		c.witness(wayTo(fmt.Sprintf("10.0.%d.%d", i/256, i%256)), 1)
	}
	if c.Len() > maxGroups {
		t.Errorf("%d groups", c.Len())
	}
	c.want(t, "in use", w, 1)
}

// What happens for each reply and each probe takes no memory.
func TestCommonAllocates(t *testing.T) {
	c, w := newCommons(), wayTo("203.0.113.7")
	key := trace.FlowKey{Proto: trace.TCP, Src: netip.AddrPortFrom(w.Src, 1), Dst: netip.AddrPortFrom(w.Dst, 443)}
	path := sights("x", 1, 2, 3, 4, 5, 6)
	for range agreeing {
		c.witness(w, 1, 2, 3, 4, 5, 6)
	}
	if n := testing.AllocsPerRun(100, func() {
		c.Learn(c.now, c.now, w, key, path)
		c.Differs(c.now, w, 6, path[5].Addr)
		c.Shared(c.now, w, 6)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
