package servicetraceroute_test

import (
	"errors"
	"net"
	"testing"
	"testing/synctest"

	"servicetraceroute"
	"servicetraceroute/trace"
)

// A Tracer that sees no packets opens without privileges and says what it cannot do; what
// TraceConn says of a connection is in internal/whole's TestSock.
func TestBackendSock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tracer, err := servicetraceroute.New(servicetraceroute.Config{Backend: servicetraceroute.BackendSock})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tracer.Trace(t.Context(), trace.Flow{}); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Trace: %v", err)
		}
		records := 0
		for ev, err := range tracer.Watch(t.Context(), servicetraceroute.Selection{Hosts: []string{"192.0.2.1"}}) {
			records++
			if ev != nil || !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("Watch: %v, %v", ev, err)
			}
		}
		if s := tracer.Stats(); records != 1 || s.Backend != "sock" || s.Reason != "asked for" {
			t.Errorf("%d records, %+v", records, s)
		}
		if err := tracer.Close(); err != nil {
			t.Error(err)
		}
		if s := tracer.Stats(); s.Backend != "" {
			t.Errorf("after Close: %+v", s)
		}
	})
	for _, cfg := range []servicetraceroute.Config{{Processes: true}, {Pcap: nowhere{}}} {
		cfg.Backend = servicetraceroute.BackendSock
		if _, err := servicetraceroute.New(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}

// nowhere takes all that is written.
type nowhere struct{}

// Write implements io.Writer.
func (nowhere) Write(b []byte) (int, error) { return len(b), nil }

// pretended is a connection that has addresses.
type pretended struct{ net.Conn }

func (pretended) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 40510} }
func (pretended) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 443} }

// A connection is refused, not waited for.
func TestBackendSockRefuses(t *testing.T) {
	tracer, err := servicetraceroute.New(servicetraceroute.Config{Backend: servicetraceroute.BackendSock, Label: "x"})
	if err != nil {
		t.Fatal(err)
	}
	defer tracer.Close()
	tr, err := tracer.TraceConn(t.Context(), pretended{})
	if err != nil || tr.Stop != trace.StopRefused || tr.Reason != trace.ReasonCapability || tr.Label != "x" || tr.Service.By != trace.ByConnection ||
		tr.Flow.Src.String() != "192.0.2.1:40510" {
		t.Errorf("%+v, %v", tr, err)
	}
}
