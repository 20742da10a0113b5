//go:build linux

package observe

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab/node"
	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/internal/lab/tap"
)

// newChain makes client - r1 - r2 - server of real kernels, each with an observer.
func newChain(t *testing.T) (ns map[string]*nstest.NS, at map[string]node.Caller) {
	names := []string{"client", "r1", "r2", "server"}
	ns, at = map[string]*nstest.NS{}, map[string]node.Caller{}
	for _, n := range names {
		ns[n] = nstest.New(t)
	}
	for i := range len(names) - 1 {
		nstest.Veth(t,
			nstest.End{NS: ns[names[i]], Name: "right", Addrs: []string{fmt.Sprintf("10.7.%d.1/24", i), fmt.Sprintf("fd07:%d::1/64", i)}},
			nstest.End{NS: ns[names[i+1]], Name: "left", Addrs: []string{fmt.Sprintf("10.7.%d.2/24", i), fmt.Sprintf("fd07:%d::2/64", i)}})
	}
	for _, r := range []string{"r1", "r2"} {
		ns[r].Sysctl(t, "net/ipv4/ip_forward", "1")
		ns[r].Sysctl(t, "net/ipv6/conf/all/forwarding", "1")
		ns[r].Sysctl(t, "net/ipv4/icmp_ratelimit", "0")
		ns[r].Sysctl(t, "net/ipv6/icmp/ratelimit", "0")
	}
	for i, n := range names {
		for j := range len(names) - 1 {
			via := fmt.Sprint(i) + ".2" // to the right
			via6 := fmt.Sprintf("fd07:%d::2", i)
			if j < i-1 {
				via, via6 = fmt.Sprint(i-1)+".1", fmt.Sprintf("fd07:%d::1", i-1)
			} else if j <= i {
				continue // attached
			}
			ns[n].Route(t, fmt.Sprintf("10.7.%d.0/24", j), "10.7."+via)
			ns[n].Route(t, fmt.Sprintf("fd07:%d::/64", j), via6)
		}
		at[n] = ns[n].Caller(t, Roles())
	}
	// The first packet may wait a second until its next hop is found.
	for _, server := range []string{"10.7.2.2", "fd07:2::2"} {
		talkTCP(t, ns, server)
	}
	for _, c := range at {
		if err := Start(t.Context(), c, Config{}); err != nil {
			t.Fatal(err)
		}
	}
	return ns, at
}

func fetchAll(t *testing.T, at map[string]node.Caller) map[string]Log {
	t.Helper()
	logs := map[string]Log{}
	for name, c := range at {
		l, err := Fetch(t.Context(), c, true)
		if err != nil {
			t.Fatal(err)
		}
		logs[name] = l
	}
	return logs
}

func TestRealChain(t *testing.T) {
	ns, at := newChain(t)
	for _, tt := range []struct {
		server string
		hops   map[uint8][]Hop
	}{
		{"10.7.2.2", map[uint8][]Hop{
			1: {{netip.MustParseAddr("10.7.0.2"), "r1"}},
			2: {{netip.MustParseAddr("10.7.1.2"), "r2"}},
			3: nil, // the server has a socket there: no error
		}},
		{"fd07:2::2", map[uint8][]Hop{
			1: {{netip.MustParseAddr("fd07:0::2"), "r1"}},
			2: {{netip.MustParseAddr("fd07:1::2"), "r2"}},
			3: nil,
		}},
	} {
		t.Run(tt.server, func(t *testing.T) {
			udp := walkUDP(t, ns, tt.server)
			tcp := talkTCP(t, ns, tt.server)
			time.Sleep(50 * time.Millisecond)
			truth := NewTruth(fetchAll(t, at), false)
			if d := truth.Dropped(); d != (Dropped{}) {
				t.Fatalf("the logs are not whole: %+v", d)
			}
			if got := truth.Hops(udp, 32); !reflect.DeepEqual(got, tt.hops) {
				t.Errorf("hops %v, want %v", got, tt.hops)
			}
			for _, f := range []Flow{tcp, tcp.Reverse()} {
				want := []string{"r1", "r2"}
				if f == tcp.Reverse() {
					want = []string{"r2", "r1"}
				}
				path := truth.Path(f, 32)
				if len(path) != 1 || !slices.Equal(path[0].Nodes, want) || path[0].Packets < 20 {
					t.Errorf("path of %v is %v, want %v", f, path, want)
				}
			}
		})
	}
}

// walkUDP sends datagrams with TTL 1, 2 and 3 to a listening port.
func walkUDP(t *testing.T, ns map[string]*nstest.NS, server string) Flow {
	t.Helper()
	to := netip.AddrPortFrom(netip.MustParseAddr(server), 9999)
	var pc net.PacketConn
	ns["server"].Must(t, func() (err error) {
		pc, err = net.ListenPacket("udp", to.String())
		return err
	})
	defer pc.Close()
	var conn net.Conn
	ns["client"].Must(t, func() (err error) {
		conn, err = net.Dial("udp", to.String())
		return err
	})
	defer conn.Close()
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for ttl := 1; ttl <= 3; ttl++ {
		_ = raw.Control(func(fd uintptr) {
			if to.Addr().Is4() {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, ttl)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, ttl)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "%d is the TTL of this one", ttl); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return Flow{17, netip.MustParseAddrPort(conn.LocalAddr().String()), to}
}

// talkTCP exchanges small messages.
func talkTCP(t *testing.T, ns map[string]*nstest.NS, server string) Flow {
	t.Helper()
	to := netip.AddrPortFrom(netip.MustParseAddr(server), 7)
	var ln net.Listener
	ns["server"].Must(t, func() (err error) {
		ln, err = net.Listen("tcp", to.String())
		return err
	})
	defer ln.Close()
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		buf := make([]byte, 10)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			_, _ = conn.Write(buf[:n])
		}
	}()
	var conn net.Conn
	ns["client"].Must(t, func() (err error) {
		conn, err = net.Dial("tcp", to.String())
		return err
	})
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 10)
	for range 20 {
		if _, err := conn.Write([]byte("message")); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	return Flow{6, netip.MustParseAddrPort(conn.LocalAddr().String()), to}
}

func TestRealCountsAndRoles(t *testing.T) {
	ns, at := newChain(t)
	f := talkTCP(t, ns, "10.7.2.2")
	time.Sleep(50 * time.Millisecond)
	l, err := Fetch(t.Context(), at["r1"], false)
	if err != nil {
		t.Fatal(err)
	}
	type way struct {
		iface    string
		outgoing bool
	}
	packets := map[way]int64{}
	for _, c := range l.Counts {
		if c.Flow == f {
			packets[way{c.Interface, c.Outgoing}] = c.Packets
		}
	}
	in, out := packets[way{"left", false}], packets[way{"right", true}]
	if len(packets) != 2 || in != out || in < 20 {
		t.Errorf("r1 counted %v", packets)
	}
	ctx := context.Background()
	if err := Start(ctx, at["r1"], Config{}); err == nil {
		t.Error("an observer can be started twice")
	}
	if again, err := Fetch(ctx, at["r1"], true); err != nil || len(again.Counts) != len(l.Counts) {
		t.Errorf("a log that was not cleared: %d counts, then %d, %v", len(l.Counts), len(again.Counts), err)
	}
	if l, err := Fetch(ctx, at["r1"], true); err != nil || len(l.Counts)+len(l.Packets) != 0 {
		t.Errorf("a cleared log: %+v, %v", l, err)
	}
	if err := Stop(ctx, at["r1"]); err != nil {
		t.Error(err)
	}
	if _, err := Fetch(ctx, at["r1"], true); err == nil {
		t.Error("a stopped observer has a log")
	}
}

// tcpPacket makes an IPv4 TCP packet.
func tcpPacket(ttl uint8, seq uint32, payload int) []byte {
	b := make([]byte, 40+payload)
	b[0], b[8], b[9] = 0x45, ttl, tap.TCP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[4:], uint16(seq))
	copy(b[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	binary.BigEndian.PutUint16(b[20:], 1000)
	binary.BigEndian.PutUint16(b[22:], 443)
	binary.BigEndian.PutUint32(b[24:], seq)
	b[32], b[33] = 5<<4, tap.ACK
	return b
}

// errorPacket makes an IPv4 Time Exceeded about a packet.
func errorPacket(src byte, ttl uint8, quoted []byte) []byte {
	b := append(make([]byte, 28), quoted...)
	b[0], b[8], b[9], b[20] = 0x45, ttl, tap.ICMP, 11
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], []byte{10, 0, 9, src, 10, 0, 0, 1})
	return b
}

func TestRecorderKeepsOwnErrorsOnly(t *testing.T) {
	local := netip.MustParseAddr("10.0.9.1")
	quoted := tcpPacket(1, 77, 0)
	for _, tt := range []struct {
		name     string
		outgoing bool
		packet   []byte
		want     int
	}{
		{"own", true, errorPacket(1, 64, quoted), 1},
		{"own, full TTL", true, errorPacket(1, 255, quoted), 1},
		{"short quote", true, errorPacket(1, 64, quoted[:28]), 1},
		{"coming in", false, errorPacket(1, 64, quoted), 0},
		{"forwarded", true, errorPacket(2, 63, quoted), 0},
		{"masqueraded", true, errorPacket(1, 63, quoted), 0},
		{"another's", true, errorPacket(2, 64, quoted), 0},
		{"quote without ports", true, errorPacket(1, 64, quoted[:22]), 0},
	} {
		r := newRecorder(Config{}, []netip.Addr{local})
		r.add(time.Unix(1, 0), "eth0", tt.outgoing, tt.packet)
		if len(r.errors) != tt.want {
			t.Errorf("%s: %d errors, want %d", tt.name, len(r.errors), tt.want)
		}
		for _, e := range r.errors {
			if e.Addr != local || e.Type != 11 || e.Seq != 77 || e.ID != 77 || e.Quoted.Src.Port() != 1000 || e.Short != (tt.name == "short quote") {
				t.Errorf("%s: %+v", tt.name, e)
			}
		}
	}
}

// A router that gives flows another destination answers in the name of the old one.
func TestRecorderAliases(t *testing.T) {
	r := newRecorder(Config{Aliases: []netip.Addr{netip.MustParseAddr("10.0.9.2")}}, []netip.Addr{netip.MustParseAddr("10.0.9.1")})
	for src := range byte(4) {
		r.add(time.Unix(1, 0), "eth0", true, errorPacket(src, 64, tcpPacket(1, 77, 0)))
	}
	r.add(time.Unix(1, 0), "eth0", true, errorPacket(2, 63, tcpPacket(1, 77, 0))) // forwarded, of a router behind it
	if len(r.errors) != 2 {
		t.Errorf("%+v", r.errors)
	}
}

func TestRecorderSample(t *testing.T) {
	near, far := newRecorder(Config{}, nil), newRecorder(Config{}, nil)
	for i := range uint32(32_000) {
		near.add(time.Unix(1, 0), "eth0", false, tcpPacket(64, i*1448, 1448)[:120])
		far.add(time.Unix(1, 0), "eth0", false, tcpPacket(60, i*1448, 1448)[:120])
	}
	if n := len(near.packets); n < 800 || n > 1200 {
		t.Errorf("%d of 32000 packets kept, want about 1000", n)
	}
	if len(near.packets) != len(far.packets) {
		t.Fatalf("two nodes keep %d and %d packets", len(near.packets), len(far.packets))
	}
	for i := range near.packets {
		if near.packets[i].Seq != far.packets[i].Seq {
			t.Fatal("two nodes keep different packets")
		}
	}
	before := len(near.packets)
	near.add(time.Unix(1, 0), "eth0", false, tcpPacket(5, 3, 0))   // looks like a probe
	near.add(time.Unix(1, 0), "eth0", false, tcpPacket(64, 3, 10)) // little payload
	if len(near.packets) != before+2 {
		t.Error("a probe or a small packet is not kept")
	}
}

func TestRecorderIsBounded(t *testing.T) {
	r := newRecorder(Config{MaxFlows: 2, MaxPackets: 3, MaxErrors: 1}, []netip.Addr{netip.MustParseAddr("10.0.9.1")})
	for port := range 5 {
		p := tcpPacket(5, uint32(port), 0)
		p[21] = byte(port)
		r.add(time.Unix(1, 0), "eth0", false, p)
		r.add(time.Unix(1, 0), "eth0", true, errorPacket(1, 64, p))
	}
	l := r.log()
	if len(l.Counts) != 2 || len(l.Packets) != 3 || len(l.Errors) != 1 {
		t.Errorf("%d counts, %d packets, %d errors", len(l.Counts), len(l.Packets), len(l.Errors))
	}
	if want := (Dropped{Flows: 3, Packets: 2, Errors: 4}); l.Dropped != want {
		t.Errorf("dropped %+v, want %+v", l.Dropped, want)
	}
}

func FuzzRecorder(f *testing.F) {
	f.Add(tcpPacket(5, 1, 20), false)
	f.Add(errorPacket(1, 64, tcpPacket(1, 77, 0)), true)
	f.Add([]byte{0x60, 39: 0}, true)
	f.Fuzz(func(_ *testing.T, b []byte, outgoing bool) {
		r := newRecorder(Config{TTL: 255}, []netip.Addr{netip.MustParseAddr("10.0.9.1")})
		r.add(time.Unix(1, 0), "eth0", outgoing, b)
		NewTruth(map[string]Log{"n": r.log()}, false)
		tap.FinishChecksum(b)
	})
}
