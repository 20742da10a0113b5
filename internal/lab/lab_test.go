//go:build linux

package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"servicetraceroute/internal/lab/node"
	"servicetraceroute/internal/scenario"
)

func TestMain(m *testing.M) {
	extraRoles = append(extraRoles, testRoles)
	Main()
	os.Exit(m.Run())
}

func testRoles() node.Roles {
	return node.Roles{
		"test/echo": node.Role(echoServer),
		"test/dial": node.Role(dialEcho),
	}
}

func echoServer(ctx context.Context, addr string) (any, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(node.Background(ctx), func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 1500)
				for {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					if string(b[:n]) == "who" {
						c.Write([]byte(c.RemoteAddr().String()))
						continue
					}
					c.Write(b[:n])
				}
			}()
		}
	}()
	return nil, nil
}

type dialed struct{ Local, Seen netip.AddrPort }

func dialEcho(ctx context.Context, addr string) (dialed, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return dialed{}, err
	}
	defer c.Close()
	c.Write([]byte("who"))
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil {
		return dialed{}, err
	}
	return dialed{netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(string(b[:n]))}, nil
}

func chain(n int) scenario.Network {
	net := scenario.Network{Name: "chain"}
	net.Nodes = append(net.Nodes, scenario.Node{Name: "client", Kind: scenario.Host})
	prev := "client"
	for i := range n - 2 {
		name := fmt.Sprintf("r%d", i+1)
		net.Nodes = append(net.Nodes, scenario.Node{Name: name, Kind: scenario.Router})
		net.Links = append(net.Links, scenario.Link{A: prev, B: name})
		prev = name
	}
	net.Nodes = append(net.Nodes, scenario.Node{Name: "server", Kind: scenario.Host})
	net.Links = append(net.Links, scenario.Link{A: prev, B: "server"})
	return net
}

func TestStartTime(t *testing.T) {
	for _, n := range []int{10, 20} {
		begin := time.Now()
		l, err := Start(t.Context(), chain(n), Options{})
		if err != nil {
			t.Fatal(err)
		}
		started := time.Since(begin)
		ctx := t.Context()
		if err := l.Node("server").Call(ctx, "test/echo", ":80", nil); err != nil {
			t.Fatal(err)
		}
		for _, v6 := range []bool{false, true} {
			var d dialed
			addr := netip.AddrPortFrom(l.Node("server").Addr(v6), 80)
			if err := l.Node("client").Call(ctx, "test/dial", addr.String(), &d); err != nil {
				t.Fatal(err)
			}
			t.Log(d)
		}
		begin = time.Now()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d nodes: start %v, close %v", n, started, time.Since(begin))
	}
}
