package output

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"servicetraceroute/trace"
)

// Text writes traces the way a user of traceroute expects to read them: a header
// line, a line per hop, a closing line.
type Text struct {
	w       io.Writer
	verbose bool
	written bool
}

// Write implements Writer.
func (t *Text) Write(ev trace.Event) error {
	var b bytes.Buffer
	switch ev := ev.(type) {
	case *trace.Trace:
		t.trace(&b, ev)
	case *trace.Flow:
		if t.verbose {
			fmt.Fprintf(&b, "%s: %s\n", header(ev.Tuple, ev.Service), flowState(ev))
		}
	case *trace.Stats:
		if t.verbose {
			stats(&b, ev)
		}
	}
	if b.Len() == 0 {
		return nil
	}
	_, err := t.w.Write(b.Bytes())
	t.written = true
	return err
}

func (t *Text) trace(b *bytes.Buffer, tr *trace.Trace) {
	if t.written {
		b.WriteByte('\n')
	}
	b.WriteString(header(tr.Flow, tr.Service))
	b.WriteByte('\n')
	for _, h := range tr.Hops {
		hopLine(b, tr, h)
	}
	fmt.Fprintf(b, "%s\n", closing(tr))
}

// header is "tcp A:p -> B:q on eth0, chosen by address B".
func header(f trace.Tuple, s *trace.Service) string {
	line := fmt.Sprintf("%v %v -> %v", f.Proto, f.Src, f.Dst)
	if f.Interface != "" {
		line += " on " + Escape(f.Interface)
	}
	if f.Direction == trace.In {
		line += " (accepted)"
	}
	if s == nil {
		return line
	}
	value := Escape(s.Value)
	if s.Value != s.Name {
		value = fmt.Sprintf("%s (%s)", Escape(s.Name), value)
	}
	return line + ", chosen by " + by(s.By) + " " + value
}

func by(b trace.By) string {
	if b == trace.ByNameAtStart {
		return "name"
	}
	return b.String()
}

// hopLine writes the replies of one TTL, grouped by address in the order of their
// first answers, and a star for every probe without one.
func hopLine(b *bytes.Buffer, tr *trace.Trace, h trace.Hop) {
	fmt.Fprintf(b, "%3d", h.TTL)
	answered := 0
	last := ""
	for _, r := range h.Replies {
		answered++
		if who := r.Addr.String(); who != last {
			if r.Name != "" {
				who = Escape(r.Name) + " (" + who + ")"
			}
			b.WriteString("  " + who)
			last = r.Addr.String()
		}
		b.WriteString("  " + duration(r.RTT) + mark(r))
	}
	final := tr.Reached && tr.Destination != nil && tr.Destination.TTL == h.TTL
	if !final || answered == 0 {
		stars := max(h.Sent-answered, 0)
		if answered == 0 {
			stars = max(stars, 1)
		}
		if answered == 0 || tr.Algorithm != trace.Adaptive {
			b.WriteString(strings.Repeat("  *", min(stars, 8)))
		}
	}
	for _, c := range changes(h) {
		b.WriteString("  [" + c + "]")
	}
	switch {
	case final:
		b.WriteString("  [destination]")
	case h.Limited:
		b.WriteString("  [rate-limited]")
	}
	if h.Deferred > 0 {
		fmt.Fprintf(b, "  [%d held back]", h.Deferred)
	}
	b.WriteByte('\n')
}

func changes(h trace.Hop) []string {
	seen := map[trace.FindingKind]bool{}
	var out []string
	for _, r := range h.Replies {
		for _, c := range r.Changes {
			if !seen[c] {
				seen[c] = true
				out = append(out, c.String())
			}
		}
	}
	return out
}

// mark annotates a reply as traceroute does.
func mark(r trace.Reply) string {
	out := ""
	switch r.Kind {
	case trace.NetUnreachable:
		out = " !N"
	case trace.HostUnreachable:
		out = " !H"
	case trace.PortUnreachable:
		out = " !P"
	case trace.AdminProhibited:
		out = " !X"
	case trace.Unreachable:
		out = " !U"
	case trace.PacketTooBig:
		out = " !F"
	case trace.TCPRst:
		out = " RST"
	}
	if r.Late {
		out += " (late)"
	}
	return out
}

// duration in milliseconds, with three decimals as traceroute has it.
func duration(d time.Duration) string {
	return fmt.Sprintf("%.3f ms", float64(d)/float64(time.Millisecond))
}

// closing says why the trace stopped and what it did to the flow.
func closing(tr *trace.Trace) string {
	if tr.Stop == trace.StopRefused {
		return "not probed: " + refusal(tr.Reason)
	}
	probes := 0
	for _, h := range tr.Hops {
		probes += h.Sent
	}
	parts := []string{stop(tr) + " in " + tr.End.Sub(tr.Start).Round(time.Millisecond).String()}
	if tr.Destination != nil && tr.Destination.By == trace.DestinationByPassive {
		parts = append(parts, "the flow's own round trip is "+duration(tr.Destination.RTT))
	}
	switch {
	case tr.Mixed:
		parts = append(parts, "the path CHANGED meanwhile: hops above may belong to two paths")
	case tr.Complete:
		parts = append(parts, "path complete")
	default:
		parts = append(parts, "path not complete")
	}
	return fmt.Sprintf("%s; %d probes; %s", strings.Join(parts, "; "), probes, impact(tr.Impact))
}

func impact(i trace.Impact) string {
	if i == (trace.Impact{}) {
		return "no impact on the flow (0 retransmits, 0 duplicate ACKs, 0 resets)"
	}
	text := fmt.Sprintf("near probes the flow showed %d retransmits, %d duplicate ACKs, %d resets", i.Retransmits, i.DupAcks, i.RSTs)
	if i.Aborted {
		text += "; no more probes go near this destination for 10 minutes"
	}
	return text
}

func stop(tr *trace.Trace) string {
	last := 0
	if n := len(tr.Hops); n > 0 {
		last = tr.Hops[n-1].TTL
	}
	switch tr.Stop {
	case trace.StopDestination:
		return fmt.Sprintf("reached the destination at TTL %d", tr.Destination.TTL)
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
	trace.ReasonRecvErr:       "its socket would hear our routers' errors (recverr)",
	trace.ReasonMD5:           "it signs its segments (TCP MD5)",
	trace.ReasonAO:            "it signs its segments (TCP-AO)",
	trace.ReasonMPTCP:         "it uses Multipath TCP",
	trace.ReasonNoInboundTTL:  "nothing came from its peer yet",
	trace.ReasonNoState:       "its sequence numbers are not known",
	trace.ReasonRouteMismatch: "a probe would leave by another way than the flow",
	trace.ReasonLoopback:      "it ends on this host",
	trace.ReasonExcluded:      "its destination is excluded",
	trace.ReasonUDPOff:        "UDP probes are off",
	trace.ReasonProtocol:      "its protocol is not probed",
	trace.ReasonCapability:    "a capability is missing",
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
	return f.State.String()
}

func stats(b *bytes.Buffer, s *trace.Stats) {
	fmt.Fprintf(b, "stats: %v up, %s; packets %d seen %d dropped %d malformed; flows %d live %d matched %d evicted; "+
		"traces %d of %d done; probes %d sent %d deferred %d refused %d EPERM %d ENOBUFS; "+
		"replies %d matched %d unmatched %d late %d duplicate; %d aborts\n",
		s.Uptime.Round(time.Millisecond), s.Backend, s.Packets.Seen, s.Packets.Dropped, s.Packets.Malformed,
		s.Flows.Live, s.Flows.Matched, s.Flows.Evicted, s.Traces.Done, s.Traces.Started,
		s.Probes.Sent, s.Probes.Deferred, s.Probes.Refused, s.Probes.EPERM, s.Probes.ENOBUFS,
		s.Replies.Matched, s.Replies.Unmatched, s.Replies.Late, s.Replies.Duplicate, s.Impact.Aborts)
}
