package replay

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/engine"
	"servicetraceroute/internal/packetfile"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/service"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

var (
	client = netip.MustParseAddrPort("192.0.2.1:40000")
	server = netip.MustParseAddrPort("203.0.113.9:443")
)

// packet is one of a file.
type packet struct {
	at   time.Duration
	data []byte
}

// file is a pcap file of packets from the IP header on.
func file(packets ...packet) []byte {
	var b []byte
	for _, v := range []uint32{0xa1b23c4d, 2 | 4<<16, 0, 0, 1 << 18, 101} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	start := time.Unix(1_700_000_000, 0)
	for _, p := range packets {
		at := start.Add(p.at)
		for _, v := range []uint32{uint32(at.Unix()), uint32(at.Nanosecond()), uint32(len(p.data)), uint32(len(p.data))} {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		b = append(b, p.data...)
	}
	return b
}

func segment(out bool, ttl uint8, seq, ack uint32, flags wire.TCPFlags, payload int) []byte {
	s := wire.TCPSegment{TCPProbe: wire.TCPProbe{
		Src: server, Dst: client, TTL: ttl, ID: uint16(seq), Seq: seq, Ack: ack, Flags: flags, Window: 64000,
	}, Payload: make([]byte, payload)}
	if out {
		s.Src, s.Dst = client, server
	}
	return s.AppendTo(nil)
}

func exceeded(from string, quote []byte) []byte {
	e := wire.ICMPError{Src: netip.MustParseAddr(from), Dst: client.Addr(), TTL: 64, Type: 11, Quote: quote}
	return e.AppendTo(nil)
}

// flow is a handshake and an exchange; what follows is a millisecond apart.
func flow(more ...[]byte) (all []packet) {
	for i, b := range append([][]byte{
		segment(true, 64, 1000, 0, wire.SYN, 0),
		segment(false, 62, 5000, 1001, wire.SYN|wire.ACK, 0),
		segment(true, 64, 1001, 5001, wire.ACK, 0),
		segment(true, 64, 1001, 5001, wire.ACK|wire.PSH, 100),
		segment(false, 62, 5001, 1101, wire.ACK|wire.PSH, 200),
	}, more...) {
		all = append(all, packet{time.Duration(i) * time.Millisecond, b})
	}
	return all
}

// probed is one probe and its answer.
func probed() []packet {
	p := segment(true, 1, 993, 5201, wire.ACK, 0)
	return flow(p, exceeded("198.51.100.1", p), segment(true, 64, 1101, 5201, wire.ACK, 0))
}

// play reads a file to its end or its error.
func play(b []byte) (all []trace.Event, stats *trace.Stats, err error) {
	w := &engine.Watch{Policy: engine.Policy{Params: engine.ReplayParams(probe.Defaults()), Every: -1}, Selector: service.Selector{All: true}}
	p := New(bytes.NewReader(b), engine.Config{Rate: 1000, HopRate: 200}, w)
	take := func() {
		for _, rec := range p.Records() {
			all = append(all, rec.Event)
		}
	}
	for err == nil {
		err = p.Next()
		take()
	}
	p.End(trace.StopCancelled)
	take()
	return all, p.Stats(), err
}

func traces(all []trace.Event) (out []*trace.Trace) {
	for _, ev := range all {
		if tr, ok := ev.(*trace.Trace); ok {
			out = append(out, tr)
		}
	}
	return out
}

// What is due happens at the file's time, however far apart its packets are: a flow
// whose client says nothing is told half a second after its handshake, a trace ends when
// nothing of it came for long.
func TestFileTime(t *testing.T) {
	quiet := flow()[:3]
	later := packet{time.Hour, segment(true, 64, 1001, 5001, wire.ACK|wire.FIN, 0)}
	all, _, err := play(file(append(quiet, later)...))
	if err != io.EOF || len(all) != 1 {
		t.Fatalf("%d records, %v", len(all), err)
	}
	start := time.Unix(1_700_000_000, 0)
	if f := all[0].(*trace.Flow); f.Time.Sub(start) != 502*time.Millisecond {
		t.Errorf("told after %v", f.Time.Sub(start))
	}
	later.at = 10 * time.Minute
	all, stats, err := play(file(append(probed(), later)...))
	got := traces(all)
	if err != io.EOF || len(got) != 1 {
		t.Fatalf("%d traces, %v", len(got), err)
	}
	if tr := got[0]; tr.Stop != trace.StopUnknown || tr.End.Sub(start) != 6*time.Millisecond || len(tr.Hops) != 1 || tr.Hops[0].Replies[0].RTT != time.Millisecond {
		t.Errorf("%v at %v: %+v", tr, tr.End.Sub(start), tr.Hops)
	}
	if stats.Uptime != 10*time.Minute || !stats.Time.Equal(start.Add(10*time.Minute)) {
		t.Errorf("%+v", stats)
	}
}

// A probe that the file's end leaves without an answer is none that stayed silent.
func TestFileEnds(t *testing.T) {
	silent := flow(segment(true, 1, 993, 5201, wire.ACK, 0))
	for wait, want := range map[time.Duration]trace.Stop{time.Second: trace.StopCancelled, 30 * time.Second: trace.StopUnknown} {
		last := packet{wait, segment(true, 64, 1101, 5201, wire.ACK, 0)}
		all, _, _ := play(file(append(silent, last)...))
		if got := traces(all); len(got) != 1 || got[0].Stop != want || got[0].Complete {
			t.Errorf("after %v: %v", wait, got)
		}
	}
}

// Time that goes back a little is disorder, more is another capture.
func TestStepsBack(t *testing.T) {
	for back, want := range map[time.Duration]trace.Stop{time.Second: trace.StopCancelled, time.Hour: trace.StopLostSync} {
		all, stats, err := play(file(append(probed(), packet{-back, segment(true, 64, 1101, 5201, wire.ACK, 0)})...))
		got := traces(all)
		if err != io.EOF || len(got) != 1 || got[0].Stop != want || stats.Uptime < 0 {
			t.Errorf("%v back: %v, %v", back, got, err)
		}
	}
}

// Steps by millennia take no time.
func TestStepsFar(t *testing.T) {
	b := file(probed()...)
	at := 24
	for i := range 8 {
		if sec, ok := map[int]uint32{2: 0, 3: 1<<32 - 1, 5: 3, 7: 1<<32 - 1}[i]; ok {
			binary.LittleEndian.PutUint32(b[at:], sec)
		}
		at += 16 + int(binary.LittleEndian.Uint32(b[at+8:]))
	}
	start := time.Now()
	if _, stats, err := play(b); err != io.EOF || stats.Uptime < 0 || stats.Packets.Seen != 8 || time.Since(start) > 10*time.Second {
		t.Errorf("%+v, %v in %v", stats, err, time.Since(start))
	}
}

func TestNoFile(t *testing.T) {
	for _, text := range []string{"", "the words of somebody"} {
		if _, stats, err := play([]byte(text)); !errors.Is(err, packetfile.ErrFormat) || stats.Packets.Seen != 0 {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Any bytes give records that can be written, and an end.
func FuzzReplay(f *testing.F) {
	f.Add(file(probed()...))
	f.Add(file(probed()...)[:200])
	datagram := func(ttl uint8, payload string) []byte {
		return (&wire.UDPProbe{Src: client, Dst: server, TTL: ttl, ID: 7, Payload: []byte(payload)}).AppendTo(nil)
	}
	f.Add(file(packet{0, datagram(64, "x")}, packet{1, datagram(3, "\x0512345678")}, packet{2, exceeded("198.51.100.1", datagram(3, "\x0512345678"))}))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, _, _ := play(b)
		for _, ev := range all {
			if _, err := json.Marshal(ev); err != nil {
				t.Errorf("%v: %+v", err, ev)
			}
		}
		for _, tr := range traces(all) {
			for _, h := range tr.Hops {
				for _, r := range h.Replies {
					if h.Sent < 1 || r.RTT < 0 {
						t.Errorf("%+v", h)
					}
				}
			}
			if tr.End.Before(tr.Start) {
				t.Errorf("from %v to %v", tr.Start, tr.End)
			}
		}
	})
}

// BenchmarkReplay is how fast packets of followed flows are read.
func BenchmarkReplay(b *testing.B) {
	var all []packet
	for i := range 10000 {
		all = append(all, packet{time.Duration(i) * time.Millisecond, segment(i%2 == 0, 64, uint32(1000+i), 5001, wire.ACK|wire.PSH, 100)})
	}
	data := file(append(flow(), all...)...)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := play(data); err != io.EOF {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*float64(len(all))/b.Elapsed().Seconds(), "packets/s")
}
