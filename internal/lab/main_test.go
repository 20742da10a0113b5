//go:build linux

package lab_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/node"
	"servicetraceroute/internal/scenario"
)

func TestMain(m *testing.M) {
	lab.AddRoles(func() node.Roles {
		return node.Roles{
			"test/listen": node.Role(listen),
			"test/dial":   node.Role(dial),
			"test/probe":  node.Role(probe),
			"test/hang":   node.Role(hang),
		}
	})
	if program := os.Getenv(envProgram); program != "" {
		programs[program]()
		return
	}
	labtest.Main(m)
}

// listen accepts TCP connections, tells each where it came from, and closes it.
func listen(ctx context.Context, port uint16) (any, error) {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, err
	}
	context.AfterFunc(node.Background(ctx), func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, c.RemoteAddr())
			c.Close()
		}
	}()
	return nil, nil
}

// dialed is a connection's client side, as itself and as the server sees it.
type dialed struct {
	Local, Seen netip.AddrPort
	Took        time.Duration // of the handshake
}

func dial(ctx context.Context, to netip.AddrPort) (dialed, error) {
	begin := time.Now()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return dialed{}, err
	}
	defer c.Close()
	took := time.Since(begin)
	var b bytes.Buffer
	if _, err := b.ReadFrom(c); err != nil {
		return dialed{}, err
	}
	seen, err := netip.ParseAddrPort(b.String())
	return dialed{netip.MustParseAddrPort(c.LocalAddr().String()), seen, took}, err
}

// hang is a role that ends when its caller gives up, and says so in a file.
func hang(ctx context.Context, file string) (any, error) {
	<-ctx.Done()
	return nil, os.WriteFile(file, []byte("cancelled"), 0o600)
}

// probes are UDP datagrams of one flow with one TTL.
type probes struct {
	To    netip.AddrPort
	From  uint16 // source port
	TTL   int
	Count int
	Every time.Duration
	Wait  time.Duration // for the answers, after the last
}

// probe sends datagrams and returns who answered them with Time Exceeded, in
// order, by means of IP_RECVERR (ip(7)).
func probe(_ context.Context, p probes) ([]netip.Addr, error) {
	family, level, ttl, recverr := unix.AF_INET, unix.IPPROTO_IP, unix.IP_TTL, unix.IP_RECVERR
	var local, remote unix.Sockaddr = &unix.SockaddrInet4{Port: int(p.From)},
		&unix.SockaddrInet4{Port: int(p.To.Port()), Addr: [4]byte(p.To.Addr().AsSlice()[:4])}
	if p.To.Addr().Is6() {
		family, level, ttl, recverr = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_RECVERR
		local, remote = &unix.SockaddrInet6{Port: int(p.From)}, &unix.SockaddrInet6{Port: int(p.To.Port()), Addr: p.To.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	err = errors.Join(unix.SetsockoptInt(fd, level, ttl, p.TTL), unix.SetsockoptInt(fd, level, recverr, 1),
		unix.Bind(fd, local), unix.Connect(fd, remote))
	if err != nil {
		return nil, err
	}
	for range p.Count {
		// A pending error of an earlier datagram is reported by the next send.
		for range 3 {
			if err = unix.Send(fd, []byte("probe"), 0); err == nil {
				break
			}
		}
		time.Sleep(p.Every)
	}
	var from []netip.Addr
	for deadline := time.Now().Add(p.Wait); time.Now().Before(deadline) && len(from) < p.Count; {
		if a, err := offender(fd); err == nil {
			from = append(from, a)
		} else {
			time.Sleep(time.Millisecond)
		}
	}
	return from, nil
}

// offender returns the source of the next ICMP error of the socket's queue. It
// follows struct sock_extended_err in the control message.
func offender(fd int) (netip.Addr, error) {
	var buf, oob [512]byte
	_, n, _, _, err := unix.Recvmsg(fd, buf[:], oob[:], unix.MSG_ERRQUEUE)
	if err != nil {
		return netip.Addr{}, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return netip.Addr{}, err
	}
	for _, m := range messages {
		if len(m.Data) < 16+8 {
			continue
		}
		address := m.Data[16:]
		switch binary.NativeEndian.Uint16(address) {
		case unix.AF_INET:
			return netip.AddrFrom4([4]byte(address[4:8])), nil
		case unix.AF_INET6:
			return netip.AddrFrom16([16]byte(address[8:24])), nil
		}
	}
	return netip.Addr{}, errors.New("no offender")
}

// nodeOf returns the name of the node that has the address, "" if none.
func nodeOf(l *scenario.Layout, a netip.Addr) string {
	for name, n := range l.Nodes {
		for _, it := range n.Interfaces {
			if it.Addr4.Addr() == a || it.Addr6.Addr() == a {
				return name
			}
		}
		for _, own := range n.Node.Addrs {
			if own == a {
				return name
			}
		}
	}
	return ""
}

// sent returns how many packets the node sent by its interface to a link.
func sent(t *testing.T, l *lab.Lab, name, link string) int {
	t.Helper()
	dev := l.Layout().Nodes[name].Interface(link).Name
	packets := -1
	err := l.Node(name).Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/dev")
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(strings.TrimSpace(line), dev+":"); ok {
				fmt.Sscan(strings.Fields(rest)[9], &packets)
			}
		}
		return err
	})
	if err != nil || packets < 0 {
		t.Fatalf("counters of %s of %s: %v", dev, name, err)
	}
	return packets
}

// serve lets a node listen.
func serve(t *testing.T, l *lab.Lab, name string, port uint16) {
	t.Helper()
	if err := l.Node(name).Call(t.Context(), "test/listen", port, nil); err != nil {
		t.Fatal(err)
	}
}

// connect opens a TCP connection between two nodes.
func connect(t *testing.T, l *lab.Lab, from, to string, port uint16, ipv6 bool) (dialed, error) {
	t.Helper()
	return connectWithin(t, 700*time.Millisecond, l, from, to, port, ipv6)
}

func connectWithin(t *testing.T, d time.Duration, l *lab.Lab, from, to string, port uint16, ipv6 bool) (dialed, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	return node.Call[dialed](ctx, l.Node(from), "test/dial", netip.AddrPortFrom(l.Node(to).Addr(ipv6), port))
}

func mustConnect(t *testing.T, l *lab.Lab, from, to string, port uint16, ipv6 bool) dialed {
	t.Helper()
	d, err := connectWithin(t, 10*time.Second, l, from, to, port, ipv6)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// families runs a test for IPv4 and IPv6.
func families(t *testing.T, f func(t *testing.T, ipv6 bool)) {
	t.Run("IPv4", func(t *testing.T) { f(t, false) })
	t.Run("IPv6", func(t *testing.T) { f(t, true) })
}

func hosts(names ...string) []scenario.Node {
	var nodes []scenario.Node
	for _, n := range names {
		nodes = append(nodes, scenario.Node{Name: n, Kind: scenario.Host})
	}
	return nodes
}

func routers(names ...string) []scenario.Node {
	var nodes []scenario.Node
	for _, n := range names {
		nodes = append(nodes, scenario.Node{Name: n, Kind: scenario.Router})
	}
	return nodes
}

// links joins nodes: "a-b", "b-c".
func links(pairs ...string) []scenario.Link {
	var all []scenario.Link
	for _, p := range pairs {
		a, b, _ := strings.Cut(p, "-")
		all = append(all, scenario.Link{A: a, B: b})
	}
	return all
}

// line is client, n routers r1 to rn, and server, one after the other.
func line(n int) scenario.Network {
	names := []string{"client"}
	for i := range n {
		names = append(names, fmt.Sprintf("r%d", i+1))
	}
	names = append(names, "server")
	network := scenario.Network{Name: "line", Nodes: append(hosts("client", "server"), routers(names[1:n+1]...)...)}
	for i := range names[1:] {
		network.Links = append(network.Links, scenario.Link{A: names[i], B: names[i+1]})
	}
	return network
}
