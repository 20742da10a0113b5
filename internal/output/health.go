package output

import (
	"fmt"
	"strings"

	"servicetraceroute/trace"
)

// health is how the flow itself did, where that is known; empty where it did well and nobody
// asked.
func health(tr *trace.Trace, all bool) string {
	o := &tr.Observed
	if o.In == nil || o.Out == nil {
		return ""
	}
	in, out := troubles(o.In), troubles(o.Out)
	if !all && tr.Trigger == "" && in == "" && out == "" {
		return ""
	}
	parts := []string{"RTT " + duration(o.RTT)}
	if o.RTTMin > 0 {
		parts[0] += ", " + duration(o.RTTMin) + " at least"
	}
	for _, d := range []struct {
		way, troubles string
		goodput       int64
	}{{"in", in, o.In.Goodput}, {"out", out, o.Out.Goodput}} {
		text := d.way + " " + bitRate(d.goodput)
		if d.troubles != "" {
			text += " (" + d.troubles + ")"
		}
		parts = append(parts, text)
	}
	text := "the flow: " + strings.Join(parts, "; ")
	if tr.Trigger != "" {
		text += "; traced when " + Escape(tr.Trigger)
	}
	return text
}

// troubles names what was counted of one direction.
func troubles(h *trace.Health) string {
	var parts []string
	for _, c := range []struct {
		n    int
		what string
	}{
		{h.Retransmits, "retransmit"}, {h.DupAcks, "duplicate ACK"}, {h.OutOfOrder, "segment out of order"}, {h.ZeroWindows, "closed window"},
	} {
		switch {
		case c.n == 1:
			parts = append(parts, "1 "+c.what)
		case c.n > 1 && c.what == "segment out of order":
			parts = append(parts, fmt.Sprintf("%d segments out of order", c.n))
		case c.n > 1:
			parts = append(parts, count(c.n, c.what))
		}
	}
	return strings.Join(parts, ", ")
}

// bitRate is in the unit that a person would use.
func bitRate(bps int64) string {
	switch {
	case bps >= 1_000_000:
		return fmt.Sprintf("%.1f Mbit/s", float64(bps)/1e6)
	case bps >= 1000:
		return fmt.Sprintf("%.1f kbit/s", float64(bps)/1e3)
	}
	return fmt.Sprintf("%d bit/s", bps)
}
