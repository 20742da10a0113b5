package localise

import (
	"math/rand/v2"
	"testing"
	"time"

	"servicetraceroute/trace"
)

// minuteRounds are as many as a sweep of seven hops makes in a minute and a half.
const minuteRounds = 25

// model makes samples of a path: round trips with jitter, loss, each hop as it is.
type model struct {
	rng    *rand.Rand
	jitter time.Duration
	hops   []Hop
	now    time.Time
}

func newModel(seed uint64, hops int) *model {
	m := &model{rng: rand.New(rand.NewPCG(seed, 1)), jitter: 3 * time.Millisecond, now: time.Unix(1_800_000_000, 0)}
	for ttl := 1; ttl <= hops; ttl++ {
		m.hops = append(m.hops, Hop{ttl, &Series{}})
	}
	return m
}

// rounds asks each hop n times; more and loss are what a hop has beyond its own.
func (m *model) rounds(n int, more func(ttl int) time.Duration, loss func(ttl int) float64) {
	for range n {
		for _, h := range m.hops {
			m.ask(h, more, loss)
		}
	}
}

func (m *model) ask(h Hop, more func(ttl int) time.Duration, loss func(ttl int) float64) {
	rtt := time.Duration(h.TTL)*5*time.Millisecond + time.Duration(m.rng.Int64N(int64(m.jitter)))
	if m.rng.Float64() < 0.05 {
		rtt += time.Duration(m.rng.Int64N(int64(30 * time.Millisecond))) // a slow router
	}
	if more != nil {
		rtt += more(h.TTL)
	}
	if loss != nil && m.rng.Float64() < loss(h.TTL) {
		rtt = Lost
	}
	h.Series.Add(m.now, rtt)
	m.now = m.now.Add(500 * time.Millisecond) // as a sweep asks
}

// minute asks for a minute as a sweep does, two of three times where Suspects says, and
// returns the first statement.
func (m *model) minute(own Own, loss func(ttl int) float64) *Statement {
	var near []int
	next := 0
	for i := range 120 {
		h := m.hops[next]
		if len(near) > 0 && i%3 > 0 {
			h = m.hops[near[m.rng.IntN(len(near))]-1]
		} else {
			next = (next + 1) % len(m.hops)
		}
		if m.ask(h, nil, loss); i%len(m.hops) == 0 {
			near = Suspects(m.now, m.hops)
			if s := Loss(m.now, m.hops, own); s != nil {
				return s
			}
		}
	}
	return nil
}

func beyond[T any](k int, v T) func(int) T {
	return func(ttl int) (zero T) {
		if ttl >= k {
			return v
		}
		return zero
	}
}

func only[T any](k int, v T) func(int) T {
	return func(ttl int) (zero T) {
		if ttl == k {
			return v
		}
		return zero
	}
}

// Delay that begins at a hop is stated there, and nowhere else.
func TestDelay(t *testing.T) {
	const runs = 300
	stated := 0
	for seed := range uint64(runs) {
		m := newModel(seed, 7)
		k := 1 + int(seed%7)
		m.rounds(20, nil, nil)
		if s := Delay(m.hops, 20*time.Millisecond); s != nil {
			t.Errorf("seed %d, before: %+v", seed, s)
		}
		for range 10 {
			m.rounds(1, beyond(k, 20*time.Millisecond), nil)
			if s := Delay(m.hops, 20*time.Millisecond); s != nil {
				if s.TTL != k || s.TTLFrom != k-1 || s.Kind != trace.DelayBegins || s.Confidence < sure || len(s.Evidence) != 7 {
					t.Errorf("seed %d, hop %d: %+v", seed, k, s)
				}
				stated++
				break
			}
		}
	}
	if stated < runs*9/10 {
		t.Errorf("%d of %d stated", stated, runs)
	}
	t.Logf("%d of %d stated", stated, runs)
}

// Hops are not asked equally often, where probes are held back or lost: one that rose first and
// has been asked often since is not taken for one that did not rise.
func TestDelayOfUnequalHops(t *testing.T) {
	stated := 0
	for seed := range uint64(300) {
		m := newModel(seed, 4)
		k := 2 + int(seed%2)
		m.rounds(12, nil, nil)
		rise := beyond(k, 20*time.Millisecond)
		for range 40 {
			for _, h := range m.hops {
				if h.TTL <= k || m.rng.IntN(3) == 0 {
					m.ask(h, rise, nil)
				}
				if s := Delay(m.hops, 20*time.Millisecond); s != nil {
					if stated++; s.TTL != k {
						t.Errorf("seed %d, hop %d: %+v", seed, k, s)
					}
				}
			}
		}
	}
	if stated < 300 {
		t.Errorf("%d times stated in 300 runs", stated)
	}
}

// A router that answers slowly delays nobody; neither does the last one, if the flow's own
// round trips stay as they were.
func TestNoDelay(t *testing.T) {
	for seed := range uint64(200) {
		m := newModel(seed, 7)
		k := 1 + int(seed%7)
		m.rounds(20, nil, nil)
		for range 12 {
			m.rounds(1, only(k, 20*time.Millisecond), nil)
			if s := Delay(m.hops, 0); s != nil {
				t.Errorf("seed %d, hop %d alone: %+v", seed, k, s)
			}
		}
	}
}

// Loss from a hop on is stated there or not at all, and in most runs.
func TestLoss(t *testing.T) {
	const runs = 3000
	stated := 0
	for seed := range uint64(runs) {
		m := newModel(seed, 7)
		k := 1 + int(seed%7)
		m.rounds(30, nil, nil)
		s := m.minute(lossy, beyond(k, 0.36)) // 20 % each way
		if s == nil {
			continue
		}
		if s.Kind != trace.LossBegins || s.TTL != k || s.TTLFrom != k-1 {
			t.Errorf("seed %d, hop %d: %+v", seed, k, s)
		}
		stated++
	}
	if stated < runs*8/10 {
		t.Errorf("%d of %d stated", stated, runs)
	}
	t.Logf("%d of %d stated", stated, runs)
}

// A router that limits its answers is told from loss: hops beyond answer.
func TestLimited(t *testing.T) {
	const runs = 200
	stated := 0
	for seed := range uint64(runs) {
		m := newModel(seed, 7)
		k := 1 + int(seed%7)
		for range minuteRounds {
			m.rounds(1, nil, only(k, 0.5))
			s := Loss(m.now, m.hops, Own{})
			if s == nil {
				continue
			}
			if s.Kind != trace.ICMPLimited || s.TTL != k || k == 7 {
				t.Errorf("seed %d, hop %d: %+v", seed, k, s)
			}
			stated++
			break
		}
	}
	if stated < runs*6/7*8/10 {
		t.Errorf("%d of %d stated", stated, runs)
	}
	t.Logf("%d of %d stated", stated, runs)
}

// lossy is a flow that loses a fifth each way, good one that loses a segment now and then.
var lossy, good = Own{Retransmits: 3, Segments: 15}, Own{Retransmits: 3, Segments: 1000}

// A router that limits its answers is not taken for a place of loss when the flow loses
// elsewhere; nor are the last ones, behind which nobody answers, when the flow loses far less.
func TestLimitedBesideLoss(t *testing.T) {
	for seed := range uint64(1000) {
		m := newModel(seed, 7)
		m.rounds(30, nil, nil)
		if s := m.minute(lossy, only(1+int(seed%6), 0.5)); s != nil {
			t.Errorf("seed %d: %+v", seed, s)
		}
		m = newModel(seed, 7)
		m.rounds(30, nil, nil)
		if s := m.minute(good, beyond(6+int(seed%2), 0.5)); s != nil {
			t.Errorf("seed %d, the last: %+v", seed, s)
		}
	}
}

// On long paths, too, what is asked where loss is likely leaves enough for all hops.
func TestLossOnALongPath(t *testing.T) {
	stated := 0
	for seed := range uint64(200) {
		m := newModel(seed, 14)
		k := 2 + int(seed%12)
		m.rounds(30, nil, nil)
		if s := m.minute(lossy, beyond(k, 0.36)); s != nil {
			if stated++; s.TTL != k {
				t.Errorf("seed %d, hop %d: %+v", seed, k, s)
			}
		}
	}
	if stated < 60 {
		t.Errorf("%d of 200 stated", stated)
	}
	t.Logf("%d of 200 stated", stated)
}

// Nothing is stated of a path on which little is lost everywhere, nor of loss that the flow
// does not have.
func TestNoLoss(t *testing.T) {
	for seed := range uint64(200) {
		m := newModel(seed, 7)
		for range 60 {
			m.rounds(1, nil, beyond(1, 0.01))
			if s := Loss(m.now, m.hops, lossy); s != nil {
				t.Errorf("seed %d: %+v", seed, s)
			}
		}
		m.rounds(minuteRounds, nil, beyond(3, 0.5))
		if s := Loss(m.now, m.hops, Own{}); s != nil {
			t.Errorf("seed %d, without the flow: %+v", seed, s)
		}
	}
}

// What is there is counted as it came, and no more than fits.
func TestSeries(t *testing.T) {
	var s Series
	now := time.Unix(1_800_000_000, 0)
	for i := range kept + 10 {
		s.Add(now, time.Duration(i))
	}
	if all := s.newest(kept + 5); len(all) != kept || all[0] != 10 || all[kept-1] != kept+9 {
		t.Errorf("%v", all)
	}
	s.Add(now.Add(time.Minute), Lost)
	if n, lost := s.Counts(now.Add(90 * time.Second)); n != 1 || lost != 1 {
		t.Errorf("%d of %d", lost, n)
	}
	if n, lost := s.Counts(now.Add(time.Minute)); n != kept || lost != 1 {
		t.Errorf("%d of %d", lost, n)
	}
	before, present := s.split()
	if len(present) != recent || len(before) != kept-1-recent || present[0] <= before[len(before)-1] {
		t.Errorf("%v %v", before, present)
	}
}
