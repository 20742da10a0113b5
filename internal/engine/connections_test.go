package engine

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/service"
	"servicetraceroute/internal/wire"
)

// BenchmarkConnections is what one short connection costs that no watch selects: a
// handshake, a question, an answer and the end, ten packets.
func BenchmarkConnections(b *testing.B) {
	r := newRig(&testing.T{}, false, 4)
	r.w.Selector = service.Selector{Domains: nobody{}}
	r.e.attune()
	server := netip.MustParseAddrPort("198.51.100.1:80")
	const out, in = capture.Outgoing, capture.Incoming
	var packets [10]capture.Packet
	bufs := make([][]byte, len(packets))
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		n++
		r.now = r.now.Add(50 * time.Microsecond)
		me := netip.AddrPortFrom(r.me.Addr(), uint16(20000+n%40000))
		seq, ack := uint32(n)*7919, uint32(n)*104729
		for i, p := range [len(packets)]struct {
			d        capture.Direction
			flags    wire.TCPFlags
			seq, ack uint32
			len      int
		}{
			{out, wire.SYN, 0, 0, 0}, {in, wire.SYN | wire.ACK, 0, 1, 0}, {out, wire.ACK, 1, 1, 0},
			{out, wire.ACK | wire.PSH, 1, 1, 100}, {in, wire.ACK, 1, 101, 0}, {in, wire.ACK | wire.PSH, 1, 101, 1000},
			{in, wire.ACK | wire.FIN, 1001, 101, 0}, {out, wire.ACK, 101, 1002, 0}, {out, wire.ACK | wire.FIN, 101, 1002, 0},
			{in, wire.ACK, 1002, 102, 0},
		} {
			s := wire.TCPSegment{TCPProbe: wire.TCPProbe{
				Src: me, Dst: server, TTL: 64, ID: uint16(i), Flags: p.flags, Window: 500, Timestamp: true, TSVal: uint32(n), TSEcr: uint32(n),
				Seq: seq + p.seq, Ack: ack + p.ack,
			}, Payload: words100[:min(p.len, len(words100))]}
			if p.d == in {
				s.Src, s.Dst, s.Seq, s.Ack, s.TTL = server, me, ack+p.seq, seq+p.ack, 61
			}
			if p.flags&wire.SYN != 0 && p.d == out {
				s.Ack = 0
			}
			bufs[i] = s.AppendTo(bufs[i][:0])
			packets[i] = r.captured(bufs[i], p.d)
		}
		r.e.Step(r.now, packets[:])
		r.e.Records()
	}
}

var words100 = []byte("GET / HTTP/1.1\r\nHost: www.somebody.example\r\nUser-Agent: a-browser-of-somebody/1.0 (and so on)\r\n\r\n....")
