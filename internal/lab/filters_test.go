//go:build linux

package lab_test

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/scenario"
)

func TestFirewall(t *testing.T) {
	n := line(1)
	n.Nodes[2].Firewall = &scenario.Firewall{AllowTCP: []uint16{443}, Inside: "client-r1"}
	l := labtest.Start(t, n)
	for _, port := range []uint16{80, 443} {
		serve(t, l, "server", port)
		serve(t, l, "client", port)
	}
	families(t, func(t *testing.T, ipv6 bool) {
		mustConnect(t, l, "client", "server", 80, ipv6)
		mustConnect(t, l, "server", "client", 443, ipv6)
		if _, err := connect(t, l, "server", "client", 80, ipv6); err == nil {
			t.Error("a port that is not allowed answers")
		}
	})
	before := counters(t, l, "r1")
	for _, flags := range []byte{0x03, 0x10} { // SYN and FIN; a stray ACK
		sendTCP(t, l, "server", l.Node("client").Addr(false), 443, flags)
	}
	after := counters(t, l, "r1")
	if after[lab.RuleInvalid].Packets != before[lab.RuleInvalid].Packets+1 {
		t.Errorf("SYN with FIN is not invalid: %v, then %v", before, after)
	}
	if after[lab.RuleDropped].Packets != before[lab.RuleDropped].Packets+1 {
		t.Errorf("a stray ACK from outside passes: %v, then %v", before, after)
	}
	if after[lab.RuleEstablished].Packets == 0 || after[lab.RuleInside].Packets != 2 || after[lab.RuleAllowed].Packets != 2 {
		t.Errorf("counters: %v", after)
	}
	stats, err := l.Node("r1").ConntrackStats(t.Context())
	if err != nil || stats["invalid"] == 0 {
		t.Errorf("conntrack statistics: %v, %v", stats, err)
	}
}

func counters(t *testing.T, l *lab.Lab, name string) map[string]lab.Counter {
	t.Helper()
	c, err := l.Node(name).Counters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// sendTCP sends one segment without a connection.
func sendTCP(t *testing.T, l *lab.Lab, from string, to netip.Addr, port uint16, flags byte) {
	t.Helper()
	segment := make([]byte, 20)
	binary.BigEndian.PutUint16(segment[0:], 40000)
	binary.BigEndian.PutUint16(segment[2:], port)
	segment[12], segment[13] = 5<<4, flags
	src, dst := l.Node(from).Addr(false).As4(), to.As4()
	pseudo := append(append(append([]byte{}, src[:]...), dst[:]...), 0, unix.IPPROTO_TCP, 0, 20)
	var sum uint32
	for b := append(pseudo, segment...); len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(segment[16:], ^uint16(sum&0xffff+sum>>16))
	err := l.Node(from).Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, segment, 0, &unix.SockaddrInet4{Addr: dst})
	})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond) // until the router has seen it
}

func TestNAT(t *testing.T) {
	for _, test := range []struct {
		name string
		nat  scenario.NAT
	}{
		{"IPv4 only", scenario.NAT{Outside: "r1-server"}},
		{"both, fully random", scenario.NAT{Outside: "r1-server", FullyRandom: true, IPv6: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := line(1)
			n.Nodes[2].NAT = &test.nat
			l := labtest.Start(t, n)
			serve(t, l, "server", 80)
			outside := l.Layout().Nodes["r1"].Interface("r1-server")
			families(t, func(t *testing.T, ipv6 bool) {
				d := mustConnect(t, l, "client", "server", 80, ipv6)
				for test.nat.FullyRandom && d.Seen.Port() == d.Local.Port() { // by chance
					d = mustConnect(t, l, "client", "server", 80, ipv6)
				}
				if !ipv6 || test.nat.IPv6 {
					want := outside.Addr4.Addr()
					if ipv6 {
						want = outside.Addr6.Addr()
					}
					if d.Seen.Addr() != want || d.Seen.Port() == d.Local.Port() == test.nat.FullyRandom {
						t.Errorf("%v was seen as %v, want %v", d.Local, d.Seen, want)
					}
					checkTracked(t, l, d)
				} else if d.Seen != d.Local {
					t.Errorf("%v was seen as %v", d.Local, d.Seen)
				}
			})
		})
	}
}

// checkTracked looks for the connection in the conntrack table of r1.
func checkTracked(t *testing.T, l *lab.Lab, d dialed) {
	t.Helper()
	all, err := l.Node("r1").Conntrack(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if c.Src == d.Local && c.ReplyDst == d.Seen && c.Protocol == unix.IPPROTO_TCP && c.Timeout > time.Second {
			return
		}
	}
	t.Errorf("%v is not in the table: %v", d, all)
}

func TestSysctl(t *testing.T) {
	l := labtest.Start(t, line(1))
	client, ctx := l.Node("client"), t.Context()
	if err := client.Sysctl(ctx, "net.ipv4.tcp_sack", "0"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"client": "0", "server": "1"} {
		if got, err := l.Node(name).ReadSysctl(ctx, "net.ipv4.tcp_sack"); got != want || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if err := client.Sysctl(ctx, "net.ipv4.no_such_thing", "0"); err == nil {
		t.Error("an unknown setting was set")
	}
}
