package simnet_test

import (
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
	"servicetraceroute/internal/wire"
)

// harmful is a probe as some tool sends it, in a flow that suffers from it.
type harmful struct {
	name     string
	workload scenario.Workload
	opts     simnet.NodeOptions // of the client
	ttl      uint8
	burst    int // of probes sent at once; 0: 1
	every    time.Duration
	probe    func(p *prober, s *wire.TCPSegment, i int)
	// hurt says what must be seen; nil: nothing may be.
	hurt func(r simnet.Result) bool
}

func atNext(*prober, *wire.TCPSegment, int) {}

func below(p *prober, s *wire.TCPSegment, i int) { s.Seq = p.una - 1 - uint32(i%256) }

func bigWindow(_ *prober, s *wire.TCPSegment, _ int) { s.Window = 0xffff }

// What hurts a flow on Linux hurts it here, and what does not, does not.
var harmfuls = []harmful{
	{
		name: "duplicate ACK, no SACK", workload: scenario.Workload{Traffic: scenario.Download, NoSACK: true}, probe: atNext, burst: 5,
		hurt: func(r simnet.Result) bool { return r.Server.Counters.FastRetransmits > 0 && r.Intact },
	},
	{name: "duplicate ACK, SACK", workload: scenario.Workload{Traffic: scenario.Download}, probe: atNext, burst: 5},
	{
		name: "made-up window", workload: scenario.Workload{Traffic: scenario.SlowReader}, probe: bigWindow,
		hurt: func(r simnet.Result) bool {
			return r.Client.Counters.BeyondWindow > 0 && r.Server.Counters.Retransmits > 0
		},
	},
	{
		name: "made-up window below the window", workload: scenario.Workload{Traffic: scenario.SlowReader},
		probe: func(p *prober, s *wire.TCPSegment, i int) { below(p, s, i); bigWindow(p, s, i) },
	},
	{
		name: "in the window, IP_RECVERR", workload: scenario.Workload{Traffic: scenario.OneByte}, probe: atNext, ttl: 1,
		opts: simnet.NodeOptions{RecvErr: true},
		hurt: func(r simnet.Result) bool { return errors.Is(r.Client.Err, syscall.EHOSTUNREACH) },
	},
	{name: "below the window, IP_RECVERR", workload: scenario.Workload{Traffic: scenario.OneByte}, probe: below, ttl: 1, opts: simnet.NodeOptions{RecvErr: true}},
	{
		name: "in the window", workload: scenario.Workload{Traffic: scenario.OneByte}, probe: atNext, ttl: 1,
	},
	{
		name: "a byte beyond the next", workload: scenario.Workload{Traffic: scenario.OneByte}, every: time.Second,
		probe: func(_ *prober, s *wire.TCPSegment, _ int) { s.Seq++; s.Payload = []byte("@") },
		hurt:  func(r simnet.Result) bool { return r.Server.Mismatch > 0 },
	},
	{
		name: "a byte below", workload: scenario.Workload{Traffic: scenario.Upload}, every: 100 * time.Millisecond,
		probe: func(p *prober, s *wire.TCPSegment, i int) { s.Seq = p.una - 1; s.Payload = []byte("@") },
		hurt: func(r simnet.Result) bool {
			rehash := r.Server.Counters.DuplicateDataRehash > 0
			return r.Intact && r.Client.Counters.DSACKReceived > 0 && rehash == r.Client.Local.Addr().Is6()
		},
	},
	{
		name: "beyond the window", workload: scenario.Workload{Traffic: scenario.OneByte},
		probe: func(_ *prober, s *wire.TCPSegment, _ int) { s.Seq += 5 << 20 },
	},
	{
		name: "acknowledgement long past", workload: scenario.Workload{Traffic: scenario.OneByte},
		probe: func(_ *prober, s *wire.TCPSegment, _ int) { s.Ack -= 5 << 20 },
		hurt:  func(r simnet.Result) bool { return r.Server.Counters.ChallengeACKs > 0 },
	},
	{
		name: "old timestamp", workload: scenario.Workload{Traffic: scenario.OneByte},
		probe: func(p *prober, s *wire.TCPSegment, i int) { below(p, s, i); s.TSVal -= 100000 },
	},
	{name: "harmless, download", workload: scenario.Workload{Traffic: scenario.Download}, probe: below},
	{name: "harmless, no SACK", workload: scenario.Workload{Traffic: scenario.Download, NoSACK: true}, probe: below},
	{name: "harmless, plain", workload: scenario.Workload{Traffic: scenario.Download, NoSACK: true, NoTimestamps: true, NoWindowScale: true}, probe: below},
	{name: "harmless, upload", workload: scenario.Workload{Traffic: scenario.Upload}, probe: below},
	{name: "harmless, slow reader", workload: scenario.Workload{Traffic: scenario.SlowReader}, probe: below},
	{name: "harmless, requests", workload: scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 3000}, probe: below},
	{name: "harmless, one byte", workload: scenario.Workload{Traffic: scenario.OneByte}, probe: below},
	{name: "harmless, idle", workload: scenario.Workload{Traffic: scenario.Idle}, probe: below},
}

func TestHarm(t *testing.T) {
	for _, test := range harmfuls {
		t.Run(test.name, func(t *testing.T) {
			families(t, func(t *testing.T, ipv6 bool) { test.run(t, ipv6) })
		})
	}
}

func (h harmful) run(t *testing.T, ipv6 bool) {
	n := network("c-r1", "r1-r2", "r2-s")
	n.Links[1].Delay, n.Links[1].Rate = 10*time.Millisecond, 10e6
	s := start(t, n, simnet.Options{Nodes: map[string]simnet.NodeOptions{"c": h.opts}})
	w := h.workload
	w.Client, w.Server, w.Port, w.IPv6, w.Duration = "c", "s", 443, ipv6, 4*time.Second
	w.Every = 50 * time.Millisecond
	if h.every == 0 {
		h.every = 20 * time.Millisecond
	}
	if h.ttl == 0 {
		h.ttl = 63
	}
	f := flow(t, s, w)
	p := probe(t, s, "c", f.Tuple)
	p.listen(time.Second)
	for i := range int(2 * time.Second / h.every) {
		for range max(h.burst, 1) {
			p.send(h.ttl, func(s *wire.TCPSegment) { h.probe(p, s, i) })
		}
		p.listen(h.every)
		if f.Closed() {
			break
		}
	}
	p.listen(20 * time.Second) // an application that was hurt may hang
	r := f.Result()
	if h.hurt == nil {
		if !r.Intact || r.Client.Counters.Harm()+r.Server.Counters.Harm() > 0 {
			t.Errorf("harm:\n%+v\n%+v", r.Client, r.Server)
		}
		return
	}
	if !h.hurt(r) {
		t.Errorf("no harm:\n%+v\n%+v", r.Client, r.Server)
	}
}

// Under loss, old data makes a sender take back what it had slowed down for: the
// DSACK looks as if its retransmission had been needless. Old segments without
// data do not.
func TestFalseUndo(t *testing.T) {
	for _, payload := range []string{"", "@"} {
		families(t, func(t *testing.T, ipv6 bool) {
			n := network("c-r1", "r1-r2", "r2-s")
			n.Links[1].Delay, n.Links[1].Loss = 10*time.Millisecond, 0.01
			s := start(t, n, simnet.Options{})
			f := flow(t, s, scenario.Workload{
				Client: "c", Server: "s", Port: 443, Traffic: scenario.Upload, Duration: 10 * time.Second, IPv6: ipv6,
			})
			p := probe(t, s, "c", f.Tuple)
			p.listen(time.Second)
			for i := range 8 {
				p.send(63, func(s *wire.TCPSegment) { s.Seq, s.Payload = p.una-1-uint32(i%2), []byte(payload) })
				p.listen(time.Second)
			}
			<-f.Done()
			c := f.Result().Client.Counters
			if c.FastRetransmits == 0 || (c.DSACKUndo > 0) != (payload != "") || !f.Result().Intact {
				t.Errorf("payload %q: %+v", payload, c)
			}
		})
	}
}

// A receiver that reads nothing for long is asked for its window; a silent flow
// is kept alive. Both ask by an empty segment below the window.
func TestAsking(t *testing.T) {
	families(t, func(t *testing.T, ipv6 bool) {
		s := start(t, line(nil), simnet.Options{Nodes: map[string]simnet.NodeOptions{"c": {KeepAlive: 10 * time.Second}}})
		slow := flow(t, s, scenario.Workload{
			Client: "c", Server: "s", Port: 443, Traffic: scenario.SlowReader, Bytes: 100 << 10, Every: 5 * time.Second, IPv6: ipv6,
		})
		silent := flow(t, s, scenario.Workload{
			Client: "c", Server: "s", Port: 443, Traffic: scenario.Idle, Duration: time.Minute, IPv6: ipv6,
		})
		<-slow.Done()
		<-silent.Done()
		r := slow.Result()
		if c := r.Server.Counters; !r.Intact || c.WindowProbes == 0 || c.Harm() > 0 || r.Client.Counters.Harm() > 0 {
			t.Errorf("%+v", r)
		}
		r = silent.Result()
		if !r.Intact || r.Client.Counters.KeepAlives != 5 || r.Server.Counters.OldAnswered != 5 {
			t.Errorf("%+v", r)
		}
	})
}

// A destination answers a probe below its window in one round trip, and again only
// after half a second.
func TestDestinationReply(t *testing.T) {
	families(t, func(t *testing.T, ipv6 bool) {
		n := network("c-r1", "r1-s")
		n.Links[1].Delay = 10 * time.Millisecond
		s := start(t, n, simnet.Options{Nodes: map[string]simnet.NodeOptions{"s": {TTL: 128}}})
		f := flow(t, s, scenario.Workload{Client: "c", Server: "s", Port: 443, Traffic: scenario.Idle, Duration: time.Minute, IPv6: ipv6})
		p := probe(t, s, "c", f.Tuple)
		p.listen(time.Second)
		for i := range 10 { // 200 ms apart: the first, the fourth and so on are answered
			p.replies = nil
			sent := time.Now()
			v := p.send(2, p.old(uint32(i)))
			p.listen(200 * time.Millisecond)
			if !s.Truth().Judge(v).Reached {
				t.Error("the destination was not reached")
			}
			if (len(p.replies) == 1) != (i%3 == 0) {
				t.Errorf("probe %d: %d replies", i, len(p.replies))
			}
			for _, r := range p.replies {
				if rtt := r.at.Sub(sent); rtt != 2*(10*time.Millisecond+10*time.Microsecond)+1 || r.tcp.Flags != wire.ACK || r.ttl != 127 {
					t.Errorf("reply after %v: %+v, TTL %d", rtt, r.tcp, r.ttl)
				}
			}
		}
		if c := f.Result().Server.Counters; c.OldSegments != 10 || c.OldAnswered != 4 || c.ACKsSkipped != 6 {
			t.Errorf("%+v", c)
		}
	})
}

// A server that keeps no state before the third segment of the handshake resets
// the client for a probe when that segment was lost; an ordinary one does not.
func TestSYNCookies(t *testing.T) {
	for _, cookies := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			third := false
			s := start(t, network("c-r1", "r1-s"), simnet.Options{
				Nodes: map[string]simnet.NodeOptions{"s": {SYNCookies: cookies}, "c": {Think: 3 * time.Second}},
				Drop: func(c simnet.Crossing) bool {
					if c.From != "c" || third || c.Packet[20+13] != byte(wire.ACK) {
						return false
					}
					third = true
					return true
				},
			})
			f := flow(t, s, scenario.Workload{Client: "c", Server: "s", Port: 443, Traffic: scenario.Idle})
			p := probe(t, s, "c", f.Tuple)
			p.listen(500 * time.Millisecond)
			p.send(64, p.old(0))
			p.listen(10 * time.Second)
			if r := f.Result(); (r.Client.Counters.ResetsReceived > 0) != cookies || r.Intact == cookies {
				t.Errorf("cookies %v: %+v", cookies, r.Client)
			}
		})
	}
}

// After the end of a flow, who closed last answers probes with resets.
func TestClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, network("c-r1", "r1-s"), simnet.Options{})
		f := flow(t, s, scenario.Workload{Client: "c", Server: "s", Port: 443, Traffic: scenario.Idle})
		p := probe(t, s, "c", f.Tuple)
		p.listen(time.Second)
		for i := range 3 {
			p.replies = nil
			p.send(63, p.old(uint32(i)))
			p.listen(time.Second)
			if len(p.replies) != 1 || p.replies[0].tcp.Flags&wire.RST == 0 {
				t.Errorf("%+v", p.replies)
			}
		}
		if !f.Result().Intact {
			t.Error("the flow had not ended in order")
		}
	})
}
