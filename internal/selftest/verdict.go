package selftest

import (
	"fmt"
	"maps"
	"math"
	"slices"
)

// The bounds of the rules.
const (
	// Twins on a calm machine differ by less than a hundredth; a busy one needs room.
	leastRate    = 0.9  // of the untraced twin's
	mostLatency  = 1.25 // times the untraced twin's
	latencyRoom  = 2.0  // milliseconds more, whatever the factor
	daysOfMemory = 431_000
	// What one try shows can be the machine's own. It has to be there each time.
	triesToConfirm = 3
	mostTries      = 6 // busy ones included
	mostUnprobed   = 2 // what is refused once will be refused again
	// Harm that comes and goes shows in the sum of all pairs, at this level of chance.
	significant = 0.01
)

// Traffic of pairs, as records name it.
const (
	download        = "download"
	upload          = "upload"
	requestResponse = "request/response"
	idle            = "idle"
	datagrams       = "datagrams"
)

// Judge sets Verdict and Reasons, and adds to NotTried what could not be compared.
func (r *Record) Judge() {
	r.Reasons = []string{}
	usable := 0
	for i := range r.Pairs {
		p := &r.Pairs[i]
		found, why := p.judge()
		for _, f := range found {
			r.Reasons = append(r.Reasons, p.name()+": "+f)
		}
		if why != "" {
			r.NotTried = append(r.NotTried, p.name()+": "+why)
		} else {
			usable++
		}
	}
	if worse, better := r.tally(); chance(worse, better) < significant {
		r.Reasons = append(r.Reasons, fmt.Sprintf("tries in which only the traced twin fared worse: %d; only the untraced one: %d", worse, better))
	}
	r.Reasons = append(r.Reasons, r.Paths.judge()...)
	for _, what := range r.LeftBehind {
		r.Reasons = append(r.Reasons, "left behind: "+what)
	}
	switch {
	case len(r.Reasons) > 0:
		r.Verdict = Harm
	case usable == 0 || 2*usable < len(r.Pairs):
		r.Verdict = NotTried
		r.Reasons = append(r.Reasons, fmt.Sprintf("%d of %d pairs of flows could be compared", usable, len(r.Pairs)))
	default:
		r.Verdict = Harmless
	}
}

// tally counts the calm tries that only one of the twins came out of worse.
func (r *Record) tally() (worse, better int) {
	for _, p := range r.Pairs {
		for _, t := range p.Tries {
			if t.Busy || !t.comparable(p.Traffic) {
				continue
			}
			turned := Try{Traced: t.Untraced, Untraced: t.Traced}
			a, b := len(t.worse(p.Traffic)) > 0, len(turned.worse(p.Traffic)) > 0
			if a && !b {
				worse++
			}
			if b && !a {
				better++
			}
		}
	}
	return worse, better
}

// chance is how often it would be the same twin so many times, or more, if it were any
// twin's turn each time: the sign test, one-sided.
func chance(worse, better int) (p float64) {
	n := worse + better
	ways := 1.0 // to choose k of n
	for k := range n + 1 {
		if k >= worse {
			p += ways
		}
		ways = ways * float64(n-k) / float64(k+1)
	}
	return p / math.Pow(2, float64(n))
}

func (p *Paths) judge() (reasons []string) {
	if p.False > 0 {
		reasons = append(reasons, fmt.Sprintf("%d of %d hops shown are not on the path", p.False, p.Hops))
	}
	if p.WrongDistance > 0 {
		reasons = append(reasons, fmt.Sprintf("%d of %d destinations shown at a wrong distance", p.WrongDistance, p.Reached))
	}
	return reasons
}

func (p *Pair) name() string { return familyName[p.Family] + " " + p.Traffic }

var familyName = map[string]string{"ipv4": "IPv4", "ipv6": "IPv6"}

// judge says what harm was found, and, if there is none, why nothing could be.
func (p *Pair) judge() (harm []string, why string) {
	times := map[string]int{}
	calm, probed, refused := 0, 0, ""
	for i := range p.Tries {
		t := &p.Tries[i]
		if t.Traced.Probes > 0 {
			probed++
		}
		if t.Traced.Refused != "" {
			refused = ", refused: " + t.Traced.Refused
		}
		if what := t.broken(); what != "" {
			return []string{what}, ""
		}
		if !t.comparable(p.Traffic) {
			continue
		}
		calm++
		for _, what := range t.worse(p.Traffic) {
			times[what]++
		}
	}
	for _, what := range slices.Sorted(maps.Keys(times)) {
		if n := times[what]; n >= triesToConfirm && n == calm {
			harm = append(harm, fmt.Sprintf("%s, in each of %d tries", what, n))
		}
	}
	// Too few tells nothing: neither harm nor that there is none.
	few := calm < triesToConfirm && slices.Contains(slices.Collect(maps.Values(times)), calm)
	switch {
	case len(harm) == 0 && few && calm > 0:
		return nil, "worse in each of too few tries that could be compared: the machine was too busy"
	case calm > 0:
		return harm, ""
	case probed == 0:
		return nil, "was not probed" + refused
	case p.fails():
		return nil, "its flow fails without tracing, too"
	}
	return nil, "the machine was too busy"
}

// fails reports whether untraced flows came to harm in every try.
func (p *Pair) fails() bool {
	return !slices.ContainsFunc(p.Tries, func(t Try) bool { return t.Untraced.Intact })
}

// comparable reports whether the twins tell something of each other. A busy machine can
// make a flow look worse than it would be, never better: a traced one without a blemish
// counts all the same.
func (t *Try) comparable(traffic string) bool {
	if !t.Untraced.Intact || !t.Traced.Intact || t.Traced.Probes == 0 {
		return false
	}
	return !t.Busy || len(Excess(t.Traced.Counters, nil)) == 0 && len(t.worse(traffic)) == 0
}

// broken says what nothing but harm explains, for which one try is enough: the twin
// was well.
func (t *Try) broken() string {
	if !t.Untraced.Intact || t.Untraced.Datagrams.disturbed() {
		return ""
	}
	switch d := t.Traced.Datagrams; {
	case d != nil && d.Delivered > d.Sent:
		return fmt.Sprintf("datagrams delivered to the application that nobody sent: %d", d.Delivered-d.Sent)
	case d != nil && d.Stray > 0:
		return fmt.Sprintf("datagrams at the server that nobody sent: %d", d.Stray)
	case d != nil && d.Errors > 0:
		return fmt.Sprintf("errors at the application's socket: %d", d.Errors)
	case d != nil && t.Busy:
		return "" // an answer may just be late
	case !t.Traced.Intact:
		return "what was sent did not arrive: " + t.Traced.Failure
	}
	return ""
}

// disturbed reports whether there was anything that nobody sent.
func (d *Datagrams) disturbed() bool {
	return d != nil && (d.Delivered > d.Sent || d.Stray > 0 || d.Errors > 0)
}

// worse lists in what the traced twin fared worse than the other, where chance could
// have had a hand in it.
func (t *Try) worse(traffic string) []string {
	with, without := &t.Traced, &t.Untraced
	var all []string
	for _, name := range Excess(with.Counters, without.Counters) {
		all = append(all, name+" is higher with tracing")
	}
	switch traffic {
	case download, upload:
		if float64(with.BitRate) < leastRate*float64(without.BitRate) {
			all = append(all, "slower with tracing")
		}
	case requestResponse, datagrams:
		if with.Latency > mostLatency*without.Latency && with.Latency > without.Latency+latencyRoom {
			all = append(all, "later answers with tracing")
		}
	case idle:
		if with.Conntrack > 0 && with.Conntrack < daysOfMemory && without.Conntrack >= daysOfMemory {
			all = append(all, "a firewall forgets the connection sooner with tracing")
		}
	}
	return all
}

// undecided reports whether another try would tell more: none tells anything yet, or
// something was there each time, but not often enough to be believed.
func (p *Pair) undecided() bool {
	if len(p.Tries) >= mostTries {
		return false
	}
	calm, unprobed := 0, 0
	times := map[string]int{}
	for i := range p.Tries {
		t := &p.Tries[i]
		if t.Traced.Probes == 0 {
			unprobed++
		}
		if t.broken() != "" || unprobed >= mostUnprobed {
			return false
		}
		if t.comparable(p.Traffic) {
			calm++
			for _, what := range t.worse(p.Traffic) {
				times[what]++
			}
		}
	}
	for _, n := range times {
		if n == calm && n < triesToConfirm {
			return true
		}
	}
	return calm == 0
}
