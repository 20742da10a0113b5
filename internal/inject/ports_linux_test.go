package inject_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"servicetraceroute/internal/inject"
	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/internal/wire"
)

// No application gets a port that is held, and none is held that an application has: not as
// long as its connection is open, nor while what closed it may come again (TIME-WAIT).
func TestPorts(t *testing.T) {
	ns, peer := nstest.New(t), nstest.New(t)
	nstest.Veth(t, nstest.End{NS: ns, Name: "eth0", Addrs: []string{"10.9.0.1/24", "fd09::1/64"}}, nstest.End{NS: peer, Name: "eth0", Addrs: []string{"10.9.0.2/24", "fd09::2/64"}})
	const first, last = 61000, 61003
	ns.Sysctl(t, "net/ipv4/ip_local_port_range", fmt.Sprint(first, " ", last))
	for name, test := range map[string]struct{ at, server string }{
		"IPv4": {"10.9.0.1", "10.9.0.2:443"}, "IPv6": {"fd09::1", "[fd09::2]:443"},
	} {
		t.Run(name, func(t *testing.T) {
			at := netip.MustParseAddr(test.at)
			var listener net.Listener
			peer.Must(t, func() (err error) { listener, err = net.Listen("tcp", test.server); return err })
			defer listener.Close()
			var mine net.Conn
			var p inject.Ports
			ns.Must(t, func() (err error) { mine, err = net.Dial("tcp", test.server); return err })
			taken := mine.LocalAddr().(*net.TCPAddr).AddrPort().Port()
			hold := func(protocol uint8, port uint16) (free bool) {
				ns.Must(t, func() error { free = p.Hold(protocol, netip.AddrPortFrom(at, port)); return nil })
				return free
			}
			if hold(wire.ProtoTCP, taken) || !hold(wire.ProtoUDP, taken) {
				t.Errorf("of port %d TCP is an application's, and UDP is free", taken)
			}
			held := taken ^ 1
			if !hold(wire.ProtoTCP, held) || hold(wire.ProtoTCP, held) {
				t.Errorf("port %d was free once", held)
			}
			var got []uint16
			ns.Must(t, func() error {
				for {
					c, err := net.Dial("tcp", test.server)
					if err != nil {
						return nil // no port is left
					}
					defer c.Close()
					got = append(got, c.LocalAddr().(*net.TCPAddr).AddrPort().Port())
				}
			})
			if len(got) != last-first-1 || slices.Contains(got, held) || slices.Contains(got, taken) {
				t.Errorf("applications got %v, beside %d that one had and %d that is held", got, taken, held)
			}
			if err := mine.Close(); err != nil {
				t.Fatal(err)
			}
			if c, err := listener.Accept(); err != nil || c.Close() != nil {
				t.Fatal(err)
			}
			if hold(wire.ProtoTCP, taken) {
				t.Errorf("port %d was taken while its connection may still be heard of", taken)
			}
			p.Release()
			if !hold(wire.ProtoTCP, held) {
				t.Errorf("port %d is free again", held)
			}
			p.Release()
		})
	}
	// What cannot be bound for another reason is not held.
	var p inject.Ports
	ns.Must(t, func() error {
		if !p.Hold(wire.ProtoTCP, netip.MustParseAddrPort("192.0.2.1:61001")) {
			t.Error("an address of another host is nobody's here")
		}
		return nil
	})
}
