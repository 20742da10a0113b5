//go:build linux

package servicetraceroute_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
	"servicetraceroute/trace"
)

// recorded is a source whose packets are written to a pcap file, as tcpdump does: whole,
// and without their ways.
type recorded struct {
	servicetraceroute.Source
	mu   sync.Mutex
	file bytes.Buffer
}

func newRecorded(s servicetraceroute.Source) *recorded {
	r := &recorded{Source: s}
	for _, v := range []uint32{0xa1b23c4d, 2 | 4<<16, 0, 0, 1 << 18, 101} {
		_ = binary.Write(&r.file, binary.LittleEndian, v)
	}
	return r
}

// newCapturedSim is a network in memory whose client's packets are recorded and whose tracer keeps
// evidence. The caller closes both.
func newCapturedSim(t *testing.T, n scenario.Network) (s *sim, tap *recorded, evidence *bytes.Buffer) {
	t.Helper()
	net, err := simnet.New(wires(n, 5*time.Millisecond), simnet.Options{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	source, sink, err := net.Tap("client")
	if err != nil {
		t.Fatal(err)
	}
	s, tap, evidence = &sim{t: t, net: net}, newRecorded(source), &bytes.Buffer{}
	if s.tracer, err = servicetraceroute.New(servicetraceroute.Config{Source: tap, Sink: sink, Pcap: evidence}); err != nil {
		t.Fatal(err)
	}
	return s, tap, evidence
}

// ReadBatch implements Source.
func (r *recorded) ReadBatch() ([]servicetraceroute.Packet, error) {
	batch, err := r.Source.ReadBatch()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range batch {
		for _, v := range []uint32{uint32(p.Time.Unix()), uint32(p.Time.Nanosecond()), uint32(len(p.Data)), uint32(p.Len)} {
			_ = binary.Write(&r.file, binary.LittleEndian, v)
		}
		r.file.Write(p.Data)
	}
	return batch, err
}

// LocalAddrs is the wrapped source's.
func (r *recorded) LocalAddrs() ([]netip.Addr, error) {
	return r.Source.(interface {
		LocalAddrs() ([]netip.Addr, error)
	}).LocalAddrs()
}

// bytes is the file.
func (r *recorded) bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.file.Bytes())
}

// replay reads a whole file.
func replay(t *testing.T, r servicetraceroute.Replay, sel servicetraceroute.Selection) (all found, err error) {
	t.Helper()
	for ev, e := range r.Watch(context.Background(), sel) {
		if e != nil {
			return all, e
		}
		switch ev := ev.(type) {
		case *trace.Trace:
			all.traces = append(all.traces, ev)
		case *trace.Flow:
			all.flows = append(all.flows, ev)
		case *trace.Stats:
			all.stats = ev
		}
	}
	return all, nil
}

// same holds the traces that a file gives against those that were made while it was
// written. A file may have answers that came when a trace had all it needed.
func same(t *testing.T, live, again []*trace.Trace) {
	t.Helper()
	if len(live) != len(again) {
		t.Fatalf("%d traces in the file, %d were made", len(again), len(live))
	}
	for _, want := range live {
		var got *trace.Trace
		for _, tr := range again {
			if tr.Flow.FlowKey == want.Flow.FlowKey && (got == nil || tr.Start.Sub(want.Start).Abs() < got.Start.Sub(want.Start).Abs()) {
				got = tr
			}
		}
		if got == nil {
			t.Errorf("no trace of %v", want.Flow)
			continue
		}
		if got.Stop != want.Stop || got.Reached != want.Reached || got.Complete != want.Complete || got.PathID != want.PathID ||
			*got.Service != *want.Service || got.Mixed != want.Mixed || got.Impact != want.Impact || len(got.Hops) != len(want.Hops) ||
			got.Flow.Direction != want.Flow.Direction || want.Reached && *got.Destination != *want.Destination {
			t.Errorf("got\n%s\nwant\n%s", describe(got), describe(want))
			continue
		}
		for i, h := range want.Hops {
			g := got.Hops[i]
			ok := g.TTL == h.TTL && g.Sent == h.Sent && len(g.Replies) >= len(h.Replies) && g.Limited == h.Limited
			for j := 0; ok && j < len(h.Replies); j++ {
				a, b := h.Replies[j], g.Replies[j]
				ok = a.Addr == b.Addr && a.Kind == b.Kind && a.Late == b.Late && (a.RTT-b.RTT).Abs() < time.Microsecond
			}
			if !ok {
				t.Errorf("TTL %d: got %+v, want %+v", h.TTL, g, h)
			}
		}
	}
}

// A file gives what was found while it was written: the evidence, and one of somebody who
// only listened and does not tell which way a packet went.
func TestSimReplay(t *testing.T) {
	for _, test := range []struct {
		name string
		net  scenario.Network
		v6   bool
	}{
		{"chain", chain(4), false}, {"chain IPv6", chain(4), true}, {"silent", changed(chain(4), silence, "r2"), false},
		{"silent end", changed(chain(4), silence, "r4"), false}, {"ladder", ladder(3, scenario.ICMPLimit{}), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, tap, evidence := newCapturedSim(t, test.net)
				net := s.net
				defer net.Close()
				stop := s.watch(servicetraceroute.Selection{})
				w := chatty(test.v6)
				w.Duration = 30 * time.Second
				f := s.start(w)
				<-f.Done()
				live := stop()
				if err := s.tracer.Close(); err != nil {
					t.Fatal(err)
				}
				sel := servicetraceroute.Selection{Hosts: []string{net.Addr("server", false).String(), net.Addr("server", true).String()}}
				for name, file := range map[string][]byte{"evidence": evidence.Bytes(), "pcap": tap.bytes()} {
					again, err := replay(t, servicetraceroute.Replay{Packets: bytes.NewReader(file)}, sel)
					if err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					t.Logf("%s: %d bytes, %+v", name, len(file), again.stats)
					same(t, live.traces, again.traces)
					if len(again.flows) != 1 || again.flows[0].State != trace.FlowMatched {
						t.Errorf("%s: %d flows: %+v", name, len(again.flows), again.flows)
					}
					if st := again.stats; st.Probes.Sent != live.stats.Probes.Sent || st.Replies.Matched < live.stats.Replies.Matched {
						t.Errorf("%s: %+v %+v, want %+v %+v", name, st.Probes, st.Replies, live.stats.Probes, live.stats.Replies)
					}
				}
			})
		})
	}
}

// A file in which one flow is traced again and again gives each trace for itself, also
// where it lacks what the flow did between them.
func TestSimReplayRetraced(t *testing.T) {
	// Of two probes that look alike a replay believes neither, and of a hundred such files one
	// has two that do: the numbers are drawn.
	const tries = 3
	for i := range tries {
		var wrong []string
		synctest.Test(t, func(t *testing.T) { wrong = replayRetraced(t) })
		switch {
		case len(wrong) == 0:
			return
		case i == tries-1:
			t.Error(strings.Join(wrong, "\n"))
		default:
			t.Log(strings.Join(wrong, "\n"))
		}
	}
}

// replayRetraced traces a flow and tells what is wrong with the replays of what was captured.
func replayRetraced(t *testing.T) (wrong []string) {
	s, tap, evidence := newCapturedSim(t, chain(4))
	net := s.net
	defer net.Close()
	stop := s.watch(servicetraceroute.Selection{Retrace: 10 * time.Second})
	w := chatty(false)
	w.Every, w.Duration = 3*time.Second, 50*time.Second
	<-s.start(w).Done()
	live := stop()
	if err := s.tracer.Close(); err != nil {
		t.Fatal(err)
	}
	if len(live.traces) < 4 {
		t.Fatalf("%d traces", len(live.traces))
	}
	for name, file := range map[string][]byte{"evidence": evidence.Bytes(), "pcap": tap.bytes()} {
		again, err := replay(t, servicetraceroute.Replay{Packets: bytes.NewReader(file)}, servicetraceroute.Selection{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(again.traces) != len(live.traces) {
			wrong = append(wrong, fmt.Sprintf("%s: %d traces, %d were made", name, len(again.traces), len(live.traces)))
			continue
		}
		for i, tr := range again.traces {
			want := live.traces[i]
			// Without what came just before it an acknowledgement is not known to be repeated.
			whole := name == "pcap" || i == 0
			if whole && (tr.Stop != want.Stop || tr.PathID != want.PathID) || !whole && (tr.Stop != trace.StopUnknown && tr.Stop != trace.StopCancelled || tr.Reached) ||
				tr.Start.Sub(want.Start).Abs() > 10*time.Millisecond || len(tr.Hops) < 4 || len(tr.Hops[3].Replies) == 0 || tr.Hops[3].Replies[0].Addr != want.Hops[3].Replies[0].Addr {
				wrong = append(wrong, fmt.Sprintf("%s: got\n%s\nwant\n%s", name, describe(tr), describe(want)))
			}
		}
	}
	return wrong
}
