package simnet

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/wire"
)

// Flow is a workload under way.
type Flow struct {
	// Tuple is the way from client to server as the client's packets have it.
	Tuple    Tuple
	Workload scenario.Workload
	Started  time.Time

	net            *Net
	id             uint64
	client, server *endpoint
	done           chan struct{}
	isDone         bool
}

// Result is what became of a flow.
type Result struct {
	Client, Server End
	// Intact says that the flow ended in order and that each side received exactly
	// the bytes that the other one sent.
	Intact bool
}

// End is one end of a flow.
type End struct {
	Local    netip.AddrPort // as this end knows itself
	Sent     int64          // bytes acknowledged
	Received int64
	SHA256   [sha256.Size]byte // of what was received
	Mismatch int64             // offset of the first wrong byte received; -1: none
	Err      error             // why the connection ended; nil in order
	Counters Counters
	RTT      time.Duration // smoothed, as TCP itself measured it
	MinRTT   time.Duration
	// Exchanges is how many answers a client got, Slowest how long it waited for
	// the last of them to come in whole.
	Exchanges int
	Slowest   time.Duration
}

// Start opens a flow between two hosts.
func (n *Net) Start(w scenario.Workload) (*Flow, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	client, server := n.nodes[w.Client], n.nodes[w.Server]
	dialled := server
	if server != nil && server.opts.Forward != "" {
		server = n.nodes[server.opts.Forward]
	}
	switch {
	case n.closed:
		return nil, errors.New("simnet: start: the network is closed")
	case client == nil || client.stack == nil:
		return nil, fmt.Errorf("simnet: start: no host %q", w.Client)
	case server == nil || server.stack == nil:
		return nil, fmt.Errorf("simnet: start: no host %q", w.Server)
	case w.Port == 0:
		return nil, errors.New("simnet: start: Workload.Port: is not set")
	case w.Traffic < scenario.Download || w.Traffic > scenario.Idle:
		return nil, fmt.Errorf("simnet: start: Workload.Traffic: %d is unknown", w.Traffic)
	case w.Traffic <= scenario.SlowReader && w.Bytes <= 0 && w.Duration <= 0:
		return nil, errors.New("simnet: start: a transfer needs Bytes or Duration")
	}
	remote := netip.AddrPortFrom(dialled.layout.Addr(w.IPv6), w.Port)
	local, ok := client.stack.sourceOf(remote)
	if !ok {
		return nil, fmt.Errorf("simnet: start: %s has no route to %s", w.Client, remote.Addr())
	}
	f := &Flow{
		Tuple:    Tuple{wire.ProtoTCP, netip.AddrPortFrom(local, client.stack.freePort(local, remote)), remote},
		Workload: w, net: n, id: n.forgotten + uint64(len(n.flows)) + 1, done: make(chan struct{}),
	}
	n.flows = append(n.flows, f)
	c := client.stack.newConn(f.Tuple, client.stack.iss())
	c.wants = offered{sack: !w.NoSACK, ts: !w.NoTimestamps, scale: !w.NoWindowScale}
	f.client = &endpoint{net: n, flow: f, conn: c, side: fromClient, check: newChecker(f.id, fromServer), think: client.opts.Think, half: client.opts.HalfClose}
	c.app = f.client
	if w.Traffic == scenario.SlowReader {
		c.slow, c.rcvBuf = true, slowBuffer
	}
	if server.stack.listeners[w.Port] == nil {
		server.stack.listen(w.Port, func(c *conn) app {
			return &endpoint{net: n, conn: c, side: fromServer}
		})
	}
	f.Started = n.time(max(n.clock(), n.now) + 1)
	n.outside(c.dial)
	return f, nil
}

// Done is closed when the flow has ended at both ends, or failed at one.
func (f *Flow) Done() <-chan struct{} { return f.done }

// Result returns what became of the flow so far.
func (f *Flow) Result() Result {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	r := Result{Client: f.client.end(), Server: f.server.end()}
	r.Intact = f.isDone && f.server != nil && r.Client.Err == nil && r.Server.Err == nil &&
		r.Client.Mismatch < 0 && r.Server.Mismatch < 0 &&
		r.Client.Received == r.Server.Sent && r.Server.Received == r.Client.Sent
	return r
}

func (e *endpoint) end() End {
	if e == nil { // the server has not heard of the flow
		return End{Mismatch: -1}
	}
	c := e.conn
	x := End{
		Local: c.tuple.Src, Sent: min(max(c.una-1, 0), c.written), Err: c.err, Counters: c.count, RTT: c.srtt, MinRTT: c.minRTT,
		Mismatch: -1, Exchanges: e.exchanges, Slowest: e.slowest,
	}
	if e.check != nil {
		x.Received, x.Mismatch = e.check.n, e.check.mismatch
		e.check.sum.Sum(x.SHA256[:0])
	}
	return x
}

// finish closes Done once nothing more will happen.
func (f *Flow) finish() {
	over := func(e *endpoint) bool { return e == nil || e.over }
	failed := f.client.conn.err != nil || f.server != nil && f.server.conn.err != nil
	if !f.isDone && (failed || over(f.client) && over(f.server)) {
		f.isDone = true
		close(f.done)
	}
}

// Closed reports whether the flow has ended.
func (f *Flow) Closed() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}
