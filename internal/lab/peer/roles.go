//go:build linux

package peer

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"servicetraceroute/internal/lab/node"
)

// Roles returns a node's abilities as an application host.
func Roles() node.Roles {
	p := &peer{servers: map[int]*server{}}
	return node.Roles{
		"peer/https":    node.Role(p.https),
		"peer/dns":      node.Role(p.dns),
		"peer/tcp":      node.Role(p.tcp),
		"peer/udp":      node.Role(p.udp),
		"peer/conns":    node.Role(p.conns),
		"peer/stop":     node.Role(p.stop),
		"peer/run":      node.Role(run),
		"peer/get":      node.Role(get),
		"peer/resolve":  node.Role(resolve),
		"peer/exchange": node.Role(exchange),
		"peer/dial":     node.Role(dial),
		"peer/counters": node.Role(counters),
		"peer/sysctl":   node.Role(sysctl),
	}
}

// Server names a running server of one node.
type Server struct {
	ID   int
	Addr netip.AddrPort // as bound; the unspecified address means all of them
}

// none is the argument or result of a role that needs none.
type none struct{}

// peer is the state of one node.
type peer struct {
	mu      sync.Mutex
	lastID  int
	servers map[int]*server
}

// server is one running server. done is closed when nothing of it runs any more.
type server struct {
	cancel context.CancelFunc
	done   chan struct{}
	conns  *connLog // of TCP servers
}

// start runs serve until its context ends and keeps it under a new ID. serve
// returns when all that it started has ended.
func (p *peer) start(ctx context.Context, addr net.Addr, conns *connLog, serve func(context.Context)) (Server, error) {
	bound, err := addrPort(addr)
	if err != nil {
		return Server{}, err
	}
	life, cancel := context.WithCancel(node.Background(ctx))
	s := &server{cancel: cancel, done: make(chan struct{}), conns: conns}
	p.mu.Lock()
	p.lastID++
	id := p.lastID
	p.servers[id] = s
	p.mu.Unlock()
	go func() {
		defer close(s.done)
		defer cancel()
		serve(life)
	}()
	return Server{ID: id, Addr: bound}, nil
}

func (p *peer) stop(ctx context.Context, arg Server) (none, error) {
	p.mu.Lock()
	s := p.servers[arg.ID]
	delete(p.servers, arg.ID)
	p.mu.Unlock()
	if s == nil {
		return none{}, fmt.Errorf("no server %d", arg.ID)
	}
	s.cancel()
	select {
	case <-s.done:
		return none{}, nil
	case <-ctx.Done():
		return none{}, ctx.Err()
	}
}

// Stop ends a server and its connections and waits for that.
func Stop(ctx context.Context, c node.Caller, s Server) error {
	return c.Call(ctx, "peer/stop", s, nil)
}

// listen opens a TCP listener on all addresses of both families. Go offers MPTCP
// on its own; a lab's ordinary server must not.
func listen(ctx context.Context, port uint16, mptcp bool, congestion string) (net.Listener, error) {
	// Accepted connections inherit it.
	lc := net.ListenConfig{Control: Socket{Congestion: congestion}.control}
	lc.SetMultipathTCP(mptcp)
	return lc.Listen(ctx, "tcp", fmt.Sprintf(":%d", port))
}

func addrPort(a net.Addr) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return ap, fmt.Errorf("address of a socket: %w", err)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

// addrOf is addrPort for places where an unknown address is just not reported.
func addrOf(a net.Addr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	ap, _ := addrPort(a)
	return ap
}
