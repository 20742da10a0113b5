package engine

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/service"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// rig plays both ends of one connection and the network between them, packet by
// packet, with time as it pleases.
type rig struct {
	t          *testing.T
	e          *Engine
	w          *Watch
	now        time.Time
	me, peer   netip.AddrPort
	label      uint32
	ttl        uint8 // with which the peer's packets arrive
	tos        uint8
	seq, ack   uint32 // of our next segment
	window     uint16
	tsval, ts2 uint32
	probes     []wire.TCPProbe
	packets    [][]byte
	guarded    int // probes whose errors have to be dropped
	wake       time.Time
	link       int                      // at which packets pass
	detour     int                      // how much longer than the way there the routers' way back is
	copies     bool                     // the tap shows our own probes
	fails      func(wire.TCPProbe) bool // which of them cannot be sent
	log        []capture.Packet         // all that was captured
}

const rtt = 20 * time.Millisecond

func newRig(t *testing.T, v6 bool, distance int) *rig {
	peer := netip.MustParseAddrPort("203.0.113.7:443")
	if v6 {
		peer = netip.MustParseAddrPort("[2001:db8::7]:443")
	}
	return newRigOf(t, v6, distance, Config{}, peer)
}

// newRigOf is a rig with a configuration and a peer of its own.
func newRigOf(t *testing.T, v6 bool, distance int, cfg Config, peer netip.AddrPort) *rig {
	r := &rig{
		t: t, now: time.Unix(1_800_000_000, 0), me: netip.MustParseAddrPort("192.0.2.1:40000"),
		peer: peer, ttl: uint8(64 - distance + 1), seq: 1000, ack: 5000, window: 500,
		tsval: 100, ts2: 900, link: 2, copies: true, tos: 0x28,
	}
	if v6 {
		r.me = netip.MustParseAddrPort("[2001:db8::1]:40000")
		r.label = 0x12345
	}
	cfg.Rate, cfg.HopRate, cfg.Seed = 1000, 200, [32]byte{1}
	r.e = New(r.now, cfg)
	r.w = &Watch{Policy: Policy{Params: probe.Defaults(), Every: time.Hour}, Selector: service.Selector{Rules: []service.Rule{{
		Prefix:  netip.PrefixFrom(r.peer.Addr(), r.peer.Addr().BitLen()),
		Service: trace.Service{Name: "x", By: trace.ByAddress, Value: "x"},
	}}}}
	r.e.Add(r.now, r.w)
	return r
}

// step gives the engine one packet (or none) and takes what it wants sent.
func (r *rig) step(p *capture.Packet) {
	var batch []capture.Packet
	if p != nil {
		batch = append(batch, *p)
	}
	for {
		a := r.e.Step(r.now, batch)
		r.log = append(r.log, batch...)
		batch = nil
		for _, out := range a.Probes {
			b := append([]byte(nil), out.Packet...)
			if r.fails != nil && r.fails(decode(r.t, b)) {
				r.e.Failed(r.now, out, FailOther)
				continue
			}
			r.packets = append(r.packets, b)
			if out.DropErrors {
				r.guarded++
			}
			r.probes = append(r.probes, decode(r.t, b))
			if r.copies {
				batch = append(batch, r.captured(b, capture.Outgoing))
			}
		}
		r.wake = a.Wake
		if len(batch) == 0 {
			return
		}
	}
}

func (r *rig) captured(b []byte, d capture.Direction) capture.Packet {
	return capture.Packet{
		Time: r.now, Interface: r.link, Direction: d, NextHop: capture.HardwareAddr{Len: 6}, NextHopKnown: true, Data: b, Len: len(b),
	}
}

func decode(t *testing.T, b []byte) wire.TCPProbe {
	t.Helper()
	var ip wire.Packet
	var s wire.TCP
	if err := ip.Decode(b, len(b)); err != nil {
		t.Fatal(err)
	}
	if ip.Proto == wire.ProtoUDP {
		return decodeUDP(t, &ip)
	}
	if err := s.Decode(ip.Transport, ip.TransportLen); err != nil {
		t.Fatal(err)
	}
	if s.PayloadLen != 0 {
		t.Errorf("a probe carries %d bytes", s.PayloadLen)
	}
	if ip.Version == 4 && !ip.DF {
		t.Error("a probe may be fragmented")
	}
	return wire.TCPProbe{
		Src: netip.AddrPortFrom(ip.Src, s.SrcPort), Dst: netip.AddrPortFrom(ip.Dst, s.DstPort), TTL: ip.TTL, TOS: ip.TOS,
		FlowLabel: ip.FlowLabel, ID: ip.ID, Seq: s.Seq, Ack: s.Ack, Flags: s.Flags, Window: s.Window,
		Timestamp: s.Options.HasTimestamp, TSVal: s.Options.TSVal, TSEcr: s.Options.TSEcr,
	}
}

// after lets time pass, waking the engine when it asked for it.
func (r *rig) after(d time.Duration) {
	end := r.now.Add(d)
	for r.wake.Before(end) {
		if r.wake.After(r.now) {
			r.now = r.wake
		} else {
			r.now = r.now.Add(time.Millisecond)
		}
		r.step(nil)
	}
	r.now = end
	r.step(nil)
}

type segment struct {
	flags   wire.TCPFlags
	data    int
	options []byte
	seq     uint32
}

var synOptions = []byte{2, 4, 5, 180, 4, 2, 1, 3, 3, 7} // MSS, SACK permitted, window scale 7

// out is a segment of the local stack.
func (r *rig) out(s segment) {
	r.tsval++
	seg := wire.TCPSegment{TCPProbe: wire.TCPProbe{
		Src: r.me, Dst: r.peer, TTL: 64, TOS: r.tos | 2, FlowLabel: r.label, ID: uint16(r.tsval), Seq: r.seq, Ack: r.ack,
		Flags: s.flags, Window: r.window, Timestamp: true, TSVal: r.tsval, TSEcr: r.ts2,
	}, Options: s.options, Payload: make([]byte, s.data)}
	r.seq += uint32(s.data)
	if s.flags&(wire.SYN|wire.FIN) != 0 {
		r.seq++
	}
	if s.seq != 0 {
		seg.Seq = s.seq
	}
	p := r.captured(seg.AppendTo(nil), capture.Outgoing)
	r.step(&p)
}

// in is a segment of the peer.
func (r *rig) in(s segment) {
	r.ts2++
	seg := wire.TCPSegment{TCPProbe: wire.TCPProbe{
		Src: r.peer, Dst: r.me, TTL: r.ttl, Seq: r.ack, Ack: r.seq, Flags: s.flags, Window: 501,
		Timestamp: true, TSVal: r.ts2, TSEcr: r.tsval,
	}, Options: s.options, Payload: make([]byte, s.data)}
	if s.flags&wire.SYN != 0 && s.flags&wire.ACK == 0 {
		seg.Ack = 0
	}
	r.ack += uint32(s.data)
	if s.flags&(wire.SYN|wire.FIN) != 0 {
		r.ack++
	}
	p := r.captured(seg.AppendTo(nil), capture.Incoming)
	r.step(&p)
}

// handshake opens the connection from this side; extra options go into both SYNs.
func (r *rig) handshake(extra ...byte) {
	r.handshakeWith(append(append([]byte(nil), synOptions...), extra...))
}

func (r *rig) handshakeWith(options []byte) {
	r.out(segment{flags: wire.SYN, options: options})
	r.now = r.now.Add(rtt)
	r.in(segment{flags: wire.SYN | wire.ACK, options: options})
	r.out(segment{flags: wire.ACK})
}

// accepts is a handshake that the peer begins.
func (r *rig) accepts() {
	r.in(segment{flags: wire.SYN, options: synOptions})
	r.out(segment{flags: wire.SYN | wire.ACK, options: synOptions})
	r.now = r.now.Add(rtt)
	r.in(segment{flags: wire.ACK})
}

// exchange is a request and its response, which end the silence.
func (r *rig) exchange() {
	r.out(segment{flags: wire.ACK | wire.PSH, data: 100})
	r.now = r.now.Add(rtt)
	r.in(segment{flags: wire.ACK | wire.PSH, data: 300})
	r.out(segment{flags: wire.ACK})
}

// error sends an ICMP error about a packet.
func (r *rig) error(from string, typ, code uint8, quote []byte, max int) {
	r.errorFrom(from, 60, typ, code, quote, max)
}

func (r *rig) errorFrom(from string, ttl, typ, code uint8, quote []byte, max int) {
	e := wire.ICMPError{Src: netip.MustParseAddr(from), Dst: r.me.Addr(), TTL: ttl, Type: typ, Code: code, Quote: quote, MaxQuote: max}
	p := r.captured(e.AppendTo(nil), capture.Incoming)
	r.step(&p)
}

// routers answer every probe so far with a TTL below the distance, once.
func (r *rig) routers(distance int) {
	for i, b := range r.packets {
		if b == nil || int(r.probes[i].TTL) >= distance {
			continue
		}
		r.packets[i] = nil
		r.timeExceeded(int(r.probes[i].TTL), b)
	}
}

func (r *rig) timeExceeded(ttl int, quote []byte) {
	back := uint8(65 - ttl - r.detour)
	if r.me.Addr().Is4() {
		r.errorFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(ttl)}).String(), back, 11, 0, quote, 0)
		return
	}
	r.errorFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 1, 15: byte(ttl)}).String(), back, 3, 0, quote, 0)
}

// traces returns the traces written so far.
func (r *rig) traces() (out []*trace.Trace) {
	for _, rec := range r.e.Records() {
		if tr, ok := rec.Event.(*trace.Trace); ok {
			out = append(out, tr)
		}
	}
	return out
}

func (r *rig) reaching(distance int) (n int) {
	for _, p := range r.probes {
		if int(p.TTL) >= distance {
			n++
		}
	}
	return n
}

func (r *rig) flow() *flow.Flow {
	return r.e.table.Get(trace.FlowKey{Proto: trace.TCP, Src: r.me, Dst: r.peer})
}
