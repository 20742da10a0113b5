package evidence

import (
	"fmt"

	"servicetraceroute/internal/engine"
)

// comment words what is known of a packet; empty for a flow's own. A probe and
// its reply get the same words, so that one display filter finds both.
func (e *entry) comment() string {
	if e.Kind == engine.FlowPacket {
		return ""
	}
	text := "trace " + e.Trace
	switch {
	case e.Kind == engine.ReplyPacket && (e.Verdict == engine.Unmatched || e.Verdict == 0):
		return text + ": not a reply to a probe of ours"
	case e.Verdict == engine.Unexplained:
		return fmt.Sprintf("%s: %v from %v, which probe it answers cannot be told", text, e.Reply, e.From)
	}
	text += fmt.Sprintf(" ttl %d probe %d: ", e.TTL, e.Attempt)
	if e.Kind == engine.ProbeSent && !e.seen {
		text += "not seen leaving, "
	}
	return text + e.verdict()
}

func (e *entry) verdict() string {
	switch e.Verdict {
	case engine.Answered:
		text := fmt.Sprintf("%v from %v, %.3f ms", e.Reply, e.From, float64(e.RTT.Nanoseconds())/1e6)
		if e.Late {
			text += ", late"
		}
		return text
	case engine.Duplicate:
		return fmt.Sprintf("duplicate %v from %v", e.Reply, e.From)
	case engine.Silent:
		return "silent"
	case engine.Limited:
		return "limited"
	case engine.CutShort:
		return "cut short"
	case engine.Restarted:
		return "cut short, the flow's path changed"
	}
	if e.cut {
		return "cut short"
	}
	return "verdict not yet known"
}
