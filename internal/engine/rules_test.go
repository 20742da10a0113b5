package engine

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// The rules of probing. scripts/mutate.sh breaks each and expects the test that
// names it to fail.

func TestProbesAreOldAndUnique(t *testing.T) {
	r := newRig(t, false, 20)
	r.handshake()
	r.exchange()
	una := r.seq
	r.out(segment{flags: wire.ACK, data: 3000}) // not acknowledged
	r.after(time.Second)
	if len(r.probes) < 19 {
		t.Fatalf("%d probes for 19 TTLs", len(r.probes))
	}
	seen := map[uint32]bool{}
	ids := map[uint16]bool{}
	for _, p := range r.probes {
		if !wire.SeqLess(p.Seq, una) {
			t.Errorf("sequence number %d is not below SND.UNA %d", p.Seq, una)
		}
		if p.Seq == una-1 {
			t.Errorf("sequence number %d is that of a keepalive", p.Seq)
		}
		if wire.SeqDiff(una, p.Seq) > 4097 {
			t.Errorf("sequence number %d is far below SND.UNA %d", p.Seq, una)
		}
		if seen[p.Seq] || ids[p.ID] || p.ID == 0 {
			t.Errorf("probe %+v repeats a sequence number or an identification", p)
		}
		seen[p.Seq], ids[p.ID] = true, true
		if p.Flags != wire.ACK {
			t.Errorf("flags %v", p.Flags)
		}
	}
}

// Where few sequence numbers are left, none is used twice while it is remembered.
func TestProbesAreUniqueInANarrowRoom(t *testing.T) {
	r := newRig(t, false, 20)
	r.handshake()
	r.exchange()
	r.out(segment{flags: wire.ACK, data: 501<<7 - 40})
	before := len(r.probes)
	r.after(2 * time.Second)
	seen := map[uint32]bool{}
	for _, p := range r.probes[before:] {
		if seen[p.Seq] {
			t.Errorf("sequence number %d is used twice", p.Seq)
		}
		seen[p.Seq] = true
	}
	if len(seen) < 15 {
		t.Errorf("%d probes", len(seen))
	}
}

func TestProbesStayWithinTheWindow(t *testing.T) {
	r := newRig(t, false, 5)
	r.handshake()
	r.exchange()
	peerWindow := 501 << 7
	r.out(segment{flags: wire.ACK, data: peerWindow - 50})
	before := len(r.probes)
	r.after(600 * time.Millisecond)
	if len(r.probes) == before {
		t.Error("no probe although 50 bytes are left")
	}
	for _, p := range r.probes[before:] {
		if int(wire.SeqDiff(r.seq, p.Seq)) > peerWindow {
			t.Errorf("SND.NXT - seq = %d, the largest window is %d", wire.SeqDiff(r.seq, p.Seq), peerWindow)
		}
	}
	r.out(segment{flags: wire.ACK, data: 49}) // now nothing fits
	before = len(r.probes)
	r.after(600 * time.Millisecond)
	if len(r.probes) != before {
		t.Errorf("%d probes without room", len(r.probes)-before)
	}
}

func TestProbesCopyTheNewestPacket(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		r := newRig(t, v6, 6)
		r.handshake()
		r.window, r.tos = 777, 0x48
		r.exchange()
		r.probes = nil
		r.after(time.Second)
		if len(r.probes) == 0 {
			t.Fatal("no probe")
		}
		for _, p := range r.probes {
			if p.Ack != r.ack || p.Window != 777 || !p.Timestamp || p.TSVal != r.tsval || p.TSEcr != r.ts2 {
				t.Errorf("acknowledgement, window or timestamps are not the newest: %+v", p)
			}
			if p.TOS != 0x48 {
				t.Errorf("TOS %#x: DSCP is to be copied, ECN to be zero", p.TOS)
			}
			if p.FlowLabel != r.label {
				t.Errorf("flow label %#x, want %#x", p.FlowLabel, r.label)
			}
		}
	}
}

func TestReachingProbesGoAlone(t *testing.T) {
	r := newRig(t, false, 4)
	r.handshake()
	r.exchange()
	var last time.Time
	for range 400 {
		n := r.reaching(4)
		r.after(10 * time.Millisecond)
		switch m := r.reaching(4); {
		case m > n+1:
			t.Fatalf("%d reaching probes at once", m-n)
		case m == n+1:
			if !last.IsZero() && r.now.Sub(last) < 590*time.Millisecond {
				t.Fatalf("reaching probes %v apart", r.now.Sub(last))
			}
			last = r.now
		}
	}
	if r.reaching(4) < 3 {
		t.Errorf("%d reaching probes in 4 s", r.reaching(4))
	}
}

func TestReachingWaitsForThePeersWord(t *testing.T) {
	r := newRig(t, false, 3)
	r.handshake()
	r.out(segment{flags: wire.ACK, data: 10})
	r.after(900 * time.Millisecond)
	if n := r.reaching(3); n != 0 {
		t.Errorf("%d reaching probes before the peer said anything", n)
	}
	r.in(segment{flags: wire.ACK})
	r.after(400 * time.Millisecond)
	if r.reaching(3) == 0 {
		t.Error("no reaching probe after the peer spoke")
	}
}

// Without SACK an acknowledgement too many does harm while data is under way.
func TestReachingWaitsWithoutSACK(t *testing.T) {
	for _, test := range []struct {
		name     string
		sack     bool
		outgoing bool // data leaves all the time
		want     bool
	}{{"SACK", true, true, true}, {"none, busy", false, true, false}, {"none, silent", false, false, true}} {
		r := newRig(t, false, 3)
		options := synOptions
		if !test.sack {
			options = []byte{2, 4, 5, 180, 1, 3, 3, 7}
		}
		r.handshakeWith(options)
		r.exchange()
		for range 40 {
			r.after(100 * time.Millisecond)
			if test.outgoing {
				r.out(segment{flags: wire.ACK, data: 10})
				r.in(segment{flags: wire.ACK})
			}
		}
		if n := r.reaching(3); (n > 0) != test.want {
			t.Errorf("%s: %d reaching probes", test.name, n)
		}
	}
}

func TestReachingWaitsAfterARepeatedSYNACK(t *testing.T) {
	r := newRig(t, false, 3)
	r.handshake()
	r.ack--
	r.in(segment{flags: wire.SYN | wire.ACK, options: synOptions}) // it missed our third ACK
	r.after(3 * time.Second)
	if n := r.reaching(3); n != 0 {
		t.Errorf("%d reaching probes to a server that may still hold a SYN cookie", n)
	}
}

// answering lets the routers and the destination answer for a while.
func (r *rig) answering(distance int, d time.Duration) {
	for end := r.now.Add(d); r.now.Before(end); {
		n := r.reaching(distance)
		r.after(10 * time.Millisecond)
		r.routers(distance)
		if r.reaching(distance) > n {
			r.now = r.now.Add(rtt)
			r.in(segment{flags: wire.ACK})
		}
	}
}

func TestDestinationByItsAck(t *testing.T) {
	for name, distances := range map[string][2]int{
		"symmetric": {4, 4}, "return path two longer": {4, 6}, "return path two shorter": {6, 4},
	} {
		r := newRig(t, false, distances[1])
		r.handshake()
		r.exchange()
		r.answering(distances[0], 5*time.Second)
		tr := r.traces()
		if len(tr) != 1 || tr[0].Stop != trace.StopDestination || tr[0].Destination.TTL != distances[0] || !tr[0].Complete {
			t.Errorf("%s: %+v", name, tr)
			continue
		}
		if last := tr[0].Hops[len(tr[0].Hops)-1]; last.TTL != distances[0] || len(last.Replies) == 0 || last.Replies[0].Kind != trace.TCPAck {
			t.Errorf("%s: last hop %+v", name, last)
		}
	}
}

func TestAKeepaliveVoidsAnAttempt(t *testing.T) {
	r := newRig(t, false, 3)
	r.handshake()
	r.exchange()
	for range 300 {
		n := r.reaching(3)
		r.after(10 * time.Millisecond)
		r.routers(3)
		if r.reaching(3) > n {
			r.out(segment{flags: wire.ACK, seq: r.seq - 1}) // which the peer answers with the same acknowledgement
			r.now = r.now.Add(rtt)
			r.in(segment{flags: wire.ACK})
		}
	}
	for _, tr := range r.traces() {
		if tr.Reached {
			t.Errorf("the answer to a keepalive was taken for the answer to a probe: %+v", tr)
		}
	}
}

// A Linux socket answers what is old once in 500 ms. A probe right behind a keepalive
// stays silent though it came to the destination, again and again where the two keep
// step; that is no sign that it expired on its way.
func TestAKeepaliveSpendsTheAnswer(t *testing.T) {
	for _, every := range []time.Duration{200 * time.Millisecond, time.Second} {
		r := newRig(t, false, 3)
		r.handshake()
		r.exchange()
		kept, answered := r.now, time.Time{}
		answers := func() {
			if r.now.Sub(answered) >= 500*time.Millisecond {
				answered = r.now
				r.now = r.now.Add(rtt)
				r.in(segment{flags: wire.ACK})
			}
		}
		var done []*trace.Trace
		for end := r.now.Add(40 * time.Second); r.now.Before(end) && len(done) == 0; done = r.traces() {
			n := r.reaching(3)
			if r.now.Sub(kept) >= every {
				kept = r.now
				r.out(segment{flags: wire.ACK, seq: r.seq - 1})
				answers()
			}
			r.after(10 * time.Millisecond)
			r.routers(2) // the one before the destination is silent
			if r.reaching(3) > n {
				answers()
			}
		}
		if len(done) == 0 {
			t.Errorf("a keepalive each %v: no trace", every)
		}
		for _, tr := range done {
			if tr.Reached && tr.Destination.TTL != 3 || !tr.Reached && every == time.Second {
				t.Errorf("a keepalive each %v: %+v", every, tr)
			}
		}
	}
}

func TestStopsWhenTheFlowEnds(t *testing.T) {
	for name, end := range map[string]func(*rig){
		"FIN of the peer": func(r *rig) { r.in(segment{flags: wire.FIN | wire.ACK}) },
		"FIN of ours":     func(r *rig) { r.out(segment{flags: wire.FIN | wire.ACK}) },
		"RST":             func(r *rig) { r.in(segment{flags: wire.RST}) },
		"SYN":             func(r *rig) { r.out(segment{flags: wire.SYN, options: synOptions}) },
	} {
		r := newRig(t, false, 6)
		r.handshake()
		r.after(30 * time.Millisecond)
		end(r)
		n := len(r.probes)
		r.after(5 * time.Second)
		if len(r.probes) != n {
			t.Errorf("%s: %d probes after the flow's end", name, len(r.probes)-n)
		}
		if tr := r.traces(); len(tr) != 1 || tr[0].Stop != trace.StopFlowClosed {
			t.Errorf("%s: %+v", name, tr)
		}
	}
}

func TestRefuses(t *testing.T) {
	for reason, option := range map[trace.Reason][]byte{
		trace.ReasonMD5:   append([]byte{19, 18}, make([]byte, 16)...),
		trace.ReasonAO:    {29, 4, 0, 0},
		trace.ReasonMPTCP: {30, 4, 0, 0},
	} {
		r := newRig(t, false, 6)
		r.handshake(option...)
		r.exchange()
		r.after(2 * time.Second)
		tr := r.traces()
		if len(r.probes) != 0 || len(tr) != 1 || tr[0].Stop != trace.StopRefused || tr[0].Reason != reason {
			t.Errorf("%v: %d probes, %+v", reason, len(r.probes), tr)
		}
	}
}

func TestCircuitBreaker(t *testing.T) {
	r := newRig(t, false, 3)
	r.handshake()
	r.exchange()
	for r.reaching(3) == 0 {
		r.after(10 * time.Millisecond)
	}
	r.now = r.now.Add(rtt)
	r.ack -= 300
	r.in(segment{flags: wire.ACK, data: 300}) // the peer sends again what we have
	n := r.reaching(3)
	r.after(5 * time.Second)
	if r.reaching(3) != n {
		t.Errorf("%d reaching probes after a retransmission within a round trip", r.reaching(3)-n)
	}
	if tr := r.traces(); len(tr) != 1 || !tr[0].Impact.Aborted || tr[0].Impact.Retransmits == 0 {
		t.Errorf("%+v", tr)
	}
}

// An attempt at a TTL that was asked before must not keep a trace waiting once the
// breaker has ended it.
func TestTheBreakerEndsTheAttempt(t *testing.T) {
	r := newRig(t, false, 6)
	r.handshake()
	r.exchange()
	asked := func() bool { // TTL 4 in the algorithm's order, and now alone
		s := r.e.runs[0].plan
		return s.Attempt(4) > 3 && r.e.runs[0].reach.Open().TTL == 4
	}
	for i := range 1000 {
		r.after(10 * time.Millisecond)
		r.routers(4)
		if i == 3 {
			r.now = r.now.Add(rtt)
			r.in(segment{flags: wire.ACK}) // the destination is nearer than it seems
		}
		if len(r.e.runs) == 0 || asked() {
			break
		}
	}
	if len(r.e.runs) == 0 {
		t.Fatal("no attempt was made")
	}
	r.now = r.now.Add(rtt)
	r.ack -= 300
	r.in(segment{flags: wire.ACK, data: 300})
	r.after(3 * time.Second)
	if tr := r.traces(); len(tr) != 1 || !tr[0].Impact.Aborted || tr[0].Stop != trace.StopUnknown {
		t.Errorf("%+v", tr)
	}
}

func TestTheBreakerCloses(t *testing.T) {
	b := breaker{}
	now := time.Unix(1_800_000_000, 0)
	dst := netip.MustParseAddr("203.0.113.7")
	b.trip(now, dst)
	if !b.open(now.Add(9*time.Minute), dst) || b.open(now.Add(11*time.Minute), dst) {
		t.Error("the breaker is open for ten minutes")
	}
}

func TestLostSync(t *testing.T) {
	r := newRig(t, false, 6)
	r.handshake()
	n := len(r.probes)
	r.e.Dropped(r.now, 10, 100)
	r.after(4 * time.Second)
	if len(r.probes) != n {
		t.Errorf("%d probes without sync", len(r.probes)-n)
	}
	r.after(2 * time.Second)
	if tr := r.traces(); len(tr) != 1 || tr[0].Stop != trace.StopLostSync {
		t.Errorf("%+v", tr)
	}
}

func TestOwnProbesAreNoFlow(t *testing.T) {
	r := newRig(t, false, 6)
	r.handshake()
	r.after(100 * time.Millisecond)
	// The flow's own packets are ECN-capable, probes are not.
	if tos := r.flow().TCP.Newest.TOS; len(r.probes) == 0 || tos != r.tos|2 {
		t.Errorf("the flow's state was taken from a probe: TOS %#x after %d probes", tos, len(r.probes))
	}
}

// shown returns the addresses of the routers in the trace that ends now.
func (r *rig) shown() (addrs int, tr *trace.Trace) {
	r.in(segment{flags: wire.FIN | wire.ACK})
	all := r.traces()
	if len(all) != 1 {
		r.t.Fatalf("%d traces", len(all))
	}
	for _, h := range all[0].Hops {
		addrs += len(h.Replies)
	}
	return addrs, all[0]
}

func TestFirstAnswerWins(t *testing.T) {
	r := newRig(t, false, 6)
	r.handshake()
	r.after(10 * time.Millisecond)
	b := r.packets[0]
	r.error("198.51.100.1", 11, 0, b, 0)
	r.error("198.51.100.99", 11, 0, b, 0) // the same, replayed by somebody else
	n, tr := r.shown()
	if n != 1 {
		t.Fatalf("%d replies: %+v", n, tr.Hops)
	}
	for _, h := range tr.Hops {
		for _, reply := range h.Replies {
			if reply.Addr.String() != "198.51.100.1" {
				t.Errorf("shown: %v", reply.Addr)
			}
		}
	}
}

func TestOnlyCodeZero(t *testing.T) {
	r := newRig(t, false, 6)
	r.handshake()
	r.after(10 * time.Millisecond)
	r.error("198.51.100.1", 11, 1, r.packets[0], 0) // fragment reassembly time exceeded
	if n, tr := r.shown(); n != 0 {
		t.Errorf("%+v", tr.Hops)
	}
}

func TestShortQuotes(t *testing.T) {
	r := newRig(t, false, 6)
	r.handshake()
	r.after(10 * time.Millisecond)
	r.error("198.51.100.1", 11, 0, r.packets[0], 28)
	if n, _ := r.shown(); n != 1 {
		t.Error("a quote of 28 bytes was not matched")
	}
}

func TestSwappedIDs(t *testing.T) {
	r := newRig(t, false, 6)
	r.handshake()
	r.after(10 * time.Millisecond)
	b := r.packets[0]
	b[4], b[5] = b[5], b[4]
	r.error("198.51.100.1", 11, 0, b, 28)
	if n, _ := r.shown(); n != 1 {
		t.Error("a quote with its identification swapped was not matched")
	}
}

func TestGuessedQuotes(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		r := newRig(t, v6, 6)
		r.handshake()
		r.after(10 * time.Millisecond)
		for range 2 { // two guesses of the sequence number alone, short and with another acknowledgement
			b := append([]byte(nil), r.packets[0]...)
			if v6 {
				b[40+11] ^= 0xff
				r.error("2001:db8:bad::1", 3, 0, b, 0)
			} else {
				b[5] ^= 0x55
				r.error("198.51.100.66", 11, 0, b, 28)
			}
		}
		if n, tr := r.shown(); n != 0 {
			t.Errorf("v6 %v: a guessed sequence number is shown as a hop: %+v", v6, tr.Hops)
		}
	}
}

func TestQuoteOfAnApplicationPacket(t *testing.T) {
	r := newRig(t, false, 6)
	r.handshake()
	r.after(10 * time.Millisecond)
	b := append([]byte(nil), r.packets[0]...)
	b[2], b[3] = 4, 0 // 1024 bytes long
	r.error("198.51.100.66", 11, 0, b, 28)
	if n, tr := r.shown(); n != 0 {
		t.Errorf("%+v", tr.Hops)
	}
}

func TestShiftNeedsThreeProbes(t *testing.T) {
	shifted := func(b []byte) []byte {
		c := append([]byte(nil), b...)
		c[20+5] += 77 // somewhere in the sequence number
		return c
	}
	for n, want := range map[int]int{2: 0, 3: 3} {
		r := newRig(t, false, 6)
		r.handshake()
		r.after(10 * time.Millisecond)
		for i := range n {
			r.timeExceeded(i+1, shifted(r.packets[i]))
		}
		if got, tr := r.shown(); got != want {
			t.Errorf("%d quotes with one shift show %d hops, want %d: %+v", n, got, want, tr.Hops)
		}
	}
}

// Somebody guesses; even quotes that agree are not believed meanwhile.
func TestManyGuessesAreNotBelieved(t *testing.T) {
	r := newRig(t, false, 6)
	r.handshake()
	r.after(10 * time.Millisecond)
	quote := func(i int, seq uint32, from string) {
		b := append([]byte(nil), r.packets[i]...)
		b[24], b[25], b[26], b[27] = byte(seq>>24), byte(seq>>16), byte(seq>>8), byte(seq)
		r.error(from, 11, 0, b, 28)
	}
	for i := range 30 {
		quote(0, r.probes[0].Seq-uint32(5000+977*i), "198.51.100.66")
	}
	for i := range 4 {
		quote(i, r.probes[i].Seq+77, "198.51.100.67")
	}
	if n, tr := r.shown(); n != 0 {
		t.Errorf("%d hops drawn by guessing: %+v", n, tr.Hops)
	}
}

func TestMalformedPacketsAreCounted(t *testing.T) {
	r := newRig(t, false, 6)
	p := r.captured([]byte{0x45, 0, 0}, capture.Incoming)
	r.step(&p)
	if r.e.Stats(r.now).Packets.Malformed != 1 {
		t.Error("not counted")
	}
}

// One packet with the peer's addresses and an acknowledgement of what we never
// sent: believed, it would lift the probes above SND.NXT.
func TestForgedAcknowledgements(t *testing.T) {
	r := newRig(t, false, 6)
	r.handshake()
	r.exchange()
	una := r.seq
	r.seq += 1 << 15 // further, and it would not be taken for the peer's at all
	r.in(segment{flags: wire.ACK})
	r.seq = una
	before := len(r.probes)
	r.after(2 * time.Second)
	if len(r.probes) == before {
		t.Fatal("no probe")
	}
	for _, p := range r.probes {
		if !wire.SeqLess(p.Seq, una) {
			t.Errorf("sequence number %d is not below SND.UNA %d", p.Seq, una)
		}
	}
}

// A flow that is silent for too long ends its trace, where that is wanted.
func TestFlowTimeout(t *testing.T) {
	for _, limit := range []time.Duration{0, 3 * time.Second} {
		r := newRig(t, false, 20)
		r.w.Params.FlowTimeout, r.w.Params.MaxSilent = limit, 0
		r.handshake()
		r.exchange()
		r.after(2 * time.Second)
		r.exchange() // it speaks, so the time begins anew
		r.after(2900 * time.Millisecond)
		if all := r.traces(); len(all) != 0 {
			t.Fatalf("%v: %v", limit, all[0])
		}
		r.after(300 * time.Millisecond)
		all := r.traces()
		if ended := len(all) == 1 && all[0].Stop == trace.StopFlowIdle; ended != (limit > 0) {
			t.Errorf("%v: %v", limit, all)
		}
	}
}
