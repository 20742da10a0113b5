package output

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"servicetraceroute/trace"
)

func impact(i trace.Impact) string {
	if i == (trace.Impact{}) {
		return "no impact on the flow (0 retransmits, 0 duplicate ACKs, 0 resets)"
	}
	text := fmt.Sprintf("near probes the flow showed %s, %s, %s", count(i.Retransmits, "retransmit"),
		count(i.DupAcks, "duplicate ACK"), count(i.RSTs, "reset"))
	if i.Aborted {
		text += " (probes near this destination were given up)"
	}
	return text
}

// effect is what the trace did to its flow. Of UDP nothing would tell; that is why no
// probe goes where its peer could see it.
func effect(tr *trace.Trace) string {
	if tr.Flow.Proto == trace.UDP {
		return "none meant to reach the peer"
	}
	return impact(tr.Impact)
}

func stop(tr *trace.Trace) string {
	last := 0
	if n := len(tr.Hops); n > 0 {
		last = tr.Hops[n-1].TTL
	}
	switch tr.Stop {
	case trace.StopDestination:
		if tr.Destination != nil && tr.Destination.TTL != 0 {
			last = tr.Destination.TTL
		}
		return fmt.Sprintf("reached the destination at TTL %d", last)
	case trace.StopUnreachable:
		return fmt.Sprintf("stopped at TTL %d: unreachable from there", last)
	case trace.StopBorder:
		return fmt.Sprintf("stopped at the border at TTL %d", last)
	case trace.StopMaxTTL:
		return fmt.Sprintf("stopped at the highest TTL, %d", last)
	case trace.StopSilentHops:
		return "stopped: too many silent hops in a row"
	case trace.StopFence:
		return "stopped before the destination could see a probe"
	case trace.StopUnknown:
		return "the destination's distance could not be told"
	case trace.StopFlowClosed:
		return "stopped: the flow closed"
	case trace.StopFlowIdle:
		return "stopped: the flow was idle for too long"
	case trace.StopLostSync:
		return "stopped: packets were lost to the capture"
	case trace.StopRateLimited:
		return "stopped: routers' rate limits held probes back"
	case trace.StopDeadline:
		return "stopped: the time is over"
	case trace.StopCancelled:
		return "stopped: cancelled"
	}
	return "stopped: " + tr.Stop.String()
}

var refusals = map[trace.Reason]string{
	trace.ReasonRecvErr:       "its socket may hear of errors about probes (recverr)",
	trace.ReasonMD5:           "it signs its segments (TCP MD5)",
	trace.ReasonAO:            "it signs its segments (TCP-AO)",
	trace.ReasonMPTCP:         "it uses Multipath TCP",
	trace.ReasonNoInboundTTL:  "nothing came from its peer yet",
	trace.ReasonNoState:       "its sequence numbers are not known",
	trace.ReasonRouteMismatch: "a probe would leave by another way than the flow",
	trace.ReasonLoopback:      "it ends on this host",
	trace.ReasonExcluded:      "its destination is excluded",
	trace.ReasonUDPOff:        "UDP probes are off",
	trace.ReasonProtocol:      "it looks like questions and answers, which only --udp-probe always probes",
	trace.ReasonCapability:    "a capability is missing",
	trace.ReasonAmbiguous:     "its address has several names that say different things, and its own first words none",
}

func refusal(r trace.Reason) string {
	if text := refusals[r]; text != "" {
		return text
	}
	return r.String()
}

func flowState(f *trace.Flow) string {
	if f.State == trace.FlowRefused {
		return "not probed: " + refusal(f.Reason)
	}
	if f.Reason != 0 {
		return f.State.String() + ": " + refusal(f.Reason)
	}
	return f.State.String()
}

func finding(f *trace.Finding) string {
	text := fmt.Sprintf("%v %s of %v -> %v", f.Kind, where(f), f.Flow.Src, f.Flow.Dst)
	if f.Value != "" {
		text += ": " + Escape(f.Value)
	}
	text += fmt.Sprintf(" (confidence %.2f)", f.Confidence)
	for _, line := range f.Evidence {
		if strings.Contains(line, " unknown: ") { // why it cannot be placed better
			text += "; " + Escape(line)
		}
	}
	return text
}

// where is the place of a finding: a hop, or what lies between two.
func where(f *trace.Finding) string {
	switch {
	case f.Kind == trace.MTU || f.Kind == trace.InterfaceInfo:
		return fmt.Sprintf("at TTL %d", f.TTL)
	case f.TTLFrom == 0:
		return fmt.Sprintf("between this host and TTL %d", f.TTL)
	}
	return fmt.Sprintf("between TTL %d and %d", f.TTLFrom, f.TTL)
}

func change(c *trace.Change) string {
	return fmt.Sprintf("path of %v -> %v at TTL %d: %s became %s (cause: %s)",
		c.Flow.Src, c.Flow.Dst, c.TTL, addrs(c.From), addrs(c.To), Escape(c.Cause))
}

func compare(c *trace.Compare) string {
	text := fmt.Sprintf("%v -> %v beside %s", c.Flow.Src, c.Flow.Dst, count(len(c.Siblings), "sibling"))
	switch {
	case c.Divergent:
		text += fmt.Sprintf(": %.0f %% of them took another way", 100*c.Divergence)
	case len(c.Siblings) > 0:
		text += ": none is known to have taken another way"
	}
	for _, b := range c.Blocked {
		text += fmt.Sprintf("; %s is blocked after TTL %d", Escape(b.Proto), b.AfterTTL)
	}
	return text
}

func addrs(list []netip.Addr) string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}

func stats(b *bytes.Buffer, s *trace.Stats) {
	fmt.Fprintf(b, "stats: %v up, %s; packets %d seen %d dropped %d malformed; flows %d live %d matched %d evicted; "+
		"traces %d of %d done; probes %d sent %d deferred %d refused %d EPERM %d ENOBUFS; "+
		"replies %d matched %d unmatched %d late %d duplicate; %d aborts\n",
		s.Uptime.Round(time.Millisecond), s.Backend, s.Packets.Seen, s.Packets.Dropped, s.Packets.Malformed,
		s.Flows.Live, s.Flows.Matched, s.Flows.Evicted, s.Traces.Done, s.Traces.Started,
		s.Probes.Sent, s.Probes.Deferred, s.Probes.Refused, s.Probes.EPERM, s.Probes.ENOBUFS,
		s.Replies.Matched, s.Replies.Unmatched, s.Replies.Late, s.Replies.Duplicate, s.Impact.Aborts)
	if n := s.Probes.Failed; n > 0 {
		b.Truncate(b.Len() - 1)
		fmt.Fprintf(b, "; %d probes could not be sent\n", n)
	}
	if n := s.Flows.Withheld; n > 0 {
		b.Truncate(b.Len() - 1)
		fmt.Fprintf(b, "; %d packets of new flows withheld\n", n)
	}
	if n := s.Flows.Brief; n > 0 {
		b.Truncate(b.Len() - 1)
		fmt.Fprintf(b, "; %d flows among very many, shown without their handshakes\n", n)
	}
	if n := s.Replies.Withheld; n > 0 {
		b.Truncate(b.Len() - 1)
		fmt.Fprintf(b, "; %d replies withheld from applications\n", n)
	}
	if n := s.Services; n.Dropped+n.Cut+n.Limited+n.Forgotten+n.Malformed > 0 {
		b.Truncate(b.Len() - 1)
		fmt.Fprintf(b, "; names %d dropped %d cut %d limited %d forgotten %d malformed\n", n.Dropped, n.Cut, n.Limited, n.Forgotten, n.Malformed)
	}
	if o := s.Owners; o != nil {
		b.Truncate(b.Len() - 1)
		fmt.Fprintf(b, "; owners %d asked %d found %d unknown %d dropped\n", o.Asked, o.Found, o.Unknown, o.Dropped)
	}
	if r := s.Records; r != nil {
		b.Truncate(b.Len() - 1)
		fmt.Fprintf(b, "; %d records dropped\n", r.Dropped)
	}
}
