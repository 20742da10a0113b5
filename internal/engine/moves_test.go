package engine

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/trace"
)

// shortPacket is a packet of a QUIC connection that stands.
func shortPacket(id byte, size int) []byte {
	b := make([]byte, size)
	b[0] = 0x41
	for i := range idLen {
		b[1+i] = id
	}
	return b
}

// connected is a rig with a QUIC connection that a client of this host opened.
func connected(t *testing.T, name string) udpRig {
	r := udpRig{namedRig(t, "video.example")}
	r.connect(t, name, 1)
	return r
}

func (r udpRig) connect(t *testing.T, name string, id byte) {
	for _, b := range initials(t, name) {
		r.send(true, b)
	}
	r.now = r.now.Add(rtt)
	r.send(false, make([]byte, 1200))
	r.exchangeOf(id, 60)
}

// exchangeOf is a packet with that id and its answer, so long.
func (r udpRig) exchangeOf(id byte, size int) {
	r.send(true, shortPacket(id, size))
	r.now = r.now.Add(rtt)
	r.send(false, shortPacket(0, size))
	r.hears(false)
}

// moveTo lets the next packets come from another port of the client.
func (r udpRig) moveTo(port uint16) { r.me = netip.AddrPortFrom(r.me.Addr(), port) }

// A QUIC connection that goes on in another flow keeps its service; what does not look like
// one gets none.
func TestQUICMoves(t *testing.T) {
	beside := func(t *testing.T, r udpRig) { // another connection to the server, which wants another name
		r.moveTo(40002)
		r.connect(t, "bank.example", 2)
		r.moveTo(40001)
	}
	for name, test := range map[string]struct {
		play func(t *testing.T, r udpRig)
		want bool // the flow from port 40001 is the service's
	}{
		"the id of before": {func(_ *testing.T, r udpRig) { r.moveTo(40001); r.exchangeOf(1, 60) }, true},
		"another id":       {func(_ *testing.T, r udpRig) { r.moveTo(40001); r.exchangeOf(2, 60) }, false},
		"the way checked":  {func(_ *testing.T, r udpRig) { r.moveTo(40001); r.exchangeOf(2, 1200) }, true},
		"checked twice": {func(_ *testing.T, r udpRig) {
			r.moveTo(40001)
			r.send(true, shortPacket(2, 1200))
			r.exchangeOf(2, 1200)
		}, true},
		"a long packet, a short answer": {func(_ *testing.T, r udpRig) {
			r.moveTo(40001)
			r.send(true, shortPacket(2, 1200))
			r.send(false, shortPacket(0, 60))
		}, false},
		"twice": {func(_ *testing.T, r udpRig) {
			r.moveTo(40002)
			for range 5 {
				r.exchangeOf(1, 60)
				r.now = r.now.Add(moveWithin / 2)
			}
			r.moveTo(40001)
			r.exchangeOf(1, 60)
		}, true},
		"another server": {func(_ *testing.T, r udpRig) {
			r.peer = netip.MustParseAddrPort("203.0.113.8:443")
			r.moveTo(40001)
			r.exchangeOf(1, 1200)
		}, false},
		"another port of the server": {func(_ *testing.T, r udpRig) {
			r.peer = netip.AddrPortFrom(r.peer.Addr(), 444)
			r.moveTo(40001)
			r.exchangeOf(1, 1200)
		}, false},
		"too late": {func(_ *testing.T, r udpRig) {
			r.now = r.now.Add(2 * moveWithin)
			r.moveTo(40001)
			r.exchangeOf(1, 1200)
		}, false},
		"another name at the server": {func(t *testing.T, r udpRig) { beside(t, r); r.exchangeOf(3, 1200) }, false},
		"another name before": {func(t *testing.T, r udpRig) {
			r.moveTo(40002)
			r.connect(t, "bank.example", 2)
			r.moveTo(40003)
			r.connect(t, "www.video.example", 3)
			r.moveTo(40001)
			r.exchangeOf(4, 1200)
		}, false},
		"another name, the id of before": {func(t *testing.T, r udpRig) { beside(t, r); r.exchangeOf(1, 1200) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := connected(t, "www.video.example")
			test.play(t, r)
			r.exchangeOf(9, 60)
			r.after(time.Second)
			found := false
			flows, _ := r.told()
			for _, f := range flows {
				if f.Src.Port() != 40001 || f.State != trace.FlowMatched {
					continue
				}
				found = f.Service.By == trace.ByQUICSNI && f.Service.Value == "www.video.example"
				if !found {
					t.Errorf("%+v", f.Service)
				}
			}
			if found != test.want {
				t.Errorf("found %t: %+v", found, flows)
			}
		})
	}
}

// The clients of a server on this host move, too; ids alone tell them.
func TestQUICMovesIn(t *testing.T) {
	for _, id := range []byte{1, 2} {
		r := udpRig{namedRig(t, "video.example")}
		r.w.Selector.Directions = []trace.Direction{trace.In}
		r.me, r.peer = netip.AddrPortFrom(r.me.Addr(), 443), netip.AddrPortFrom(r.peer.Addr(), 50000)
		play := func(id byte, size int) {
			r.send(false, shortPacket(id, size))
			r.now = r.now.Add(rtt)
			r.send(true, shortPacket(0, size))
		}
		for _, b := range initials(t, "www.video.example") {
			r.send(false, b)
		}
		r.send(true, make([]byte, 1200))
		play(1, 60)
		r.peer = netip.MustParseAddrPort("198.51.100.77:50001")
		play(id, 1200)
		play(9, 60)
		r.after(time.Second)
		found := 0
		flows, _ := r.told()
		for _, f := range flows {
			if f.Dst == r.peer && f.State == trace.FlowMatched {
				found++
			}
		}
		if found != int(2-id) {
			t.Errorf("id %d: %+v", id, flows)
		}
	}
}

// What is known of connections is bounded.
func TestQUICMovesBounded(t *testing.T) {
	r := connected(t, "www.video.example")
	dropped := r.e.stats.Services.Dropped
	o := r.e.moves.to[r.peer]
	for i := range maxMoves + 10 {
		keep(r.e, r.now, r.e.moves.byID, connection{id: [idLen]byte{byte(i), byte(i >> 8), 7}}, o)
	}
	if n := len(r.e.moves.byID); n != maxMoves || r.e.stats.Services.Dropped == dropped {
		t.Errorf("%d ids", n)
	}
	keep(r.e, r.now.Add(2*moveWithin), r.e.moves.byID, connection{}, o)
	if n := len(r.e.moves.byID); n != 1 {
		t.Errorf("%d ids after those that ended were forgotten", n)
	}
}
