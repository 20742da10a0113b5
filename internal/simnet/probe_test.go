package simnet_test

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/inject"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
	"servicetraceroute/internal/wire"
)

// prober is a tracer without sense: it knows a flow from its tap and sends what a
// test wants.
type prober struct {
	t      *testing.T
	source capture.Source
	sink   inject.Sink
	flow   simnet.Tuple

	newest   wire.TCPProbe // the flow's latest segment from this host
	end, una uint32
	rcv      uint32 // end of what the peer sent
	iface    int
	hop      capture.HardwareAddr
	errors   []icmpError
	replies  []reply
}

type icmpError struct {
	at    time.Time
	from  netip.Addr
	quote wire.Quote
	kind  wire.ICMPKind
}

type reply struct {
	at  time.Time
	tcp wire.TCP
	ttl uint8
}

func probe(t *testing.T, s *simnet.Net, host string, f simnet.Tuple) *prober {
	t.Helper()
	source, sink, err := s.Tap(host)
	if err != nil {
		t.Fatal(err)
	}
	return &prober{t: t, source: source, sink: sink, flow: f}
}

// listen takes in what the tap sees for a time.
func (p *prober) listen(d time.Duration) {
	p.t.Helper()
	if err := p.source.SetReadDeadline(time.Now().Add(d)); err != nil {
		p.t.Fatal(err)
	}
	for {
		batch, err := p.source.ReadBatch()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			p.t.Fatal(err)
		}
		for i := range batch {
			p.packet(&batch[i])
		}
	}
}

func (p *prober) packet(c *capture.Packet) {
	var ip wire.Packet
	if err := ip.Decode(c.Data, c.Len); err != nil {
		p.t.Fatal(err)
	}
	switch {
	case ip.Proto == wire.ProtoTCP:
		p.segment(c, &ip)
	case c.Direction == capture.Incoming:
		var m wire.ICMP
		e := icmpError{at: c.Time, from: ip.Src}
		if err := m.Decode(ip.Version, ip.Transport); err != nil {
			p.t.Fatal(err)
		}
		if err := e.quote.Decode(m.Quote); err != nil {
			p.t.Fatal(err)
		}
		e.kind = m.Kind
		p.errors = append(p.errors, e)
	}
}

func (p *prober) segment(c *capture.Packet, ip *wire.Packet) {
	var s wire.TCP
	if err := s.Decode(ip.Transport, ip.TransportLen); err != nil {
		p.t.Fatal(err)
	}
	if src := netip.AddrPortFrom(ip.Src, s.SrcPort); c.Direction == capture.Incoming && src == p.flow.Dst {
		p.una = s.Ack
		p.rcv = max(p.rcv, s.Seq+uint32(s.PayloadLen))
		p.replies = append(p.replies, reply{c.Time, s, ip.TTL})
		return
	} else if c.Direction != capture.Outgoing || src != p.flow.Src || ip.TTL < 64 {
		return
	}
	p.iface, p.hop = c.Interface, c.NextHop
	p.end = s.Seq + uint32(s.PayloadLen)
	p.newest = wire.TCPProbe{
		Src: p.flow.Src, Dst: p.flow.Dst, TOS: ip.TOS, FlowLabel: ip.FlowLabel, ID: ip.ID + 1000, Seq: p.end, Ack: s.Ack,
		Flags: wire.ACK, Window: s.Window, Timestamp: s.Options.HasTimestamp, TSVal: s.Options.TSVal, TSEcr: s.Options.TSEcr,
	}
}

// send sends a segment like the flow's latest with a TTL, changed by change.
func (p *prober) send(ttl uint8, change func(*wire.TCPSegment)) simnet.Probe {
	p.t.Helper()
	s := wire.TCPSegment{TCPProbe: p.newest}
	p.newest.ID++
	s.TTL = ttl
	if change != nil {
		change(&s)
	}
	if err := p.sink.Send(s.AppendTo(nil), p.iface, p.hop); err != nil {
		p.t.Fatal(err)
	}
	id := s.ID
	if p.flow.Src.Addr().Is6() {
		id = 0
	}
	return simnet.Probe{Tuple: p.flow, Seq: s.Seq, ID: id, TTL: ttl}
}

// old makes a segment the product's harmless probe.
func (p *prober) old(k uint32) func(*wire.TCPSegment) {
	return func(s *wire.TCPSegment) { s.Seq = p.una - 1 - k }
}

// diamond is two ways of four routers, hosts at both ends.
func diamond() scenario.Network {
	return network("c-r1", "r1-a1", "r1-b1", "a1-a2", "b1-b2", "a2-r2", "b2-r2", "r2-s")
}

var requests = scenario.Workload{
	Client: "c", Server: "s", Port: 443, Traffic: scenario.RequestResponse, Bytes: 100,
	Every: 100 * time.Millisecond, Duration: 10 * time.Second,
}

// Probes of a flow take the flow's own way, and the router that the truth names
// answers, in exactly the time that its distance takes.
func TestTimeExceeded(t *testing.T) {
	families(t, func(t *testing.T, ipv6 bool) {
		n := diamond()
		for i := range n.Links {
			n.Links[i].Delay = time.Duration(i+1) * time.Millisecond
		}
		s := start(t, n, simnet.Options{})
		ways := map[string]bool{}
		for range 8 {
			w := requests
			w.IPv6 = ipv6
			f := flow(t, s, w)
			p := probe(t, s, "c", f.Tuple)
			p.listen(time.Second)
			sent := time.Now()
			var probes []simnet.Probe
			for ttl := range uint8(4) {
				probes = append(probes, p.send(ttl+1, p.old(uint32(ttl))))
			}
			p.listen(time.Second)
			if len(p.errors) != 4 {
				t.Fatalf("%d errors for 4 probes", len(p.errors))
			}
			path := s.Truth().Path(f.Tuple)
			way := path[len(path)-1].Nodes // flow labels: the SYN's is another one
			for i, e := range p.errors {
				addr, node, ok := s.Truth().Answered(probes[i])
				if !ok || addr != e.from || node != way[i] || e.quote.Seq != probes[i].Seq || e.kind != wire.TimeExceeded {
					t.Errorf("TTL %d: %v answered, the truth is %v of %s on %v", i+1, e.from, addr, node, way)
				}
			}
			if rtt := p.errors[0].at.Sub(sent); rtt != 2*time.Millisecond+1 {
				t.Errorf("the first hop's round-trip time is %v", rtt)
			}
			ways[way[1]] = true
			p.source.Close()
		}
		if len(ways) != 2 {
			t.Errorf("flows took the ways %v", ways)
		}
	})
}

// Whoever reads, sees its own packets leave, and nothing more after Close.
func TestTap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, network("c-r1", "r1-s"), simnet.Options{Buffer: 8})
		source, sink, err := s.Tap("c")
		if err != nil {
			t.Fatal(err)
		}
		if name := source.InterfaceName(2); name != "eth0" {
			t.Errorf("interface 2 is %q", name)
		}
		if err := source.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := source.ReadBatch(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("nothing to read: %v", err)
		}
		flow(t, s, scenario.Workload{Client: "c", Server: "s", Port: 1, Traffic: scenario.Download, Bytes: 1 << 20})
		synctest.Wait()
		time.Sleep(time.Second)
		batch, err := source.ReadBatch()
		if err != nil || len(batch) != 8 || batch[0].Direction != capture.Outgoing || !batch[0].NextHopKnown {
			t.Fatalf("%d packets, %v", len(batch), err)
		}
		if st := source.Stats(); st.Dropped == 0 || st.Seen != st.Dropped+8 {
			t.Errorf("%+v", st)
		}
		for i := range 2 { // the second to a station that is not there
			hop := batch[0].NextHop
			hop.Addr[5] += byte(i)
			if err := sink.Send(batch[0].Data, 2, hop); err != nil {
				t.Fatal(err)
			}
		}
		if err := source.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		var times []time.Time
		for len(times) < 2 {
			copies, err := source.ReadBatch()
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range copies {
				if c.Direction == capture.Outgoing {
					times = append(times, c.Time)
				}
			}
		}
		if !times[0].Equal(times[1]) {
			t.Errorf("left at %v", times)
		}
		go func() {
			time.Sleep(time.Minute)
			source.Close()
		}()
		for err == nil {
			_, err = source.ReadBatch()
		}
	})
}
