package flow

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// Who opened a flow whose first packet came in: this end where the peer has a server's port,
// and while flows show themselves that were there before.
func TestUDPAccepted(t *testing.T) {
	quic := append([]byte{0xc3, 0, 0, 0, 1}, make([]byte, 1200)...)
	short := make([]byte, 1200)
	for _, test := range []struct {
		near, far uint16
		after     time.Duration
		payload   []byte
		want      trace.Direction
	}{
		{40000, 443, 0, short, trace.Out},
		{40000, 443, time.Hour, short, trace.Out},
		{443, 443, 0, short, trace.In},
		{443, 40000, 0, short, trace.In},
		{40000, 8801, 0, short, trace.Out},
		{40000, 8801, joining, short, trace.In},
		{40000, 8801, 0, quic, trace.In},
		{51820, 40000, 0, short, trace.In},
		{4500, 4500, 0, short, trace.In},
	} {
		table := NewTable(8, time.Minute)
		now := time.Unix(1000, 0)
		table.add(trace.FlowKey{}, table.stamp(now))
		u := wire.UDPProbe{
			Src: netip.AddrPortFrom(netip.MustParseAddr("203.0.113.7"), test.far), Dst: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), test.near),
			TTL: 55, Payload: test.payload,
		}
		b := u.AppendTo(nil)
		var ip wire.Packet
		var datagram wire.UDP
		if ip.Decode(b, len(b)) != nil || datagram.Decode(ip.Transport, ip.TransportLen) != nil {
			t.Fatal("malformed")
		}
		f, _ := table.ObserveUDP(&capture.Packet{Time: now.Add(test.after), Interface: 2, Data: b, Len: len(b)}, &ip, &datagram)
		if f.Direction != test.want {
			t.Errorf("%d from %d after %v: %v", test.near, test.far, test.after, f.Direction)
		}
	}
}

func TestUDPFlow(t *testing.T) {
	type packet struct {
		out   bool
		after time.Duration
		data  []byte
	}
	long := func(version ...byte) []byte { return append(append([]byte{0xc0}, version...), make([]byte, 30)...) }
	q, a := make([]byte, 40), make([]byte, 100)
	for name, test := range map[string]struct {
		packets   []packet
		exchanges uint32
		harmless  bool
		least     time.Duration
		direction trace.Direction
	}{
		"nothing came":           {[]packet{{true, 0, q}, {true, 1, q}}, 0, false, 0, trace.Out},
		"question and answer":    {[]packet{{true, 0, q}, {false, 20, a}, {true, 5, q}, {false, 30, a}}, 2, false, 20, trace.Out},
		"one repeated question":  {[]packet{{true, 0, q}, {true, 500, q}, {false, 20, a}}, 1, false, 520, trace.Out},
		"a stream out":           {[]packet{{true, 0, q}, {true, 1, q}, {true, 1, q}, {false, 20, a}}, 1, true, 22, trace.Out},
		"a stream in":            {[]packet{{true, 0, q}, {false, 20, a}, {false, 1, a}, {false, 1, a}}, 1, true, 20, trace.Out},
		"QUIC":                   {[]packet{{true, 0, long(0, 0, 0, 1)}, {false, 20, a}}, 1, true, 20, trace.Out},
		"QUIC version 2":         {[]packet{{true, 0, long(0x6b, 0x33, 0x43, 0xcf)}, {false, 20, a}}, 1, true, 20, trace.Out},
		"an unknown version":     {[]packet{{true, 0, long(0, 0, 0, 9)}, {false, 20, a}}, 1, false, 20, trace.Out},
		"accepted":               {[]packet{{false, 0, q}, {true, 1, a}, {false, 40, q}}, 1, false, 40, trace.In},
		"accepted, not answered": {[]packet{{false, 0, q}}, 0, false, 0, trace.In},
	} {
		t.Run(name, func(t *testing.T) {
			table := NewTable(8, time.Minute)
			now := time.Unix(1000, 0)
			table.began = table.stamp(now.Add(-joining))
			me, peer := netip.MustParseAddrPort("192.0.2.1:40000"), netip.MustParseAddrPort("203.0.113.7:4433")
			var f *Flow
			var in, out uint64
			for _, p := range test.packets {
				now = now.Add(p.after * time.Millisecond)
				u := wire.UDPProbe{Src: me, Dst: peer, TTL: 64, TOS: 0x20, Payload: p.data}
				d := capture.Outgoing
				if !p.out {
					u.Src, u.Dst, u.TTL, d = peer, me, 55, capture.Incoming
				}
				b := u.AppendTo(nil)
				var ip wire.Packet
				var datagram wire.UDP
				if ip.Decode(b, len(b)) != nil || datagram.Decode(ip.Transport, ip.TransportLen) != nil {
					t.Fatal("malformed")
				}
				var followed bool
				f, followed = table.ObserveUDP(&capture.Packet{Time: now, Interface: 2, Direction: d, NextHopKnown: true, Data: b, Len: len(b)}, &ip, &datagram)
				if !followed {
					t.Fatal("not followed")
				}
				if p.out {
					out += uint64(len(p.data))
				} else {
					in += uint64(len(b))
				}
			}
			_, least, ok := f.RTT()
			if f.UDP.Exchanges != test.exchanges || f.UDP.Harmless() != test.harmless || least != test.least*time.Millisecond || ok != (test.least > 0) {
				t.Errorf("%+v, least %v", f.UDP, least)
			}
			if f.Direction != test.direction || f.BytesOut != out || f.UDP.WireIn != in || f.Key.Proto != trace.UDP || f.Key.Src != me {
				t.Errorf("%v, %d bytes out, %d in: %+v", f.Direction, f.BytesOut, f.UDP.WireIn, f.Key)
			}
			if ttl, ok := f.InboundTTL(); in > 0 && (!ok || ttl != 55) {
				t.Errorf("inbound TTL %d %v", ttl, ok)
			}
		})
	}
}
