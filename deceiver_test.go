//go:build linux

package servicetraceroute_test

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/wire"
)

// deceiver sits at the first router, sees all that passes there, and sends to the
// client what it likes, past the router's own taps.
type deceiver struct {
	ring    *capture.Ring
	fd      int
	client  netip.Addr
	server  netip.AddrPort
	to      unix.SockaddrLinklayer
	known   bool          // where the client is, and what the flow looks like
	seen    wire.TCPProbe // the client's newest packet of its own
	peer    wire.TCPProbe // the server's
	answers [][]byte      // what routers quoted
	packets [][]byte      // the application's packets
	rng     *rand.Rand
	scratch []byte
	sent    int
	ip      wire.Packet
	tcp     wire.TCP
}

func newDeceiver(t *testing.T, f *field, ipv6 bool) *deceiver {
	t.Helper()
	d := &deceiver{
		client: f.lab.Node("client").Addr(ipv6), rng: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1)),
		server: netip.AddrPortFrom(f.lab.Node("server").Addr(ipv6), f.server.Addr.Port()),
	}
	proto := uint16(unix.ETH_P_IP)
	if ipv6 {
		proto = unix.ETH_P_IPV6
	}
	d.to.Protocol = proto<<8 | proto>>8
	err := f.lab.Node("r0").Do(func() (err error) {
		if d.ring, err = capture.Open(capture.Config{}); err != nil {
			return err
		}
		if d.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return errors.Join(err, d.ring.Close())
		}
		return unix.SetsockoptInt(d.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(d.ring.Close(), unix.Close(d.fd)) })
	return d
}

// flood lies for some time, once the flow is known, and returns how often a second.
func (d *deceiver) flood(kind lieKind, rate int, life time.Duration) float64 {
	for end := time.Now().Add(5 * time.Second); !d.known && time.Now().Before(end); {
		if d.learn(time.Now().Add(5*time.Millisecond)) != nil {
			return 0
		}
	}
	if !d.known {
		return 0
	}
	start := time.Now()
	buf := make([]byte, 0, 2048)
	for time.Since(start) < life {
		if d.learn(time.Now().Add(time.Millisecond)) != nil {
			return 0
		}
		owed := int(time.Since(start).Seconds()*float64(rate)) - d.sent
		for range min(owed, rate/20) {
			if buf = kind.make(d, buf[:0]); len(buf) > 0 && unix.Sendto(d.fd, buf, 0, &d.to) == nil {
				d.sent++
			}
		}
	}
	return float64(d.sent) / time.Since(start).Seconds()
}

// learn takes in what passes until a time.
func (d *deceiver) learn(until time.Time) error {
	if err := d.ring.SetReadDeadline(until); err != nil {
		return err
	}
	for time.Now().Before(until) {
		batch, err := d.ring.ReadBatch()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
		for i := range batch {
			d.packet(&batch[i])
		}
	}
	return nil
}

func (d *deceiver) packet(p *capture.Packet) {
	if d.ip.Decode(p.Data, p.Len) != nil || p.Direction == capture.Foreign {
		return
	}
	down := p.Direction == capture.Outgoing && d.ip.Dst == d.client
	switch {
	case d.ip.Proto == wire.ProtoTCP && d.tcp.Decode(d.ip.Transport, d.ip.TransportLen) == nil:
		d.segment(p, down)
	case down: // a router's answer leaves for the client
		var m wire.ICMP
		if m.Decode(d.ip.Version, d.ip.Transport) == nil && m.Kind == wire.TimeExceeded {
			d.answers = keep(d.answers, m.Quote)
		}
	}
}

// segment takes in a packet of the flow, probes aside.
func (d *deceiver) segment(p *capture.Packet, down bool) {
	ip, s := &d.ip, &d.tcp
	newest := wire.TCPProbe{
		Src: netip.AddrPortFrom(ip.Src, s.SrcPort), Dst: netip.AddrPortFrom(ip.Dst, s.DstPort), TTL: ip.TTL, TOS: ip.TOS, FlowLabel: ip.FlowLabel,
		ID: ip.ID, Seq: s.Seq + uint32(s.PayloadLen), Ack: s.Ack, Flags: wire.ACK, Window: s.Window,
		Timestamp: s.Options.HasTimestamp, TSVal: s.Options.TSVal, TSEcr: s.Options.TSEcr,
	}
	switch {
	case s.Flags&wire.SYN != 0:
	case down && newest.Src == d.server && p.NextHopKnown:
		newest.TTL = ip.TTL // as it leaves, and arrives
		d.peer = newest
		d.to.Ifindex, d.to.Halen, d.to.Addr = p.Interface, p.NextHop.Len, p.NextHop.Addr
		d.known = d.seen.Dst == d.server
	case p.Direction == capture.Incoming && ip.Src == d.client && newest.Dst == d.server && ip.TTL > 32:
		d.seen = newest
		d.packets = keep(d.packets, p.Data)
	}
}

// keep remembers the newest few.
func keep(all [][]byte, b []byte) [][]byte {
	if len(all) >= 64 {
		all = append(all[:0], all[32:]...)
	}
	return append(all, append([]byte(nil), b...))
}
