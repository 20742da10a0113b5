package owner

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/trace"
)

// newFinder is a finder of a namespace of its own.
func newFinder(t *testing.T) (*nstest.NS, *Finder) {
	t.Helper()
	ns := nstest.New(t)
	var sockets *Sockets
	ns.Must(t, func() (err error) { sockets, err = OpenSockets(); return err })
	x := NewFinder(sockets)
	t.Cleanup(func() {
		x.Close()
		x.Close()
		if err := sockets.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns, x
}

const loopback = 1

// finding waits for the answer to a query; false when there is none.
func (x *Finder) finding(t *testing.T, key trace.FlowKey, wait time.Duration) (f Finding, ok bool) {
	t.Helper()
	at := time.Now()
	x.Ask(Query{key, loopback, at})
	for end := at.Add(wait); time.Now().Before(end); time.Sleep(time.Millisecond) {
		for _, f := range x.Found() {
			if f.Key == key && f.At.Equal(at) {
				return f, true
			}
		}
	}
	return f, false
}

func ends(proto trace.Proto, src, dst net.Addr) trace.FlowKey {
	return trace.FlowKey{Proto: proto, Src: netip.MustParseAddrPort(src.String()), Dst: netip.MustParseAddrPort(dst.String())}
}

// The process of both ends of a TCP connection and of UDP sockets is found; that of a
// connection which nobody has accepted yet, as soon as somebody has.
func TestFinder(t *testing.T) {
	ns, x := newFinder(t)
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	mine := func(what string, key trace.FlowKey) {
		t.Helper()
		if f, ok := x.finding(t, key, 10*time.Second); !ok || f.Process.PID != os.Getpid() || f.Process.Name+"\n" != string(comm) {
			t.Errorf("%s: %v, %+v", what, ok, f)
		}
	}
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		var l net.Listener
		var c net.Conn
		var u *net.UDPConn
		var free net.PacketConn
		ns.Must(t, func() (err error) {
			if l, err = net.Listen("tcp", host+":0"); err != nil {
				return err
			}
			if c, err = net.Dial("tcp", l.Addr().String()); err != nil {
				return err
			}
			if free, err = net.ListenPacket("udp", host+":0"); err != nil {
				return err
			}
			u, err = net.DialUDP("udp", nil, free.LocalAddr().(*net.UDPAddr))
			return err
		})
		defer l.Close()
		defer c.Close()
		defer u.Close()
		defer free.Close()
		mine("opened", ends(trace.TCP, c.LocalAddr(), c.RemoteAddr()))
		mine("UDP, connected", ends(trace.UDP, u.LocalAddr(), u.RemoteAddr()))
		mine("UDP, not connected", ends(trace.UDP, free.LocalAddr(), u.LocalAddr()))
		accepted := ends(trace.TCP, c.RemoteAddr(), c.LocalAddr())
		time.AfterFunc(50*time.Millisecond, func() {
			if peer, err := l.Accept(); err == nil {
				t.Cleanup(func() { _ = peer.Close() })
			}
		})
		mine("accepted a little later", accepted)
	}
	before := x.Stats()
	nobody := netip.MustParseAddrPort("127.0.0.1:9")
	if f, ok := x.finding(t, trace.FlowKey{Proto: trace.TCP, Src: nobody, Dst: nobody}, 10*time.Second); !ok || f.Process != (trace.Process{}) {
		t.Errorf("of nobody: %v, %+v", ok, f)
	}
	for end := time.Now().Add(10 * time.Second); x.Stats().Unknown == before.Unknown; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%+v", x.Stats())
		}
	}
}

// More queries than can be kept are dropped and counted, and the others are answered in a
// few looks.
func TestFinderIsBounded(t *testing.T) {
	ns, x := newFinder(t)
	var u *net.UDPConn
	ns.Must(t, func() (err error) { u, err = net.ListenUDP("udp", &net.UDPAddr{Port: 5000}); return err })
	defer u.Close()
	all := make([]Query, 3*maxQueries)
	for i := range all {
		all[i] = Query{Interface: loopback, Key: trace.FlowKey{
			Proto: trace.UDP, Src: netip.MustParseAddrPort("127.0.0.1:5000"), Dst: netip.MustParseAddrPort(fmt.Sprintf("127.0.0.2:%d", i%65535+1)),
		}}
	}
	x.Ask(all...)
	found := 0
	for end := time.Now().Add(30 * time.Second); found < maxQueries && time.Now().Before(end); time.Sleep(time.Millisecond) {
		found += len(x.Found())
	}
	if s := x.Stats(); found != maxQueries || s.Found != maxQueries || s.Dropped != 2*maxQueries {
		t.Errorf("%d found, %+v", found, s)
	}
	x.Ask()
}

// Asking again ends.
func TestInquiryAgain(t *testing.T) {
	now, q := time.Now(), inquiry{}
	var waits []time.Duration
	for q.again(now) && len(waits) < 100 {
		waits = append(waits, q.due.Sub(now))
	}
	if len(waits) != maxTries-1 || waits[0] != firstWait || waits[len(waits)-1] > 2*time.Second {
		t.Errorf("%v", waits)
	}
}

// BenchmarkSearch goes through all processes in vain, and finds one among those of before.
func BenchmarkSearch(b *testing.B) {
	descriptors := 0
	for _, pid := range procs("/proc").all() {
		names, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		descriptors += len(names)
	}
	x := &Finder{proc: "/proc"}
	b.Run("in vain", func(b *testing.B) {
		for b.Loop() {
			x.search(map[string][]Query{"socket:[0]": {{}}})
		}
		b.ReportMetric(float64(descriptors), "descriptors")
	})
	null, err := os.Open("/dev/null")
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	b.Run("again", func(b *testing.B) {
		for b.Loop() {
			if len(x.search(map[string][]Query{"/dev/null": {{}}})) != 1 {
				b.Fatal("not found")
			}
		}
	})
}

// BenchmarkQuestion asks the kernel for one socket.
func BenchmarkQuestion(b *testing.B) {
	u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	defer u.Close()
	s, err := OpenSockets()
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	key := trace.FlowKey{Proto: trace.UDP, Src: u.LocalAddr().(*net.UDPAddr).AddrPort(), Dst: netip.MustParseAddrPort("127.0.0.1:9")}
	for b.Loop() {
		if _, err := s.ask(key, loopback, 0); err != nil {
			b.Fatal(err)
		}
	}
}

// Many Finders take turns, and one that waits for its turn can be closed.
func TestFindersTakeTurns(t *testing.T) {
	ns, x := newFinder(t)
	var u *net.UDPConn
	ns.Must(t, func() (err error) {
		u, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		return err
	})
	defer u.Close()
	key := trace.FlowKey{Proto: trace.UDP, Src: u.LocalAddr().(*net.UDPAddr).AddrPort(), Dst: netip.MustParseAddrPort("127.0.0.1:9")}
	turn <- struct{}{} // as if another one looked
	if _, ok := x.finding(t, key, 50*time.Millisecond); ok {
		t.Error("two looked at once")
	}
	y := NewFinder(x.sockets)
	y.Ask(Query{Key: key, Interface: loopback})
	y.Close()
	<-turn
	if _, ok := x.finding(t, key, 10*time.Second); !ok {
		t.Error("its turn never came")
	}
}
