//go:build linux

package link

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab/node"
	"servicetraceroute/internal/lab/nstest"
)

// bench is a client and a server with a link between them.
type bench struct {
	client, wire, server *nstest.NS
	node                 node.Caller
	cfg                  Config
}

func newBench(t testing.TB, cfg Config) *bench {
	b := &bench{nstest.New(t), nstest.New(t), nstest.New(t), nil, cfg}
	b.cfg.A, b.cfg.B = "a", "b"
	nstest.Veth(t, nstest.End{NS: b.client, Name: "eth0", Addrs: []string{"10.9.0.1/24", "fd09::1/64"}}, nstest.End{NS: b.wire, Name: "a"})
	nstest.Veth(t, nstest.End{NS: b.server, Name: "eth0", Addrs: []string{"10.9.0.2/24", "fd09::2/64"}}, nstest.End{NS: b.wire, Name: "b"})
	b.node = b.wire.Caller(t, Roles())
	if err := Forward(t.Context(), b.node, b.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Stop(context.Background(), b.node, "a", "b"); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) stats(t testing.TB) Stats {
	t.Helper()
	s, err := ReadStats(t.Context(), b.node, "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []Counts{s.AB, s.BA} {
		if c.Oversize+c.Failed+c.Missed+c.Unfinished+c.Overflow > 0 {
			t.Errorf("the link is not well: %+v", c)
		}
	}
	return s
}

// echo serves UDP and TCP echoes; a TCP client is answered at its end.
func (b *bench) serve(t testing.TB) (udp, tcp netip.AddrPort) {
	t.Helper()
	var pc net.PacketConn
	var ln net.Listener
	b.server.Must(t, func() (err error) {
		if pc, err = net.ListenPacket("udp", ":7"); err != nil {
			return err
		}
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		ln, err = lc.Listen(context.Background(), "tcp", ":7")
		return err
	})
	t.Cleanup(func() { pc.Close(); ln.Close() })
	go func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				h := sha256.New()
				_, _ = io.Copy(h, conn)
				_, _ = conn.Write(h.Sum(nil))
			}()
		}
	}()
	addr := netip.MustParseAddr("10.9.0.2")
	return netip.AddrPortFrom(addr, 7), netip.AddrPortFrom(addr, 7)
}

// upload sends n bytes of fixed content and returns the client's port and how
// long it took; the server must have received the same.
func (b *bench) upload(t testing.TB, to netip.AddrPort, n int) (uint16, time.Duration) {
	t.Helper()
	var conn net.Conn
	b.client.Must(t, func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second, Control: cubic}
		d.SetMultipathTCP(false)
		conn, err = d.Dial("tcp", to.String())
		return err
	})
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	content := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(content)
	began := time.Now()
	if _, err := conn.Write(content); err != nil {
		t.Fatal(err)
	}
	conn.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(conn)
	want := sha256.Sum256(content)
	if err != nil || !bytes.Equal(got, want[:]) {
		t.Fatalf("the server received something else: %x, %v", got, err)
	}
	return netip.MustParseAddrPort(conn.LocalAddr().String()).Port(), time.Since(began)
}

// cubic replaces the host's default, which may be one that paces and ignores losses.
func cubic(_, _ string, raw syscall.RawConn) (err error) {
	_ = raw.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
	})
	return err
}

func TestRealDelayAndRate(t *testing.T) {
	b := newBench(t, Config{Delay: 10 * time.Millisecond, Rate: 40_000_000})
	udp, tcp := b.serve(t)
	rtts := b.ping(t, udp, 100, 64, 2*time.Millisecond)
	if p50 := rtts[50]; p50 < 20*time.Millisecond || p50 > 21500*time.Microsecond {
		t.Errorf("median round trip %v, want 20 ms", p50)
	}
	if rtts[0] < 20*time.Millisecond {
		t.Errorf("a round trip of %v is shorter than the delay", rtts[0])
	}
	const n = 4 << 20
	_, took := b.upload(t, tcp, n)
	// Headers are 66 of 1514 bytes, slow start and handshake take some more.
	if rate := n * 8 / took.Seconds(); rate > 40e6*1448/1514 || rate < 28e6 {
		t.Errorf("%.1f Mbit/s over a link of 40", rate/1e6)
	}
	time.Sleep(50 * time.Millisecond) // the connection's end is still on its way
	if s := b.stats(t); s.AB.Received != s.AB.Forwarded+s.AB.Queue || s.AB.Forwarded < n/1500 {
		t.Errorf("counters: %+v", s)
	}
}

// ping sends datagrams at a pace and returns the sorted round-trip times.
func (b *bench) ping(t testing.TB, to netip.AddrPort, count, size int, every time.Duration) []time.Duration {
	t.Helper()
	var conn net.Conn
	b.client.Must(t, func() (err error) {
		conn, err = net.Dial("udp", to.String())
		return err
	})
	defer conn.Close()
	go func() {
		for i := range count {
			msg := fmt.Appendf(make([]byte, 0, size), "%d %d ", i, time.Now().UnixNano())
			_, _ = conn.Write(msg[:size])
			time.Sleep(every)
		}
	}()
	conn.SetReadDeadline(time.Now().Add(time.Duration(count)*every*3 + 3*time.Second))
	var rtts []time.Duration
	buf := make([]byte, 2000)
	for len(rtts) < count {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("after %d of %d answers: %v", len(rtts), count, err)
		}
		var i int
		var sent int64
		if _, err := fmt.Sscanf(string(buf[:n]), "%d %d", &i, &sent); err != nil || i != len(rtts) {
			t.Fatalf("answer %d is %q: reordered or damaged, %v", len(rtts), buf[:20], err)
		}
		rtts = append(rtts, time.Duration(time.Now().UnixNano()-sent))
	}
	slices.Sort(rtts)
	return rtts
}

func TestRealTwinsLoseTheSame(t *testing.T) {
	b := newBench(t, Config{Delay: 5 * time.Millisecond, Rate: 50_000_000, Loss: 0.01, LossSeed: 3})
	_, tcp := b.serve(t)
	const n = 3 << 20
	one, _ := b.upload(t, tcp, n)
	two, _ := b.upload(t, tcp, n)
	lost := map[uint16][]uint32{}
	s := b.stats(t)
	for _, seg := range s.Lost {
		if seg.Occurrence == 0 && seg.Anchor%Block == 1 { // the others are short ones
			lost[seg.Src.Port()] = append(lost[seg.Src.Port()], seg.Anchor)
		}
	}
	t.Logf("lost: %v and %v, %d in all", lost[one], lost[two], s.AB.Lost)
	if len(lost[one]) < 8 || len(lost[one]) > 40 {
		t.Errorf("%d segments of about 2170 lost, want about 22", len(lost[one]))
	}
	if !slices.Equal(lost[one], lost[two]) {
		t.Errorf("twins lost different segments")
	}
}

func TestRealSet(t *testing.T) {
	b := newBench(t, Config{})
	udp, _ := b.serve(t)
	if rtts := b.ping(t, udp, 20, 64, time.Millisecond); rtts[10] > 2*time.Millisecond {
		t.Errorf("a plain wire has a round trip of %v", rtts[10])
	}
	slow := b.cfg
	slow.Delay = 30 * time.Millisecond
	if err := Set(t.Context(), b.node, slow); err != nil {
		t.Fatal(err)
	}
	if rtts := b.ping(t, udp, 20, 64, time.Millisecond); rtts[10] < 60*time.Millisecond || rtts[10] > 63*time.Millisecond {
		t.Errorf("with 30 ms a way: %v", rtts[10])
	}
	if err := Set(t.Context(), b.node, Config{A: "a", B: "c"}); err == nil {
		t.Error("a link that does not run can be set")
	}
	if err := Forward(t.Context(), b.node, b.cfg); err == nil {
		t.Error("a link can be started twice")
	}
	bad := b.cfg
	bad.Loss = 2
	if err := Set(t.Context(), b.node, bad); err == nil {
		t.Error("a loss of 200 % is accepted")
	}
	if s := b.stats(t); s.AB.Received < 40 || s.AB.Lost > 0 {
		t.Errorf("counters: %+v", s)
	}
}

// Any frame must pass as it is, whatever it carries, VLAN tag included.
func TestRealAnyFrame(t *testing.T) {
	b := newBench(t, Config{Delay: time.Millisecond, Loss: 0.5, LoseAll: true})
	var in, out int
	open := func(fd *int) func() error {
		return func() error {
			it, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			if *fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0); err != nil {
				return err
			}
			tv := unix.NsecToTimeval(int64(2 * time.Second))
			if err := unix.SetsockoptTimeval(*fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
				return err
			}
			return unix.Bind(*fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: it.Index}) // ETH_P_ALL
		}
	}
	b.client.Must(t, open(&in))
	defer unix.Close(in)
	b.server.Must(t, open(&out))
	defer unix.Close(out)
	unix.SetsockoptInt(out, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	unix.SetsockoptInt(out, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1)
	addrs := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	for _, tail := range [][]byte{
		{0x88, 0xb5, 'l', 'o', 'c', 'a', 'l'},
		{0x81, 0x00, 0x20, 0x05, 0x88, 0xb5, 't', 'a', 'g'},
		{0x88, 0xcc, 'l', 'l', 'd', 'p'},
	} {
		frame := append(append(slices.Clone(addrs), tail...), make([]byte, 46)...)
		if _, err := unix.Write(in, frame); err != nil {
			t.Fatal(err)
		}
		if got := readFrame(t, out, addrs); !bytes.Equal(got, frame) {
			t.Errorf("got %x, want %x", got, frame)
		}
	}
}

// readFrame returns the next frame with the given addresses, with the VLAN tag
// that the kernel reports beside it.
func readFrame(t *testing.T, fd int, addrs []byte) []byte {
	t.Helper()
	buf, oob := make([]byte, 2000), make([]byte, 100)
	for {
		n, oobn, _, _, err := unix.Recvmsg(fd, buf, oob, 0)
		if err != nil {
			t.Fatalf("no frame: %v", err)
		}
		if n < 14 || !bytes.Equal(buf[:12], addrs) {
			continue // the stack's own
		}
		got := slices.Clone(buf[:n])
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(msgs) != 1 {
			t.Fatalf("auxiliary data: %v", err)
		}
		aux := msgs[0].Data // struct tpacket_auxdata: status, …, tci at 16, tpid at 18
		if aux[0]&unix.TP_STATUS_VLAN_VALID != 0 {
			tag := []byte{aux[19], aux[18], aux[17], aux[16]}
			got = slices.Insert(got, 12, tag...)
		}
		return got
	}
}

// TestMeasure reports how exact and how dear the link is: run it with
// LINK_MEASURE=1. It asserts nothing: the machine may be busy.
func TestMeasure(t *testing.T) {
	if os.Getenv("LINK_MEASURE") == "" {
		t.Log("LINK_MEASURE is not set")
		return
	}
	b := newBench(t, Config{Delay: 10 * time.Millisecond})
	udp, tcp := b.serve(t)
	for _, every := range []time.Duration{5 * time.Millisecond, 400 * time.Microsecond} {
		rtts := b.ping(t, udp, 4000, 200, every)
		t.Logf("pause %v: round trip p50 %v p99 %v max %v", every, rtts[2000], rtts[3960], rtts[3999])
	}
	fast := b.cfg
	fast.Rate = 80_000_000
	if err := Set(t.Context(), b.node, fast); err != nil {
		t.Fatal(err)
	}
	before := b.stats(t)
	var u0, u1 unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u0)
	_, took := b.upload(t, tcp, 20<<20)
	unix.Getrusage(unix.RUSAGE_SELF, &u1)
	s := b.stats(t)
	frames := s.AB.Forwarded + s.BA.Forwarded - before.AB.Forwarded - before.BA.Forwarded
	cpu := time.Duration(u1.Utime.Nano() + u1.Stime.Nano() - u0.Utime.Nano() - u0.Stime.Nano())
	t.Logf("20 MiB in %v: %d frames, %v CPU of the whole test = %v a frame", took, frames, cpu, cpu/time.Duration(frames))
}

// A real TCP must not notice that its numbers are hidden, SACK blocks after losses
// included.
func TestRealShift(t *testing.T) {
	b := newBench(t, Config{Delay: 2 * time.Millisecond, Loss: 0.01, LossSeed: 3, SeqShift: 0xfffffff0, ShortQuotes: true})
	_, tcp := b.serve(t)
	b.upload(t, tcp, 3<<20)
	for name, ns := range map[string]*nstest.NS{"client": b.client, "server": b.server} {
		n := counters(t, ns)
		if n["Tcp.InCsumErrors"] > 0 || n["TcpExt.TCPSACKDiscard"] > 0 || n["TcpExt.TCPTimeouts"] > 3 {
			t.Errorf("%s: %d wrong checksums, %d SACK blocks not understood, %d timeouts", name,
				n["Tcp.InCsumErrors"], n["TcpExt.TCPSACKDiscard"], n["TcpExt.TCPTimeouts"])
		}
		if name == "client" && n["TcpExt.TCPSackRecovery"] == 0 {
			t.Error("no loss was repaired by SACK")
		}
	}
}

// counters reads a namespace's counters, as nstat(8) does.
func counters(t *testing.T, ns *nstest.NS) map[string]int {
	t.Helper()
	all := map[string]int{}
	for _, file := range []string{"snmp", "netstat"} {
		var text []byte
		ns.Must(t, func() (err error) {
			text, err = os.ReadFile("/proc/thread-self/net/" + file)
			return err
		})
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		for i := 0; i+1 < len(lines); i += 2 {
			names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
			for k := 1; k < min(len(names), len(values)); k++ {
				all[strings.TrimSuffix(names[0], ":")+"."+names[k]], _ = strconv.Atoi(values[k])
			}
		}
	}
	return all
}
