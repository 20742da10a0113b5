//go:build linux

package servicetraceroute_test

import (
	"encoding/binary"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
	"servicetraceroute/trace"
)

// orderly is a sink that notes which flow's probe of which TTL went when.
type orderly struct {
	servicetraceroute.Sink
	sent map[int]map[uint16][]time.Time // by TTL and source port
}

// Send implements Sink.
func (o *orderly) Send(packet []byte, ifindex int, nextHop servicetraceroute.HardwareAddr) error {
	ttl, port := int(packet[8]), packet[20:]
	if packet[0]>>4 == 6 {
		ttl, port = int(packet[7]), packet[40:]
	}
	if o.sent[ttl] == nil {
		o.sent[ttl] = map[uint16][]time.Time{}
	}
	from := binary.BigEndian.Uint16(port)
	o.sent[ttl][from] = append(o.sent[ttl][from], time.Now())
	return o.Sink.Send(packet, ifindex, nextHop)
}

// check reports a flow's second probe of a TTL that went while another flow's
// first, due by then, had to wait.
func (o *orderly) check(t *testing.T, due time.Time, routers int) {
	t.Helper()
	for ttl, flows := range o.sent {
		if ttl > routers {
			continue
		}
		var lastFirst, firstSecond time.Time
		for _, at := range flows {
			if at[0].After(lastFirst) {
				lastFirst = at[0]
			}
			if len(at) > 1 && at[1].After(due) && (firstSecond.IsZero() || at[1].Before(firstSecond)) {
				firstSecond = at[1]
			}
		}
		if !firstSecond.IsZero() && firstSecond.Before(lastFirst) {
			t.Errorf("TTL %d: a second probe went %v before another flow's first", ttl, lastFirst.Sub(firstSecond))
		}
	}
}

// TestSimCrowd opens 200 flows at once through routers with Linux's limits. The
// limits cost few probes, what was not sent is deferred, nothing is called loss,
// and each flow's first probe of a TTL goes before any flow's second.
func TestSimCrowd(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		for _, stages := range []int{0, 3} {
			t.Run(fmt.Sprintf("ipv6=%v,stages=%d", ipv6, stages), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { crowd(t, ipv6, stages) })
			})
		}
	}
}

func crowd(t *testing.T, ipv6 bool, stages int) {
	net, err := simnet.New(wires(ladder(stages, scenario.ICMPLimit{KernelDefaults: true}), time.Millisecond), simnet.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(net.Close)
	source, sink, err := net.Tap("client")
	if err != nil {
		t.Fatal(err)
	}
	order := &orderly{sink, map[int]map[uint16][]time.Time{}}
	tracer, err := servicetraceroute.New(servicetraceroute.Config{Source: source, Sink: order})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tracer.Close() })
	s := &sim{t: t, net: net, tracer: tracer}
	stop := s.watch(servicetraceroute.Selection{})
	var flows []*simnet.Flow
	for range 200 {
		w := chatty(ipv6)
		w.Duration = 40 * time.Second
		flows = append(flows, s.start(w))
	}
	time.Sleep(time.Second)
	due := time.Now() // by now all handshakes are over, and all first probes due
	for _, f := range flows {
		<-f.Done()
	}
	all := stop()
	routers := 1 + 2*stages
	var sent, deferred, replies int
	byStop := map[trace.Stop]int{}
	for _, tr := range all.traces {
		s.judge(tr)
		byStop[tr.Stop]++
		for _, h := range tr.Hops {
			if h.TTL > routers {
				continue
			}
			sent += h.Sent
			deferred += h.Deferred
			replies += len(h.Replies)
			if h.Sent > 0 && len(h.Replies) == 0 && h.Deferred == 0 && !h.Limited {
				t.Errorf("TTL %d looks like loss: %v", h.TTL, describe(tr))
			}
		}
	}
	order.check(t, due, routers)
	withheld := net.Withheld()
	t.Logf("%d traces %v; %d probes, %d withheld (%.1f %%), %d replies, %d deferred", len(all.traces), byStop, sent, withheld,
		float64(withheld)*100/float64(sent), replies, deferred)
	if len(all.traces) != len(flows) {
		t.Errorf("%d traces", len(all.traces))
	}
	if withheld*20 > sent {
		t.Errorf("the limits cost %d of %d probes", withheld, sent)
	}
}
