package probe

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

var start = time.Unix(1_800_000_000, 0)

func at(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }

func TestDistance(t *testing.T) {
	for ttl, want := range map[uint8]int{64: 1, 63: 2, 50: 15, 1: 64, 128: 1, 65: 64, 120: 9, 255: 1, 129: 127, 250: 6} {
		if got := Distance(ttl); got != want {
			t.Errorf("Distance(%d) = %d, want %d", ttl, got, want)
		}
	}
}

// order lists the TTLs that a plan asks for until it wants to wait, and when.
func order(p *Plan) (ttls, ms []int) {
	for range 1000 {
		ttl, due, ok := p.Next()
		if !ok {
			break
		}
		ttls, ms = append(ttls, ttl), append(ms, int(due.Sub(start)/time.Millisecond))
		p.Sent(ttl, due)
	}
	return ttls, ms
}

func TestOrders(t *testing.T) {
	for _, test := range []struct {
		algorithm trace.Algorithm
		ttls, ms  []int
	}{
		{trace.PacketByPacket, []int{1}, []int{0}},
		{trace.HopByHop, []int{1, 1}, []int{0, 20}},
		{trace.Concurrent, []int{1, 2, 3, 1, 2, 3}, []int{0, 1, 2, 20, 21, 22}},
		{trace.Adaptive, []int{1, 2, 3, 1, 2, 3}, []int{0, 0, 0, 250, 250, 250}},
	} {
		params := Defaults()
		params.Algorithm, params.Probes = test.algorithm, 2
		ttls, ms := order(NewPlan(params, start, 4, 0))
		if !slices.Equal(ttls, test.ttls) || !slices.Equal(ms, test.ms) {
			t.Errorf("%v asks %v at %v, want %v at %v", test.algorithm, ttls, ms, test.ttls, test.ms)
		}
	}
}

// Whatever the algorithm, a plan that hears nothing or everything ends, and never
// asks at or beyond its boundary or more often than it may.
func TestPlansEnd(t *testing.T) {
	for _, algorithm := range []trace.Algorithm{trace.PacketByPacket, trace.HopByHop, trace.Concurrent, trace.Adaptive} {
		for _, answers := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v answered %v", algorithm, answers), func(t *testing.T) {
				params := Defaults()
				params.Algorithm, params.MaxSilent = algorithm, 0
				p := NewPlan(params, start, 9, 0)
				sent, now := map[int]int{}, start
				for range 1000 {
					for {
						ttl, due, ok := p.Next()
						if !ok || due.After(now) {
							break
						}
						p.Sent(ttl, now)
						sent[ttl]++
						if answers {
							p.Answered(ttl, now)
						} else {
							p.Lost(ttl)
						}
					}
					now = now.Add(time.Millisecond)
				}
				if !p.Finished() || !p.Complete(8) {
					t.Errorf("finished %v, complete %v", p.Finished(), p.Complete(8))
				}
				for ttl, n := range sent {
					if ttl >= 9 || n > params.Probes+checksEach {
						t.Errorf("TTL %d asked %d times", ttl, n)
					}
				}
				if len(sent) != 8 {
					t.Errorf("asked at %v", sent)
				}
			})
		}
	}
}

func TestSilentHopsEndAPlan(t *testing.T) {
	params := Defaults()
	params.MaxSilent, params.Probes = 3, 1
	p := NewPlan(params, start, 20, 0)
	ttls, _ := order(p)
	if len(ttls) != 19 {
		t.Fatalf("asked %v", ttls)
	}
	p.Answered(1, start)
	for ttl := 2; ttl < 20; ttl++ {
		if p.SilentHops() {
			t.Fatalf("ended while TTL %d may still answer", ttl)
		}
		p.Lost(ttl)
	}
	if !p.SilentHops() || !p.Finished() {
		t.Error("18 silent hops and no end")
	}
}

func TestHopsSeenApartAreAskedAgain(t *testing.T) {
	p := NewPlan(Defaults(), start, 4, 0)
	order1 := func(ttl, ms int) { p.Sent(ttl, at(ms)); p.Answered(ttl, at(ms)) }
	order1(1, 0)
	order1(2, 50)
	p.Sent(3, at(50))
	p.Lost(3)
	order1(3, 400) // long after the others
	var again []int
	for range 5 {
		ttl, _, ok := p.Next()
		if !ok {
			break
		}
		again = append(again, ttl)
		p.Sent(ttl, at(410))
		if p.Finished() {
			t.Error("finished with a check outstanding")
		}
		p.Answered(ttl, at(410))
	}
	if !slices.Equal(again, []int{1, 2}) || !p.Finished() || !p.Complete(3) {
		t.Errorf("asked again: %v, finished %v", again, p.Finished())
	}
	p.Recheck(3, at(2000)) // the destination was seen later still
	ttl, _, ok := p.Next()
	if !ok || ttl != 3 {
		t.Fatalf("asked again: %d, %v", ttl, ok)
	}
	for range checksEach {
		p.Sent(3, at(2010))
		p.Lost(3)
	}
	if _, _, ok := p.Next(); ok || p.Complete(3) {
		t.Error("two silent checks leave the path incomplete")
	}
}

// What answered where nothing may be asked any more, a firewall say that refuses a reaching probe,
// cannot be confirmed, and nobody waits for that.
func TestNoCheckBeyondTheBoundary(t *testing.T) {
	p := NewPlan(Defaults(), start, 4, 0)
	p.SentReaching(5, at(0))
	p.Answered(5, at(0))
	for ttl := 1; ttl <= 3; ttl++ {
		p.Sent(ttl, at(500))
		p.Answered(ttl, at(500))
	}
	if ttl, _, ok := p.Next(); ok || !p.Finished() {
		t.Errorf("TTL %d is asked again, finished %v", ttl, p.Finished())
	}
}

// A destination that proves farther step by step: each step is a discovery, and
// each makes what was seen before it old. Checks that are answered are not used up.
func TestEachDiscoveryIsChecked(t *testing.T) {
	p := NewPlan(Defaults(), start, 2, 0)
	for ttl, now := 1, start; ttl <= 6; ttl, now = ttl+1, now.Add(600*time.Millisecond) {
		p.SetBoundary(ttl + 1)
		p.SentReaching(ttl, now)
		p.Answered(ttl, now)
		for range 100 {
			below, _, ok := p.Next()
			if !ok {
				break
			}
			p.Sent(below, now)
			p.Answered(below, now)
		}
		if !p.Finished() || !p.Complete(ttl) {
			t.Fatalf("the path to TTL %d: finished %v, complete %v", ttl, p.Finished(), p.Complete(ttl))
		}
	}
	if sent := p.Attempt(1); sent != 6 {
		t.Errorf("TTL 1 was asked %d times for 5 discoveries above it", sent)
	}
}

// search plays a destination at a true distance; answered says whether an attempt
// that reaches it is recognised.
func search(r *Reach, distance int, quiet bool, answered func(n int) bool) (ttl int, attempts []int, ok bool) {
	return searchWith(r, distance, distance, quiet, answered)
}

// searchSilent is the same on a busy flow whose routers from a TTL on are silent.
func searchSilent(r *Reach, distance, silent int, answered func(n int) bool) (ttl int, attempts []int, ok bool) {
	return searchWith(r, distance, silent, false, answered)
}

func searchWith(r *Reach, distance, silent int, quiet bool, answered func(n int) bool) (ttl int, attempts []int, ok bool) {
	now := start
	for n := 0; ; n++ {
		if ttl, ok := r.Done(quiet); ok {
			return ttl, attempts, true
		}
		next, due, ok := r.Next(0)
		if !ok {
			return 0, attempts, false
		}
		if due.After(now) {
			now = due
		}
		r.Sent(next, now)
		attempts = append(attempts, next)
		switch {
		case next < silent:
			r.Expired(next)
		case next < distance:
			r.Miss(!quiet)
		case answered(n):
			r.Hit(now.Add(20*time.Millisecond), !quiet)
		default:
			r.Miss(!quiet)
		}
	}
}

func TestReachFindsTheDistance(t *testing.T) {
	always := func(int) bool { return true }
	for expected := 1; expected <= 12; expected++ {
		for _, off := range []int{-3, -2, -1, 0, 1, 2, 5} {
			distance := expected + off
			if distance < 1 {
				continue
			}
			for _, quiet := range []bool{true, false} {
				r := NewReach(expected, 32)
				for ttl := 1; ttl < min(expected, distance); ttl++ {
					r.Expired(ttl) // the algorithm's own probes
				}
				ttl, attempts, ok := search(r, distance, quiet, always)
				if !ok || ttl != distance {
					t.Errorf("expected %d, is %d, quiet %v: %d, %v by %v", expected, distance, quiet, ttl, ok, attempts)
				}
				if len(attempts) > 8 {
					t.Errorf("expected %d, is %d: %d attempts", expected, distance, len(attempts))
				}
			}
		}
	}
}

// On a busy flow many of the destination's answers merge with its other
// acknowledgements. However many they are: what is told is the distance, or nothing.
func TestReachSurvivesMisses(t *testing.T) {
	for _, test := range []struct {
		missed float64
		told   float64 // share of the searches that have to tell the distance
	}{{0.1, 0.95}, {0.33, 0.9}, {0.5, 0.9}, {0.7, 0.8}, {0.9, 0.2}} {
		for _, silent := range []int{0, 1, 2} { // routers before the destination
			const searches = 4000
			found, wrong := 0, 0
			for seed := range uint64(searches) {
				rng := rand.New(rand.NewPCG(seed, 1))
				r := NewReach(6, 32)
				for ttl := 1; ttl < 6-silent; ttl++ {
					r.Expired(ttl)
				}
				ttl, attempts, ok := searchSilent(r, 6, 6-silent, func(int) bool { return rng.Float64() >= test.missed })
				if ok && ttl == 6 {
					found++
				} else if ok {
					wrong++
				}
				if len(attempts) > attemptsTotal {
					t.Errorf("seed %d: %d attempts", seed, len(attempts))
				}
			}
			t.Logf("%.0f %% missed, %d silent: %d found, %d wrong", test.missed*100, silent, found, wrong)
			if wrong > searches/200 || silent == 0 && float64(found) < test.told*searches {
				t.Errorf("%.0f %% missed, %d silent: %d of %d found, %d wrong", test.missed*100, silent, found, searches, wrong)
			}
		}
	}
}

// A flow that is busy now and then: a first miss counts for little, and what answers in
// quiet moments keeps nobody from asking there again.
func TestReachOnAChangingFlow(t *testing.T) {
	r := NewReach(4, 32)
	r.Expired(3)
	for n := range attemptsTotal {
		if ttl, ok := r.Done(true); ok {
			if ttl != 4 || n > 5 {
				t.Errorf("found %d after %d attempts", ttl, n)
			}
			return
		}
		ttl, due, ok := r.Next(0)
		if !ok {
			break
		}
		now := due.Add(time.Millisecond)
		r.Sent(ttl, now)
		if n == 0 {
			r.Miss(true)
		} else {
			r.Hit(now.Add(time.Millisecond), false)
		}
	}
	t.Error("not found")
}

func TestReachGivesUp(t *testing.T) {
	_, attempts, ok := search(NewReach(4, 32), 4, true, func(int) bool { return false })
	if ok || len(attempts) == 0 || len(attempts) > attemptsTotal {
		t.Errorf("%v by %v", ok, attempts)
	}
	r := NewReach(4, 32)
	r.Sent(4, start)
	r.Abort()
	if _, _, ok := r.Next(0); ok || !r.Exhausted() || r.Open().TTL != 0 {
		t.Error("it goes on after harm")
	}
}

func TestReachKeepsItsDistanceInTime(t *testing.T) {
	r := NewReach(4, 32)
	r.Sent(4, start)
	if _, _, ok := r.Next(0); ok {
		t.Error("two attempts at once")
	}
	r.Miss(true)
	if _, due, _ := r.Next(time.Millisecond); due != start.Add(ReachingInterval) {
		t.Errorf("next after %v", due.Sub(start))
	}
	if _, due, _ := r.Next(time.Second); due != start.Add(time.Second) {
		t.Errorf("next after %v on a long path", due.Sub(start))
	}
}

func TestReachOvershot(t *testing.T) {
	r := NewReach(9, 32)
	r.Expired(3)
	r.Overshot(5) // the destination answered one of the algorithm's own probes
	if ttl, _, _ := r.Next(0); ttl != 4 {
		t.Errorf("tries %d, the next one after the last that expired is 4", ttl)
	}
	r.Overshot(3)
	if r.hi != 5 {
		t.Error("a TTL that expired cannot have reached")
	}
}

func TestReachWhenThePathGrows(t *testing.T) {
	r := NewReach(4, 32)
	r.Sent(4, start)
	r.Hit(at(20), false)
	r.Expired(5)
	if ttl, ok := r.Done(true); ok {
		t.Errorf("the destination is still said to be at %d", ttl)
	}
	if ttl, _, ok := r.Next(0); !ok || ttl <= 5 {
		t.Errorf("tries %d", ttl)
	}
}

// ask lets a responder that answers the given share be asked as often as its
// bucket allows, and returns the probes of every second.
func ask(b *Bucket, seconds int, answers func(n int) bool) (rates []int) {
	for ms := 0; ms < seconds*1000; ms += 5 {
		if ms%1000 == 0 {
			rates = append(rates, 0)
		}
		for len(b.waiting) < 8 {
			b.Wait(&Waiter{Grant: func(now time.Time, _ *Bucket) bool {
				rates[len(rates)-1]++
				s := &Sent{At: now, Answered: answers(rates[len(rates)-1])}
				b.Sent(s)
				if s.Answered {
					b.Answered(now, now)
				}
				return true
			}})
		}
		b.Release(at(ms), func() bool { return true })
		b.Next(at(ms))
	}
	return rates
}

func TestARateDoublesWhileAnswersCome(t *testing.T) {
	b := newBucket(start, 50)
	rates := ask(b, 20, func(int) bool { return true })
	if rates[0] > bucketBurst+1 {
		t.Errorf("%d in the first second: the burst is %d", rates[0], bucketBurst)
	}
	if b.rate != 50 || rates[len(rates)-1] > 51 || rates[len(rates)-1] < 49 {
		t.Errorf("rate %v, probes a second %v", b.rate, rates)
	}
	for i := 2; i < len(rates); i++ {
		if rates[i] > max(2*rates[i-1]+1, bucketBurst+2) {
			t.Errorf("more than doubled: %v", rates)
		}
	}
}

func TestARateIsHalvedAndForbidden(t *testing.T) {
	b := newBucket(start, 200)
	// The responder's own limit: ten a second.
	rates := ask(b, 50, func(n int) bool { return n <= 10 })
	over := 0
	for _, n := range rates {
		if n > 16 {
			over++
		}
	}
	if over > 3 {
		t.Errorf("asked far too often in %d seconds of 50: %v", over, rates)
	}
	if last := rates[len(rates)-1]; last < 4 || last > 16 {
		t.Errorf("settled at %d a second: %v", last, rates)
	}
	low := newBucket(start, 200)
	ask(low, 10, func(int) bool { return false })
	if low.rate < bucketRate {
		t.Errorf("rate %v: never below one a second", low.rate)
	}
}

func TestFirstProbesFirst(t *testing.T) {
	b := newBucket(start, 1)
	var got []int
	for _, attempt := range []int{1, 0, 2, 0, 1} {
		b.Wait(&Waiter{Rank: attempt, Grant: func(time.Time, *Bucket) bool { got = append(got, attempt); return true }})
	}
	gone := &Waiter{Grant: func(time.Time, *Bucket) bool { t.Error("a withdrawn probe was sent"); return true }}
	b.Wait(gone)
	gone.Cancel()
	b.Release(start, func() bool { return true })
	if !slices.Equal(got, []int{0, 0, 1, 1, 2}) {
		t.Errorf("order %v", got)
	}
}

// A second look at what answered goes with the first probes, one more at what was silent
// behind them.
func TestRank(t *testing.T) {
	p := NewPlan(Defaults(), start, 3, 0)
	for _, ttl := range []int{1, 2} {
		if p.Rank(ttl) != 0 {
			t.Errorf("TTL %d begins with rank %d", ttl, p.Rank(ttl))
		}
		p.Sent(ttl, start)
	}
	p.Answered(1, start)
	p.Lost(2)
	if p.Rank(1) != 0 || p.Rank(2) != 1 {
		t.Errorf("ranks %d and %d", p.Rank(1), p.Rank(2))
	}
	p.Sent(1, start)
	p.Lost(1)
	if p.Rank(1) != 1 {
		t.Errorf("rank %d after a look in vain", p.Rank(1))
	}
}

// How long one waits follows from those that wait too, and from the slower of two rates.
func TestWait(t *testing.T) {
	b := newBucket(start, 1)
	var all [30]Waiter
	if _, ok := all[0].Wait(10); ok {
		t.Error("who waits nowhere will have a turn")
	}
	for i := range all {
		b.Wait(&all[i])
	}
	for rate, want := range map[int]time.Duration{1000: 30 * time.Second, 10: 30 * time.Second} {
		if got, ok := all[0].Wait(rate); !ok || got != want {
			t.Errorf("%v at a rate of %d", got, rate)
		}
	}
	b.rate = 100
	if got, _ := all[0].Wait(10); got != 3*time.Second {
		t.Errorf("%v at a rate of our own", got)
	}
}

func TestAWaitIsNeverTooEarly(t *testing.T) {
	b := newBucket(start, 200)
	for b.Take(start) { // until the burst is spent
	}
	sent := 0
	for range 5 {
		b.Wait(&Waiter{Grant: func(time.Time, *Bucket) bool { sent++; return true }})
		due, ok := b.Next(start)
		if !ok || !due.After(start) {
			t.Fatalf("due %v", due)
		}
		b.Release(due, func() bool { return true })
		if sent != 1 {
			t.Fatal("asked again at the time that was told, and still refused")
		}
		sent, b.tokens, b.filled = 0, 0.3, start
	}
}

func TestOneResponderOneAllowance(t *testing.T) {
	s := NewBuckets(200)
	hop := netip.MustParseAddr("192.0.2.9")
	near, far := Place{Interface: 2, TTL: 3}, Place{Interface: 2, TTL: 4}
	b := s.For(start, near, netip.Addr{})
	if s.For(start, near, netip.Addr{}) != b || s.For(start, far, netip.Addr{}) == b {
		t.Error("a place has a bucket of its own until somebody answers there")
	}
	b.Take(start)
	s.Answer(start, &Sent{At: start, Place: near, Bucket: b}, hop)
	own := s.For(start, near, netip.Addr{})
	if own == b || own.tokens != b.tokens {
		t.Error("a responder inherits what is left of its burst")
	}
	s.Answer(start, &Sent{At: start, Place: far, Bucket: s.For(start, far, netip.Addr{})}, hop)
	if s.For(start, far, netip.Addr{}) != own {
		t.Error("one address at two TTLs is one responder")
	}
	s.Answer(start, &Sent{At: start, Place: near, Bucket: own}, netip.MustParseAddr("192.0.2.13"))
	if s.For(start, near, netip.Addr{}) != b {
		t.Error("two addresses at one place may be one router")
	}
}

func TestLimits(t *testing.T) {
	b := newBucket(start, 200)
	b.Missed(&Sent{At: start})
	if b.Limits(&Sent{At: start}) {
		t.Error("who never answered is silent, not limited")
	}
	b.Answered(at(10), at(5))
	b.Missed(&Sent{At: at(100)})
	if !b.Limits(&Sent{At: at(900)}) || b.Limits(&Sent{At: at(1200)}) {
		t.Error("limited within a second of a miss")
	}
}

// Of many flows that meet a limit at once no hop may be known to answer: then the silence of
// another flow tells, not that of the same one.
func TestLimitOfMany(t *testing.T) {
	b := newBucket(start, 200)
	b.Answered(at(10), at(5))
	one, other := &Sent{At: at(100)}, &Sent{At: at(200)}
	other.Src = netip.MustParseAddrPort("192.0.2.1:9")
	b.note(one, false)
	if b.Limits(one) || !b.Limits(other) {
		t.Errorf("limited by itself %v, by another flow's silence %v", b.Limits(one), b.Limits(other))
	}
}

// Probes that could not leave are no misses, and give their allowance back.
func TestUnsent(t *testing.T) {
	b := newBucket(start, 200)
	b.rate, b.lastAnswer = 32, start
	for i := range recentProbes {
		if !b.Take(at(100 * i)) {
			t.Fatalf("nothing is left for probe %d", i)
		}
		s := &Sent{At: at(100 * i)}
		b.Sent(s)
		b.Unsent(at(100*i), s)
		if b.tokens != bucketDepth(b.rate) {
			t.Fatalf("%v tokens after probe %d", b.tokens, i)
		}
	}
	if b.Release(at(5000), func() bool { return true }); b.rate != 32 || b.now.sent+b.before.sent != 0 {
		t.Errorf("rate %v, %d sent", b.rate, b.now.sent+b.before.sent)
	}
}

func talking(una, nxt, window uint32) *flow.Flow {
	f := &flow.Flow{TCP: &flow.TCP{}}
	f.Key.Src, f.Key.Dst = netip.MustParseAddrPort("192.0.2.1:40000"), netip.MustParseAddrPort("203.0.113.7:443")
	f.TCP.Una, f.TCP.HaveUna, f.TCP.Nxt, f.TCP.HaveNxt, f.TCP.MaxPeerWindow = una, true, nxt, true, window
	f.TCP.Newest = flow.Template{Ack: 77, Window: 9, TOS: 0x2b, FlowLabel: 5, Valid: true}
	return f
}

func TestOffsets(t *testing.T) {
	for _, test := range []struct {
		una, nxt, window uint32
		want             int
	}{
		{1000, 1000, 65535, MaxOffset}, {1000, 1000, 100, 99}, {1000, 1099, 100, 0}, {1000, 1050, 100, 49}, {1000, 5000, 100, 0},
		{0xfffffff0, 0x10, 100, 67}, {1000, 900, 65535, 0}, {0, 0, 1 << 30, MaxOffset},
	} {
		if got := Offsets(talking(test.una, test.nxt, test.window).TCP); got != test.want {
			t.Errorf("una %d, nxt %d, window %d: %d offsets, want %d", test.una, test.nxt, test.window, got, test.want)
		}
	}
	for name, spoil := range map[string]func(*flow.TCP){
		"una": func(c *flow.TCP) { c.HaveUna = false }, "nxt": func(c *flow.TCP) { c.HaveNxt = false },
		"template": func(c *flow.TCP) { c.Newest.Valid = false },
	} {
		f := talking(1, 1, 65535)
		spoil(f.TCP)
		if Offsets(f.TCP) != 0 {
			t.Errorf("a probe without knowing %s", name)
		}
	}
}

// Wherever the flow stands, also where numbers wrap, a probe is below SND.UNA and
// no number is used twice.
func TestCraft(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, una := range []uint32{0, 1, 40, 4000, 1 << 31, 0xffffffff} {
		f := talking(una, una+20, 70)
		used := map[uint32]bool{}
		var p wire.TCPProbe
		n := 0
		for ; Craft(&p, f, 3, rng, func(seq uint32) bool { return used[seq] }); n++ {
			if used[p.Seq] || !wire.SeqLess(p.Seq, una) || wire.SeqDiff(una+20, p.Seq) > 70 {
				t.Fatalf("una %d: sequence number %d", una, p.Seq)
			}
			used[p.Seq] = true
			if p.Flags != wire.ACK || p.TOS != 0x28 || p.Ack != 77 || p.Window != 9 || p.TTL != 3 || p.FlowLabel != 5 {
				t.Fatalf("%+v", p)
			}
		}
		if n != 49 {
			t.Errorf("una %d: %d probes, there is room for 49", una, n)
		}
	}
}

func TestSentIsForgotten(t *testing.T) {
	table := NewTable()
	rng := rand.New(rand.NewPCG(3, 4))
	dst := netip.MustParseAddrPort("203.0.113.7:443")
	add := func(now time.Time, seq uint32) *Sent {
		s := &Sent{TCPProbe: wire.TCPProbe{Src: netip.MustParseAddrPort("192.0.2.1:40000"), Dst: dst, Seq: seq, ID: table.NewID(rng)}}
		table.Add(now, s, 2*time.Second)
		return s
	}
	for i := range 5000 {
		now := at(10 * i)
		table.Expire(now)
		if s := add(now, uint32(i)); s.ID == 0 || s.ID == swap16(s.ID) {
			t.Fatalf("identification %#x", s.ID)
		}
		if table.Len() > 301 {
			t.Fatalf("%d probes remembered", table.Len())
		}
	}
	if !table.Taken(dst, 4999) || !table.Taken(dst, 4710) || table.Taken(dst, 4000) {
		t.Error("a number is taken for three seconds")
	}
	table.Expire(at(60_000))
	if table.Len() != 0 || len(table.ids) != 0 {
		t.Errorf("%d probes, %d identifications left", table.Len(), len(table.ids))
	}
}

// A probe is remembered as long as its answer is waited for, whatever others are.
func TestSentLives(t *testing.T) {
	table := NewTable()
	rng := rand.New(rand.NewPCG(3, 4))
	dst := netip.MustParseAddrPort("203.0.113.7:443")
	for seq, timeout := range map[uint32]time.Duration{1: 10 * time.Second, 2: time.Second, 3: 4 * time.Second} {
		table.Add(start, &Sent{TCPProbe: wire.TCPProbe{Src: netip.MustParseAddrPort("192.0.2.1:40000"), Dst: dst, Seq: seq, ID: table.NewID(rng)}}, timeout)
	}
	for _, want := range []struct{ ms, seqs int }{{2999, 3}, {3000, 2}, {4999, 2}, {5000, 1}, {10_999, 1}, {11_000, 0}} {
		if table.Expire(at(want.ms)); table.Len() != want.seqs || len(table.ids) != want.seqs {
			t.Errorf("after %d ms: %d remembered, want %d", want.ms, table.Len(), want.seqs)
		}
	}
}

// An identification is outstanding once at a time, also when most are.
func TestIdentificationsAreUnique(t *testing.T) {
	table := NewTable()
	rng := rand.New(rand.NewPCG(3, 4))
	dst := netip.MustParseAddrPort("203.0.113.7:443")
	for seq := range uint32(40_000) {
		id := table.NewID(rng)
		if _, used := table.ids[id]; used {
			t.Fatalf("identification %#x is outstanding twice, of %d", id, table.IDs())
		}
		table.Add(start, &Sent{TCPProbe: wire.TCPProbe{Src: netip.MustParseAddrPort("192.0.2.1:40000"), Dst: dst, Seq: seq, ID: id}}, time.Second)
	}
}

func TestMatch(t *testing.T) {
	v4 := Sent{TCPProbe: wire.TCPProbe{
		Src: netip.MustParseAddrPort("192.0.2.1:40000"), Dst: netip.MustParseAddrPort("203.0.113.7:443"), Seq: 1000, Ack: 77, ID: 0x1234,
	}, Len: 52}
	timed := v4
	timed.Seq, timed.ID, timed.Timestamp, timed.TSVal = 2000, 0x2345, true, 4711
	v6 := v4
	v6.FlowLabel = 0x12345
	v6.Src, v6.Dst, v6.Len = netip.MustParseAddrPort("[2001:db8::1]:40000"), netip.MustParseAddrPort("[2001:db8::7]:443"), 72
	table := NewTable()
	table.Add(start, &v4, time.Second)
	table.Add(start, &v6, time.Second)
	table.Add(start, &timed, time.Second)
	timed6 := timed
	timed6.Src, timed6.Dst, timed6.Len = v6.Src, v6.Dst, 72
	table.Add(start, &timed6, time.Second)
	quote := func(s *Sent) wire.Quote {
		q := wire.Quote{
			Version: 4, Proto: wire.ProtoTCP, Src: s.Src.Addr(), Dst: s.Dst.Addr(), HasPorts: true, SrcPort: 40000, DstPort: 443,
			HasSeq: true, Seq: s.Seq, HasTCPHeader: true, TCPAck: 77, ID: s.ID, Len: s.Len,
			HasTimestamp: s.Timestamp, TSVal: s.TSVal,
		}
		if s.Src.Addr().Is6() {
			q.Version, q.ID, q.FlowLabel = 6, 0, s.FlowLabel
		}
		return q
	}
	for _, test := range []struct {
		name   string
		sent   *Sent
		change func(*wire.Quote)
		want   Verdict
	}{
		{"as sent", &v4, func(*wire.Quote) {}, Exact},
		{"as sent, IPv6", &v6, func(*wire.Quote) {}, Exact},
		{"28 bytes", &v4, func(q *wire.Quote) { q.HasTCPHeader = false }, Exact},
		{"48 bytes, IPv6", &v6, func(q *wire.Quote) { q.HasTCPHeader = false }, Doubtful},
		{"swapped ID", &v4, func(q *wire.Quote) { q.ID, q.HasTCPHeader = 0x3412, false }, Exact},
		{"another ID", &v4, func(q *wire.Quote) { q.ID = 9 }, Doubtful},
		{"another ID, the timestamp", &timed, func(q *wire.Quote) { q.ID = 9 }, Exact},
		{"another timestamp", &timed, func(q *wire.Quote) { q.TSVal++ }, Doubtful},
		{"another echo: a SYN proxy", &timed, func(q *wire.Quote) { q.TSEcr++ }, Exact},
		{"the timestamp, IPv6", &timed6, func(*wire.Quote) {}, Exact},
		{"another timestamp, IPv6", &timed6, func(q *wire.Quote) { q.TSVal++ }, Doubtful},
		{"without the timestamp, IPv6", &timed6, func(q *wire.Quote) { q.HasTimestamp = false }, Doubtful},
		{"another flow label, IPv6", &v6, func(q *wire.Quote) { q.FlowLabel++ }, Doubtful},
		{"another ID, 28 bytes", &v4, func(q *wire.Quote) { q.ID, q.HasTCPHeader = 9, false }, Doubtful},
		{"another acknowledgement", &v4, func(q *wire.Quote) { q.TCPAck++ }, Doubtful},
		{"swapped length", &v4, func(q *wire.Quote) { q.Len = 52 << 8 }, Exact},
		{"another length", &v4, func(q *wire.Quote) { q.Len = 1500 }, NoMatch},
		{"another sequence number", &v4, func(q *wire.Quote) { q.Seq++ }, NoMatch},
		{"another destination", &v4, func(q *wire.Quote) { q.Dst = q.Dst.Next() }, NoMatch},
		{"another destination port", &v4, func(q *wire.Quote) { q.DstPort++ }, NoMatch},
		{"another source: a NAT", &v4, func(q *wire.Quote) { q.Src, q.SrcPort = q.Src.Next(), 9 }, Exact},
		{"UDP", &v4, func(q *wire.Quote) { q.Proto = wire.ProtoUDP }, NoMatch},
		{"no sequence number", &v4, func(q *wire.Quote) { q.HasSeq = false }, NoMatch},
	} {
		q := quote(test.sent)
		test.change(&q)
		s, got := table.Match(&q)
		if got != test.want || s != nil && s != test.sent {
			t.Errorf("%s: verdict %d, want %d", test.name, got, test.want)
		}
	}
	q := quote(&v4)
	q.Src, q.SrcPort, q.TOS = netip.MustParseAddr("198.51.100.9"), 61000, 0x29
	if d := v4.Differences(&q); d != (Differences{NATSrc: true, NATPort: true, DSCP: true, ECN: true}) {
		t.Errorf("%+v", d)
	}
}

// A rate that proves too high is left as soon as answers are overdue, and for what
// routers permit most often.
func TestAMissIsBelievedSoon(t *testing.T) {
	b := newBucket(start, 200)
	// What Linux permits over IPv4: six saved up, then one a second.
	tokens, last, missed := 6.0, start, 0
	answers := func(now time.Time) bool {
		tokens = min(6, tokens+now.Sub(last).Seconds())
		last = now
		if tokens < 1 {
			missed++
			return false
		}
		tokens--
		return true
	}
	sent := 0
	for ms := 0; ms < 50_000; ms += 5 {
		for len(b.waiting) < 8 {
			b.Wait(&Waiter{Grant: func(now time.Time, _ *Bucket) bool {
				sent++
				s := &Sent{At: now, Answered: answers(now)}
				b.Sent(s)
				if s.Answered {
					b.Answered(now, now)
				}
				return true
			}})
		}
		b.Release(at(ms), func() bool { return true })
		b.Next(at(ms))
	}
	if missed*20 > sent || sent < 45 {
		t.Errorf("%d of %d probes missed", missed, sent)
	}
}

// One answer missing among the first few is a chance. It must not undo what was learnt of
// a responder's limit; and what loss alone seldom does is a limit, also where there is loss.
func TestWhatLossExplains(t *testing.T) {
	var l loss
	for i := range 16 {
		l.add(i == 9)
	}
	if l.share() <= lossTold || l.explains(1, 2) {
		t.Errorf("one of 16: a share of %v explains", l.share())
	}
	l.add(true)
	for _, c := range []struct {
		missing, judged int
		want            bool
	}{{1, 2, true}, {3, 16, true}, {2, 2, false}, {4, 8, false}, {8, 16, false}} {
		if got := l.explains(c.missing, c.judged); got != c.want {
			t.Errorf("a share of %v explains %d of %d: %t", l.share(), c.missing, c.judged, got)
		}
	}
	if none := (*loss)(nil); none.explains(1, 16) {
		t.Error("no loss explains something")
	}
}

// A rate that is as low as it gets lets every probe tell of loss: whoever asks once a
// second, by clocks that tick, does not know whether every router had an answer left.
func TestTheLowestRateTellsOfLoss(t *testing.T) {
	b := newBucket(start, 200)
	b.ipv6, b.rate = true, 2
	b.lower(start, 1, failure{rate: 2, at: start, missing: 1, judged: 2})
	now := start
	for i := range 5 {
		now = now.Add(untilWhole(0, b.rate))
		if !b.spend(now) {
			t.Errorf("probe %d at a rate of %v tells nothing", i, b.rate)
		}
	}
}

// Beyond a TTL where something answered, though too soon to be believed, nothing is tried.
func TestNothingBeyondAVoid(t *testing.T) {
	r := NewReach(4, 30)
	r.Sent(4, start)
	r.Miss(false)
	tried := map[int]int{}
	for n := range 12 {
		ttl, _, ok := r.Next(0)
		if !ok {
			t.Fatalf("after %d attempts: over", n)
		}
		tried[ttl]++
		r.Sent(ttl, start)
		if ttl == 5 {
			r.Void()
		}
		r.Miss(true)
	}
	if tried[4] < 2 || tried[5] < 2 || tried[4]+tried[5] != 12 {
		t.Errorf("attempts by TTL: %v", tried)
	}
}

// Answers that were late, as all are when this host stands still, take the failure back that
// they were called; one that never comes does not.
func TestLateAnswersAreForgiven(t *testing.T) {
	for _, lost := range []bool{false, true} {
		b := newBucket(start, 4000)
		b.rate, b.changed = 1000, start
		var all []*Sent
		for range 8 {
			s := &Sent{At: start}
			b.Sent(s)
			all = append(all, s)
		}
		late := start.Add(200 * time.Millisecond)
		if b.fill(late); b.rate > linuxRate4 {
			t.Fatalf("a rate of %v with 8 of 8 missing", b.rate)
		}
		for i, s := range all {
			if i == 0 && lost {
				b.Answered(late.Add(time.Millisecond), start.Add(-time.Second)) // of an earlier rate: it says nothing of this one
				continue
			}
			s.Answered = true
			b.Answered(late.Add(time.Millisecond), s.At)
		}
		if forgiven := b.rate == 1000; forgiven == lost {
			t.Errorf("one is lost: %t; a rate of %v", lost, b.rate)
		}
	}
}

// A waiter that is withdrawn leaves the queue at once, wherever it stands in it.
func TestCancelledWaiters(t *testing.T) {
	now := time.Unix(1000, 0)
	b, other := newBucket(now, 20), newBucket(now, 20)
	var granted []int
	all := make([]*Waiter, 9)
	for i := range all {
		all[i] = &Waiter{Place: Place{TTL: i % 2}, Rank: i % 3, Grant: func(time.Time, *Bucket) bool { granted = append(granted, i); return true }}
		b.Wait(all[i])
	}
	for _, i := range []int{8, 0, 4, 4} {
		all[i].Cancel()
	}
	b.yield(Place{TTL: 1}, other)
	all[2].Cancel()
	all[5].Cancel()
	if len(b.waiting) != 1 || len(other.waiting) != 3 {
		t.Errorf("%d and %d wait", len(b.waiting), len(other.waiting))
	}
	more := func() bool { return true }
	b.Release(now, more)
	other.Release(now, more)
	if want := []int{6, 3, 1, 7}; !slices.Equal(granted, want) {
		t.Errorf("granted %v, want %v", granted, want)
	}
	all[6].Cancel()
	if len(b.waiting)+len(other.waiting) != 0 {
		t.Error("some are left")
	}
}

// Time that was credited is not credited again when an older answer comes in later.
func TestBucketTimeOnce(t *testing.T) {
	now := time.Unix(1000, 0)
	b := newBucket(now, 20)
	b.tokens = 0
	b.fill(now.Add(time.Second))
	had := b.tokens
	b.fill(now)
	b.fill(now.Add(time.Second))
	if had == 0 || b.tokens != had {
		t.Errorf("%v tokens, then %v", had, b.tokens)
	}
}

// A silence is a responder's limit only while that answers.
func TestLimitsOfLongAgo(t *testing.T) {
	now := time.Unix(1000, 0)
	b := newBucket(now, 20)
	b.Answered(now, now)
	for after, want := range map[time.Duration]bool{time.Second: true, time.Hour: false} {
		s := &Sent{At: now.Add(after)}
		b.Missed(s)
		if got := b.Limits(s); got != want {
			t.Errorf("after %v: %t", after, got)
		}
	}
}

// A probe that its table forgot is used for another one, unless somebody still holds it.
func TestProbesAreUsedAgain(t *testing.T) {
	table, now := NewTable(), time.Unix(1000, 0)
	add := func(seq uint32) *Sent {
		s := table.New()
		s.Dst, s.Seq = netip.MustParseAddrPort("203.0.113.7:443"), seq
		table.Add(now, s, time.Second)
		return s
	}
	held, free := add(1), add(2)
	held.Hold()
	held.Answered = true
	now = now.Add(Lifetime)
	table.Expire(now)
	if s := add(3); s != free || s.Seq != 3 {
		t.Error("a forgotten probe is not used again")
	}
	if s := add(4); s == held || !held.Answered || held.Seq != 1 {
		t.Error("a probe that is held is used again")
	}
	for range 300 {
		held.Hold() // more than are counted
	}
	for range 300 {
		held.Drop()
	}
	if held.holds == 0 {
		t.Error("holds that were not counted end")
	}
}
