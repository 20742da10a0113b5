//go:build linux

package observe

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

// world is a chain of nodes client - r1 - r2 - … - server whose logs are written as
// packets pass. Each link takes a millisecond.
type world struct {
	logs  map[string]*Log
	clock time.Time
}

var (
	clientAddr = netip.MustParseAddr("10.0.0.1")
	serverAddr = netip.MustParseAddr("10.0.9.9")
	flow       = Flow{6, netip.AddrPortFrom(clientAddr, 40000), netip.AddrPortFrom(serverAddr, 443)}
)

func newWorld() *world {
	return &world{map[string]*Log{
		"client": {Local: []netip.Addr{clientAddr}}, "server": {Local: []netip.Addr{serverAddr}},
	}, time.Unix(1000, 0)}
}

func (w *world) log(node string) *Log {
	if w.logs[node] == nil {
		w.logs[node] = &Log{Local: []netip.Addr{routerAddr(node)}}
	}
	return w.logs[node]
}

func routerAddr(node string) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 0, 1, node[len(node)-1] - '0'})
}

func (w *world) see(node, iface string, outgoing bool, p Packet) {
	p.Time, p.Interface, p.Outgoing = w.clock, iface, outgoing
	l := w.log(node)
	l.Packets = append(l.Packets, p)
}

// send lets a packet travel by the routers; where its TTL ends, the router answers
// unless it is silent. nat rewrites it when it leaves r1.
func (w *world) send(p Packet, routers []string, silent string, nat func(Packet) Packet) {
	start := w.clock
	defer func() { w.clock = start.Add(10 * time.Millisecond) }()
	w.see("client", "eth0", true, p)
	for _, r := range routers {
		w.clock = w.clock.Add(time.Millisecond)
		w.see(r, "eth0", false, p)
		if p.TTL == 1 {
			if r != silent {
				l := w.log(r)
				l.Errors = append(l.Errors, Error{
					Time: w.clock, Interface: "eth0", Addr: routerAddr(r), To: p.Src.Addr(), Type: 11,
					Quoted: p.Flow, ID: p.ID, Seq: p.Seq, Ack: p.Ack, TSval: p.TSval, Payload: p.Payload,
				})
			}
			return
		}
		p.TTL--
		if nat != nil && r == "r1" {
			p = nat(p)
		}
		w.see(r, "eth1", true, p)
	}
	w.clock = w.clock.Add(time.Millisecond)
	w.see("server", "eth0", false, p)
}

func (w *world) truth(nat bool) *Truth {
	logs := map[string]Log{}
	for name, l := range w.logs {
		logs[name] = *l
	}
	return NewTruth(logs, nat)
}

func probe(ttl uint8, seq uint32) Packet {
	return Packet{Flow: flow, TTL: ttl, Seq: seq, ID: uint16(seq), Ack: 7, TSval: 100, Flags: 0x10}
}

func asProbe(p Packet) Probe { return Probe{p.Flow, p.Seq, p.ID, p.TTL} }

var chain = []string{"r1", "r2", "r3"}

func TestAnswered(t *testing.T) {
	w := newWorld()
	for ttl := uint8(1); ttl <= 5; ttl++ {
		w.send(probe(ttl, 1000-uint32(ttl)), chain, "r2", nil)
	}
	truth := w.truth(false)
	for ttl, want := range map[uint8]string{1: "r1", 2: "", 3: "r3", 4: "", 5: ""} {
		addr, node, ok := truth.Answered(asProbe(probe(ttl, 1000-uint32(ttl))))
		if node != want || ok != (want != "") || ok && addr != routerAddr(want) {
			t.Errorf("TTL %d: %v %q %v, want %q", ttl, addr, node, ok, want)
		}
	}
	if n := len(truth.Trail(asProbe(probe(3, 997)))); n != 6 {
		t.Errorf("TTL 3 was seen %d times, want 6", n)
	}
	// What was not sent like that was not answered either.
	for name, p := range map[string]Probe{
		"TTL":  asProbe(probe(2, 999)),
		"seq":  asProbe(probe(1, 998)),
		"ID":   {flow, 999, 1, 1},
		"flow": {flow.Reverse(), 999, 999, 1},
	} {
		if v := truth.Judge(p); v.Sent || len(v.Answers) > 0 {
			t.Errorf("another %s: %+v", name, v)
		}
	}
	want := map[uint8][]Hop{1: {{routerAddr("r1"), "r1"}}, 2: nil, 3: {{routerAddr("r3"), "r3"}}, 4: nil, 5: nil}
	if got := truth.Hops(flow, 32); !reflect.DeepEqual(got, want) {
		t.Errorf("hops %v, want %v", got, want)
	}
}

func TestHopsAreSets(t *testing.T) {
	w := newWorld()
	for i := range uint32(6) {
		w.send(probe(2, 500-i), []string{"r1", fmt.Sprintf("r%d", 2+i%2)}, "", nil)
	}
	want := map[uint8][]Hop{2: {{routerAddr("r2"), "r2"}, {routerAddr("r3"), "r3"}}}
	if got := w.truth(false).Hops(flow, 32); !reflect.DeepEqual(got, want) {
		t.Errorf("hops %v, want %v", got, want)
	}
}

func TestAmbiguous(t *testing.T) {
	w := newWorld()
	w.send(probe(2, 500), chain, "", nil)
	w.send(probe(3, 500), chain, "", nil)
	for ttl := uint8(2); ttl <= 3; ttl++ {
		v := w.truth(false).Judge(asProbe(probe(ttl, 500)))
		// The answer to TTL 2 came before TTL 3 was sent; that to TTL 3 may be one to
		// either.
		if !v.Sent || !v.Ambiguous || len(v.Answers) > 0 {
			t.Errorf("TTL %d: %+v", ttl, v)
		}
	}

	// Long after, the same sequence number is free again.
	w = newWorld()
	w.send(probe(2, 500), chain, "", nil)
	w.clock = w.clock.Add(window)
	w.send(probe(3, 500), chain, "", nil)
	for ttl, want := range map[uint8]string{2: "r2", 3: "r3"} {
		if _, node, _ := w.truth(false).Answered(asProbe(probe(ttl, 500))); node != want {
			t.Errorf("TTL %d answered by %q, want %q", ttl, node, want)
		}
	}

	// A data segment of the flow with the same number is no riddle: the quote tells.
	w = newWorld()
	data := probe(64, 500)
	data.Payload = 300
	w.send(data, chain, "", nil)
	w.send(probe(2, 500), chain, "", nil)
	if v := w.truth(false).Judge(asProbe(probe(2, 500))); v.Ambiguous || len(v.Answers) != 1 {
		t.Errorf("beside data: %+v", v)
	}
	// Unless it is too short.
	l := w.log("r2")
	l.Errors[0] = Error{Time: l.Errors[0].Time, Addr: l.Errors[0].Addr, Quoted: flow, Seq: 500, ID: 500, Type: 11, Short: true}
	if v := w.truth(false).Judge(asProbe(probe(2, 500))); !v.Ambiguous {
		t.Errorf("beside data, with a short quote: %+v", v)
	}
}

func TestLateErrorsAreNotAnswers(t *testing.T) {
	w := newWorld()
	w.send(probe(2, 500), chain, "", nil)
	e := &w.log("r2").Errors[0]
	e.Time = e.Time.Add(window)
	if v := w.truth(false).Judge(asProbe(probe(2, 500))); !v.Sent || len(v.Answers) > 0 {
		t.Errorf("%+v", v)
	}
	e.Time = e.Time.Add(-2 * window)
	if v := w.truth(false).Judge(asProbe(probe(2, 500))); !v.Sent || len(v.Answers) > 0 {
		t.Errorf("an answer before the probe: %+v", v)
	}
}

func TestPath(t *testing.T) {
	w := newWorld()
	start := w.clock
	seq := uint32(1)
	data := func(ways ...string) {
		p := probe(64, seq)
		p.Payload = 100
		seq += 100
		w.send(p, ways, "", nil)
	}
	for range 5 {
		data("r1", "r2", "r3")
		w.send(probe(2, seq-101), []string{"r1", "r4"}, "", nil) // a probe is not the flow
	}
	changed := w.clock
	for range 7 {
		data("r1", "r4", "r3")
	}
	// One more is lost behind r1.
	p := probe(64, seq)
	p.Payload = 100
	w.see("client", "eth0", true, p)
	w.clock = w.clock.Add(time.Millisecond)
	w.see("r1", "eth0", false, p)

	want := []Interval{
		{start, start.Add(80 * time.Millisecond), 5, []string{"r1", "r2", "r3"}},
		{changed, changed.Add(60 * time.Millisecond), 7, []string{"r1", "r4", "r3"}},
	}
	if got := w.truth(false).Path(flow, 32); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if got := w.truth(false).Path(flow.Reverse(), 32); got != nil {
		t.Errorf("the other way: %v", got)
	}
}

// A large segment leaves the host whole and is cut on the way.
func TestPathOfCutSegments(t *testing.T) {
	w := newWorld()
	p := probe(64, 1)
	p.Payload = 40_000
	w.see("client", "eth0", true, p)
	p.Payload = 1448
	for _, r := range chain {
		w.clock = w.clock.Add(time.Millisecond)
		w.see(r, "eth0", false, p)
		p.TTL--
		w.see(r, "eth1", true, p)
	}
	w.clock = w.clock.Add(time.Millisecond)
	w.see("server", "eth0", false, p)
	if got := w.truth(false).Path(flow, 32); len(got) != 1 || !reflect.DeepEqual(got[0].Nodes, chain) {
		t.Errorf("got %v", got)
	}
}

func TestNAT(t *testing.T) {
	outside := netip.MustParseAddrPort("192.0.2.1:1025")
	nat := func(p Packet) Packet { p.Src = outside; return p }
	w := newWorld()
	for ttl := uint8(1); ttl <= 3; ttl++ {
		w.send(probe(ttl, 900-uint32(ttl)), chain, "", nat)
	}
	data := probe(64, 5000)
	data.Payload = 100
	w.send(data, chain, "", nat)

	truth := w.truth(true)
	for ttl, want := range map[uint8]string{1: "r1", 2: "r2", 3: "r3"} {
		if _, node, _ := truth.Answered(asProbe(probe(ttl, 900-uint32(ttl)))); node != want {
			t.Errorf("TTL %d answered by %q, want %q", ttl, node, want)
		}
	}
	if got := truth.Path(flow, 32); len(got) != 1 || !reflect.DeepEqual(got[0].Nodes, chain) {
		t.Errorf("path %v", got)
	}
	// Without being told, nothing is joined behind the NAT.
	truth = w.truth(false)
	for ttl, want := range map[uint8]string{1: "r1", 2: "", 3: ""} {
		if _, node, _ := truth.Answered(asProbe(probe(ttl, 900-uint32(ttl)))); node != want {
			t.Errorf("not told: TTL %d answered by %q, want %q", ttl, node, want)
		}
	}
	if got := truth.Path(flow, 32); got != nil {
		t.Errorf("not told: path %v", got)
	}
}

func TestDropped(t *testing.T) {
	w := newWorld()
	w.log("r1").Dropped = Dropped{1, 2, 3, 4}
	w.log("r2").Dropped = Dropped{10, 20, 30, 40}
	if got, want := w.truth(false).Dropped(), (Dropped{11, 22, 33, 44}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}
