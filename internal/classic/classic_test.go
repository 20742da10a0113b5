package classic

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute/internal/wire"
)

var (
	src     = netip.MustParseAddr("192.0.2.1")
	dst     = netip.MustParseAddr("203.0.113.7")
	routers = []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("198.51.100.3")}
)

// internet is three routers, the second silent, and a server behind them. Each
// hop takes a millisecond each way.
type internet struct {
	t       *testing.T
	udp     bool // whether the server's side lets UDP through
	sent    []wire.Packet
	arrives []arrival
}

type arrival struct {
	at     time.Time
	packet []byte
}

func (n *internet) send(b []byte) error {
	var ip wire.Packet
	if err := ip.Decode(b, len(b)); err != nil {
		n.t.Fatalf("sent %x: %v", b, err)
	}
	n.sent = append(n.sent, ip)
	hops := int(ip.TTL)
	if answer := n.answer(b, ip, hops); answer != nil {
		hops = min(hops, len(routers)+1)
		n.arrives = append(n.arrives, arrival{time.Now().Add(2 * time.Duration(hops) * time.Millisecond), answer})
	}
	return nil
}

func (n *internet) answer(b []byte, ip wire.Packet, hops int) []byte {
	e := wire.ICMPError{Dst: src, TTL: 60, Quote: b}
	switch {
	case hops == 2:
		return nil
	case hops <= len(routers):
		e.Src, e.Type = routers[hops-1], 11
		return e.AppendTo(nil)
	case ip.Proto == wire.ProtoUDP && n.udp:
		e.Src, e.Type, e.Code = dst, 3, 3
		return e.AppendTo(nil)
	case ip.Proto == wire.ProtoTCP:
		var t wire.TCP
		if err := t.Decode(ip.Transport, ip.TransportLen); err != nil {
			n.t.Fatal(err)
		}
		r := wire.TCPProbe{
			Src: netip.AddrPortFrom(dst, t.DstPort), Dst: netip.AddrPortFrom(src, t.SrcPort), TTL: 60,
			Seq: 9, Ack: t.Seq + 1, Flags: wire.SYN | wire.ACK,
		}
		return r.AppendTo(nil)
	}
	return nil
}

func (n *internet) receive(deadline time.Time) []byte {
	for i, a := range n.arrives {
		if a.at.After(deadline) {
			continue
		}
		time.Sleep(time.Until(a.at))
		n.arrives = append(n.arrives[:i:i], n.arrives[i+1:]...)
		return a.packet
	}
	time.Sleep(time.Until(deadline))
	return nil
}

func TestRun(t *testing.T) {
	router := func(ttl int) Hop {
		return Hop{TTL: ttl, Addr: routers[ttl-1], RTT: 2 * time.Duration(ttl) * time.Millisecond}
	}
	server := Hop{TTL: 4, Addr: dst, RTT: 8 * time.Millisecond, Reached: true}
	for name, c := range map[string]struct {
		proto Proto
		udp   bool
		want  []Hop
	}{
		"TCP reaches the server":           {TCP, false, []Hop{router(1), {TTL: 2}, router(3), server}},
		"UDP reaches the server":           {UDP, true, []Hop{router(1), {TTL: 2}, router(3), server}},
		"UDP ends where a firewall begins": {UDP, false, []Hop{router(1), {TTL: 2}, router(3)}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &internet{t: t, udp: c.udp}
				got, err := run(t.Context(), Config{Proto: c.proto, Src: src, Dst: dst, Port: 443, MaxTTL: 6}, n.send, n.receive)
				if err != nil {
					t.Fatal(err)
				}
				if len(got) != len(c.want) {
					t.Fatalf("got %v, want %v", got, c.want)
				}
				for i := range got {
					if got[i] != c.want[i] {
						t.Errorf("hop %d: got %+v, want %+v", i+1, got[i], c.want[i])
					}
				}
				newFlows(t, n.sent, c.proto)
			})
		})
	}
}

// newFlows holds every probe to what makes a classic traceroute classic: each is
// a flow of its own.
func newFlows(t *testing.T, sent []wire.Packet, proto Proto) {
	t.Helper()
	flows := map[[2]uint16]bool{}
	for _, ip := range sent {
		p := ip.Transport
		ports := [2]uint16{uint16(p[0])<<8 | uint16(p[1]), uint16(p[2])<<8 | uint16(p[3])}
		if flows[ports] {
			t.Errorf("ports %v twice", ports)
		}
		flows[ports] = true
		if proto == TCP && ports[1] != 443 || proto == UDP && ports[1] != basePort+uint16(ip.TTL) {
			t.Errorf("TTL %d goes to port %d", ip.TTL, ports[1])
		}
	}
	if len(sent) != 6 {
		t.Errorf("%d probes", len(sent))
	}
}

// What others on the host provoke is not an answer to us.
func TestForeignAnswersAreIgnored(t *testing.T) {
	c := Config{Proto: UDP, Src: src, Dst: dst}
	p, b := c.packet(1)
	foreign := map[string]wire.UDPProbe{
		"destination": {Src: netip.AddrPortFrom(src, p.src), Dst: netip.AddrPortFrom(src, p.dst)},
		"port":        {Src: netip.AddrPortFrom(src, p.src), Dst: netip.AddrPortFrom(dst, 53)},
		"source port": {Src: netip.AddrPortFrom(src, 53), Dst: netip.AddrPortFrom(dst, p.dst)},
	}
	for name, u := range foreign {
		u.TTL, u.Payload = 1, []byte("x")
		e := wire.ICMPError{Src: routers[0], Dst: src, TTL: 60, Type: 11, Quote: u.AppendTo(nil)}
		hops := make([]Hop, 1)
		c.answer(hops, []probe{p}, e.AppendTo(nil))
		if hops[0].Addr.IsValid() {
			t.Errorf("another %s: taken for an answer", name)
		}
	}
	hops := make([]Hop, 1)
	e := wire.ICMPError{Src: routers[0], Dst: src, TTL: 60, Type: 11, Quote: b}
	c.answer(hops, []probe{p}, e.AppendTo(nil))
	if hops[0].Addr != routers[0] {
		t.Error("the right answer was not taken")
	}
}

func TestSendErrorEndsRun(t *testing.T) {
	broken := errors.New("no route")
	_, err := run(context.Background(), Config{Proto: TCP, Src: src, Dst: dst}, func([]byte) error { return broken }, nil)
	if !errors.Is(err, broken) {
		t.Errorf("err = %v", err)
	}
}
