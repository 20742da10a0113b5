//go:build linux

package servicetraceroute_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"servicetraceroute"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
)

// foreign is a host of the lab whose TCP is not the kernel's.
type foreign struct {
	stack *stack.Stack
	addrs [2]netip.Addr // IPv4, IPv6
}

// startForeign lets gVisor's stack take part in the link at a node's interface,
// under addresses and a hardware address of its own.
func startForeign(t testing.TB, at *lab.Node, ifname string, mac net.HardwareAddr, addrs, gateways [2]netip.Prefix) *foreign {
	t.Helper()
	fd := -1
	err := at.Do(func() error {
		it, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8)
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		return errors.Join(
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: it.Index}),
			unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
				&unix.PacketMreq{Ifindex: int32(it.Index), Type: unix.PACKET_MR_PROMISC}),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	link, err := fdbased.New(&fdbased.Options{FDs: []int{fd}, MTU: 1500, EthernetHeader: true, Address: tcpip.LinkAddress(mac)})
	if err != nil {
		t.Fatal(err)
	}
	six := ipv6.NewProtocolWithOptions(ipv6.Options{AutoGenLinkLocal: true}) // neighbour discovery needs one
	f := &foreign{stack: stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, six, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})}
	t.Cleanup(func() {
		f.stack.Destroy()
		_ = unix.Close(fd)
	})
	if err := f.stack.CreateNIC(1, link); err != nil {
		t.Fatal(err)
	}
	routes := []tcpip.Route{{Destination: header.IPv6LinkLocalPrefix.Subnet(), NIC: 1}}
	for i, p := range addrs {
		f.addrs[i] = p.Addr()
		proto, any := header.IPv4ProtocolNumber, header.IPv4EmptySubnet
		if i == 1 {
			proto, any = header.IPv6ProtocolNumber, header.IPv6EmptySubnet
		}
		own := tcpip.ProtocolAddress{Protocol: proto, AddressWithPrefix: tcpip.AddressWithPrefix{
			Address: tcpip.AddrFromSlice(p.Addr().AsSlice()), PrefixLen: p.Bits(),
		}}
		if err := f.stack.AddProtocolAddress(1, own, stack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
		routes = append(routes,
			tcpip.Route{Destination: own.AddressWithPrefix.Subnet(), NIC: 1},
			tcpip.Route{Destination: any, Gateway: tcpip.AddrFromSlice(gateways[i].Addr().AsSlice()), NIC: 1})
	}
	f.stack.SetRouteTable(routes)
	return f
}

// echo serves a port over both families.
func (f *foreign) echo(t testing.TB, port uint16) {
	t.Helper()
	ln, err := gonet.ListenTCP(f.stack, tcpip.FullAddress{Port: port}, header.IPv6ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// TestForeignStack traces flows to a server whose TCP is gVisor's, from end to
// end and without harm.
func TestForeignStack(t *testing.T) {
	t.Parallel()
	n := narrow("gvisor", 0)
	last := &n.Links[3] // r4-server
	last.Prefix4, last.Prefix6 = netip.MustParsePrefix("10.77.0.0/24"), netip.MustParsePrefix("fd77::/64")
	f := &field{t: t, lab: labtest.Start(t, n)}
	f.tracer = f.open(servicetraceroute.Config{})
	client, mac := f.lab.Node("client"), net.HardwareAddr{2, 0, 0, 0, 0x67, 0x76}
	host := startForeign(t, f.lab.Node("server"), ifname(t, f.lab.Node("server")), mac,
		[2]netip.Prefix{netip.MustParsePrefix("10.77.0.77/24"), netip.MustParsePrefix("fd77::77/64")},
		[2]netip.Prefix{netip.MustParsePrefix("10.77.0.1/24"), netip.MustParsePrefix("fd77::1/64")})
	host.echo(t, 443)
	meet(t, f.lab.Node("r4"), host.addrs[1], mac)
	for i, addr := range host.addrs {
		stop := f.watch(servicetraceroute.Selection{Hosts: []string{addr.String()}})
		var c net.Conn
		err := client.Do(func() (err error) {
			d := net.Dialer{Timeout: 5 * time.Second, KeepAlive: -1}
			d.SetMultipathTCP(false)
			c, err = d.DialContext(t.Context(), "tcp", netip.AddrPortFrom(addr, 443).String())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		for k := range 25 {
			sent, got := []byte{byte(k), byte(i)}, make([]byte, 2)
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, got); err != nil || string(got) != string(sent) {
				t.Fatalf("sent %v, received %v: %v", sent, got, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		c.Close()
		all := stop()
		s := host.stack.Stats().TCP
		t.Logf("gVisor: %d segments received, %d sent, %d retransmitted, %d resets sent, %d checksum errors",
			s.ValidSegmentsReceived.Value(), s.SegmentsSent.Value(), s.Retransmits.Value(), s.ResetsSent.Value(), s.ChecksumErrors.Value())
		if s.Retransmits.Value()+s.ResetsSent.Value()+s.InvalidSegmentsReceived.Value() != 0 {
			t.Errorf("gVisor was harmed")
		}
		if len(all.traces) != 1 {
			t.Fatalf("%d traces", len(all.traces))
		}
		t.Log(describe(all.traces[0]))
		if tr := all.traces[0]; !tr.Complete || tr.Destination.TTL != 5 || tr.Impact.RSTs+tr.Impact.Retransmits > 0 {
			t.Errorf("want the destination at TTL 5")
		}
	}
}

// meet tells a router its neighbour: the lab's interfaces have no link-local
// addresses, from which a router asks for neighbours of those it forwards to.
func meet(t testing.TB, router *lab.Node, addr netip.Addr, mac net.HardwareAddr) {
	t.Helper()
	err := router.Do(func() error {
		routes, err := netlink.RouteGet(addr.AsSlice())
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{
			LinkIndex: routes[0].LinkIndex, IP: addr.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT,
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// ifname is the only interface of a host beside loopback.
func ifname(t testing.TB, at *lab.Node) (name string) {
	t.Helper()
	err := at.Do(func() error {
		all, err := net.Interfaces()
		for _, it := range all {
			if it.Flags&net.FlagLoopback == 0 && it.Flags&net.FlagUp != 0 {
				name = it.Name
			}
		}
		return err
	})
	if err != nil || name == "" {
		t.Fatalf("no interface: %v", err)
	}
	return name
}
