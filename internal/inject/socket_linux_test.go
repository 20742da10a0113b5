package inject_test

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/inject"
	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/internal/wire"
)

func newSocket(t *testing.T) *inject.Socket {
	ns, peer := nstest.New(t), nstest.New(t)
	nstest.Veth(t, nstest.End{NS: ns, Name: "eth0"}, nstest.End{NS: peer, Name: "eth0"})
	var s *inject.Socket
	ns.Must(t, func() (err error) { s, err = inject.Open(); return err })
	t.Cleanup(func() { s.Close() })
	return s
}

var (
	probe = wire.TCPProbe{
		Src: netip.MustParseAddrPort("10.9.0.1:1000"), Dst: netip.MustParseAddrPort("10.9.0.2:443"), TTL: 3, Flags: wire.ACK,
	}
	hop = capture.HardwareAddr{Len: 6, Addr: [8]byte{2, 0, 0, 0, 0, 9}}
)

const eth0 = 2 // behind lo

func TestErrors(t *testing.T) {
	s := newSocket(t)
	b := probe.AppendTo(nil)
	for name, test := range map[string]struct {
		packet []byte
		index  int
		hop    capture.HardwareAddr
		want   error
	}{
		"fine":         {b, eth0, hop, nil},
		"no packet":    {nil, eth0, hop, syscall.EINVAL},
		"no interface": {b, 99, hop, syscall.ENXIO},
		"too long":     {append(b, make([]byte, 2000)...), eth0, hop, syscall.EMSGSIZE},
	} {
		if err := s.Send(test.packet, test.index, test.hop); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := s.Send(b, eth0, hop); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestSendingAllocatesNothing(t *testing.T) {
	s := newSocket(t)
	b := probe.AppendTo(nil)
	if n := testing.AllocsPerRun(50, func() {
		if err := s.Send(b, eth0, hop); err != nil {
			t.Error(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
