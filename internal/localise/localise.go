package localise

import (
	"fmt"
	"math"
	"time"

	"servicetraceroute/trace"
)

// The rules' figures; docs/localisation.md explains them.
const (
	leastBefore = 8                    // samples of a hop before delay can be said to have risen
	leastRise   = 4 * time.Millisecond // that is spoken of
	sure        = 0.999                // confidence, below which nothing is stated
	odds        = 1000                 // of a place of loss against any other, the same
	leastProbes = 4                    // of a hop in the last minute before loss can be said to begin
	oddsLone    = 100                  // of loss against a router that limits, where the flow loses too
	cleanLoss   = 0.01                 // what a hop may lose of itself
	realLoss    = 0.05                 // what is called loss
)

// lowest is the quantile of a hop's older samples that a hop in front of the place must still
// be like: if it rose a while ago, most of them may be of since then.
const lowest = 0.1

// Hop is one hop that answered once, and what it answered since. Hops that never did are
// left out.
type Hop struct {
	TTL    int
	Series *Series
}

// Statement is what can be said; its TTLFrom is the last hop that is as it was, 0: none is.
type Statement struct {
	Kind         trace.FindingKind
	TTLFrom, TTL int
	Value        string
	Evidence     []string
	Confidence   float64
}

// Finding is the statement as a record.
func (s *Statement) Finding(at time.Time, id string, flow trace.Tuple, label string) *trace.Finding {
	return &trace.Finding{
		Time: at, Label: label, Trace: id, Flow: flow, Kind: s.Kind, TTLFrom: s.TTLFrom, TTL: s.TTL,
		Value: s.Value, Evidence: s.Evidence, Confidence: s.Confidence,
	}
}

// before is the TTL of the hop in front of one.
func before(hops []Hop, k int) int {
	if k == 0 {
		return 0
	}
	return hops[k-1].TTL
}

// Delay tells where delay begins to rise; nil: nowhere, or it cannot be said. Flow is how much
// the flow's own round trips rose; a rise at the last hop alone is stated only if they did, too.
func Delay(hops []Hop, flow time.Duration) *Statement {
	type figures struct{ was, now []time.Duration }
	all := make([]figures, len(hops))
	for i, h := range hops {
		all[i].was, all[i].now = h.Series.split()
		if len(all[i].was) < leastBefore || len(all[i].now) < recent {
			return nil
		}
	}
	for k := range hops {
		rise := quantile(all[k].now, 0.5) - quantile(all[k].was, 0.5)
		if rise < leastRise || k == len(hops)-1 && flow < rise/2 {
			continue
		}
		doubt, fits := 0.0, true
		for i := range hops {
			half := quantile(all[i].was, 0.5) + rise/2
			if i < k {
				half = quantile(all[i].was, lowest) + rise/2
			}
			above, early := over(all[i].now, half), over(all[i].was, half)
			q := float64(early+1) / float64(len(all[i].was)+2)
			switch {
			case i < k:
				fits = fits && above <= recent/4
			default:
				fits = fits && above >= recent-recent/4
			}
			if i == k {
				doubt += tail(recent, above, q)
			}
			if i == k-1 {
				doubt += tail(recent, recent-above, q)
			}
		}
		if fits && 1-doubt >= sure {
			s := &Statement{Kind: trace.DelayBegins, TTLFrom: before(hops, k), TTL: hops[k].TTL, Value: ms(rise) + " more", Confidence: 1 - doubt}
			for i, h := range hops {
				s.Evidence = append(s.Evidence, fmt.Sprintf("TTL %d: %s before, %s now", h.TTL, ms(quantile(all[i].was, 0.5)), ms(quantile(all[i].now, 0.5))))
			}
			return s
		}
	}
	return nil
}

// over counts samples above a bound.
func over(samples []time.Duration, bound time.Duration) (n int) {
	for _, d := range samples {
		if d > bound {
			n++
		}
	}
	return n
}

// tail is the chance that at least k of n happen which each do with probability q.
func tail(n, k int, q float64) (p float64) {
	for i := k; i <= n; i++ {
		p += choose(n, i) * math.Pow(q, float64(i)) * math.Pow(1-q, float64(n-i))
	}
	return p
}

func choose(n, k int) float64 {
	c := 1.0
	for i := range k {
		c = c * float64(n-i) / float64(i+1)
	}
	return c
}

// count is of how many probes of a hop how many were lost.
type count struct{ n, lost float64 }

// like is the logarithm of the likelihood of a count at a rate of loss.
func (c count) like(p float64) float64 { return c.lost*math.Log(p) + (c.n-c.lost)*math.Log(1-p) }

// rate is the share that was lost, as far as it is called loss.
func (c count) rate() float64 { return min(max(c.lost/max(c.n, 1), realLoss), 0.95) }

// Own is what the flow itself lost of late: without any retransmission no packets of it are
// lost, whatever becomes of probes.
type Own struct{ Retransmits, Segments int }

// bears reports whether the flow loses about as much as probes of which a share is unanswered:
// half of that each way. A quarter of it is asked for, since a retransmission may stand for
// several losses.
func (o Own) bears(unanswered float64) bool {
	return float64(o.Retransmits) >= unanswered/8*float64(o.Segments)
}

// Loss tells where loss begins, or which router limits its ICMP errors; nil: nothing can be
// said. What the flow lost is of about the same time.
func Loss(now time.Time, hops []Hop, own Own) *Statement {
	counts := make([]count, len(hops))
	for i, h := range hops {
		n, lost := h.Series.Counts(now)
		if n < leastProbes {
			return nil
		}
		counts[i] = count{float64(n), float64(lost)}
	}
	// What may be: nothing; loss from hop k on; a hop that limits its answers.
	likes := []float64{0}
	for _, c := range counts {
		likes[0] += c.like(cleanLoss)
	}
	from, alone := placed(counts)
	likes = append(append(likes, from...), alone...)
	best := 0
	for i, l := range likes {
		if l > likes[best] {
			best = i
		}
	}
	last := len(hops) - 1
	if best == 0 {
		return nil
	}
	k, limits := best-1, false
	if k > last {
		k, limits = k-last-1, true
	}
	if k == last {
		// Loss from the last hop on, and a limit there, look alike; the flow tells.
		limits = false
		likes[1+last+1+last] = math.Inf(-1)
	}
	if limits == (own.Retransmits >= leastRetransmits) || !limits && !own.bears(sumOf(counts[k:]).rate()) {
		return nil
	}
	sum := 0.0
	for i, l := range likes {
		needed := float64(odds)
		if i > last+1 && !limits {
			needed = oddsLone // what the flow loses would be a coincidence
		}
		if i != best && likes[best]-l < math.Log(needed) {
			return nil
		}
		sum += math.Exp(l - likes[best])
	}
	s := &Statement{Kind: trace.LossBegins, TTLFrom: before(hops, k), TTL: hops[k].TTL, Confidence: 1 / sum}
	shown := sumOf(counts[k:])
	if limits {
		s.Kind, shown = trace.ICMPLimited, counts[k]
	}
	s.Value = fmt.Sprintf("%.0f %% of %.0f probes unanswered", 100*shown.lost/shown.n, shown.n)
	for i, c := range counts {
		s.Evidence = append(s.Evidence, fmt.Sprintf("TTL %d: %.0f of %.0f unanswered", hops[i].TTL, c.lost, c.n))
	}
	return s
}

// suspicion is how much likelier than none loss has to be before hops are asked more often.
const suspicion = 20

// Suspects are the TTLs that would tell best where loss begins, if it is likely that it does
// somewhere: the hops about the likeliest place.
func Suspects(now time.Time, hops []Hop) (ttls []int) {
	counts := make([]count, len(hops))
	none := 0.0
	for i, h := range hops {
		n, lost := h.Series.Counts(now)
		if n <= leastProbes {
			return nil // all need so many before anything can be said
		}
		counts[i] = count{float64(n), float64(lost)}
		none += counts[i].like(cleanLoss)
	}
	from, _ := placed(counts)
	best := -1
	for k, l := range from {
		if l-none > math.Log(suspicion) && (best < 0 || l > from[best]) {
			best = k
		}
	}
	if best < 0 {
		return nil
	}
	for i := max(best-1, 0); i <= min(best+1, len(hops)-1); i++ {
		ttls = append(ttls, hops[i].TTL)
	}
	return ttls
}

// leastRetransmits are the flow's own in the last seconds that show that it loses packets.
const leastRetransmits = 1

// placed are the likelihoods of loss from each hop on, and of loss at each hop alone.
func placed(counts []count) (from, alone []float64) {
	for k := range counts {
		rest, clean := sumOf(counts[k:]), sumOf(counts[:k])
		from = append(from, clean.like(cleanLoss)+rest.like(rest.rate()))
		others := sumOf(counts)
		others.n, others.lost = others.n-counts[k].n, others.lost-counts[k].lost
		alone = append(alone, others.like(cleanLoss)+counts[k].like(counts[k].rate()))
	}
	return from, alone
}

func sumOf(counts []count) (sum count) {
	for _, c := range counts {
		sum.n, sum.lost = sum.n+c.n, sum.lost+c.lost
	}
	return sum
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }
