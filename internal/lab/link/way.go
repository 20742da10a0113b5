//go:build linux

package link

import (
	"math/rand/v2"
	"time"

	"servicetraceroute/internal/lab/tap"
)

const (
	maxDelay     = 10 * time.Second
	defaultQueue = 256 << 10
	maxUnderWay  = 64 << 20 // bytes, one way
	maxSegments  = 4096     // lost segments remembered
)

// way is one direction of a link, as a pure function of frames and time. Times
// are nanoseconds on any one clock.
type way struct {
	cfg    *Config
	back   bool // from B to A
	counts Counts
	losses *losses
	rng    *rand.Rand // for jitter

	idle     int64 // when the queue will have been served
	last     int64 // when the newest frame under way is due
	underWay int   // bytes
	frames   queue
	lost     func(Segment)
}

func newWay(cfg *Config, n uint64, lost func(Segment)) *way {
	return &way{cfg: cfg, back: n == 1, losses: newLosses(n), rng: rand.New(rand.NewPCG(cfg.LossSeed, n)), lost: lost}
}

// admit takes a frame that arrived at a time and keeps a copy, unless it is
// dropped. data starts at the Ethernet header, ip at the IP header (nil for
// anything else).
func (w *way) admit(now int64, data, ip []byte) {
	w.counts.Received++
	if w.strikes(ip) {
		w.counts.Lost++
		return
	}
	start := max(now, w.idle)
	if w.cfg.Rate > 0 {
		waiting := float64(start-now) * float64(w.cfg.Rate) / 8e9
		limit := w.cfg.Queue
		if limit == 0 {
			limit = defaultQueue
		}
		if int(waiting)+len(data) > limit {
			w.counts.Queue++
			return
		}
		start += int64(float64(len(data)) * 8e9 / float64(w.cfg.Rate))
		w.idle = start
	}
	if w.underWay+len(data) > maxUnderWay {
		w.counts.Overflow++
		return
	}
	due := start + int64(w.cfg.Delay)
	if w.cfg.Jitter > 0 {
		due += w.rng.Int64N(int64(w.cfg.Jitter) + 1)
	}
	due = max(due, w.last)
	w.last = due
	w.underWay += len(data)
	w.frames.push(due, data)
}

// strikes decides whether a frame is lost.
func (w *way) strikes(ip []byte) bool {
	if w.cfg.LoseAll && w.cfg.Loss >= 1 {
		return true
	}
	h, ok := tap.Parse(ip)
	if !ok || h.Proto == tap.ICMPv6 && neighbourDiscovery(h) {
		return false
	}
	p := w.losses.locate(h) // also without loss: it may be set later
	if !w.losses.lost(p, w.cfg) {
		return false
	}
	if p.kind == kindData {
		w.lost(segment(h, p))
	}
	return true
}

// neighbourDiscovery is IPv6's ARP: RFC 4861, types 133 to 137.
func neighbourDiscovery(h tap.Header) bool {
	return len(h.Transport) > 0 && h.Transport[0] >= 133 && h.Transport[0] <= 137
}

// due returns when the next frame is to be sent.
func (w *way) due() (int64, bool) {
	if w.frames.n == 0 {
		return 0, false
	}
	return w.frames.first().due, true
}

// set changes the configuration. A queue that has built up keeps its length in
// bytes, not in time.
func (w *way) set(cfg *Config, now int64) {
	if waiting := w.idle - now; waiting > 0 && w.cfg.Rate > 0 && cfg.Rate > 0 {
		w.idle = now + int64(float64(waiting)*float64(w.cfg.Rate)/float64(cfg.Rate))
	} else {
		w.idle = 0
	}
	w.cfg = cfg
}

// frame is one under way.
type frame struct {
	due  int64
	data []byte
}

// queue is a ring of frames whose buffers are used again.
type queue struct {
	ring    []frame
	head, n int
}

func (q *queue) push(due int64, data []byte) {
	if q.n == len(q.ring) {
		bigger := make([]frame, max(64, 2*len(q.ring)))
		for i := range q.n {
			bigger[i] = q.ring[(q.head+i)%len(q.ring)]
		}
		q.ring, q.head = bigger, 0
	}
	f := &q.ring[(q.head+q.n)%len(q.ring)]
	f.due, f.data = due, append(f.data[:0], data...)
	q.n++
}

func (q *queue) first() *frame { return &q.ring[q.head] }

// pop removes the first frame; its data stays valid until the next push.
func (q *queue) pop() {
	q.head = (q.head + 1) % len(q.ring)
	q.n--
}
