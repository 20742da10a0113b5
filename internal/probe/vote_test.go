package probe

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/wire"
)

// jurors are outstanding probes with offsets as if at random.
func jurors(n int) (all []*Sent) {
	for i := range n {
		all = append(all, &Sent{TCPProbe: wire.TCPProbe{
			Src: netip.MustParseAddrPort("192.0.2.1:40000"), Dst: netip.MustParseAddrPort("203.0.113.7:443"),
			Seq: uint32(1000 + i*i*37), Ack: 77, ID: uint16(0x1200 + 7*i),
		}, Len: 40})
	}
	return all
}

const usualShift uint32 = 5000

// shifted is the reply to a probe whose number a box has raised.
func shifted(at time.Time, s *Sent, newID bool) Reply {
	q := wire.Quote{Version: 4, Proto: wire.ProtoTCP, HasPorts: true, HasSeq: true, Seq: s.Seq + usualShift, ID: s.ID, Len: s.Len}
	if newID {
		q.ID ^= 0x5555
	}
	return Reply{At: at, Quote: q}
}

func TestAnUnsureShiftNeedsSix(t *testing.T) {
	for _, newID := range []bool{false, true} {
		var j Jury
		all, needed := jurors(10), 3
		if newID {
			needed = 6
		}
		for i := range 6 {
			believed := len(j.Hear(shifted(start, all[i], newID), all))
			if want := i+1 == needed; (believed == needed) != want && i < needed {
				t.Errorf("identification replaced: %v: quote %d makes %d believed", newID, i+1, believed)
			}
			if i+1 == needed {
				break
			}
		}
	}
}

// Votes that take no more than the right numbers are forgotten soon, the others when no trace
// needs them any more.
func TestOldVotesDoNotCount(t *testing.T) {
	for _, test := range []struct {
		apart    time.Duration
		newID    bool
		shift    uint32 // more than the usual one
		believed bool
	}{
		{300 * time.Millisecond, true, 0, true}, {450 * time.Millisecond, true, 0, false}, // six have to agree
		{900 * time.Millisecond, true, 1 + ^usualShift, true}, {1100 * time.Millisecond, true, 1 + ^usualShift, false},
		{14 * time.Second, false, 0, true}, {16 * time.Second, false, 0, false},
	} {
		var j Jury
		all, believed := jurors(10), 0
		for i := range 8 {
			r := shifted(start.Add(time.Duration(i)*test.apart), all[i], test.newID)
			r.Quote.Seq += test.shift
			believed += len(j.Hear(r, all))
		}
		if (believed > 0) != test.believed {
			t.Errorf("%v apart, identification replaced: %v, %+d: %d believed", test.apart, test.newID, int32(test.shift), believed)
		}
	}
}

// After a second with too many quotes the next one is not listened to either: a
// flood would otherwise be heard ten times in each second.
func TestTheJuryIsDeafInAFlood(t *testing.T) {
	var j Jury
	all := jurors(10)
	guess := shifted(start, all[0], true)
	guess.Quote.Seq += 99999
	for range 50 {
		j.Hear(guess, all)
	}
	for i := range 3 {
		if b := j.Hear(shifted(start.Add(time.Second), all[i], false), all); len(b) > 0 {
			t.Errorf("believed %d in the second after", len(b))
		}
	}
	believed := 0
	for i := range 3 {
		believed += len(j.Hear(shifted(start.Add(2*time.Second), all[i], false), all))
	}
	if believed != 3 {
		t.Errorf("%d believed when all is quiet", believed)
	}
}

// An answer that is not believed yet is none that a limit kept away: else the probes that others
// need to agree with go too rarely for that.
func TestADoubtedAnswerIsNoMiss(t *testing.T) {
	for _, doubted := range []bool{true, false} {
		set := NewBuckets(200)
		place := Place{TTL: 3}
		b := set.For(start, place, netip.Addr{})
		b.Answered(start, start)
		b.rate = 2
		all := jurors(3)
		for _, s := range all {
			s.At, s.Place, s.Bucket = start, place, b
			b.Sent(s)
		}
		if doubted {
			var j Jury
			for _, s := range all[:2] { // two of three that have to agree
				j.Hear(shifted(start, s, false), []*Sent{s})
			}
			all[2].Answered = true
		}
		late := start.Add(time.Second)
		b.fill(late)
		for _, s := range all {
			if !s.Answered {
				set.Missed(late, s, netip.Addr{})
				set.Silent(late, s)
			}
		}
		lowered, limits := b.rate < 2, b.Limits(&Sent{At: start.Add(time.Millisecond)})
		if lowered == doubted || limits == doubted {
			t.Errorf("doubted: %t; lowered: %t, called a limit: %t", doubted, lowered, limits)
		}
	}
}
