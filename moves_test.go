//go:build linux

package servicetraceroute_test

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"servicetraceroute"
	"servicetraceroute/trace"
)

// quicSocket is a client's socket for QUIC, and its port.
func (f *field) quicSocket() (*quic.Transport, uint16) {
	f.t.Helper()
	var conn *net.UDPConn
	if err := f.lab.Node("client").Do(func() (err error) { conn, err = net.ListenUDP("udp", nil); return err }); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = conn.Close() })
	return &quic.Transport{Conn: conn}, uint16(conn.LocalAddr().(*net.UDPAddr).Port)
}

// TestQUICMoves: a client of quic-go goes on from another socket in the middle of its
// connection. Both flows are traced as the service's, whose name was said in the first alone.
func TestQUICMoves(t *testing.T) {
	t.Parallel()
	f := newBareField(t, chain(4), servicetraceroute.Config{NoDNS: true})
	server := f.lab.Node("server")
	serveQUIC(t, server)
	for _, ipv6 := range []bool{false, true} {
		stop := f.watch(servicetraceroute.Selection{Hosts: []string{"video.example"}})
		var ports []uint16
		socket := func() *quic.Transport {
			transport, port := f.quicSocket()
			ports = append(ports, port)
			return transport
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		q, err := socket().Dial(ctx, net.UDPAddrFromAddrPort(netip.AddrPortFrom(server.Addr(ipv6), quicPort)),
			&tls.Config{ServerName: "www.video.example", InsecureSkipVerify: true, NextProtos: []string{"echo"}}, &quic.Config{})
		if err != nil {
			t.Fatal(err)
		}
		talk := func() {
			if err := echoQUIC(ctx, q, 12); err != nil {
				t.Fatal(err)
			}
		}
		talk()
		path, err := q.AddPath(socket())
		if err == nil {
			err = path.Probe(ctx)
		}
		if err == nil {
			err = path.Switch()
		}
		if err != nil {
			t.Fatal(err)
		}
		talk()
		if err := q.CloseWithError(0, ""); err != nil {
			t.Error(err)
		}
		got := stop()
		for _, port := range ports {
			found := 0
			for _, tr := range got.traces {
				if tr.Flow.Src.Port() != port {
					continue
				}
				found++
				if tr.Service.By != trace.ByQUICSNI || tr.Service.Value != "www.video.example" || tr.Stop != trace.StopFence || len(tr.Hops) != 3 {
					t.Errorf("%+v: %s", tr.Service, describe(tr))
				}
			}
			if found == 0 {
				t.Errorf("no trace of the flow from port %d of %v", port, ports)
			}
		}
		f.judge(f.truth(), got.traces)
	}
}

// TestQUICShared: one socket of quic-go holds two connections to one server, begun one after the
// other and then both used. Their flow is traced as the service's, which the second one names.
func TestQUICShared(t *testing.T) {
	t.Parallel()
	f := newBareField(t, chain(4), servicetraceroute.Config{NoDNS: true})
	server := f.lab.Node("server")
	serveQUIC(t, server)
	for _, ipv6 := range []bool{false, true} {
		stop := f.watch(servicetraceroute.Selection{Hosts: []string{"video.example"}})
		socket, port := f.quicSocket()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		for _, name := range []string{"bank.example", "www.video.example"} {
			q, err := socket.Dial(ctx, net.UDPAddrFromAddrPort(netip.AddrPortFrom(server.Addr(ipv6), quicPort)),
				&tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"echo"}}, &quic.Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer q.CloseWithError(0, "")
			if err := echoQUIC(ctx, q, 12); err != nil {
				t.Fatal(err)
			}
		}
		got := stop()
		got.traces = slices.DeleteFunc(got.traces, func(tr *trace.Trace) bool {
			return tr.Flow.Src.Port() != port // of the round before
		})
		if len(got.traces) != 1 {
			t.Fatalf("%d traces", len(got.traces))
		}
		if tr := got.traces[0]; tr.Service.By != trace.ByQUICSNI || tr.Service.Value != "www.video.example" || tr.Stop != trace.StopFence || len(tr.Hops) != 3 {
			t.Errorf("%+v: %s", tr.Service, describe(tr))
		}
		f.judge(f.truth(), got.traces)
		if s := got.stats.Services; s.QUIC < 2 || s.Malformed != 0 {
			t.Errorf("%+v", s)
		}
	}
}
