//go:build linux

package peer

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"servicetraceroute/internal/lab/node"
	"servicetraceroute/internal/scenario"
)

// RunConfig says which flows a client opens to a server started by ServeTCP.
type RunConfig struct {
	// Workload gives their shape; its Client and Server are the controller's
	// affair, see also ApplyOptions. Duration 0 means, for RequestResponse, one
	// exchange, and for OneByte, Bytes messages.
	Workload scenario.Workload
	Server   netip.AddrPort
	Flows    int           // 0: one
	Stagger  time.Duration // between the starts of two flows
	Timeout  time.Duration // of each flow, from its start; 0: Workload.Duration and 60 s
	Seed     uint64        // of the content; all flows carry the same
	Socket   Socket
}

// Socket is how a client opens its sockets. The zero value is Go's usual way.
type Socket struct {
	LocalPort     uint16 // flow i uses LocalPort+i; 0: any
	RecvErr       bool   // IP_RECVERR and IPV6_RECVERR
	MPTCP         bool
	Nagle         bool   // TCP_NODELAY off
	ReceiveBuffer int    // SO_RCVBUF before connect (the kernel doubles it); 0: its default, for SlowReader 32 KiB
	Congestion    string // TCP_CONGESTION; empty: cubic where there is one
}

// Flow is what a client saw of one flow.
type Flow struct {
	Local, Remote         netip.AddrPort
	Start, Connected, End time.Time
	Sent, Received        int64
	SHA256                string // of the received stream, without its trailer
	// Intact says that the flow ended in order and that both sides received
	// exactly the bytes that the other one sent.
	Intact  bool
	Error   string
	BitRate float64 // of the larger direction, from Connected to End
	Latency Latency // of exchanges
	TCPInfo TCPInfo
}

// Latency sums up how long exchanges took.
type Latency struct {
	Count                   int
	Min, P50, P90, P99, Max time.Duration
}

// Run opens the flows and waits until all have ended. A flow's own failure is in
// its record.
func Run(ctx context.Context, c node.Caller, cfg RunConfig) ([]Flow, error) {
	return node.Call[[]Flow](ctx, c, "peer/run", cfg)
}

const (
	maxFlows    = 4096
	maxExchange = 1 << 20 // latencies kept per flow
	// slowReadBuffer is small enough that the sender lives with a tiny window.
	slowReadBuffer = 32 << 10
	slowReadChunk  = 8 << 10
	slowReadPause  = 10 * time.Millisecond
)

func run(ctx context.Context, cfg RunConfig) ([]Flow, error) {
	if cfg.Flows == 0 {
		cfg.Flows = 1
	}
	if cfg.Flows < 0 || cfg.Flows > maxFlows {
		return nil, fmt.Errorf("%d flows: at most %d", cfg.Flows, maxFlows)
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = cfg.Workload.Duration + 60*time.Second
	}
	flows := make([]Flow, cfg.Flows)
	var wg sync.WaitGroup
	for i := range flows {
		if i > 0 && !sleep(ctx, cfg.Stagger) {
			flows = flows[:i]
			break
		}
		wg.Go(func() { flows[i] = runFlow(ctx, cfg, i) })
	}
	wg.Wait()
	return flows, nil
}

// client is the client's side of one flow.
type client struct {
	net.Conn
	cfg       RunConfig
	req       request
	flow      *Flow
	latencies []time.Duration
}

func runFlow(ctx context.Context, cfg RunConfig, i int) Flow {
	flow := Flow{Remote: cfg.Server, Start: time.Now()}
	if err := runClient(ctx, cfg, i, &flow); err != nil {
		flow.Error = err.Error()
	}
	flow.Intact = flow.Error == ""
	if flow.End.IsZero() {
		flow.End = time.Now()
	}
	if took := flow.End.Sub(flow.Connected).Seconds(); took > 0 && !flow.Connected.IsZero() {
		flow.BitRate = float64(max(flow.Sent, flow.Received)) * 8 / took
	}
	return flow
}

func runClient(ctx context.Context, cfg RunConfig, i int, flow *Flow) error {
	ctx, cancel := context.WithDeadline(ctx, flow.Start.Add(cfg.Timeout))
	defer cancel()
	sock := cfg.Socket
	if sock.ReceiveBuffer == 0 && cfg.Workload.Traffic == scenario.SlowReader {
		sock.ReceiveBuffer = slowReadBuffer
	}
	conn, err := sock.dialer(i).DialContext(ctx, "tcp", cfg.Server.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	flow.Connected = time.Now()
	flow.Local = addrOf(conn.LocalAddr())
	if sock.Nagle {
		_ = conn.(*net.TCPConn).SetNoDelay(false)
	}
	w := cfg.Workload
	c := &client{Conn: conn, cfg: cfg, flow: flow,
		req: request{Traffic: w.Traffic, Bytes: w.Bytes, Duration: w.Duration, Seed: cfg.Seed}}
	err = c.play(ctx)
	flow.End = time.Now()
	flow.TCPInfo, _ = tcpInfo(conn) // zero when the socket has none
	flow.Latency = summarize(c.latencies)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (c *client) play(ctx context.Context) error {
	line, err := json.Marshal(c.req)
	if err != nil {
		return err
	}
	if _, err := c.Write(append(line, '\n')); err != nil {
		return err
	}
	switch c.req.Traffic {
	case scenario.Download:
		return c.download(c.Conn)
	case scenario.SlowReader:
		pause := c.cfg.Workload.Every
		if pause <= 0 {
			pause = slowReadPause
		}
		return c.download(slowReader{ctx, c.Conn, pause})
	case scenario.Upload:
		return c.upload()
	case scenario.RequestResponse, scenario.OneByte, scenario.Idle:
		return c.exchange(ctx)
	}
	return fmt.Errorf("traffic %d is unknown", c.req.Traffic)
}

// slowReader reads little at a time.
type slowReader struct {
	ctx   context.Context
	r     io.Reader
	pause time.Duration
}

func (s slowReader) Read(p []byte) (int, error) {
	if !sleep(s.ctx, s.pause) {
		return 0, s.ctx.Err()
	}
	return s.r.Read(p[:min(len(p), slowReadChunk)])
}

// download reads a stream and its trailer. The trailer's bytes are only known
// once the stream has ended, so the last ones read are always held back.
func (c *client) download(r io.Reader) error {
	check := newChecker(newStream(c.req.Seed))
	buf := make([]byte, trailerLen+chunk)
	held := 0
	for {
		n, err := r.Read(buf[held:])
		held += n
		if extra := held - trailerLen; extra > 0 {
			check.Write(buf[:extra])
			held = copy(buf, buf[extra:held])
		}
		c.flow.Received, c.flow.SHA256 = check.n, ""
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	c.flow.SHA256 = check.hash()
	t, err := parseTrailer(buf[:held])
	if err != nil {
		return err
	}
	return errors.Join(check.err(), compare(t, check.n, check.sum.Sum(nil)))
}

// compare checks what was received (or sent) against the other side's trailer.
func compare(t trailer, n int64, sum []byte) error {
	if t.Bytes != n || string(t.Sum[:]) != string(sum) {
		return fmt.Errorf("%d bytes here, %d at the server, or not the same ones", n, t.Bytes)
	}
	return nil
}

func (c *client) upload() error {
	sum := sha256.New()
	n, err := sendStream(c.Conn, c.req, sum)
	c.flow.Sent = n
	if err != nil {
		return err
	}
	if err := closeWrite(c.Conn); err != nil {
		return err
	}
	raw, err := io.ReadAll(io.LimitReader(c.Conn, trailerLen+1))
	if err != nil {
		return err
	}
	t, err := parseTrailer(raw)
	if err != nil {
		return err
	}
	return compare(t, n, sum.Sum(nil))
}

// exchange sends messages and compares the answers.
func (c *client) exchange(ctx context.Context) error {
	size, err := messageSize(c.req.Traffic, c.req.Bytes)
	if err != nil {
		return err
	}
	src := newStream(c.req.Seed)
	check := newChecker(masked{newStream(c.req.Seed)})
	msg := make([]byte, size)
	err = c.exchanges(ctx, func() error {
		if _, err := io.ReadFull(src, msg); err != nil {
			return err
		}
		n, err := c.Write(msg)
		c.flow.Sent += int64(n)
		if err != nil {
			return err
		}
		n, err = io.ReadFull(c.Conn, msg)
		check.Write(msg[:n])
		c.flow.Received = check.n
		return err
	})
	c.flow.SHA256 = check.hash()
	if err != nil {
		return errors.Join(err, check.err())
	}
	// The orderly end shows that the connection is still alive on both sides, and
	// that nothing more was in the stream.
	if err := closeWrite(c.Conn); err != nil {
		return err
	}
	rest, err := io.Copy(io.Discard, c.Conn)
	if err == nil && rest > 0 {
		err = fmt.Errorf("%d bytes after the last answer", rest)
	}
	return errors.Join(err, check.err())
}

// exchanges repeats one at the workload's pace.
func (c *client) exchanges(ctx context.Context, one func() error) error {
	w := c.cfg.Workload
	count := int64(-1)
	switch {
	case w.Traffic == scenario.Idle || w.Duration <= 0 && w.Traffic == scenario.RequestResponse:
		count = 1
	case w.Duration <= 0:
		count = max(w.Bytes, 1)
	}
	start := time.Now()
	for i := int64(0); count < 0 || i < count; i++ {
		began := time.Now()
		if err := one(); err != nil {
			return fmt.Errorf("exchange %d: %w", i, err)
		}
		if len(c.latencies) < maxExchange {
			c.latencies = append(c.latencies, time.Since(began))
		}
		if count < 0 && time.Since(start)+w.Every >= w.Duration {
			break
		}
		// Measured from the start, so that slow answers do not stretch the pace.
		if !sleep(ctx, time.Until(start.Add(time.Duration(i+1)*w.Every))) {
			return ctx.Err()
		}
	}
	if !sleep(ctx, time.Until(start.Add(w.Duration))) {
		return ctx.Err()
	}
	return nil
}

func summarize(d []time.Duration) Latency {
	if len(d) == 0 {
		return Latency{}
	}
	slices.Sort(d)
	at := func(q float64) time.Duration { return d[int(q*float64(len(d)-1))] }
	return Latency{Count: len(d), Min: d[0], P50: at(0.5), P90: at(0.9), P99: at(0.99), Max: d[len(d)-1]}
}

// sleep waits and reports whether it was not interrupted.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
