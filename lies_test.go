//go:build linux

package servicetraceroute_test

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/wire"
)

const (
	liesDistance = 4      // of the server
	liesRate     = 50_000 // packets a second
)

// lieKind is one way to lie about a traced flow. make appends one packet to b, or
// nothing when it does not know enough yet.
type lieKind struct {
	name string
	make func(d *deceiver, b []byte) []byte
	// informed: it says what only somebody on the path can. No rule tells the
	// destination's own acknowledgement from one that is equal in every field, so
	// the destination may then be shown too near, never too far; hops still hold.
	informed bool
	// hurts: a flood of it harms the flow, traced or not.
	hurts  bool
	expect string // false accepts in 60 s, by docs/false-accepts.md
}

// The kinds. All but the first know the flow's addresses and ports.
var lieKinds = []lieKind{
	{name: "random errors", make: randomError, expect: "10⁻⁵"},
	{name: "truncated quotes", make: func(d *deceiver, b []byte) []byte {
		return d.error(b, d.guess(d.near()), 1+d.rng.IntN(80))
	}, expect: "0.03"},
	{name: "numbers around UNA", make: func(d *deceiver, b []byte) []byte {
		return d.error(b, d.guess(d.seen.Seq-4096+uint32(d.sent%8192)), 0)
	}, expect: "10⁻⁶"},
	// First answer wins: the router's own comes before its copy, unless somebody on
	// the path is faster than the router.
	{name: "genuine answers replayed", make: replayed, expect: "not by guessing"},
	{name: "the application's packets", make: func(d *deceiver, b []byte) []byte {
		if len(d.packets) == 0 {
			return b
		}
		quote := d.packets[d.rng.IntN(len(d.packets))]
		return d.wrap(b, quote, 0, 11)
	}, expect: "10⁻³"},
	{name: "forged acknowledgements", make: forgedAck, hurts: true, expect: "10⁻⁴"},
	{name: "our own identifications", make: func(d *deceiver, b []byte) []byte {
		return d.error(b, d.guess(d.near()), 28)
	}, expect: "0.04"},
	{name: "forged acknowledgements, all known", make: knownAck, informed: true, hurts: true, expect: "certain"},
}

// near is a number such as probes have.
func (d *deceiver) near() uint32 { return d.seen.Seq - 1 - d.rng.Uint32N(4096) }

// guess is what a probe looks like to somebody who knows tuple, window and
// acknowledgement of the flow.
func (d *deceiver) guess(seq uint32) wire.TCPSegment {
	s := wire.TCPSegment{TCPProbe: d.seen}
	s.TTL, s.TOS, s.ID, s.Seq = 1, s.TOS&^3, uint16(d.rng.Uint32()), seq
	s.TSVal, s.TSEcr = d.rng.Uint32(), d.rng.Uint32()
	return s
}

// error quotes a segment, cut to max bytes; 0: whole.
func (d *deceiver) error(b []byte, s wire.TCPSegment, max int) []byte {
	d.scratch = s.AppendTo(d.scratch[:0])
	return d.wrap(b, d.scratch, max, 11)
}

// wrap puts a quote into an error from an address that no router has.
func (d *deceiver) wrap(b, quote []byte, max int, typ uint8) []byte {
	e := wire.ICMPError{Src: d.liar(), Dst: d.seen.Src.Addr(), TTL: 60, Type: typ, Quote: quote, MaxQuote: max}
	if d.seen.Src.Addr().Is6() {
		e.Type = map[uint8]uint8{11: 3, 3: 1}[typ]
	}
	return e.AppendTo(b)
}

func (d *deceiver) liar() netip.Addr {
	if d.seen.Src.Addr().Is6() {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0xba, 0xd, 15: byte(d.rng.Uint32())})
	}
	return netip.AddrFrom4([4]byte{198, 18, 66, byte(d.rng.Uint32())})
}

// randomError is noise, half of it about the flow.
func randomError(d *deceiver, b []byte) []byte {
	typ := []uint8{11, 3}[d.rng.IntN(2)]
	if d.rng.IntN(2) == 0 {
		s := d.guess(d.rng.Uint32())
		s.Ack = d.rng.Uint32()
		d.scratch = s.AppendTo(d.scratch[:0])
		return d.wrap(b, d.scratch, 0, typ)
	}
	var noise [100]byte
	for i := range noise {
		noise[i] = byte(d.rng.Uint32())
	}
	return d.wrap(b, noise[:d.rng.IntN(100)], 0, typ)
}

// replayed sends a router's answer again, from another address.
func replayed(d *deceiver, b []byte) []byte {
	if len(d.answers) == 0 {
		return b
	}
	return d.wrap(b, d.answers[d.rng.IntN(len(d.answers))], 0, 11)
}

// forgedAck is an acknowledgement of somebody who lacks one thing or another.
func forgedAck(d *deceiver, b []byte) []byte {
	s := wire.TCPSegment{TCPProbe: d.peer}
	switch d.rng.IntN(4) {
	case 0: // all but the tuple
		s.Seq, s.Ack, s.TSVal, s.TSEcr, s.TTL = d.rng.Uint32(), d.rng.Uint32(), d.rng.Uint32(), d.rng.Uint32(), uint8(d.rng.Uint32())
	case 1: // the timestamps
		s.Timestamp = false
	case 2: // the timestamps, and guesses
		s.TSVal, s.TSEcr = d.rng.Uint32(), d.rng.Uint32()
	case 3: // the TTL
		s.TTL -= uint8(1 + d.rng.IntN(50))
	}
	return s.AppendTo(b)
}

func knownAck(d *deceiver, b []byte) []byte {
	s := wire.TCPSegment{TCPProbe: d.peer}
	return s.AppendTo(b)
}

// TestLies floods a host that traces its flows with each kind of lie.
func TestLies(t *testing.T) {
	long(t)
	life := 2 * time.Second
	if full() {
		life = time.Minute
	}
	if d, err := time.ParseDuration(os.Getenv("SERVICE_TRACEROUTE_LIES")); err == nil {
		life = d // of each kind
	}
	var text strings.Builder
	fmt.Fprintf(&text, "# Lies\n\nA flow of each family, retraced every second, while the first router's place on its way sends lies for %v each. "+
		"Expected are the accepts within a minute by docs/false-accepts.md; `false` were shown though no router had answered so.\n\n"+
		"| kind | lies/s | expected | false hops | wrong distances | traces | reached | matched | unmatched | duplicate | late | malformed | ring drops | heap grew |\n"+
		"|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n", life)
	labtest.Exclusive(t) // one turn for all
	var counted uint64
	for _, kind := range lieKinds {
		t.Run(kind.name, func(t *testing.T) { counted += lieTo(t, kind, life, &text) })
	}
	if counted == 0 && !t.Failed() {
		t.Error("no lie was counted")
	}
	evidence(t, "lies", text.String())
}

// beside lets a flow of each family live meanwhile.
func (f *field) beside(kind lieKind, life time.Duration) {
	f.t.Helper()
	if !kind.hurts {
		f.crowd(2, 0, life)
		return
	}
	var wg sync.WaitGroup
	for _, ipv6 := range []bool{false, true} {
		wg.Go(func() {
			_, err := peer.Run(f.t.Context(), f.lab.Node("client"), peer.RunConfig{
				Workload: scenario.Workload{IPv6: ipv6, Traffic: scenario.RequestResponse, Bytes: 200, Every: 200 * time.Millisecond, Duration: life},
				Server:   netip.AddrPortFrom(f.lab.Node("server").Addr(ipv6), f.server.Addr.Port()), Timeout: life + 2*time.Second,
			})
			if err != nil {
				f.t.Errorf("run: %v", err)
			}
		})
	}
	wg.Wait()
}

// lieTo returns how many lies were counted. Those about a flow count while it is traced, which
// takes some milliseconds, unless a router is silent: few of one kind may come just then.
func lieTo(t *testing.T, kind lieKind, life time.Duration, text *strings.Builder) (counted uint64) {
	n := scenario.Network{Name: "lies", Nodes: []scenario.Node{{Name: "client", Kind: scenario.Host}}}
	for _, name := range []string{"r0", "r1", "r2"} {
		n.Nodes = append(n.Nodes, scenario.Node{Name: name, Kind: scenario.Router})
	}
	n.Nodes = append(n.Nodes, scenario.Node{Name: "server", Kind: scenario.Host})
	for i := range liesDistance {
		n.Links = append(n.Links, scenario.Link{A: n.Nodes[i].Name, B: n.Nodes[i+1].Name})
	}
	if full() {
		n.Nodes[2].Silent = true // its probes stay outstanding for as long as they can
	}
	f := newField(t, n, servicetraceroute.Config{})
	f.lossy = kind.hurts // a flood that looks like the flow's own packets
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	stop := f.watch(servicetraceroute.Selection{Retrace: time.Second})
	var wg sync.WaitGroup
	var rates [2]float64
	for i := range rates {
		d := newDeceiver(t, f, i == 1)
		wg.Go(func() { rates[i] = d.flood(kind, liesRate/2, life) })
	}
	f.beside(kind, life+time.Second)
	wg.Wait()
	all := stop()
	runtime.GC()
	runtime.ReadMemStats(&after)
	truth := f.truth()
	judged, reached := all.traces, 0
	if kind.informed {
		judged = nil
		for _, tr := range all.traces {
			if tr.Reached && tr.Destination.TTL > liesDistance {
				t.Errorf("the destination is shown too far: %v", describe(tr))
			}
			hops := *tr
			hops.Reached = false
			judged = append(judged, &hops)
		}
	}
	v := f.judge(truth, judged)
	for _, tr := range all.traces {
		if tr.Reached && tr.Destination.TTL == liesDistance {
			reached++
		}
	}
	s, grew := all.stats, (float64(after.HeapAlloc)-float64(before.HeapAlloc))/(1<<20)
	t.Logf("%.0f lies/s; %v; %d reached; %+v; %+v; heap grew %.1f MiB", rates[0]+rates[1], v, reached, s.Replies, s.Packets, grew)
	fmt.Fprintf(text, "| %s | %.0f | %s | %d | %d | %d | %d | %d | %d | %d | %d | %d | %d | %.1f MiB |\n", kind.name, rates[0]+rates[1], kind.expect,
		v.false_, v.wrongDistance, len(all.traces), reached, s.Replies.Matched, s.Replies.Unmatched, s.Replies.Duplicate, s.Replies.Late,
		s.Packets.Malformed, s.Packets.Dropped, grew)
	if rates[0] == 0 || rates[1] == 0 {
		t.Error("a family was not lied to")
	}
	if reached == 0 && !kind.informed && !kind.hurts {
		for _, tr := range all.traces {
			t.Error(describe(tr))
		}
		t.Error("no trace came to its destination")
	}
	if grew > 64 {
		t.Errorf("the heap grew by %.0f MiB", grew)
	}
	counted = s.Replies.Unmatched + s.Replies.Duplicate + s.Packets.Malformed
	if counted == 0 && !kind.informed && full() {
		t.Error("no lie was counted")
	}
	return counted
}
