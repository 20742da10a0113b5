package finding

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"servicetraceroute/trace"
)

// responders finds TTLs at which several addresses answer though all is constant in the flow.
// What is spread out stays so until the ways meet again: TTLs in a row are one finding, at the
// first.
func (p *path) responders() (out []*trace.Finding) {
	before := 0 // the last TTL with one responder
	var open *trace.Finding
	for i := range p.hops {
		h := &p.hops[i]
		if h.ttl == p.end {
			break
		}
		if h.router().IsValid() {
			before, open = h.ttl, nil
			continue
		}
		order := h.turns()
		if len(order) < 2 {
			continue
		}
		if open == nil {
			open = &trace.Finding{
				Kind: trace.MultiResponder, TTLFrom: before, TTL: h.ttl, Value: words(order), Confidence: seen,
				Evidence: []string{"one after the other: a route that changed, or a balancer that spreads packets"},
			}
			out = append(out, open)
		}
		byTurns(open, h.ttl, order)
	}
	return out
}

// byTurns tells a balancer from a route that changed: some address comes again after another.
func byTurns(f *trace.Finding, ttl int, order []netip.Addr) {
	if len(distinct(order)) == len(order) {
		return
	}
	if f.Kind != trace.PerPacketLB {
		f.Kind, f.Evidence = trace.PerPacketLB, nil
		f.Confidence = seenOnce // a route that changed and changed back looks alike
	}
	if len(order) > 3 || len(f.Evidence) > 0 {
		f.Confidence = seen
	}
	if len(f.Evidence) < maxNamed {
		f.Evidence = append(f.Evidence, fmt.Sprintf("TTL %d answers by turns, with addresses and ports constant: %s", ttl, words(order)))
	}
}

// turns are the addresses of routers in the order of the probes, repeats in a row left out.
func (h *hop) turns() (order []netip.Addr) {
	for _, r := range h.replies {
		if r.Kind == trace.TimeExceeded && (len(order) == 0 || order[len(order)-1] != r.Addr) {
			order = append(order, r.Addr)
		}
	}
	return order
}

func distinct(order []netip.Addr) []netip.Addr {
	all := slices.Clone(order)
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// maxNamed bounds the addresses that one value names.
const maxNamed = 8

func words(order []netip.Addr) string {
	var parts []string
	for _, a := range order[:min(len(order), maxNamed)] {
		parts = append(parts, a.String())
	}
	if len(order) > maxNamed {
		parts = append(parts, "…")
	}
	return strings.Join(parts, ", ")
}

// loop finds an address that answers again, with another in between: the packets came by there
// twice.
func (p *path) loop() []*trace.Finding {
	if p.Mixed {
		return nil // of two paths, they might have come by there once each
	}
	var last netip.Addr
	before := 0
	var found *trace.Finding
	again := 0
	for i := range p.hops {
		h := &p.hops[i]
		a := h.router()
		if !a.IsValid() || a == p.Flow.Wire().Dst.Addr() { // behind a destination NAT all bear that
			continue
		}
		at := slices.IndexFunc(p.hops[:i], func(earlier hop) bool { return earlier.router() == a })
		if at >= 0 && a != last {
			if again++; found == nil {
				found = &trace.Finding{
					Kind: trace.Loop, TTLFrom: before, TTL: h.ttl, Value: a.String(), Confidence: seenOnce,
					Evidence: []string{fmt.Sprintf("%v answers at TTL %d and, with others in between, at TTL %d", a, p.hops[at].ttl, h.ttl)},
				}
			}
		}
		last, before = a, h.ttl
	}
	if found == nil {
		return nil
	}
	if again > 1 {
		found.Confidence = seen
		found.Evidence = append(found.Evidence, fmt.Sprintf("%d hops are such that answered before", again))
	}
	return []*trace.Finding{found}
}

// stays finds one router that answers at several TTLs in a row, over a way back of one length:
// the TTLs were changed before it. Two in a row are not enough: the end of a hidden tunnel that
// lets packets with one hop left pass makes the next router answer twice, too.
func (p *path) stays() (out []*trace.Finding) {
	if p.Mixed {
		return nil
	}
	before := 0
	for i := 0; i < len(p.hops); {
		end := i + 1
		for end < len(p.hops) && p.hops[end].ttl == p.hops[end-1].ttl+1 && same(&p.hops[i], &p.hops[end]) {
			end++
		}
		h := &p.hops[i]
		if end-i > 2 && h.router() != p.Flow.Wire().Dst.Addr() {
			out = append(out, &trace.Finding{
				Kind: trace.TTLMangled, TTLFrom: before, TTL: h.ttl, Confidence: seenOnce,
				Value:    fmt.Sprintf("%v answers at TTL %d to %d", h.router(), h.ttl, p.hops[end-1].ttl),
				Evidence: []string{"its answers come back over ways of one length, and quote a TTL of 1"},
			})
		}
		before, i = p.hops[end-1].ttl, end
	}
	return out
}

// same reports whether one router answered at both, with all signs equal.
func same(a, b *hop) bool {
	if !a.router().IsValid() || a.router() != b.router() {
		return false
	}
	for _, r := range slices.Concat(a.replies, b.replies) {
		if r.Exchange.QuoteTTL != 1 || r.ReplyTTL != a.replies[0].ReplyTTL {
			return false
		}
	}
	return true
}
