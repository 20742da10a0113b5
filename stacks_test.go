//go:build linux

package servicetraceroute_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"servicetraceroute"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/peer"
)

// loseOne lets a router drop the next TCP acknowledgement from a port that it
// forwards. In nft(8)'s words:
//
//	chain forward {
//		type filter hook forward priority filter - 1
//		tcp flags & (fin|syn|rst|psh|ack) == ack tcp sport PORT limit rate 1/week burst 1 packets drop
//	}
func loseOne(router *lab.Node, port uint16) error {
	return router.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := &nftables.Table{Name: "lose", Family: nftables.TableFamilyINet}
		c.AddTable(table)
		c.DelTable(table)
		c.AddTable(table)
		chain := c.AddChain(&nftables.Chain{
			Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRef(-1),
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x1f}, Xor: []byte{0}},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x10}},
			&expr.Limit{Type: expr.LimitTypePkts, Rate: 1, Unit: expr.LimitTimeWeek, Burst: 1},
			&expr.Counter{},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
		return c.Flush()
	})
}

// echo serves port 4444 at a node until the test ends.
func echo(t testing.TB, at *lab.Node) {
	t.Helper()
	err := at.Do(func() error {
		ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", ":4444")
		if err != nil {
			return err
		}
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					_, _ = io.Copy(c, c)
				}()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLostThirdACK: a server in SYN-cookie mode forgets a client until its third
// packet. If that is lost, the server answers anything old with a reset. A client
// that is silent for a while after connecting must live all the same.
func TestLostThirdACK(t *testing.T) {
	t.Parallel()
	b := newBench(t, "cookies", 0)
	client, server := b.lab.Node("client"), b.lab.Node("server")
	echo(t, server)
	if err := server.Sysctl(t.Context(), "net.ipv4.tcp_syncookies", "2"); err != nil {
		t.Fatal(err)
	}
	// connect is silent for as long as during takes, then wants an echo, and stays for
	// as long as after takes. Each has a port of its own: the last packet of the one before
	// may be late, and would be the one that is lost.
	var port uint16 = 20_000
	connect := func(ipv6 bool, during, after func()) error {
		port++
		if err := loseOne(b.lab.Node("r1"), port); err != nil {
			t.Fatal(err)
		}
		var c net.Conn
		err := client.Do(func() (err error) {
			d := net.Dialer{Timeout: 5 * time.Second, KeepAlive: -1, LocalAddr: &net.TCPAddr{Port: int(port)}}
			d.SetMultipathTCP(false)
			c, err = d.DialContext(t.Context(), "tcp", netip.AddrPortFrom(server.Addr(ipv6), 4444).String())
			return err
		})
		if err != nil {
			return err
		}
		defer c.Close()
		during()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err = c.Write([]byte("ping")); err == nil {
			_, err = io.ReadFull(c, make([]byte, 4))
			after()
		}
		return err
	}
	for _, ipv6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6 %v", ipv6), func(t *testing.T) {
			before := b.counters()
			f := &field{t: t, lab: b.lab}
			f.tracer = f.open(servicetraceroute.Config{})
			stop := f.watch(servicetraceroute.Selection{})
			silent := func() { time.Sleep(3500 * time.Millisecond) }
			traced := func() {
				for end := time.Now().Add(15 * time.Second); f.tracer.Stats().Traces.Done == 0 && time.Now().Before(end); {
					time.Sleep(50 * time.Millisecond)
				}
			}
			if err := connect(ipv6, silent, traced); err != nil {
				t.Errorf("with our probes: %v", err)
			}
			all := stop()
			for _, tr := range all.traces {
				t.Log(describe(tr))
			}
			moved := b.counters()[1].Delta(before[1])
			t.Log(moved.Only(append([]string{"TcpExt.SyncookiesSent", "TcpExt.SyncookiesRecv", "TcpExt.SyncookiesFailed"}, peer.Harm...)))
			if moved["TcpExt.SyncookiesSent"] == 0 || moved["TcpExt.SyncookiesFailed"] != 0 || moved["Tcp.OutRsts"] != 0 {
				t.Errorf("server: %v", moved)
			}
			if len(all.traces) != 1 || !all.traces[0].Reached {
				t.Errorf("%d traces: want the destination once the server has spoken", len(all.traces))
			}
		})
	}
	t.Run("a probe that reaches", func(t *testing.T) {
		l := newLiar(t, client)
		err := connect(false, func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			l.run(ctx, lie{every: 300 * time.Millisecond, burst: 1, make: l.honest})
		}, func() {})
		if t.Log(l.sent.Load(), err); err == nil {
			t.Error("it did no harm: this test cannot fail")
		}
	})
}
