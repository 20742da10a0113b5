package firewall

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/internal/wire"
)

// ends are a host, its router and a server behind that, by IPv4 or IPv6.
type ends struct{ host, router, server netip.Addr }

var (
	ends4 = ends{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("203.0.113.7")}
	ends6 = ends{netip.MustParseAddr("fd00:9::1"), netip.MustParseAddr("fd00:9::2"), netip.MustParseAddr("2001:db8:7::7")}
)

func between(ipv6 bool) ends {
	if ipv6 {
		return ends6
	}
	return ends4
}

const appPort, serverPort = 40000, 443

// datagram is a UDP packet of the application's flow.
func datagram(ipv6 bool, id uint16, payload ...byte) []byte {
	e := between(ipv6)
	u := wire.UDPProbe{
		Src: netip.AddrPortFrom(e.host, appPort), Dst: netip.AddrPortFrom(e.server, serverPort), TTL: 3, ID: id, Payload: payload,
	}
	return u.AppendTo(nil)
}

// udp is a probe in that flow, one for each n.
func udp(ipv6 bool, n uint64) []byte {
	return datagram(ipv6, 0x1234, binary.BigEndian.AppendUint64([]byte{5}, n*0x9e3779b97f4a7c15)...)
}

// tcp is a probe in a TCP flow.
func tcp(ipv6 bool, seq uint32) []byte {
	e := between(ipv6)
	p := wire.TCPProbe{
		Src: netip.AddrPortFrom(e.host, appPort), Dst: netip.AddrPortFrom(e.server, serverPort), TTL: 3, ID: 0x1234,
		Seq: seq, Ack: 9, Flags: wire.ACK, Window: 500,
	}
	return p.AppendTo(nil)
}

// changed is a copy with one byte changed.
func changed(b []byte, at int) []byte {
	c := append([]byte(nil), b...)
	c[at] ^= 1
	return c
}

// field is a host with a rule and an application, whose socket hears of ICMP errors, and
// the host's router.
type field struct {
	t            *testing.T
	host, router *nstest.NS
	rule         *Rule
	ipv6         bool
	app          int
	serial       int
}

func newField(t *testing.T, ipv6 bool) *field {
	f := &field{t: t, host: nstest.New(t), router: nstest.New(t), ipv6: ipv6}
	nstest.Veth(t, nstest.End{NS: f.host, Name: "eth0", Addrs: []string{"10.9.0.1/24", "fd00:9::1/64"}},
		nstest.End{NS: f.router, Name: "eth0", Addrs: []string{"10.9.0.2/24", "fd00:9::2/64"}})
	f.host.Route(t, "203.0.113.0/24", "10.9.0.2")
	f.host.Route(t, "2001:db8:7::/64", "fd00:9::2")
	f.rule = openIn(t, f.host)
	f.host.Must(t, f.open)
	t.Cleanup(func() { unix.Close(f.app) })
	f.heard() // the link passes packets now
	return f
}

func openIn(t *testing.T, ns *nstest.NS) *Rule {
	t.Helper()
	var r *Rule
	ns.Must(t, func() (err error) { r, err = Open(); return err })
	t.Cleanup(func() { r.Close() })
	return r
}

// open opens the application's socket.
func (f *field) open() (err error) {
	family, level, option := unix.AF_INET, unix.IPPROTO_IP, unix.IP_RECVERR
	var from, to unix.Sockaddr = &unix.SockaddrInet4{Port: appPort, Addr: ends4.host.As4()}, &unix.SockaddrInet4{Port: serverPort, Addr: ends4.server.As4()}
	if f.ipv6 {
		family, level, option = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_RECVERR
		from, to = &unix.SockaddrInet6{Port: appPort, Addr: ends6.host.As16()}, &unix.SockaddrInet6{Port: serverPort, Addr: ends6.server.As16()}
	}
	if f.app, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Bind(f.app, from)
		if err == nil {
			break
		}
		if err != unix.EADDRNOTAVAIL || time.Now().After(deadline) { // a new IPv6 address takes a moment
			return err
		}
	}
	return errors.Join(unix.SetsockoptInt(f.app, level, option, 1), unix.Connect(f.app, to))
}

// send lets the router send an ICMP error to the host.
func (f *field) send(e wire.ICMPError) {
	f.t.Helper()
	e.Src, e.Dst, e.TTL = between(f.ipv6).router, between(f.ipv6).host, 64
	f.router.Must(f.t, func() error {
		family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: ends4.host.As4()})
		if f.ipv6 {
			family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: ends6.host.As16()}
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) // with the IP header, raw(7)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, e.AppendTo(nil), 0, to)
	})
}

// exceeded and prohibited are types and codes of ICMP errors.
func (f *field) exceeded() (typ, code uint8) {
	if f.ipv6 {
		return 3, 0
	}
	return 11, 0
}

func (f *field) prohibited() (typ, code uint8) {
	if f.ipv6 {
		return 1, 1
	}
	return 3, 13
}

// heard sends an error about a datagram of the application's own, which it always hears
// of, until it did, and returns how many others it heard of before.
func (f *field) heard() (n int) {
	f.t.Helper()
	f.serial++
	own := fmt.Sprintf("the application's own %d", f.serial)
	typ, code := f.prohibited()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		f.send(wire.ICMPError{Type: typ, Code: code, Quote: datagram(f.ipv6, 9, []byte(own)...)})
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(f.app)}}, 100) // on a new link some are lost
		for {
			var data, oob [512]byte
			m, o, _, _, err := unix.Recvmsg(f.app, data[:], oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			switch {
			case errors.Is(err, unix.EAGAIN):
			case err != nil:
				f.t.Fatal(err)
			case string(data[:m]) == own:
				return n
			case errorType(f.t, oob[:o]) != typ:
				n++
				continue
			default:
				continue // an earlier one, once more
			}
			break
		}
	}
	f.t.Fatal("the application did not hear of its own datagram")
	return 0
}

// errorType is the ICMP type in a message from the error queue.
func errorType(t *testing.T, oob []byte) uint8 {
	t.Helper()
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(all) == 0 || len(all[0].Data) < int(unsafe.Sizeof(unix.SockExtendedErr{})) {
		t.Fatalf("%v %v", all, err)
	}
	return all[0].Data[5] // of struct sock_extended_err
}

// What quotes a probe is dropped, whole or cut short, with the identification as it was
// or swapped; what quotes anything else arrives.
func TestDrops(t *testing.T) {
	swapped := func(b []byte) []byte {
		c := append([]byte(nil), b...)
		c[4], c[5] = c[5], c[4]
		return c
	}
	for _, test := range []struct {
		name   string
		ipv6   bool
		quote  []byte
		max    int
		extend bool
		want   bool // dropped
	}{
		{"whole", false, udp(false, 1), 0, false, true},
		{"28 bytes", false, udp(false, 1), 28, false, true},
		{"with extensions", false, udp(false, 1), 0, true, true},
		{"28 bytes, swapped", false, swapped(udp(false, 1)), 28, false, true},
		{"another identification", false, changed(udp(false, 1), 5), 0, false, true},
		{"another port", false, changed(udp(false, 1), 23), 0, false, true},
		{"28 bytes, another identification", false, changed(udp(false, 1), 5), 28, false, false},
		{"28 bytes, another checksum", false, changed(udp(false, 1), 27), 28, false, false},
		{"another payload", false, udp(false, 2), 0, false, false},
		{"as long, the application's", false, datagram(false, 0x1234, []byte("9 bytes..")...), 0, false, false},
		{"longer", false, datagram(false, 0x1234, []byte("some more bytes")...), 0, false, false},
		{"whole", true, udp(true, 1), 0, false, true},
		{"with extensions", true, udp(true, 1), 0, true, true},
		{"another label", true, changed(udp(true, 1), 3), 0, false, true},
		{"another payload", true, udp(true, 2), 0, false, false},
		{"48 bytes", true, udp(true, 1), 48, false, false},
		{"as long, the application's", true, datagram(true, 0, []byte("9 bytes..")...), 0, false, false},
	} {
		t.Run(map[bool]string{false: "IPv4 ", true: "IPv6 "}[test.ipv6]+test.name, func(t *testing.T) {
			t.Parallel()
			f := newField(t, test.ipv6)
			if err := f.rule.Add(udp(test.ipv6, 1)); err != nil {
				t.Fatal(err)
			}
			typ, code := f.exceeded()
			e := wire.ICMPError{Type: typ, Code: code, Quote: test.quote, MaxQuote: test.max}
			if test.extend {
				e.Extensions = []byte{0x20, 0, 0, 0}
			}
			f.send(e)
			heard := f.heard()
			dropped, err := f.rule.Dropped()
			if err != nil {
				t.Fatal(err)
			}
			if want := map[bool]uint64{true: 1}[test.want]; dropped != want || heard != 1-int(want) {
				t.Errorf("%d dropped, the application heard of %d", dropped, heard)
			}
		})
	}
}

// Probes in TCP flows are known by their sequence numbers.
func TestDropsTCP(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		f := newField(t, ipv6)
		if err := f.rule.Add(tcp(ipv6, 1000), tcp(ipv6, 1001)); err != nil {
			t.Fatal(err)
		}
		typ, code := f.exceeded()
		for seq := uint32(999); seq < 1003; seq++ {
			f.send(wire.ICMPError{Type: typ, Code: code, Quote: tcp(ipv6, seq), MaxQuote: 60})
		}
		f.heard()
		if n, err := f.rule.Dropped(); n != 2 || err != nil {
			t.Errorf("%d dropped, %v", n, err)
		}
	}
}

// A probe is forgotten in the end, and nothing is dropped without a rule.
func TestDropsForAWhile(t *testing.T) {
	f := newField(t, false)
	f.rule.life = 50 * time.Millisecond
	if err := f.rule.Add(udp(false, 1)); err != nil {
		t.Fatal(err)
	}
	e := wire.ICMPError{Type: 11, Quote: udp(false, 1)}
	for deadline := time.Now().Add(20 * time.Second); ; {
		f.send(e)
		if f.heard() == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("never forgotten")
		}
	}
	if err := f.rule.Add(udp(false, 1)); err != nil { // once more
		t.Fatal(err)
	}
	if err := f.rule.Close(); err != nil {
		t.Fatal(err)
	}
	f.send(e)
	if n := f.heard(); n != 1 {
		t.Errorf("heard of %d without a rule", n)
	}
	if err := f.rule.Add(udp(false, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// What is none of our probes is not added, and a rule that is full says so and goes on.
func TestAddErrors(t *testing.T) {
	f := newField(t, true)
	for name, b := range map[string][]byte{
		"empty": nil, "cut short": udp(false, 1)[:25], "longer": datagram(false, 1, []byte("too many bytes")...), "not IP": {0x10, 1, 2},
	} {
		if err := f.rule.Add(b); !errors.Is(err, errProbe) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := f.rule.Add(); err != nil {
		t.Error(err)
	}
	all := make([][]byte, Capacity)
	for i := range all {
		all[i] = udp(true, uint64(i+1))
	}
	if err := f.rule.Add(all...); err != nil {
		t.Fatal(err)
	}
	if err := f.rule.Add(udp(true, Capacity+1)); !errors.Is(err, unix.ENFILE) {
		t.Errorf("more than can be: %v", err)
	}
	f.send(wire.ICMPError{Type: 3, Quote: all[Capacity-1]})
	if n := f.heard(); n != 0 {
		t.Errorf("heard of %d", n)
	}
	if err := f.rule.Add(tcp(true, 1)); err != nil {
		t.Errorf("a set that is not full: %v", err)
	}
}

// When Close returns the rule is gone, also while somebody else holds its socket, as a process
// does that is just being forked.
func TestCloseRemovesTheRule(t *testing.T) {
	ns := nstest.New(t)
	r := openIn(t, ns)
	if err := r.Ready(); err != nil {
		t.Fatal(err)
	}
	held, err := unix.Dup(r.fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(held)
	if n := tables(t, ns); n != 1 {
		t.Fatalf("%d tables", n)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if n := tables(t, ns); n != 0 {
		t.Errorf("%d tables are left", n)
	}
}

// tables counts the tables of this project's rules.
func tables(t *testing.T, ns *nstest.NS) (n int) {
	t.Helper()
	ns.Must(t, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		all, err := c.ListTables()
		for _, table := range all {
			if strings.HasPrefix(table.Name, tablePrefix) {
				n++
			}
		}
		return err
	})
	return n
}

// Several rules stand side by side, and nothing is there before one is needed.
func TestRulesSideBySide(t *testing.T) {
	f := newField(t, false)
	if n := tables(t, f.host); n != 0 {
		t.Errorf("%d tables before any is needed", n)
	}
	if n, err := f.rule.Dropped(); n != 0 || err != nil {
		t.Errorf("%d dropped by no rule, %v", n, err)
	}
	other := openIn(t, f.host)
	for _, r := range []*Rule{f.rule, other, f.rule} {
		if err := r.Ready(); err != nil {
			t.Fatal(err)
		}
	}
	if n := tables(t, f.host); n != 2 {
		t.Errorf("%d tables of two rules", n)
	}
	if err := other.Add(udp(false, 1)); err != nil {
		t.Fatal(err)
	}
	if err := f.rule.Add(udp(false, 2)); err != nil {
		t.Fatal(err)
	}
	f.send(wire.ICMPError{Type: 11, Quote: udp(false, 1)})
	f.send(wire.ICMPError{Type: 11, Quote: udp(false, 2)})
	if n := f.heard(); n != 0 {
		t.Errorf("heard of %d", n)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	f.send(wire.ICMPError{Type: 11, Quote: udp(false, 1)})
	f.send(wire.ICMPError{Type: 11, Quote: udp(false, 2)})
	if n := f.heard(); n != 1 || tables(t, f.host) != 1 {
		t.Errorf("heard of %d, %d tables", n, tables(t, f.host))
	}
}

// play starts a child in a namespace and waits for its word.
func play(t *testing.T, ns *nstest.NS, what string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "SUDO_UID=", "SUDO_GID=", childEnv+"="+what)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	ns.Must(t, cmd.Start)
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "done\n" {
		t.Errorf("%s: %q, %v", what, line, err)
	}
	return cmd
}

// The rule does not outlive its process, however that ends.
func TestRuleDiesWithItsProcess(t *testing.T) {
	ns := nstest.New(t)
	cmd := play(t, ns, "hold")
	if n := tables(t, ns); n != 1 {
		t.Errorf("%d tables", n)
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if n := tables(t, ns); n != 0 {
		t.Errorf("%d tables are left of a process that was killed", n)
	}
}

// Adding takes CAP_NET_ADMIN as making does, and nothing else.
func TestPrivileges(t *testing.T) {
	for _, what := range []string{"late", "drop", "keep"} {
		t.Run(what, func(t *testing.T) { play(t, nstest.New(t), what) })
	}
}

// BenchmarkAdd is the cost of telling the rule of so many probes at once.
func BenchmarkAdd(b *testing.B) {
	for _, ipv6 := range []bool{false, true} {
		for _, n := range []int{1, 16} {
			b.Run(fmt.Sprintf("%v/%d", map[bool]string{false: "IPv4", true: "IPv6"}[ipv6], n), func(b *testing.B) {
				ns := nstest.New(b)
				var r *Rule
				fresh := func() error {
					if r != nil {
						r.Close()
					}
					return ns.Do(func() (err error) {
						if r, err = Open(); err == nil {
							err = r.Ready()
						}
						return err
					})
				}
				probes := make([][]byte, n)
				for i := uint64(0); b.Loop(); {
					if i%(Capacity/2) == 0 { // or it is full in no time
						b.StopTimer()
						if err := fresh(); err != nil {
							b.Fatal(err)
						}
						b.StartTimer()
					}
					for k := range probes {
						i++
						probes[k] = udp(ipv6, i)
					}
					if err := r.Add(probes...); err != nil {
						b.Fatal(err)
					}
				}
				r.Close()
			})
		}
	}
}

// BenchmarkPassing is what a packet costs that only passes, over loopback, without the
// rule and with it.
func BenchmarkPassing(b *testing.B) {
	for _, with := range []bool{false, true} {
		b.Run(map[bool]string{false: "without", true: "with"}[with], func(b *testing.B) {
			ns := nstest.New(b)
			var r *Rule
			var conn *net.UDPConn
			ns.Must(b, func() (err error) {
				if conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
					return err
				}
				if r, err = Open(); err == nil && with {
					err = r.Ready()
				}
				return err
			})
			defer r.Close()
			defer conn.Close()
			to := conn.LocalAddr().(*net.UDPAddr).AddrPort()
			buf := make([]byte, 100)
			for b.Loop() {
				if _, err := conn.WriteToUDPAddrPort(buf, to); err != nil {
					b.Fatal(err)
				}
				if _, _, err := conn.ReadFromUDPAddrPort(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
