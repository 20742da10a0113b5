//go:build linux

package link

import (
	"encoding/binary"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"servicetraceroute/internal/lab/tap"
)

func newTestWay(cfg Config) *way { return newWay(&cfg, 0, func(Segment) {}) }

func TestRateAndQueue(t *testing.T) {
	const ms = int64(time.Millisecond)
	w := newTestWay(Config{Delay: 10 * time.Millisecond, Rate: 8_000_000, Queue: 3000}) // a byte per µs
	frame := make([]byte, 1000)
	for range 5 {
		w.admit(0, frame, nil)
	}
	if w.counts.Queue != 2 {
		t.Errorf("%d dropped, want 2: three frames fit into the queue", w.counts.Queue)
	}
	w.admit(ms, frame, nil) // one has left the queue
	for i, want := range []int64{11 * ms, 12 * ms, 13 * ms, 14 * ms} {
		if got := w.frames.first().due; got != want {
			t.Errorf("frame %d due at %v, want %v", i, time.Duration(got), time.Duration(want))
		}
		w.frames.pop()
	}
	w.admit(100*ms, frame, nil)
	if got := w.frames.first().due; got != 111*ms {
		t.Errorf("after a pause: due at %v, want 111ms", time.Duration(got))
	}
}

func TestJitterKeepsOrder(t *testing.T) {
	w := newTestWay(Config{Delay: time.Millisecond, Jitter: time.Millisecond})
	const gap = int64(100 * time.Microsecond)
	var last, least, most int64
	least = 1 << 62
	for i := range int64(2000) {
		w.admit(i*gap, []byte{byte(i)}, nil)
		f := w.frames.first()
		if f.due < last {
			t.Fatalf("frame %d is due before the one ahead of it", i)
		}
		last = f.due
		least, most = min(least, f.due-i*gap), max(most, f.due-i*gap)
		w.frames.pop()
	}
	if d := time.Duration(least); d < time.Millisecond || d > 1200*time.Microsecond {
		t.Errorf("least delay %v", d)
	}
	if d := time.Duration(most); d > 2*time.Millisecond || d < 1900*time.Microsecond {
		t.Errorf("greatest delay %v", d)
	}
}

func TestSetKeepsWhatIsUnderWay(t *testing.T) {
	const ms = int64(time.Millisecond)
	w := newTestWay(Config{Delay: 50 * time.Millisecond})
	w.admit(0, []byte{1}, nil)
	w.set(&Config{Delay: time.Millisecond}, ms)
	w.admit(ms, []byte{2}, nil)
	for i := range 2 {
		if got := w.frames.first().due; got != 50*ms {
			t.Errorf("frame %d due at %v: a shorter delay must not overtake", i, time.Duration(got))
		}
		w.frames.pop()
	}
	w.admit(60*ms, []byte{3}, nil)
	if got := w.frames.first().due; got != 61*ms {
		t.Errorf("due at %v, want 61ms", time.Duration(got))
	}
}

func TestQueueWraps(t *testing.T) {
	var q queue
	next := byte(0)
	want := byte(0)
	for round := range 50 {
		for range round {
			q.push(0, []byte{next})
			next++
		}
		for range round - round%3 {
			if got := q.first().data[0]; got != want {
				t.Fatalf("round %d: got %d, want %d", round, got, want)
			}
			want++
			q.pop()
		}
	}
}

// tcp makes the header of a segment of the flow from a port.
func tcp(port uint16, flags uint8, seq, ack uint32, payload int) tap.Header {
	return tap.Header{
		Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"),
		Sport: port, Dport: 443, Proto: tap.TCP, Flags: flags, Seq: seq, Ack: ack, Payload: payload,
	}
}

// transfer returns which segments of an upload are lost. Every lost one is sent
// again until it arrives; noise is what else passes before each segment.
func transfer(cfg Config, way uint64, port uint16, isn uint32, noise func(l *losses, una uint32)) []place {
	l := newLosses(way)
	l.locate(tcp(port, tap.SYN, isn, 0, 0))
	l.locate(tcp(port, tap.ACK, isn+1, 77, 0))
	var gone []place
	for i := range uint32(3000) {
		seq := isn + 1 + i*1448
		if noise != nil {
			noise(l, seq)
		}
		for {
			p := l.locate(tcp(port, tap.ACK, seq, 77, 1448))
			if !l.lost(p, &cfg) {
				break
			}
			p.rel = 0 // they are compared by what they are judged by
			gone = append(gone, p)
		}
	}
	return gone
}

func TestTwinsLoseTheSame(t *testing.T) {
	cfg := Config{Loss: 0.03, LossSeed: 9}
	one := transfer(cfg, 0, 40000, 1000, nil)
	// The other flow has another port, a sequence number that wraps, probes below
	// its window and pure ACKs in between.
	k := uint32(0)
	other := transfer(cfg, 0, 50000, 0xfffffc00, func(l *losses, una uint32) {
		k++
		l.locate(tcp(50000, tap.ACK, una-1-k%200, 77, 0))
		l.locate(tcp(50000, tap.ACK, una, 77+k, 0))
		l.locate(tcp(50001, tap.ACK, una, 77, 1448))
	})
	if !reflect.DeepEqual(one, other) {
		t.Errorf("twins lose different segments: %d and %d", len(one), len(other))
	}
	if n := len(one); n < 60 || n > 130 {
		t.Errorf("%d of 3000 lost, want about 93", n)
	}
	again := 0
	for _, p := range one {
		if p.occurrence > 0 {
			again++
		}
	}
	if again == 0 {
		t.Error("no retransmission was lost: a lost segment would be an unlucky one, not a chance")
	}
	if reflect.DeepEqual(one, transfer(Config{Loss: 0.03, LossSeed: 10}, 0, 40000, 1000, nil)) {
		t.Error("another seed loses the same segments")
	}
	if reflect.DeepEqual(one, transfer(cfg, 1, 40000, 1000, nil)) {
		t.Error("the other way loses the same segments")
	}
}

// One short segment shifts the cut of all that follow; the losses stay.
func TestTwinsCutDifferently(t *testing.T) {
	lost := func(short int) (anchors []uint32) {
		cfg := &Config{Loss: 0.03, LossSeed: 9}
		l := newLosses(0)
		l.locate(tcp(1, tap.SYN, 0, 0, 0))
		seq := uint32(1)
		for i := range 3000 {
			n := 1448
			if i == 100 {
				n = short
			}
			if p := l.locate(tcp(1, tap.ACK, seq, 77, n)); l.lost(p, cfg) && p.seq%Block == 1 {
				anchors = append(anchors, p.seq)
			}
			seq += uint32(n)
		}
		return anchors
	}
	whole, cut := lost(1448), lost(700)
	// The last segments lie beyond the other flow's end.
	if n := len(cut) - 1; n < 60 || !reflect.DeepEqual(whole[:n], cut[:n]) {
		t.Errorf("lost %d and %d, not the same", len(whole), len(cut))
	}
}

func TestAnchor(t *testing.T) {
	for _, tt := range []struct{ rel, length, want uint32 }{
		{1, 1448, 1}, {1, 1, 1}, {2, 1, 2}, {2, 1447, 2}, {2, 1448, 1449}, {1449, 1448, 1449}, {700, 8948, 1449}, {1448, 1, 1448}, {1449, 1, 1449},
	} {
		if got := anchor(tt.rel, tt.length); got != tt.want {
			t.Errorf("anchor(%d, %d) is %d, want %d", tt.rel, tt.length, got, tt.want)
		}
	}
}

func TestOnlyDataIsLost(t *testing.T) {
	l := newLosses(0)
	all := &Config{Loss: 0.999999, LoseAll: true}
	data := &Config{Loss: 0.999999}
	udp := tcp(1, 0, 0, 0, 100)
	udp.Proto = tap.UDP
	for _, tt := range []struct {
		name string
		h    tap.Header
		data bool
	}{
		{"SYN", tcp(1, tap.SYN, 5, 0, 0), false},
		{"ACK", tcp(1, tap.ACK, 6, 9, 0), false},
		{"data", tcp(1, tap.ACK, 6, 9, 10), true},
		{"probe", tcp(1, tap.ACK, 5, 9, 0), false},
		{"FIN", tcp(1, tap.ACK|tap.FIN, 16, 9, 0), false},
		{"UDP", udp, false},
	} {
		p := l.locate(tt.h)
		if got := l.lost(p, data); got != tt.data {
			t.Errorf("%s: lost %v, want %v", tt.name, got, tt.data)
		}
		if !l.lost(p, all) {
			t.Errorf("%s survives LoseAll", tt.name)
		}
	}
}

// With LoseAll, probes must not decide which of a flow's acknowledgements go.
func TestProbesDoNotShiftACKs(t *testing.T) {
	acks := func(probes bool) []bool {
		cfg := &Config{Loss: 0.3, LoseAll: true}
		l := newLosses(1)
		l.locate(tcp(1, tap.SYN|tap.ACK, 100, 1, 0))
		var got []bool
		for i := range uint32(500) {
			if probes {
				l.locate(tcp(1, tap.ACK, 100-i%50, 1+i/2*1448, 0))
			}
			got = append(got, l.lost(l.locate(tcp(1, tap.ACK, 101, 1+i/2*1448, 0)), cfg))
		}
		return got
	}
	if !reflect.DeepEqual(acks(false), acks(true)) {
		t.Error("probes change which acknowledgements are lost")
	}
}

func TestStateIsBounded(t *testing.T) {
	l := newLosses(0)
	for i := range 100_000 {
		h := tcp(uint16(i), tap.ACK, uint32(i), 0, 10)
		h.Dport = uint16(i >> 16)
		l.locate(h)
	}
	if n := len(l.young) + len(l.old); n > 2*maxLossFlows {
		t.Errorf("%d flows remembered", n)
	}
	for i := range uint32(100_000) {
		l.locate(tcp(1, tap.ACK, 100_000-i, 0, 10))
	}
	for _, f := range l.young {
		if len(f.resent) > maxResent {
			t.Errorf("%d segments remembered", len(f.resent))
		}
	}
}

func TestNeighbourDiscoverySurvives(t *testing.T) {
	w := newTestWay(Config{Loss: 0.999999, LoseAll: true})
	ns := make([]byte, 64)
	ns[0], ns[6], ns[7], ns[40] = 0x60, tap.ICMPv6, 255, 135
	binary.BigEndian.PutUint16(ns[4:], 24)
	w.admit(0, ns, ns)
	w.admit(0, make([]byte, 42), make([]byte, 28)) // ARP: not an IP header
	if w.counts.Lost != 0 || w.frames.n != 2 {
		t.Errorf("lost %d of ARP and neighbour discovery", w.counts.Lost)
	}
	ns[40] = 128 // a ping
	w.admit(0, ns, ns)
	if w.counts.Lost != 1 {
		t.Error("a ping survives LoseAll")
	}
}
