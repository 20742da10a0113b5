package finding

import (
	"fmt"
	"slices"
	"strings"

	"servicetraceroute/internal/probe"
	"servicetraceroute/trace"
)

// wayBack finds from where on all answers come back over a way of another length than the way
// there, longer or shorter throughout.
func (p *path) wayBack() []*trace.Finding {
	if p.Mixed {
		return nil
	}
	from, start, sign := 0, -1, 0
	var evidence []string
	for i := range p.hops {
		h := &p.hops[i]
		d, known := h.detour()
		switch {
		case !known:
			continue
		case d == 0:
			from, start, sign, evidence = h.ttl, -1, 0, nil
			continue
		case start < 0 || (d > 0) != (sign > 0):
			if start >= 0 { // it was the other way round before
				from = p.hops[i-1].ttl
			}
			start, sign, evidence = i, d, nil
		}
		evidence = append(evidence, fmt.Sprintf("TTL %d: %v, %d back", h.ttl, h.replies[0].Addr, h.ttl+d))
	}
	if start < 0 || len(evidence) < 2 {
		return nil // one router may count in a way of its own
	}
	d, _ := p.hops[start].detour()
	word := "longer"
	if d < 0 {
		word = "shorter"
	}
	f := &trace.Finding{
		Kind: trace.AsymmetricReturn, TTLFrom: from, TTL: p.hops[start].ttl, Confidence: guessed,
		Value:    fmt.Sprintf("the way back is %s: TTL %d there, %d back", word, p.hops[start].ttl, p.hops[start].ttl+d),
		Evidence: evidence[:min(len(evidence), maxNamed)],
	}
	if d > 1 || d < -1 {
		f.Confidence = seenOnce // more than what routers' ways of counting make
	}
	return []*trace.Finding{f}
}

// initialTTLs are those that stacks are known to begin with.
var initialTTLs = []int{30, 32, 60, 64, 100, 128, 200, 254, 255}

// detour is how much longer the way back is than the way there. With any initial TTL in use for
// which the two are equal, they count as equal.
func (h *hop) detour() (hops int, known bool) {
	ttl := h.replies[0].ReplyTTL
	for _, r := range h.replies {
		if r.ReplyTTL != ttl || r.Addr != h.replies[0].Addr {
			return 0, false
		}
	}
	if ttl < 1 || ttl > 255 {
		return 0, false
	}
	if slices.Contains(initialTTLs, ttl+h.ttl-1) {
		return 0, true
	}
	return probe.Distance(uint8(ttl)) - h.ttl, true
}

// interfaces are what routers say of their interfaces (RFC 5837), each at its own TTL.
func (p *path) interfaces() (out []*trace.Finding) {
	for _, h := range p.hops {
		var told []string
		for _, r := range h.replies {
			for _, i := range r.Exchange.Interfaces {
				value := describe(i)
				if slices.Contains(told, value) {
					continue
				}
				told = append(told, value)
				out = append(out, &trace.Finding{
					Kind: trace.InterfaceInfo, TTLFrom: h.ttl - 1, TTL: h.ttl, Value: value, Confidence: seen,
					Evidence: []string{fmt.Sprintf("%v says so of itself", r.Addr)},
				})
			}
		}
	}
	return out
}

func describe(i *trace.Interface) string {
	parts := []string{i.Role.String()}
	if i.Index != 0 {
		parts = append(parts, fmt.Sprintf("index %d", i.Index))
	}
	if i.Name != "" {
		parts = append(parts, "name "+i.Name)
	}
	if i.Addr.IsValid() {
		parts = append(parts, "address "+i.Addr.String())
	}
	if i.MTU != 0 {
		parts = append(parts, fmt.Sprintf("MTU %d", i.MTU))
	}
	return strings.Join(parts, ", ")
}

// mtu puts what routers said about the flow's own packets at the hops that they are.
func (p *path) mtu(tooBig []TooBig) (out []*trace.Finding) {
	for _, b := range tooBig {
		i := slices.IndexFunc(p.hops, func(h hop) bool { return h.router() == b.From })
		if i < 0 {
			continue
		}
		ttl := p.hops[i].ttl
		out = append(out, &trace.Finding{
			Kind: trace.MTU, TTLFrom: ttl - 1, TTL: ttl, Value: fmt.Sprint(b.MTU), Confidence: seen,
			Evidence: []string{fmt.Sprintf("%v at TTL %d had no room for a packet of %d bytes of the flow's own", b.From, ttl, b.Len)},
		})
	}
	return out
}
