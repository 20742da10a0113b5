package owner

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/trace"
)

// TestMain lets these tests have namespaces where only users' own are allowed.
func TestMain(m *testing.M) { labtest.Main(m) }

// site is a namespace with a watcher and a listener at its loopback interface.
type site struct {
	t     *testing.T
	ns    *nstest.NS
	w     *Watcher
	woken chan struct{}
}

func newSite(t *testing.T, want Want) *site {
	s := &site{t: t, ns: nstest.New(t), woken: make(chan struct{}, 1)}
	s.watch(want)
	return s
}

// watch opens the watcher.
func (s *site) watch(want Want) {
	t := s.t
	s.ns.Must(t, func() (err error) {
		s.w, err = Open(func() {
			select {
			case s.woken <- struct{}{}:
			default:
			}
		})
		return err
	})
	t.Cleanup(func() {
		if err := errors.Join(s.w.Close(), s.w.Close()); err != nil {
			t.Error(err)
		}
	})
	s.w.Want(want)
}

// connect opens a connection in the namespace.
func (s *site) connect(network, addr string, control func(fd int) error) (net.Conn, trace.FlowKey) {
	s.t.Helper()
	var l net.Listener
	var c net.Conn
	s.ns.Must(s.t, func() (err error) {
		if l, err = net.Listen(network, addr); err != nil {
			return err
		}
		// The socket belongs to the namespace of the thread that makes it.
		d := net.Dialer{Control: func(_, _ string, rc syscall.RawConn) error {
			if control == nil {
				return nil
			}
			var err error
			return errors.Join(rc.Control(func(fd uintptr) { err = control(int(fd)) }), err)
		}}
		c, err = d.Dial(network, l.Addr().String())
		return err
	})
	s.t.Cleanup(func() { c.Close(); l.Close() })
	return c, trace.FlowKey{
		Proto: trace.TCP, Src: netip.MustParseAddrPort(c.LocalAddr().String()), Dst: netip.MustParseAddrPort(c.RemoteAddr().String()),
	}
}

// final waits for all that is told of a flow; false when nothing is.
func (s *site) final(key trace.FlowKey, wait time.Duration) (o Owner, ok bool) {
	over := time.After(wait)
	for {
		select {
		case o = <-s.w.Owners():
			if o.Key == key && o.Final {
				return o, true
			}
		case <-over:
			return o, false
		}
	}
}

func TestWatcher(t *testing.T) {
	own, err := OwnGroup()
	if err != nil {
		t.Logf("without control groups: %v", err)
	}
	bound := func(fd int) error { return unix.BindToDevice(fd, "lo") }
	for name, test := range map[string]struct {
		network, addr string
		control       func(int) error
		want          Want
		found         bool
	}{
		"IPv4":                 {"tcp4", "127.0.0.1:0", nil, Want{Everyone: true}, true},
		"IPv6":                 {"tcp6", "[::1]:0", nil, Want{Everyone: true}, true},
		"bound to a device":    {"tcp4", "127.0.0.1:0", bound, Want{Everyone: true}, true},
		"by number":            {"tcp4", "127.0.0.1:0", nil, Want{PIDs: []int{1, os.Getpid()}}, true},
		"another number":       {"tcp4", "127.0.0.1:0", nil, Want{PIDs: []int{1}}, false},
		"of a tree":            {"tcp4", "127.0.0.1:0", nil, Want{Tree: os.Getppid()}, true},
		"of another tree":      {"tcp4", "127.0.0.1:0", nil, Want{Tree: os.Getpid()}, false},
		"of a control group":   {"tcp4", "127.0.0.1:0", nil, Want{Cgroups: []string{own}}, own != ""},
		"of another":           {"tcp4", "127.0.0.1:0", nil, Want{Cgroups: []string{"/no-such-group"}}, false},
		"nobody is looked for": {"tcp4", "127.0.0.1:0", nil, Want{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, test.want)
			before := time.Now()
			_, key := s.connect(test.network, test.addr, test.control)
			wait := 5 * time.Second
			if !test.found {
				wait = 100 * time.Millisecond
			}
			o, ok := s.final(key, wait)
			if found := ok && o.Process.PID != 0; found != test.found {
				t.Fatalf("%+v, %v", o, ok)
			}
			if !test.found {
				return
			}
			if o.Process.PID != os.Getpid() || o.Process.Cgroup != own || o.Exe != "owner.test" || (o.Under != 0) != (test.want.Tree != 0) {
				t.Errorf("%+v", o)
			}
			if o.At.Before(before.Add(-time.Second)) || o.At.After(time.Now()) {
				t.Errorf("seen at %v", o.At)
			}
			select {
			case <-s.woken: // after it was put there
			case <-time.After(time.Second):
				t.Error("nobody was woken")
			}
			if st := s.w.Stats(); st.Found == 0 || st.Asked == 0 || st.Dropped != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// Flows that exist already are found when asked about; those that are gone are not.
func TestAsk(t *testing.T) {
	s := &site{t: t, ns: nstest.New(t), woken: make(chan struct{}, 1)}
	c, key := s.connect("tcp4", "127.0.0.1:0", nil)
	s.watch(Want{Everyone: true}) // which did not see the connection begin
	const lo = 1
	s.w.Ask(key, lo)
	if o, ok := s.final(key, 5*time.Second); !ok || o.Process.PID != os.Getpid() || !o.At.IsZero() {
		t.Errorf("%+v, %v", o, ok)
	}
	if err := c.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	c.Close()
	s.w.Ask(key, lo)
	if o, ok := s.final(key, 100*time.Millisecond); ok {
		t.Errorf("a closed one: %+v", o)
	}
	if st := s.w.Stats(); st.Unknown != 1 {
		t.Errorf("%+v", st)
	}
}

// A socket remembers what was agreed upon when its connection began.
func TestHandshake(t *testing.T) {
	s := newSite(t, Want{})
	var sockets *Sockets
	s.ns.Must(t, func() (err error) { sockets, err = OpenSockets(); return err })
	t.Cleanup(func() {
		if err := sockets.Close(); err != nil {
			t.Error(err)
		}
	})
	c, key := s.connect("tcp4", "127.0.0.1:0", nil)
	rc, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	if cerr := rc.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	const lo = 1
	h, err := sockets.Handshake(key, lo)
	if err != nil || !h.SACK || info.Options&infoWindowScaling == 0 || h.LocalScale == 0 || h.PeerScale == 0 {
		t.Errorf("%+v, %v; the socket's options are %#x", h, err, info.Options)
	}
	key.Dst = netip.AddrPortFrom(key.Dst.Addr(), 1)
	if h, err := sockets.Handshake(key, lo); !errors.Is(err, errGone) {
		t.Errorf("no such connection: %+v, %v", h, err)
	}
}

// More questions than can be answered are dropped and counted, and nothing hangs.
func TestTooManyQuestions(t *testing.T) {
	s := newSite(t, Want{Everyone: true})
	_, key := s.connect("tcp4", "127.0.0.1:0", nil)
	for range 20 * maxPending {
		s.w.Ask(key, 1)
	}
	if st := s.w.Stats(); st.Dropped == 0 {
		t.Errorf("%+v", st)
	}
}
