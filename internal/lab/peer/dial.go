//go:build linux

package peer

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"servicetraceroute/internal/lab/node"
)

// DialConfig describes one bare TCP connection: to anything, saying anything,
// closed in any way.
type DialConfig struct {
	Remote netip.AddrPort
	Send   []byte
	Expect int           // bytes to wait for after Send
	Hold   time.Duration // to stay open and silent after that
	Abort  bool          // end with an RST instead of a FIN
	Socket Socket
}

// Dialed is what became of it.
type Dialed struct {
	Local, Remote         netip.AddrPort
	Start, Connected, End time.Time
	Received              string // hexadecimal
	PeerClosed            bool   // before the hold was over
	Error                 string
	TCPInfo               TCPInfo
}

// Dial opens one connection and waits for its end. Its failure is in the record.
func Dial(ctx context.Context, c node.Caller, cfg DialConfig) (Dialed, error) {
	return node.Call[Dialed](ctx, c, "peer/dial", cfg)
}

func dial(ctx context.Context, cfg DialConfig) (Dialed, error) {
	d := Dialed{Remote: cfg.Remote, Start: time.Now()}
	if err := dialOne(ctx, cfg, &d); err != nil {
		d.Error = err.Error()
	}
	d.End = time.Now()
	return d, nil
}

func dialOne(ctx context.Context, cfg DialConfig, d *Dialed) error {
	c, err := cfg.Socket.dialer(0).DialContext(ctx, "tcp", cfg.Remote.String())
	if err != nil {
		return err
	}
	conn := c.(*net.TCPConn)
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if cfg.Abort {
		_ = conn.SetLinger(0)
	}
	d.Connected, d.Local = time.Now(), addrOf(conn.LocalAddr())
	defer func() { d.TCPInfo, _ = tcpInfo(conn) }()
	if _, err := conn.Write(cfg.Send); err != nil {
		return err
	}
	if cfg.Expect > 0 {
		conn.SetReadDeadline(time.Now().Add(stall))
		buf := make([]byte, min(cfg.Expect, maxMessage))
		n, err := io.ReadFull(conn, buf)
		d.Received = hex.EncodeToString(buf[:n])
		if err != nil {
			return err
		}
	}
	return hold(conn, cfg.Hold, d)
}

// hold stays silent and watches whether the peer ends the connection.
func hold(conn *net.TCPConn, t time.Duration, d *Dialed) error {
	if t <= 0 {
		return nil
	}
	conn.SetReadDeadline(time.Now().Add(t))
	_, err := io.Copy(io.Discard, conn)
	switch {
	case isTimeout(err):
		return nil
	case err == nil:
		d.PeerClosed = true
		return nil
	case errors.Is(err, net.ErrClosed):
		return context.Canceled
	}
	d.PeerClosed = true
	return err
}
