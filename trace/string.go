package trace

import (
	"strconv"
	"strings"
)

// String describes the trace in one line, for logs: the flow, what answered at each
// TTL ("*" is silence, "/" stands between several, "(shared)" behind what another trace
// measured), and why it stopped.
//
//	tcp 192.0.2.1:40510 > 203.0.113.7:443: 1 192.0.2.2, 2 *, 3 203.0.113.7 (destination, complete)
func (t *Trace) String() string {
	b := []byte(t.Flow.FlowKey.String())
	b = append(b, ": "...)
	for i, h := range t.Hops {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = strconv.AppendInt(b, int64(h.TTL), 10)
		b = append(b, ' ')
		b = append(b, h.addrs()...)
	}
	if len(t.Hops) == 0 {
		b = append(b, "no hops"...)
	}
	b = append(b, " ("...)
	b = append(b, t.Stop.String()...)
	if t.Reason != 0 {
		b = append(b, ": "+t.Reason.String()...)
	}
	if t.Complete {
		b = append(b, ", complete"...)
	}
	return string(append(b, ')'))
}

// addrs are the hop's addresses in the order in which they first answered.
func (h Hop) addrs() string {
	var all []string
	seen := map[string]bool{}
	for _, r := range h.Replies {
		a := r.Addr.String()
		if r.SharedFrom != "" {
			a += " (shared)"
		}
		if !seen[a] {
			seen[a] = true
			all = append(all, a)
		}
	}
	if len(all) == 0 {
		return "*"
	}
	return strings.Join(all, "/")
}
