//go:build linux

package peer

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"servicetraceroute/internal/lab/node"
	"servicetraceroute/internal/scenario"
)

const (
	maxConns   = 4096 // at once, of one server
	maxLogged  = 4096 // ended connections remembered, of one server
	maxRequest = 512  // bytes of the line that opens a connection
	maxMessage = 16 << 20
	// stall ends a connection whose peer neither reads nor writes for so long.
	stall = 60 * time.Second
)

// TCPConfig describes a server of scenario.Workload flows.
type TCPConfig struct {
	Port       uint16 // 0: any
	MPTCP      bool   // offer Multipath TCP
	Congestion string // TCP_CONGESTION; empty: cubic where there is one
}

// Conn is what a TCP server saw of one connection. For a download its TCPInfo,
// not the client's, tells of retransmissions.
type Conn struct {
	Local, Remote  netip.AddrPort
	Start, End     time.Time
	Sent, Received int64
	SHA256         string // of what was received, after the request line
	Error          string
	TCPInfo        TCPInfo
}

// ServeTCP starts a server of workload flows.
func ServeTCP(ctx context.Context, c node.Caller, cfg TCPConfig) (Server, error) {
	return node.Call[Server](ctx, c, "peer/tcp", cfg)
}

// Conns returns a TCP server's ended connections, at most the newest 4096, and
// forgets them.
func Conns(ctx context.Context, c node.Caller, s Server) ([]Conn, error) {
	return node.Call[[]Conn](ctx, c, "peer/conns", s)
}

// request is the JSON line with which a client opens a connection.
type request struct {
	Traffic  scenario.Traffic
	Bytes    int64
	Duration time.Duration
	Seed     uint64
}

func (p *peer) tcp(ctx context.Context, cfg TCPConfig) (Server, error) {
	ln, err := listen(ctx, cfg.Port, cfg.MPTCP, cfg.Congestion)
	if err != nil {
		return Server{}, err
	}
	log := &connLog{}
	return p.start(ctx, ln.Addr(), log, func(life context.Context) {
		serveConns(life, ln, func(conn net.Conn) { log.add(serveWorkload(conn)) })
	})
}

func (p *peer) conns(_ context.Context, s Server) ([]Conn, error) {
	p.mu.Lock()
	srv := p.servers[s.ID]
	p.mu.Unlock()
	if srv == nil || srv.conns == nil {
		return nil, fmt.Errorf("no TCP server %d", s.ID)
	}
	return srv.conns.take(), nil
}

// connLog remembers ended connections.
type connLog struct {
	mu    sync.Mutex
	conns []Conn
}

func (l *connLog) add(c Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) >= maxLogged {
		l.conns = l.conns[1:]
	}
	l.conns = append(l.conns, c)
}

func (l *connLog) take() []Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.conns
	l.conns = nil
	return c
}

// serveConns accepts until ctx ends, then closes what is open and waits for it.
func serveConns(ctx context.Context, ln net.Listener, handle func(net.Conn)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	defer ln.Close()
	slots := make(chan struct{}, maxConns)
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors or a connection that was reset before it was
			// accepted: the next one may fare better.
			time.Sleep(5 * time.Millisecond)
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			handle(conn)
		})
	}
}

// serveWorkload plays the server's part of one flow.
func serveWorkload(conn net.Conn) Conn {
	s := &serving{Conn: conn, in: bufio.NewReaderSize(conn, chunk), sum: sha256.New()}
	c := Conn{Local: addrOf(conn.LocalAddr()), Remote: addrOf(conn.RemoteAddr()), Start: time.Now()}
	err := s.serve()
	c.End = time.Now()
	c.Sent, c.Received = s.sent, s.received
	c.SHA256 = hex.EncodeToString(s.sum.Sum(nil))
	c.TCPInfo, _ = tcpInfo(conn) // zero when the socket has none
	if err != nil {
		c.Error = err.Error()
	}
	return c
}

func (s *serving) serve() error {
	req, err := s.readRequest()
	if err != nil {
		return fmt.Errorf("request: %w", err)
	}
	switch req.Traffic {
	case scenario.Download, scenario.SlowReader:
		return s.download(req)
	case scenario.Upload:
		return s.upload()
	case scenario.RequestResponse, scenario.OneByte, scenario.Idle:
		return s.messages(req)
	}
	return fmt.Errorf("request: traffic %d is unknown", req.Traffic)
}

// serving is the server's side of one connection.
type serving struct {
	net.Conn
	in             *bufio.Reader
	sum            hash.Hash
	sent, received int64
}

func (s *serving) readRequest() (request, error) {
	var req request
	s.SetReadDeadline(time.Now().Add(stall))
	var line []byte
	for len(line) < maxRequest {
		b, err := s.in.ReadByte()
		if err != nil {
			return req, err
		}
		if b == '\n' {
			return req, json.Unmarshal(line, &req)
		}
		line = append(line, b)
	}
	return req, errors.New("line too long")
}

func (s *serving) download(req request) error {
	if req.Traffic == scenario.SlowReader {
		// A large send buffer would go on for long after Duration is over.
		_ = s.Conn.(*net.TCPConn).SetWriteBuffer(64 << 10)
	}
	sum := sha256.New()
	n, err := sendStream(s.Conn, req, sum)
	s.sent = n
	if err != nil {
		return err
	}
	t := trailer{Bytes: n}
	sum.Sum(t.Sum[:0])
	if _, err := s.Write(t.append(nil)); err != nil {
		return err
	}
	if err := closeWrite(s.Conn); err != nil {
		return err
	}
	s.SetReadDeadline(time.Now().Add(stall + req.Duration))
	_, err = io.Copy(io.Discard, s.in) // until the client has read it all and closes
	return err
}

func (s *serving) upload() error {
	buf := make([]byte, chunk)
	for {
		s.SetReadDeadline(time.Now().Add(stall))
		n, err := s.in.Read(buf)
		s.sum.Write(buf[:n])
		s.received += int64(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	t := trailer{Bytes: s.received}
	s.sum.Sum(t.Sum[:0])
	_, err := s.Write(t.append(nil))
	return err
}

func (s *serving) messages(req request) error {
	size, err := messageSize(req.Traffic, req.Bytes)
	if err != nil {
		return err
	}
	buf := make([]byte, size)
	for {
		s.SetDeadline(time.Now().Add(stall + req.Duration))
		n, err := io.ReadFull(s.in, buf)
		s.sum.Write(buf[:n])
		s.received += int64(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		maskBytes(buf)
		if _, err := s.Write(buf); err != nil {
			return err
		}
		s.sent += int64(size)
	}
}

// messageSize returns the size of each message of an exchange.
func messageSize(t scenario.Traffic, n int64) (int, error) {
	switch {
	case t == scenario.OneByte || n == 0:
		return 1, nil
	case n < 0 || n > maxMessage:
		return 0, fmt.Errorf("messages of %d bytes: at most %d", n, maxMessage)
	}
	return int(n), nil
}

// sendStream writes the request's stream until its bytes or its time are
// through, and returns how much that was.
func sendStream(w net.Conn, req request, sum io.Writer) (int64, error) {
	if req.Bytes <= 0 && req.Duration <= 0 {
		return 0, errors.New("a transfer needs Bytes or Duration")
	}
	src := newStream(req.Seed)
	buf := make([]byte, chunk)
	var n int64
	for end := time.Now().Add(req.Duration); req.Bytes <= 0 || n < req.Bytes; {
		if req.Duration > 0 && !time.Now().Before(end) {
			break
		}
		part := buf
		if req.Bytes > 0 {
			part = buf[:min(int64(len(buf)), req.Bytes-n)]
		}
		if _, err := io.ReadFull(src, part); err != nil {
			return n, err
		}
		w.SetWriteDeadline(time.Now().Add(stall))
		m, err := w.Write(part)
		n += int64(m)
		if err != nil {
			return n, err
		}
		if _, err := sum.Write(part); err != nil {
			return n, err
		}
	}
	return n, nil
}

func closeWrite(conn net.Conn) error {
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.New("connection cannot be half-closed")
}
