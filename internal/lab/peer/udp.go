//go:build linux

package peer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"servicetraceroute/internal/lab/node"
)

// UDPConfig describes a UDP echo server. It answers each datagram once, masked,
// so that a datagram sent back by something on the way is not taken for its answer.
type UDPConfig struct {
	Port uint16 // 0: any
}

// ServeUDP starts a UDP echo server on both families.
func ServeUDP(ctx context.Context, c node.Caller, cfg UDPConfig) (Server, error) {
	return node.Call[Server](ctx, c, "peer/udp", cfg)
}

// ExchangeConfig describes a UDP client: it sends, waits for the answer, and
// sends again.
type ExchangeConfig struct {
	Server      netip.AddrPort
	Count       int           // datagrams; 0: one
	Size        int           // bytes of each; at least 8
	Every       time.Duration // between two
	Wait        time.Duration // for an answer; 0: 1 s
	Unconnected bool          // no connect(2)
	Socket      Socket
}

// Exchange is what a UDP client saw.
type Exchange struct {
	Local, Remote          netip.AddrPort
	Start, End             time.Time
	Sent                   int
	Answered               int // the right answer, in time, next in line
	Wrong                  int // other datagrams, from the server or anybody else
	TimedOut               int
	SendErrors, RecvErrors []string // at most 16 each, see the counts
	SendErrorCount         int
	RecvErrorCount         int
	Latency                Latency
}

// RunExchange plays a UDP client to its end.
func RunExchange(ctx context.Context, c node.Caller, cfg ExchangeConfig) (Exchange, error) {
	return node.Call[Exchange](ctx, c, "peer/exchange", cfg)
}

const maxDatagram = 65507

func (p *peer) udp(ctx context.Context, cfg UDPConfig) (Server, error) {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, "udp", fmt.Sprintf(":%d", cfg.Port))
	if err != nil {
		return Server{}, err
	}
	return p.start(ctx, pc.LocalAddr(), nil, func(life context.Context) {
		defer pc.Close()
		defer context.AfterFunc(life, func() { pc.Close() })()
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := pc.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // an ICMP error that belongs to an answer
			}
			maskBytes(buf[:n])
			_, _ = pc.WriteTo(buf[:n], from)
		}
	})
}

func exchange(ctx context.Context, cfg ExchangeConfig) (Exchange, error) {
	if cfg.Size = max(cfg.Size, 8); cfg.Size > maxDatagram {
		return Exchange{}, fmt.Errorf("datagrams of %d bytes: at most %d", cfg.Size, maxDatagram)
	}
	u, err := openUDP(ctx, cfg)
	if err != nil {
		return Exchange{}, err
	}
	defer u.conn.Close()
	// A deadline in the past ends a read at once.
	defer context.AfterFunc(ctx, func() { _ = u.conn.SetDeadline(time.Unix(1, 0)) })()
	u.out.Local, u.out.Remote, u.out.Start = addrOf(u.conn.LocalAddr()), cfg.Server, time.Now()
	for i := range max(cfg.Count, 1) {
		if i > 0 && !sleep(ctx, time.Until(u.out.Start.Add(time.Duration(i)*cfg.Every))) {
			break
		}
		u.once(ctx, uint64(i))
	}
	u.out.End = time.Now()
	u.out.Latency = summarize(u.latencies)
	return u.out, ctx.Err()
}

// udpClient is a running ExchangeConfig.
type udpClient struct {
	conn      *net.UDPConn
	cfg       ExchangeConfig
	wait      time.Duration
	src       io.Reader
	latencies []time.Duration
	out       Exchange
}

func openUDP(ctx context.Context, cfg ExchangeConfig) (*udpClient, error) {
	u := &udpClient{cfg: cfg, wait: cmp.Or(cfg.Wait, time.Second)}
	var local *net.UDPAddr
	if cfg.Socket.LocalPort != 0 {
		local = &net.UDPAddr{Port: int(cfg.Socket.LocalPort)}
	}
	network := "udp4"
	if cfg.Server.Addr().Is6() {
		network = "udp6"
	}
	if !cfg.Unconnected {
		d := net.Dialer{Control: cfg.Socket.control}
		if local != nil {
			d.LocalAddr = local
		}
		conn, err := d.DialContext(ctx, network, cfg.Server.String())
		if err != nil {
			return nil, err
		}
		return u.own(conn.(*net.UDPConn)), nil
	}
	lc := net.ListenConfig{Control: cfg.Socket.control}
	pc, err := lc.ListenPacket(ctx, network, fmt.Sprintf(":%d", cfg.Socket.LocalPort))
	if err != nil {
		return nil, err
	}
	return u.own(pc.(*net.UDPConn)), nil
}

// own gives the client its socket. Those of two clients differ in what they say, too, so that
// whoever watches behind a NAT can tell them apart.
func (u *udpClient) own(conn *net.UDPConn) *udpClient {
	u.conn, u.src = conn, newStream(uint64(conn.LocalAddr().(*net.UDPAddr).Port))
	return u
}

// once sends datagram i and waits for its answer.
func (u *udpClient) once(ctx context.Context, i uint64) {
	msg := make([]byte, u.cfg.Size)
	binary.BigEndian.PutUint64(msg, i)
	_, _ = io.ReadFull(u.src, msg[8:])
	sent := time.Now()
	if err := u.send(msg); err != nil {
		u.out.SendErrorCount++
		u.out.SendErrors = keep(u.out.SendErrors, err)
		return
	}
	u.out.Sent++
	maskBytes(msg)
	buf := make([]byte, maxDatagram)
	for ctx.Err() == nil {
		_ = u.conn.SetReadDeadline(sent.Add(u.wait))
		n, _, err := u.conn.ReadFromUDPAddrPort(buf)
		switch {
		case err == nil && bytes.Equal(buf[:n], msg):
			u.out.Answered++
			u.latencies = append(u.latencies, time.Since(sent))
			return
		case err == nil:
			u.out.Wrong++
		case isTimeout(err):
			u.out.TimedOut++
			return
		default:
			// As an application would take it: the error ends this exchange.
			u.out.RecvErrorCount++
			u.out.RecvErrors = keep(u.out.RecvErrors, err)
			return
		}
	}
}

func (u *udpClient) send(msg []byte) error {
	var err error
	if u.cfg.Unconnected {
		_, err = u.conn.WriteToUDPAddrPort(msg, u.cfg.Server)
	} else {
		_, err = u.conn.Write(msg)
	}
	return err
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// keep collects the first few different errors.
func keep(all []string, err error) []string {
	if s := err.Error(); len(all) < 16 && !slices.Contains(all, s) {
		all = append(all, s)
	}
	return all
}
