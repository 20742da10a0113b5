//go:build linux

package servicetraceroute_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/inject"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// liar sends probes that must not be sent, so that the tests of harm are seen to
// be able to fail. It follows the flows as a tracer does.
type liar struct {
	source *capture.Ring
	sink   *inject.Socket
	table  *flow.Table
	mine   uint8 // the TTL by which it knows its own packets
	sent   atomic.Int64
	ip     wire.Packet
	tcp    wire.TCP
	newest *flow.Flow
}

func newLiar(t testing.TB, client *lab.Node) *liar {
	t.Helper()
	l := &liar{table: flow.NewTable(16, time.Minute), mine: 77}
	err := client.Do(func() (err error) {
		if l.source, err = capture.Open(capture.Config{}); err != nil {
			return err
		}
		l.sink, err = inject.Open()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(l.source.Close(), l.sink.Close()) })
	return l
}

// learn takes in what the flows do until the deadline.
func (l *liar) learn(until time.Time) error {
	if err := l.source.SetReadDeadline(until); err != nil {
		return err
	}
	for time.Now().Before(until) {
		batch, err := l.source.ReadBatch()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
		for i := range batch {
			l.packet(&batch[i])
		}
	}
	return nil
}

func (l *liar) packet(p *capture.Packet) {
	if l.ip.Decode(p.Data, p.Len) != nil || l.ip.Proto != wire.ProtoTCP || p.Direction == capture.Foreign ||
		l.tcp.Decode(l.ip.Transport, l.ip.TransportLen) != nil || l.ip.TTL == l.mine && p.Direction == capture.Outgoing {
		return
	}
	if f, _, ok := l.table.Observe(p, &l.ip, &l.tcp); ok && f.Direction == trace.Out {
		l.newest = f
	}
}

// lie is one kind of wrong probe.
type lie struct {
	every time.Duration
	burst int // sent at once each time
	make  func(f *flow.Flow, n int) wire.TCPSegment
	// after the flow's end, not during it
	after bool
}

// run sends until ctx ends.
func (l *liar) run(ctx context.Context, how lie) {
	var n int
	for ctx.Err() == nil {
		if err := l.learn(time.Now().Add(how.every)); err != nil {
			return
		}
		f := l.newest
		if f == nil || !f.TCP.Established || !f.TCP.HaveUna || !f.TCP.Newest.Valid || f.TCP.Closed != how.after {
			continue
		}
		for range how.burst {
			s := how.make(f, n)
			n++
			if l.sink.Send(s.AppendTo(nil), f.Egress.Interface, f.Egress.NextHop) == nil {
				l.sent.Add(1)
			}
		}
	}
}

// honest is a probe as it should be, but for its TTL: the destination sees it.
func (l *liar) honest(f *flow.Flow, n int) wire.TCPSegment {
	t := f.TCP
	return wire.TCPSegment{TCPProbe: wire.TCPProbe{
		Src: f.Key.Src, Dst: f.Key.Dst, TTL: l.mine, TOS: t.Newest.TOS &^ 3, FlowLabel: t.Newest.FlowLabel, ID: uint16(n%65535 + 1),
		Seq: t.Una - 1 - uint32(n%64), Ack: t.Newest.Ack, Flags: wire.ACK, Window: t.Newest.Window,
		Timestamp: t.Newest.Timestamp, TSVal: t.Newest.TSVal, TSEcr: t.Newest.TSEcr,
	}}
}

// duplicate is an acknowledgement at SND.NXT, as tools before this one sent it.
func (l *liar) duplicate(f *flow.Flow, n int) wire.TCPSegment {
	s := l.honest(f, n)
	s.Seq = f.TCP.Nxt
	return s
}

// TestWrongProbesShow sends what a probe must never be: each time the counter
// moves by which the tests of harm would notice.
func TestWrongProbesShow(t *testing.T) {
	long(t)
	t.Parallel()
	b := newBench(t, "wrong", 0.01)
	l := newLiar(t, b.lab.Node("client"))
	const client, server = 0, 1
	var table strings.Builder
	table.WriteString("# Wrong probes show\n\nWhat each counter of harm does under probes that must not be sent, on the same lab. " +
		"TCPRcvQDrop moves under a byte at SND.NXT when the peer's buffer has shrunk (TestWrongProbeFindsNoRoom).\n\n" +
		"| probe | sent | client | server | firewall would forget in | the application |\n|---|---|---|---|---|---|\n")
	defer func() { evidence(t, "wrong-probes", table.String()) }()
	type expect struct {
		end  int
		name string
	}
	for _, test := range []struct {
		name     string
		workload scenario.Workload
		loss     float64
		lie      lie
		moves    []expect
		honest   bool
		damage   bool // of the stream
		forgets  bool // the firewall, in five minutes
	}{
		{
			name:     "honest ones",
			honest:   true,
			workload: scenario.Workload{Traffic: scenario.Download, Bytes: 4_000_000, NoSACK: true},
			lie:      lie{every: 20 * time.Millisecond, burst: 4, make: l.honest},
		},
		{
			name:     "duplicate acknowledgement at NXT",
			workload: scenario.Workload{Traffic: scenario.Download, Bytes: 4_000_000, NoSACK: true},
			lie:      lie{every: 20 * time.Millisecond, burst: 4, make: l.duplicate},
			moves:    []expect{{server, "Tcp.RetransSegs"}, {server, "TcpExt.TCPFastRetrans"}, {server, "TcpExt.TCPRenoRecovery"}},
		},
		{
			name:     "made-up window",
			workload: scenario.Workload{Traffic: scenario.SlowReader, Bytes: 1_000_000},
			lie: lie{every: 10 * time.Millisecond, burst: 1, make: func(f *flow.Flow, n int) wire.TCPSegment {
				s := l.duplicate(f, n)
				s.Window = 0xffff
				return s
			}},
			moves: []expect{{server, "Tcp.RetransSegs"}, {client, "TcpExt.BeyondWindow"}},
		},
		{
			name:     "one byte at UNA-1", // more often, and the sender would ignore them
			workload: scenario.Workload{Traffic: scenario.Upload, Bytes: 3_000_000},
			loss:     0.01,
			lie: lie{every: 250 * time.Millisecond, burst: 1, make: func(f *flow.Flow, n int) wire.TCPSegment {
				s := l.honest(f, n)
				s.Seq, s.Payload = f.TCP.Una-1, []byte{0}
				return s
			}},
			moves: []expect{{client, "TcpExt.TCPDSACKRecv"}, {client, "TcpExt.TCPDSACKUndo"}},
		},
		{
			name:     "one byte at UNA-1, another flow label",
			workload: scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 200, Every: 50 * time.Millisecond, Duration: 2 * time.Second, IPv6: true},
			lie: lie{every: 20 * time.Millisecond, burst: 1, make: func(f *flow.Flow, n int) wire.TCPSegment {
				s := l.honest(f, n)
				s.Seq, s.Payload, s.FlowLabel = f.TCP.Una-1, []byte{0}, s.FlowLabel^1
				return s
			}},
			moves: []expect{{server, "TcpExt.TcpDuplicateDataRehash"}},
		},
		{
			name:     "one byte with an old timestamp",
			workload: scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 200, Every: 50 * time.Millisecond, Duration: 2 * time.Second},
			lie: lie{every: 50 * time.Millisecond, burst: 1, make: func(f *flow.Flow, n int) wire.TCPSegment {
				s := l.honest(f, n)
				s.Seq, s.Payload, s.TSVal = f.TCP.Una-1, []byte{0}, f.TCP.Newest.TSVal-100_000
				return s
			}},
			moves: []expect{{server, "TcpExt.PAWSEstab"}},
		},
		{
			name:     "one byte beyond NXT",
			workload: scenario.Workload{Traffic: scenario.OneByte, Every: 50 * time.Millisecond, Duration: 3 * time.Second},
			lie: lie{every: 20 * time.Millisecond, burst: 1, make: func(f *flow.Flow, n int) wire.TCPSegment {
				s := l.honest(f, n)
				s.Seq, s.Payload = f.TCP.Nxt+1+uint32(n%4), []byte("@")
				return s
			}},
			moves:  []expect{{client, "TcpExt.TCPTimeouts"}, {client, "TcpExt.TCPChallengeACK"}},
			damage: true,
		},
		{
			name:     "equal acknowledgements on an idle flow",
			workload: scenario.Workload{Traffic: scenario.Idle, Bytes: 100, Duration: 3 * time.Second},
			lie: lie{every: 200 * time.Millisecond, burst: 1, make: func(f *flow.Flow, n int) wire.TCPSegment {
				return l.duplicate(f, 1)
			}},
			forgets: true,
		},
		{
			name:     "after the end",
			workload: scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 200, Duration: time.Second, Every: 100 * time.Millisecond},
			lie:      lie{every: 30 * time.Millisecond, burst: 1, make: l.honest, after: true},
			moves:    []expect{{server, "Tcp.OutRsts"}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			b.t, l.newest = t, nil
			if err := b.lab.SetLink(t.Context(), "slow", func(k *scenario.Link) { k.Loss = test.loss }); err != nil {
				t.Fatal(err)
			}
			for _, end := range b.ends() {
				if err := peer.ApplyOptions(t.Context(), end, test.workload); err != nil {
					t.Fatal(err)
				}
			}
			before := l.sent.Load()
			cfg := peer.RunConfig{Workload: test.workload, Timeout: 8 * time.Second}
			if test.loss > 0 {
				cfg.Socket.Congestion = "reno"
			}
			o := b.run(cfg, func(ctx context.Context) { l.run(ctx, test.lie) })
			if test.lie.after {
				time.Sleep(100 * time.Millisecond)
			}
			t.Logf("%d sent; client %v; server %v; conntrack %v; %s", l.sent.Load()-before,
				o.moved[client].Only(peer.Harm), o.moved[server].Only(peer.Harm), o.conntrack, o.flow.Error)
			ending := "its bytes"
			if !o.flow.Intact {
				ending = "damaged: " + o.flow.Error
			}
			fmt.Fprintf(&table, "| %s | %d | %v | %v | %v | %s |\n", test.name, l.sent.Load()-before,
				o.moved[client].Only(peer.Harm), o.moved[server].Only(peer.Harm), o.conntrack, ending)
			if l.sent.Load() == before {
				t.Fatal("nothing was sent")
			}
			for _, e := range test.moves {
				if o.moved[e.end][e.name] == 0 {
					t.Errorf("%s did not move", e.name)
				}
			}
			if harm := o.harm(); test.honest {
				// The answer to the last probe can meet a socket that has just closed.
				if delete(harm, "Tcp.OutRsts"); len(harm) > 0 && o.stall < longestStall {
					t.Errorf("harm: %v", harm)
				}
			}
			if o.flow.Intact == test.damage {
				t.Errorf("intact: %v: %s", o.flow.Intact, o.flow.Error)
			}
			if (o.conntrack > 0 && o.conntrack < 301*time.Second) != test.forgets && test.workload.Traffic == scenario.Idle {
				t.Errorf("the firewall forgets in %v", o.conntrack)
			}
		})
	}
}

// TestErrorQueue: a socket that asks for ICMP errors lives with our probes, and
// would not with others.
func TestErrorQueue(t *testing.T) {
	t.Parallel()
	b := newBench(t, "recverr", 0)
	for _, ipv6 := range []bool{false, true} {
		cfg := peer.RunConfig{
			Workload: scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 200, Every: 50 * time.Millisecond, Duration: 3 * time.Second, IPv6: ipv6},
			Socket:   peer.Socket{RecvErr: true}, Timeout: 10 * time.Second,
		}
		o := b.traced(cfg, rates()[1])
		if !o.flow.Intact || o.sent == 0 {
			t.Errorf("IPv6 %v: with our probes: %s", ipv6, o.flow.Error)
		}
		l := newLiar(t, b.lab.Node("client"))
		l.mine = 2 // expires on its way
		o = b.run(cfg, func(ctx context.Context) { l.run(ctx, lie{every: 20 * time.Millisecond, burst: 1, make: l.duplicate}) })
		if o.flow.Intact {
			t.Errorf("IPv6 %v: acknowledgements at NXT did no harm", ipv6)
		}
		t.Logf("IPv6 %v: acknowledgements at NXT: %s", ipv6, o.flow.Error)
	}
}

// TestWrongProbeFindsNoRoom sends a byte at SND.NXT, inside the window, to a socket
// whose application has made its buffer smaller meanwhile: TCPRcvQDrop shows it.
func TestWrongProbeFindsNoRoom(t *testing.T) {
	f := &field{t: t, lab: labtest.Start(t, narrow("room", 0))}
	l := newLiar(t, f.lab.Node("client"))
	p := f.connect(false, nil)
	if _, err := p.client.Write(make([]byte, 20_000)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // all of it waits to be read
	if err := p.server.SetReadBuffer(1); err != nil {
		t.Fatal(err)
	}
	before, err := peer.ReadCounters(t.Context(), f.lab.Node("server"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	l.run(ctx, lie{every: 20 * time.Millisecond, burst: 1, make: func(f *flow.Flow, n int) wire.TCPSegment {
		s := l.duplicate(f, n)
		s.Payload = []byte("x")
		return s
	}})
	after, err := peer.ReadCounters(t.Context(), f.lab.Node("server"))
	if err != nil {
		t.Fatal(err)
	}
	moved := after.Delta(before)
	t.Logf("%d sent; %v", l.sent.Load(), moved.Only(peer.Harm))
	if moved["TcpExt.TCPRcvQDrop"] == 0 {
		t.Error("TCPRcvQDrop did not move")
	}
}
