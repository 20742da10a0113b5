package flow

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// taps feeds a table with segments of one flow, a millisecond after another.
type taps struct {
	t     *testing.T
	table *Table
	now   time.Time
	ifi   int
	local netip.AddrPort
	id    uint16
}

var server = netip.MustParseAddrPort("203.0.113.7:443")

func newTaps(t *testing.T) *taps {
	return &taps{
		t: t, table: NewTable(16, time.Minute), now: time.Unix(1_800_000_000, 0), ifi: 2,
		local: netip.MustParseAddrPort("192.0.2.1:40000"),
	}
}

func (a *taps) see(d capture.Direction, ifi int, s wire.TCP) (*Flow, Observation, bool) {
	ip := wire.Packet{Version: 4, Src: a.local.Addr(), Dst: server.Addr(), TTL: 64, ID: a.id}
	s.SrcPort, s.DstPort = a.local.Port(), server.Port()
	if d != capture.Outgoing {
		ip.Src, ip.Dst, ip.TTL = ip.Dst, ip.Src, 60
		s.SrcPort, s.DstPort = s.DstPort, s.SrcPort
	}
	p := capture.Packet{Time: a.now, Interface: ifi, Direction: d, NextHopKnown: true}
	return a.table.Observe(&p, &ip, &s)
}

func (a *taps) out(s wire.TCP) Observation {
	a.later(time.Millisecond)
	a.id++
	_, o, _ := a.see(capture.Outgoing, a.ifi, s)
	return o
}

func (a *taps) in(s wire.TCP) Observation {
	a.later(time.Millisecond)
	_, o, _ := a.see(capture.Incoming, a.ifi, s)
	return o
}

func (a *taps) later(d time.Duration) { a.now = a.now.Add(d) }

// flow is the only one in the table.
func (a *taps) flow() *Flow {
	a.t.Helper()
	if a.table.Len() != 1 {
		a.t.Fatalf("%d flows", a.table.Len())
	}
	for f := range a.table.Each {
		return f
	}
	return nil
}

// handshake leaves our next sequence number at 101 and the peer's at 901.
func (a *taps) handshake() {
	scale := wire.TCPOptions{HasWindowScale: true, WindowScale: 7, SACKPermitted: true}
	a.out(wire.TCP{Flags: wire.SYN, Seq: 100, Window: 64240, Options: scale})
	a.in(wire.TCP{Flags: wire.SYN | wire.ACK, Seq: 900, Ack: 101, Window: 65160, Options: scale})
	if o := a.out(wire.TCP{Flags: wire.ACK, Seq: 101, Ack: 901, Window: 502}); !o.Established {
		a.t.Error("the third segment did not establish the flow")
	}
}

func TestHandshake(t *testing.T) {
	a := newTaps(t)
	a.handshake()
	f := a.flow()
	c := f.TCP
	if f.Direction != trace.Out || !c.SACK || c.PeerSpoke || !c.WindowScaleKnown() {
		t.Errorf("direction %v, %+v", f.Direction, c)
	}
	if c.Una != 101 || c.Nxt != 101 || c.PeerNxt != 901 || c.MaxPeerWindow != 65160 {
		t.Errorf("una %d, nxt %d, peer %d, window %d: a SYN-ACK's window is not scaled", c.Una, c.Nxt, c.PeerNxt, c.MaxPeerWindow)
	}
	a.in(wire.TCP{Flags: wire.ACK, Seq: 901, Ack: 101, Window: 1000})
	if !c.PeerSpoke || c.PeerData || c.MaxPeerWindow != 1000<<7 {
		t.Errorf("after the peer's word: %+v", c)
	}
}

func TestAcceptedFlow(t *testing.T) {
	a := newTaps(t)
	a.in(wire.TCP{Flags: wire.SYN, Seq: 900})
	a.out(wire.TCP{Flags: wire.SYN | wire.ACK, Seq: 100, Ack: 901})
	if o := a.in(wire.TCP{Flags: wire.ACK, Seq: 901, Ack: 101}); !o.Established || a.flow().Direction != trace.In {
		t.Errorf("%+v, direction %v", o, a.flow().Direction)
	}
}

func TestJoinedLate(t *testing.T) {
	a := newTaps(t)
	a.out(wire.TCP{Flags: wire.ACK, Seq: 5000, Ack: 7000, PayloadLen: 100})
	if c := a.flow().TCP; c.HaveUna || c.Established {
		t.Errorf("nothing is certain to have arrived yet: %+v", c)
	}
	a.in(wire.TCP{Flags: wire.ACK, Seq: 7000, Ack: 5050, Window: 9})
	c := a.flow().TCP
	if !c.HaveUna || c.Una != 5050 || c.Nxt != 5100 || !c.Established || !c.PeerSpoke || c.MaxPeerWindow != 9 {
		t.Errorf("%+v: an unknown window scale is not guessed", c)
	}
}

// Of an idle flow the first that is seen may be a keepalive and its answer.
func TestJoinedAtAKeepalive(t *testing.T) {
	a := newTaps(t)
	keepalive := wire.TCP{Flags: wire.ACK, Seq: 500, Ack: 901, Window: 502}
	a.out(keepalive)
	a.in(wire.TCP{Flags: wire.ACK, Seq: 901, Ack: 501, Window: 509})
	c := a.flow().TCP
	if !c.Established || !c.HaveUna || c.Una != 500 || c.Nxt != 501 {
		t.Errorf("%+v", c)
	}
	if o := a.out(keepalive); !o.Keepalive {
		t.Error("the next keepalive is not seen to be one")
	}
	b := newTaps(t)
	b.out(keepalive)
	b.in(wire.TCP{Flags: wire.ACK, Seq: 901, Ack: 502, Window: 509})
	if c := b.flow().TCP; c.HaveUna {
		t.Errorf("an acknowledgement of what never left is believed: %+v", c)
	}
}

func TestWhatASegmentDid(t *testing.T) {
	data := func(seq uint32, n int) wire.TCP { return wire.TCP{Flags: wire.ACK, Seq: seq, Ack: 901, PayloadLen: n} }
	for _, test := range []struct {
		name                  string
		segment               wire.TCP
		retransmit, keepalive bool
	}{
		{"new data", data(601, 100), false, false},
		{"sent before", data(101, 100), true, false},
		{"partly new", data(501, 200), false, false},
		{"keepalive without data", data(600, 0), false, true},
		{"keepalive with a byte", data(600, 1), false, true},
		{"pure acknowledgement", data(601, 0), false, false},
		{"the last byte of more", data(590, 11), true, false},
	} {
		a := newTaps(t)
		a.handshake()
		a.out(data(101, 500))
		o := a.out(test.segment)
		if o.Retransmit != test.retransmit || o.Keepalive != test.keepalive {
			t.Errorf("%s: %+v", test.name, o)
		}
		if n := a.flow().Retransmits; n != map[bool]uint32{true: 1}[test.retransmit] {
			t.Errorf("%s: %d retransmissions", test.name, n)
		}
	}
}

// A segment that comes late because others overtook it is no retransmission, one
// that comes after a round trip is.
func TestOvertaken(t *testing.T) {
	for _, test := range []struct {
		after      time.Duration
		retransmit bool
	}{{100 * time.Microsecond, false}, {30 * time.Millisecond, true}} {
		a := newTaps(t)
		a.handshake()
		a.out(wire.TCP{Flags: wire.ACK, Seq: 101, Ack: 901, PayloadLen: 100})
		a.later(20 * time.Millisecond)
		a.in(wire.TCP{Flags: wire.ACK, Seq: 901, Ack: 201, PayloadLen: 100})
		if o := a.in(wire.TCP{Flags: wire.ACK, Seq: 1101, Ack: 201, PayloadLen: 100}); o.Retransmit {
			t.Error("a jump is no retransmission")
		}
		a.later(test.after - time.Millisecond) // in adds one
		if o := a.in(wire.TCP{Flags: wire.ACK, Seq: 1001, Ack: 201, PayloadLen: 100}); o.Retransmit != test.retransmit {
			t.Errorf("%v after the gap: %+v", test.after, o)
		}
		if o := a.in(wire.TCP{Flags: wire.ACK, Seq: 901, Ack: 201, PayloadLen: 100}); !o.Retransmit {
			t.Error("what was seen before is a retransmission however soon")
		}
	}
}

// A SYN with another sequence number begins anew, also when the one before was
// never answered.
func TestGivenUpStart(t *testing.T) {
	a := newTaps(t)
	a.out(wire.TCP{Flags: wire.SYN, Seq: 5_000_000, Window: 64240})
	a.handshake()
	if f := a.flow(); f.TCP.Nxt != 101 {
		t.Errorf("next is %d", f.TCP.Nxt)
	}
}

func TestBytesAreCountedOnce(t *testing.T) {
	a := newTaps(t)
	a.handshake()
	for _, seq := range []uint32{901, 901, 1401, 1151} {
		a.in(wire.TCP{Flags: wire.ACK, Seq: seq, Ack: 101, PayloadLen: 500})
	}
	if f := a.flow(); f.BytesIn != 1000 || f.BytesOut != 0 {
		t.Errorf("%d bytes in, %d out", f.BytesIn, f.BytesOut)
	}
}

func TestRepeatedAcknowledgement(t *testing.T) {
	a := newTaps(t)
	a.handshake()
	ack := wire.TCP{Flags: wire.ACK, Seq: 901, Ack: 101, Window: 500}
	a.in(ack)
	if o := a.in(ack); !o.Repeated || !o.InOrder || !o.PureAck || !o.NoSACKBlocks || !o.SameTTL {
		t.Errorf("%+v", o)
	}
	for name, change := range map[string]func(*wire.TCP){
		"window": func(s *wire.TCP) { s.Window++ },
		"ack":    func(s *wire.TCP) { s.Ack++ },
	} {
		a, s := newTaps(t), ack
		a.handshake()
		a.in(s)
		change(&s)
		if o := a.in(s); o.Repeated {
			t.Errorf("another %s is no repetition", name)
		}
	}
}

func TestTupleUsedAgain(t *testing.T) {
	a := newTaps(t)
	a.handshake()
	for range 2 {
		a.in(wire.TCP{Flags: wire.ACK, Seq: 901, Ack: 101, PayloadLen: 500})
	}
	if f := a.flow(); f.BytesIn != 500 || f.Retransmits != 1 {
		t.Errorf("%d bytes, %d retransmissions", f.BytesIn, f.Retransmits)
	}
	if o := a.in(wire.TCP{Flags: wire.RST, Seq: 1401}); !o.Closed || !o.RST {
		t.Errorf("%+v", o)
	}
	a.flow().Attachment = "the engine's"
	nxt := a.flow().TCP.Nxt
	o := a.out(wire.TCP{Flags: wire.SYN, Seq: 70000})
	if b := o.Before; b == nil || b.TCP.Nxt != nxt || !b.TCP.Closed || b.BytesIn != 500 || b.Retransmits != 1 {
		t.Errorf("the connection before was %+v", b)
	}
	if c := a.flow().TCP; !o.FirstSYN || c.Closed || c.Established || c.Nxt != 70001 || c.HaveUna {
		t.Errorf("the next connection begins with %+v", c)
	}
	if f := a.flow(); f.BytesIn != 0 || f.BytesOut != 0 || f.Retransmits != 0 {
		t.Errorf("the next connection has %d and %d bytes, %d retransmissions", f.BytesIn, f.BytesOut, f.Retransmits)
	}
}

func TestSequenceNumbersWrap(t *testing.T) {
	a := newTaps(t)
	a.out(wire.TCP{Flags: wire.ACK, Seq: 0xffffff00, Ack: 1, PayloadLen: 0x200})
	a.in(wire.TCP{Flags: wire.ACK, Seq: 1, Ack: 0xffffff80})
	a.in(wire.TCP{Flags: wire.ACK, Seq: 1, Ack: 0x100})
	if c := a.flow().TCP; c.Una != 0x100 || c.Nxt != 0x100 {
		t.Errorf("una %#x, nxt %#x", c.Una, c.Nxt)
	}
}

func TestFollowedNearestTheWire(t *testing.T) {
	const bridge, port = 5, 2
	a := newTaps(t)
	s := wire.TCP{Flags: wire.ACK, Seq: 1, Ack: 1, PayloadLen: 10}
	for range 3 {
		a.later(10 * time.Millisecond)
		a.id++
		_, first, _ := a.see(capture.Outgoing, bridge, s)
		a.later(5 * time.Microsecond)
		if _, o, _ := a.see(capture.Outgoing, port, s); first.Retransmit || o.Retransmit {
			t.Error("the copy at the second tap is no retransmission")
		}
		if e := a.flow().Egress; e.Interface != port {
			t.Errorf("followed at %d, want the last tap before the wire", e.Interface)
		}
		s.Seq += 10
	}
	queued := s
	for range 5 { // all of them wait in the port's queue
		a.later(10 * time.Millisecond)
		a.id++
		a.see(capture.Outgoing, bridge, s)
		s.Seq += 10
	}
	if f := a.flow(); f.Egress.Interface != port || !f.Elsewhere() {
		t.Errorf("followed at %d; elsewhere: %v", f.Egress.Interface, f.Elsewhere())
	}
	a.later(10 * time.Millisecond)
	for range 5 {
		if _, o, _ := a.see(capture.Outgoing, port, queued); o.Retransmit {
			t.Error("what leaves the queue is no retransmission")
		}
		queued.Seq += 10
	}
	if a.flow().Elsewhere() {
		t.Error("it does leave there")
	}
	for i := range elsewhereLimit { // rerouted
		a.later(100 * time.Millisecond)
		a.id++
		a.see(capture.Outgoing, 9, s)
		s.Seq += 10
		if got, want := a.flow().Egress.Interface == 9, i == elsewhereLimit-1; got != want {
			t.Errorf("after %d packets elsewhere: followed there %v", i+1, got)
		}
	}
}

// A VLAN's packets are seen at its own interface and, with a tag, at the one below.
// There a probe would lack the tag.
func TestTaggedIsNotFollowed(t *testing.T) {
	a := newTaps(t)
	a.handshake()
	before := a.flow().TCP.Nxt
	ip := wire.Packet{Version: 4, Src: a.flow().Key.Src.Addr(), Dst: a.flow().Key.Dst.Addr()}
	s := wire.TCP{SrcPort: a.flow().Key.Src.Port(), DstPort: a.flow().Key.Dst.Port(), Flags: wire.ACK, Seq: before, Ack: 901, PayloadLen: 100}
	for range 2 * elsewhereLimit {
		a.later(elsewhereFor)
		p := capture.Packet{Time: a.now, Interface: 9, Direction: capture.Outgoing, NextHopKnown: true, Tagged: true}
		f, _, followed := a.table.Observe(&p, &ip, &s)
		if followed || f.Egress.Interface == 9 || f.TCP.Nxt != before || f.Elsewhere() {
			t.Fatalf("followed %v at %d", followed, f.Egress.Interface)
		}
		s.Seq += 100
	}
}

// What the local socket knows of a handshake that nobody saw.
func TestTold(t *testing.T) {
	a := newTaps(t)
	a.out(wire.TCP{Flags: wire.ACK, Seq: 1000, Ack: 500, PayloadLen: 100, Window: 300})
	a.in(wire.TCP{Flags: wire.ACK, Seq: 500, Ack: 1100, Window: 400})
	c := a.flow().TCP
	if c.WindowScaleKnown() || c.NoSACK() || c.MaxPeerWindow != 400 {
		t.Fatalf("%+v", c)
	}
	c.Told(7, 5, true)
	if !c.WindowScaleKnown() || !c.SACK || c.MaxPeerWindow != 400<<5 || c.window != 300<<7 {
		t.Errorf("%+v", c)
	}
	a.in(wire.TCP{Flags: wire.ACK, Seq: 500, Ack: 1100, Window: 500})
	if c.MaxPeerWindow != 500<<5 {
		t.Errorf("largest window %d", c.MaxPeerWindow)
	}
	a.flow().TCP.Told(1, 1, false) // once
	if c.synScale != [2]int8{7, 5} || !c.SACK {
		t.Errorf("%+v", c)
	}
}

func TestIncomingCopies(t *testing.T) {
	a := newTaps(t)
	s := wire.TCP{Flags: wire.ACK, Seq: 1, Ack: 1, PayloadLen: 10}
	if _, _, followed := a.see(capture.Incoming, 2, s); !followed {
		t.Error("the first tap is nearest the wire")
	}
	if _, o, followed := a.see(capture.Incoming, 5, s); followed || o.Retransmit {
		t.Error("the second tap's copy was taken in")
	}
}

func TestTableIsBounded(t *testing.T) {
	a := newTaps(t)
	a.table = NewTable(3, time.Minute)
	var gone []uint16
	a.table.OnRemove = func(f *Flow) { gone = append(gone, f.Key.Src.Port()) }
	open := func(port uint16) {
		a.local = netip.AddrPortFrom(a.local.Addr(), port)
		a.out(wire.TCP{Flags: wire.SYN})
	}
	for _, port := range []uint16{1, 2, 3, 1, 4} { // 2 is unused for longest
		open(port)
	}
	if a.table.Len() != 3 || a.table.Evicted() != 1 || len(gone) != 1 || gone[0] != 2 {
		t.Errorf("%d flows, %d evicted: %v", a.table.Len(), a.table.Evicted(), gone)
	}
	var order []uint16
	for f := range a.table.Each {
		order = append(order, f.Key.Src.Port())
	}
	if len(order) != 3 || order[0] != 4 || order[1] != 1 || order[2] != 3 {
		t.Errorf("order of use: %v", order)
	}
	a.later(time.Minute - time.Millisecond)
	open(4)
	a.table.Expire(a.now)
	if a.table.Len() != 1 || a.table.Evicted() != 1 {
		t.Errorf("%d flows after the idle time, %d evicted", a.table.Len(), a.table.Evicted())
	}
	a.table.Expire(a.now.Add(time.Hour))
	open(9) // the list is whole after it was empty
	if a.table.Len() != 1 {
		t.Errorf("%d flows", a.table.Len())
	}
}

// Flows whose ends both were heard lose no place to a flood of those that nobody answers.
func TestTableFlood(t *testing.T) {
	a := newTaps(t)
	a.table = NewTable(1000, time.Minute)
	port := uint16(0)
	next := func() { port++; a.local = netip.AddrPortFrom(a.local.Addr(), port) }
	for range 100 {
		next()
		a.handshake()
	}
	for range 5000 {
		next()
		a.in(wire.TCP{Flags: wire.SYN})
	}
	ended := 0
	for f := range a.table.Each {
		if f.TCP.Established {
			ended++
		}
	}
	if ended != 100 || a.table.Len() != 100+1000/unheardPart || a.table.Evicted() != 5000-1000/unheardPart {
		t.Errorf("%d flows, %d with a handshake that ended; %d evicted", a.table.Len(), ended, a.table.Evicted())
	}
	for range 2000 {
		next()
		a.handshake()
	}
	if a.table.Len() > 1000 {
		t.Errorf("%d flows", a.table.Len())
	}
}

func TestAResetOpensNoFlow(t *testing.T) {
	a := newTaps(t)
	if f, _, _ := a.see(capture.Incoming, 2, wire.TCP{Flags: wire.RST}); f != nil || a.table.Len() != 0 {
		t.Errorf("%+v", f)
	}
}

func TestRTT(t *testing.T) {
	ms := func(n int) stamp { return 1 + stamp(n)*stamp(time.Millisecond) }
	var r rttEstimate
	r.sent(ms(0), 100)
	r.sent(ms(5), 200) // one segment is timed at a time
	r.acked(ms(10), 50)
	r.acked(ms(20), 100)
	if r.samples != 1 || r.least != 20*time.Millisecond || r.smoothed != r.least {
		t.Errorf("%+v", r)
	}
	r.sent(ms(30), 300)
	r.forget() // retransmitted: nobody knows which copy is acknowledged
	r.acked(ms(40), 300)
	if r.samples != 1 {
		t.Error("a retransmitted segment was timed")
	}
	r.sent(ms(50), 400)
	r.acked(ms(78), 500)
	if r.samples != 2 || r.least != 20*time.Millisecond || r.smoothed != 21*time.Millisecond {
		t.Errorf("%+v", r)
	}
	r.sent(ms(90), 600)
	r.acked(ms(80), 600) // the clock was stepped
	if r.samples != 2 {
		t.Error("a negative sample was taken")
	}
}
