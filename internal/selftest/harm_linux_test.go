package selftest

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"

	"servicetraceroute"
	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/inject"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/wire"
)

// deaf is a ring that lets UDP flows be traced, see servicetraceroute.Source.
type deaf struct{ *capture.Ring }

// Deaf says that no application hears of errors.
func (deaf) Deaf() bool { return true }

// harmful is a Sink that lets each probe reach the destination, and be taken in there.
type harmful struct {
	*inject.Socket
	ip  wire.Packet
	tcp wire.TCP
}

// Send implements servicetraceroute.Sink. Of a TCP probe it makes a segment with a byte
// that was received long ago: the server answers it and the sender believes that it
// repeated something for nothing. Of a datagram it makes a whole one with a TTL that
// suffices.
func (h *harmful) Send(packet []byte, ifindex int, nextHop capture.HardwareAddr) error {
	if err := h.ip.Decode(packet, len(packet)); err != nil {
		return err
	}
	src := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(h.ip.Src, port) }
	dst := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(h.ip.Dst, port) }
	if h.ip.Proto == wire.ProtoUDP {
		t := h.ip.Transport
		p := wire.UDPProbe{Src: src(uint16(t[0])<<8 | uint16(t[1])), Dst: dst(uint16(t[2])<<8 | uint16(t[3])), TTL: 64, ID: h.ip.ID, Payload: []byte("nobody's")}
		return h.Socket.Send(p.AppendTo(nil), ifindex, nextHop)
	}
	if err := h.tcp.Decode(h.ip.Transport, h.ip.TransportLen); err != nil {
		return err
	}
	s := wire.TCPSegment{Payload: []byte("x"), TCPProbe: wire.TCPProbe{
		Src: src(h.tcp.SrcPort), Dst: dst(h.tcp.DstPort), TTL: 64, ID: h.ip.ID, FlowLabel: h.ip.FlowLabel,
		Seq: h.tcp.Seq, Ack: h.tcp.Ack, Flags: h.tcp.Flags, Window: h.tcp.Window,
		Timestamp: h.tcp.Options.HasTimestamp, TSVal: h.tcp.Options.TSVal, TSEcr: h.tcp.Options.TSEcr,
	}}
	return h.Socket.Send(s.AppendTo(nil), ifindex, nextHop)
}

// leave puts something into the namespace that stays when the Tracer is closed.
func leave(t *testing.T) error {
	socket, err := inject.Open()
	if err != nil {
		return err
	}
	t.Cleanup(func() { socket.Close() })
	c, err := nftables.New()
	if err != nil {
		return err
	}
	c.AddTable(&nftables.Table{Name: "forgotten", Family: nftables.TableFamilyINet})
	return c.Flush()
}

// openHarmful opens a Tracer whose probes do harm.
func openHarmful(cfg servicetraceroute.Config) (*servicetraceroute.Tracer, error) {
	ring, err := capture.Open(capture.Config{})
	if err != nil {
		return nil, err
	}
	socket, err := inject.Open()
	if err != nil {
		return nil, errors.Join(err, ring.Close())
	}
	cfg.Source, cfg.Sink = deaf{ring}, &harmful{Socket: socket}
	return servicetraceroute.New(cfg)
}

// TestHarmIsSeen: a Tracer whose probes reach the destination, and that leaves something
// behind, is told from the real one.
// Without this test the verdict of the others would mean nothing.
func TestHarmIsSeen(t *testing.T) {
	labtest.Require(t)
	labtest.Exclusive(t)
	open := func(cfg servicetraceroute.Config) (*servicetraceroute.Tracer, error) {
		if err := leave(t); err != nil {
			return nil, err
		}
		return openHarmful(cfg)
	}
	r, err := Run(t.Context(), Config{Quick: true, open: open, plan: []Pair{
		{Family: "ipv4", Proto: "tcp", Traffic: requestResponse}, {Family: "ipv4", Proto: "udp", Traffic: datagrams},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v", r.Reasons)
	for _, want := range []string{"IPv4 request/response: TcpExt.TCPDSACKRecv", "IPv4 datagrams: datagrams delivered to the application that nobody sent", "left behind: " + tables, "left behind: " + sockets} {
		if !slices.ContainsFunc(r.Reasons, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("not seen: %s", want)
		}
	}
	if r.Verdict != Harm {
		t.Errorf("verdict %v", r.Verdict)
	}
}
