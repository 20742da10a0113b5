//go:build linux

package servicetraceroute_test

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"servicetraceroute"
	"servicetraceroute/trace"
)

// TestQUICMoves: a client of quic-go goes on from another socket in the middle of its
// connection. Both flows are traced as the service's, whose name was said in the first alone.
func TestQUICMoves(t *testing.T) {
	t.Parallel()
	f := newBareField(t, chain(4), servicetraceroute.Config{NoDNS: true})
	client, server := f.lab.Node("client"), f.lab.Node("server")
	serveQUIC(t, server)
	for _, ipv6 := range []bool{false, true} {
		stop := f.watch(servicetraceroute.Selection{Hosts: []string{"video.example"}})
		var ports []uint16
		socket := func() *quic.Transport {
			var conn *net.UDPConn
			if err := client.Do(func() (err error) { conn, err = net.ListenUDP("udp", nil); return err }); err != nil {
				t.Fatal(err)
			}
			ports = append(ports, uint16(conn.LocalAddr().(*net.UDPAddr).Port))
			t.Cleanup(func() { _ = conn.Close() })
			return &quic.Transport{Conn: conn}
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
