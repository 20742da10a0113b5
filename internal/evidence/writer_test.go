package evidence

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/engine"
	"servicetraceroute/trace"
)

var update = flag.Bool("update", false, "write the golden file anew")

var begin = time.Unix(1_800_000_000, 123_456_789).UTC()

// kept is a packet of the file.
type kept struct {
	at        time.Time
	data      []byte
	length    int
	tap       string
	direction pcapgo.NgEpbFlag
	comment   string
}

func (k kept) String() string {
	return fmt.Sprintf("%v %s %d %q/%d %s", k.at.Sub(begin), k.tap, k.direction, k.data, k.length, k.comment)
}

// read reads a file back.
func read(t *testing.T, b []byte) (all []kept, r *pcapgo.NgReader) {
	t.Helper()
	options := pcapgo.NgReaderOptions{WantMixedLinkType: true}
	r, err := pcapgo.NewNgReader(bytes.NewReader(b), options)
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, ci, opts, err := r.ReadPacketDataWithOptions()
		if err == io.EOF {
			return all, r
		}
		if err != nil {
			t.Fatal(err)
		}
		i, err := r.Interface(ci.InterfaceIndex)
		if err != nil {
			t.Fatal(err)
		}
		k := kept{at: ci.Timestamp, data: data, length: ci.Length, tap: i.Name, comment: strings.Join(opts.Comments, "|")}
		if opts.Flags != nil {
			k.direction = opts.Flags.Direction
		}
		all = append(all, k)
	}
}

func options() Options {
	return Options{Application: "test", Interface: func(i int) string {
		if i == 9 {
			return ""
		}
		return fmt.Sprintf("eth%d", i)
	}}
}

// at makes a packet of the given time after the beginning.
func at(d time.Duration, kind engine.EvidenceKind, data string, serial uint64) engine.Evidence {
	ev := engine.Evidence{
		Kind: kind, Serial: serial, Keep: len(data), Trace: "t1", TTL: 3, Attempt: 2,
		Packet: capture.Packet{Time: begin.Add(d), Interface: 1, Direction: capture.Outgoing, Data: []byte(data), Len: len(data)},
	}
	if kind == engine.FlowPacket {
		ev.Trace, ev.TTL, ev.Attempt = "", 0, 0
	}
	if kind == engine.ReplyPacket {
		ev.TTL, ev.Attempt, ev.Packet.Direction = 0, 0, capture.Incoming
	}
	return ev
}

func verdict(kind engine.EvidenceKind, serial uint64, v engine.Verdict) engine.Evidence {
	return engine.Evidence{
		Kind: kind, Serial: serial, Verdict: v, Trace: "t1", TTL: 3, Attempt: 2, Reply: trace.TimeExceeded,
		From: netip.MustParseAddr("192.0.2.1"), RTT: 11200 * time.Microsecond,
	}
}

// written is what a writer makes of the evidence, one batch.
func written(t *testing.T, opts Options, evidence ...engine.Evidence) []kept {
	t.Helper()
	var b bytes.Buffer
	w := New(&b, opts)
	w.Put(time.Now(), evidence)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	all, _ := read(t, b.Bytes())
	if c := w.Counts(); c.Packets != uint64(len(all)) || c.Dropped != 0 {
		t.Errorf("%+v, %d in the file", c, len(all))
	}
	return all
}

func want(t *testing.T, all []kept, lines ...string) {
	t.Helper()
	var got []string
	for _, k := range all {
		got = append(got, k.String())
	}
	if g, w := strings.Join(got, "\n"), strings.Join(lines, "\n"); g != w {
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
}

func TestProbeAndReplyAreInTimeOrderWithOneComment(t *testing.T) {
	probe := at(2*time.Millisecond, engine.ProbeSent, "crafted", 1)
	seen := at(3*time.Millisecond, engine.ProbeSeen, "as it left", 1)
	reply := at(14*time.Millisecond, engine.ReplyPacket, "reply", 2)
	const line = "trace t1 ttl 3 probe 2: time-exceeded from 192.0.2.1, 11.200 ms"
	want(t, written(t, options(),
		at(0, engine.FlowPacket, "first", 0), probe, at(4*time.Millisecond, engine.FlowPacket, "later", 0), seen,
		at(5*time.Millisecond, engine.FlowPacket, "last", 0), reply,
		verdict(engine.ReplyVerdict, 2, engine.Answered), verdict(engine.ProbeVerdict, 1, engine.Answered),
		at(time.Millisecond, engine.FlowPacket, "another processor", 0)),
		`0s eth1 2 "first"/5 `,
		`1ms eth1 2 "another processor"/17 `,
		`3ms eth1 2 "as it left"/10 `+line,
		`4ms eth1 2 "later"/5 `,
		`5ms eth1 2 "last"/4 `,
		`14ms eth1 1 "reply"/5 `+line)
}

func TestComments(t *testing.T) {
	for v, word := range map[engine.Verdict]string{
		engine.Silent: "silent", engine.Limited: "limited", engine.CutShort: "cut short",
		engine.Restarted: "cut short, the flow's path changed", 0: "cut short", // the writer was closed before
	} {
		all := written(t, options(), at(0, engine.ProbeSent, "p", 1), at(0, engine.ProbeSeen, "p", 1), verdict(engine.ProbeVerdict, 1, v))
		if w := "trace t1 ttl 3 probe 2: " + word; all[0].comment != w {
			t.Errorf("%q, want %q", all[0].comment, w)
		}
	}
	all := written(t, options(), at(0, engine.ProbeSent, "p", 1), verdict(engine.ProbeVerdict, 1, engine.Silent))
	if w := "trace t1 ttl 3 probe 2: not seen leaving, silent"; all[0].comment != w {
		t.Errorf("%q, want %q", all[0].comment, w)
	}
	late := verdict(engine.ReplyVerdict, 1, engine.Answered)
	late.Late = true
	for word, news := range map[string][]engine.Evidence{
		"trace t1 ttl 3 probe 2: time-exceeded from 192.0.2.1, 11.200 ms, late": {late},
		"trace t1 ttl 3 probe 2: duplicate time-exceeded from 192.0.2.1":        {verdict(engine.ReplyVerdict, 1, engine.Duplicate)},
		"trace t1: not a reply to a probe of ours":                              {{Kind: engine.ReplyVerdict, Serial: 1, Verdict: engine.Unmatched}},
		"trace t1: not a reply to a probe of ours, until now":                   {},
	} {
		all := written(t, options(), append([]engine.Evidence{at(0, engine.ReplyPacket, "r", 1)}, news...)...)
		if all[0].comment != strings.TrimSuffix(word, ", until now") {
			t.Errorf("%q, want %q", all[0].comment, word)
		}
	}
	unexplained := at(0, engine.ReplyPacket, "r", 0)
	unexplained.Verdict, unexplained.Reply, unexplained.From = engine.Unexplained, trace.TCPAck, netip.MustParseAddr("2001:db8::7")
	all = written(t, options(), unexplained)
	if w := "trace t1: tcp-ack from 2001:db8::7, which probe it answers cannot be told"; all[0].comment != w {
		t.Errorf("%q, want %q", all[0].comment, w)
	}
}

func TestAProbeThatDidNotLeaveIsNotInTheFile(t *testing.T) {
	all := written(t, options(), at(0, engine.ProbeSent, "p", 1), engine.Evidence{Kind: engine.ProbeUnsent, Serial: 1},
		verdict(engine.ProbeVerdict, 1, engine.Silent))
	want(t, all)
}

func TestPayloadIsCutUnlessAskedFor(t *testing.T) {
	ev := at(0, engine.FlowPacket, "headersPAYLOAD", 0)
	ev.Keep, ev.Packet.Len = 7, 65000
	want(t, written(t, options(), ev), `0s eth1 2 "headers"/65000 `)
	opts := options()
	opts.Payload = true
	want(t, written(t, opts, ev), `0s eth1 2 "headersPAYLOAD"/65000 `)
}

// The bytes belong to the source again when Put has returned.
func TestPutCopies(t *testing.T) {
	var b bytes.Buffer
	w := New(&b, options())
	ev := at(0, engine.FlowPacket, "mine", 0)
	w.Put(time.Now(), []engine.Evidence{ev})
	copy(ev.Packet.Data, "theirs")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	all, _ := read(t, b.Bytes())
	want(t, all, `0s eth1 2 "mine"/4 `)
}

func TestAFileWithoutPacketsIsAFile(t *testing.T) {
	var b bytes.Buffer
	if err := New(&b, options()).Close(); err != nil {
		t.Fatal(err)
	}
	if all, r := read(t, b.Bytes()); len(all) != 0 || r.NInterfaces() != 1 {
		t.Errorf("%d packets, %d interfaces", len(all), r.NInterfaces())
	}
}

// The head of the queue waits for its verdict, everything else for the head; and
// nothing waits for ever.
func TestHolding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out shared
		w := New(&out, options())
		w.Put(time.Now(), []engine.Evidence{
			at(0, engine.FlowPacket, "before", 0), at(1, engine.ProbeSent, "p", 1), at(2, engine.FlowPacket, "behind", 0),
		})
		count := func(n uint64, when string) {
			t.Helper()
			synctest.Wait()
			if c := w.Counts(); c.Packets != n {
				t.Errorf("%s: %d written, want %d", when, c.Packets, n)
			}
		}
		count(0, "at once")
		time.Sleep(settle + look)
		count(1, "settled")
		time.Sleep(2 * time.Second)
		count(1, "the probe is outstanding")
		if out.len() == 0 {
			t.Error("nothing was flushed")
		}
		w.Put(time.Now(), []engine.Evidence{verdict(engine.ProbeVerdict, 1, engine.Silent)})
		time.Sleep(look)
		count(3, "the verdict is known")
		w.Put(time.Now(), []engine.Evidence{at(3, engine.ProbeSent, "p", 2), at(4, engine.ReplyPacket, "r", 3)})
		time.Sleep(maxPatient - time.Second)
		count(3, "still waiting")
		time.Sleep(time.Second + look)
		count(5, "waited long enough")
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		all, _ := read(t, out.bytes())
		if !strings.HasSuffix(all[3].comment, "verdict not yet known") || !strings.HasSuffix(all[4].comment, "not a reply to a probe of ours") {
			t.Errorf("%v", all[3:])
		}
	})
}

// When too much waits, the oldest goes without its verdict.
func TestHoldIsBounded(t *testing.T) {
	var out []*entry
	h := newHold(func(e *entry) { out = append(out, e) })
	first := event{Evidence: at(0, engine.ProbeSent, "p", 1), arrived: begin}
	h.take(&first)
	big := make([]byte, 1<<20)
	n := 0
	for len(out) == 0 && n < 100 {
		ev := event{Evidence: at(time.Duration(n+1), engine.FlowPacket, "", 0), arrived: begin}
		ev.Packet.Data = big
		h.take(&ev)
		n++
	}
	if n < 60 || n > 64 || out[0].Serial != 1 || !strings.HasSuffix(out[0].comment(), "verdict not yet known") {
		t.Errorf("after %d MiB: %v", n, out)
	}
	late := event{Evidence: verdict(engine.ProbeVerdict, 1, engine.Silent)}
	h.take(&late) // comes too late and finds nothing
	if len(h.serials) != 0 {
		t.Error("a written probe is remembered")
	}
	h.end()
	if h.bytes != 0 || len(h.entries) != 0 {
		t.Errorf("%d bytes, %d entries are left", h.bytes, len(h.entries))
	}
}

// A clock that was set back must not let what is held starve.
func TestClockSetBack(t *testing.T) {
	n := 0
	h := newHold(func(*entry) { n++ })
	for _, d := range []time.Duration{0, time.Second, -time.Hour} {
		ev := event{Evidence: at(d, engine.FlowPacket, "x", 0), arrived: begin}
		h.take(&ev)
	}
	if n != 2 || len(h.entries) != 1 {
		t.Errorf("%d written, %d held", n, len(h.entries))
	}
}

// shared is a buffer that can be read meanwhile.
type shared struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *shared) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *shared) len() int { s.mu.Lock(); defer s.mu.Unlock(); return s.b.Len() }

func (s *shared) bytes() []byte { s.mu.Lock(); defer s.mu.Unlock(); return bytes.Clone(s.b.Bytes()) }

var errFull = errors.New("disk full")

type failing struct{ after int }

func (f *failing) Write(b []byte) (int, error) {
	if f.after -= len(b); f.after < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestAWriterThatFailsIsToldOnceAndCounted(t *testing.T) {
	told := 0
	opts := options()
	opts.Failed = func(error) { told++ }
	w := New(&failing{after: 8000}, opts)
	const n = 1000
	for i := range n {
		w.Put(time.Now(), []engine.Evidence{at(time.Duration(i), engine.FlowPacket, "some header or other", 0)})
	}
	if err := w.Close(); !errors.Is(err, errFull) {
		t.Errorf("%v", err)
	}
	if c := w.Counts(); told != 1 || c.Packets+c.Dropped != n || c.Dropped == 0 {
		t.Errorf("told %d times, %+v", told, c)
	}
}

// A reader that does not read costs packets, never time, and the file says how
// many.
func TestASlowReaderLosesPackets(t *testing.T) {
	r, wr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w := New(wr, options())
	big := strings.Repeat("x", 1<<20)
	const n = 200
	start := time.Now()
	for i := range n {
		w.Put(time.Now(), []engine.Evidence{at(time.Duration(i), engine.FlowPacket, big, 0)})
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Put took %v", took)
	}
	start = time.Now()
	err = w.Close()
	if took := time.Since(start); !errors.Is(err, os.ErrDeadlineExceeded) || took > 3*time.Second {
		t.Errorf("%v after %v", err, took)
	}
	if c := w.Counts(); c.Dropped < n/2 || c.Packets+c.Dropped != n {
		t.Errorf("%+v", c)
	}
}

func TestDropsAreInTheFile(t *testing.T) {
	var b bytes.Buffer
	gate := &gated{to: &b, open: make(chan struct{})}
	w := New(gate, options())
	big := strings.Repeat("x", 16<<20)
	for i := range 20 { // held: 64 MiB, queued: 32 MiB; the rest is dropped
		w.Put(time.Now(), []engine.Evidence{at(time.Duration(i), engine.FlowPacket, big, 0)})
	}
	close(gate.open)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	all, r := read(t, b.Bytes())
	i, err := r.Interface(0)
	if c := w.Counts(); err != nil || c.Dropped == 0 || i.Statistics.PacketsDropped != c.Dropped ||
		i.Statistics.PacketsReceived != 20 || len(all)+int(c.Dropped) != 20 {
		t.Errorf("%+v, %+v, %d packets", c, i.Statistics, len(all))
	}
}

// gated writes nothing before it is opened.
type gated struct {
	to   io.Writer
	open chan struct{}
}

func (g *gated) Write(b []byte) (int, error) { <-g.open; return g.to.Write(b) }

// The golden file is what tshark was shown; it differs from run to run only where
// the interface statistics hold the time.
func TestGolden(t *testing.T) {
	var b bytes.Buffer
	f := &file{out: &b, opts: options()}
	other := at(time.Millisecond, engine.ReplyPacket, "\x45\x00\x00\x14", 0)
	other.Verdict = engine.Unmatched
	for _, e := range []*entry{
		{event: event{Evidence: at(0, engine.FlowPacket, "\x45\x00\x00\x28", 0), tap: tap{1, "eth1"}}},
		{event: event{Evidence: other, tap: tap{2, "eth2"}}},
		{event: event{Evidence: at(2*time.Millisecond, engine.ProbeSent, "\x60\x00\x00", 4), tap: tap{1, "eth1"}}, seen: true},
	} {
		if err := f.packet(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.flush(); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/golden.pcapng"
	if *update {
		if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	old, err := os.ReadFile(golden)
	if err != nil || !bytes.Equal(old, b.Bytes()) {
		t.Errorf("%v: %x", err, b.Bytes())
	}
}

// FuzzWriter gives the writer events in any order; what it writes can be read
// back, in time order within each burst.
func FuzzWriter(f *testing.F) {
	f.Add([]byte{1, 0, 1, 2, 1, 1, 6, 1, 3, 5, 2, 4, 7, 2, 5})
	f.Add([]byte{2, 1, 0, 4, 1, 0, 2, 1, 9, 3, 1, 9, 6, 1, 9, 6, 1, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		w := New(&out, options())
		for ; len(b) >= 3; b = b[3:] {
			ev := at(time.Duration(b[2]), engine.EvidenceKind(b[0]), string(b[:min(int(b[2])&7, len(b))]), uint64(b[1]))
			ev.Packet.Interface, ev.Keep, ev.Verdict = int(b[1]>>4), int(b[1])-2, engine.Verdict(b[2]>>4)
			w.Put(time.Now(), []engine.Evidence{ev})
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		all, _ := read(t, out.Bytes())
		if c := w.Counts(); c.Packets != uint64(len(all)) {
			t.Errorf("%d counted, %d read", c.Packets, len(all))
		}
	})
}

func BenchmarkPut(b *testing.B) {
	w := New(io.Discard, options())
	evidence := make([]engine.Evidence, 32)
	for i := range evidence {
		evidence[i] = at(time.Duration(i), engine.FlowPacket, strings.Repeat("h", 52), 0)
	}
	b.ReportAllocs()
	for b.Loop() {
		w.Put(time.Now(), evidence)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(w.Counts().Packets)/b.Elapsed().Seconds(), "packets/s")
	b.ReportMetric(float64(w.Counts().Dropped), "dropped")
}
