package output

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"servicetraceroute/trace"
)

// Text writes traces the way a user of traceroute expects to read them: a header
// line, a line per hop, a closing line.
type Text struct {
	w       io.Writer
	verbose bool
	style   bool
	written bool
}

// The two SGR sequences (ECMA-48, 8.3.117) in use, beside the one that ends both.
const (
	bold  = "\x1b[1m"
	dim   = "\x1b[2m"
	plain = "\x1b[0m"
)

// set returns text in a style, where styles are wanted.
func (t *Text) set(style, text string) string {
	if !t.style {
		return text
	}
	return style + text + plain
}

// Write implements Writer.
func (t *Text) Write(ev trace.Event) error {
	var b bytes.Buffer
	switch ev := ev.(type) {
	case *trace.Trace:
		t.trace(&b, ev)
	case *trace.Finding:
		fmt.Fprintf(&b, "finding: %s\n", finding(ev))
	case *trace.Change:
		fmt.Fprintf(&b, "change: %s\n", change(ev))
	case *trace.Compare:
		fmt.Fprintf(&b, "compare: %s\n", compare(ev))
		writeGraph(&b, ev)
	case *trace.Flow:
		if t.verbose {
			fmt.Fprintf(&b, "%s: %s\n", header(ev.Tuple, ev.Service)+process(ev.Process), flowState(ev))
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

// trace writes a block of lines, or one line for a flow that was refused.
func (t *Text) trace(b *bytes.Buffer, tr *trace.Trace) {
	head := header(tr.Flow, tr.Service) + process(tr.Process)
	if tr.Stop == trace.StopRefused {
		fmt.Fprintf(b, "%s: not probed: %s\n", head, refusal(tr.Reason))
		return
	}
	if t.written {
		b.WriteByte('\n')
	}
	fmt.Fprintf(b, "%s\n", t.set(bold, head))
	for _, h := range tr.Hops {
		line := hopLine(tr, h)
		if len(h.Replies) == 0 {
			line = t.set(dim, line)
		}
		b.WriteString(line + "\n")
	}
	if tr.Mixed {
		fmt.Fprintf(b, "%s the path changed meanwhile, the hops above may belong to two paths\n", t.set(bold, "warning: mixed:"))
	}
	fmt.Fprintf(b, "%s\n", closing(tr))
	if line := health(tr, t.verbose); line != "" {
		fmt.Fprintf(b, "%s\n", line)
	}
}

// header is "tcp A:p -> B:q on eth0 (out), chosen by address B".
func header(f trace.Tuple, s *trace.Service) string {
	line := fmt.Sprintf("%v %v -> %v", f.Proto, f.Src, f.Dst)
	if f.Interface != "" {
		line += " on " + Escape(f.Interface)
	}
	if f.NetNS != "" {
		line += " in " + Escape(f.NetNS)
	}
	if f.Direction != 0 {
		line += fmt.Sprintf(" (%v)", f.Direction)
	}
	if s == nil {
		return line
	}
	value := Escape(s.Value)
	if s.Value != s.Name {
		value = fmt.Sprintf("%s (%s)", Escape(s.Name), value)
	}
	line += ", chosen by " + by(s.By) + " " + value
	if s.ECH {
		line += ", behind which an encrypted hello may hide another"
	}
	return line
}

// process is ", process curl (4242)".
func process(p *trace.Process) string {
	if p == nil || p.PID == 0 {
		return ""
	}
	return fmt.Sprintf(", process %s (%d)", Escape(p.Name), p.PID)
}

func by(b trace.By) string {
	if b == trace.ByNameAtStart {
		return "name"
	}
	return b.String()
}

// hopLine shows the replies of one TTL, grouped by address in the order of their
// first answers, and a star for every probe without one.
func hopLine(tr *trace.Trace, h trace.Hop) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%3d", h.TTL)
	var order []netip.Addr
	byAddr := map[netip.Addr][]trace.Reply{}
	for _, r := range h.Replies {
		if byAddr[r.Addr] == nil {
			order = append(order, r.Addr)
		}
		byAddr[r.Addr] = append(byAddr[r.Addr], r)
	}
	for _, a := range order {
		who := a.String()
		if name := byAddr[a][0].Name; name != "" {
			who = Escape(name) + " (" + who + ")"
		}
		b.WriteString("  " + who)
		for _, r := range byAddr[a] {
			b.WriteString("  " + duration(r.RTT) + mark(r))
		}
	}
	// At the destination one acknowledgement may answer several probes (RFC 9293,
	// 3.8.6.3): there the missing ones are not silence.
	final := tr.Reached && tr.Destination != nil && tr.Destination.TTL == h.TTL
	if len(h.Replies) == 0 || !final {
		b.WriteString(strings.Repeat("  *", min(max(h.Sent-len(h.Replies), 0), maxStars)))
	}
	for _, c := range changes(h) {
		b.WriteString("  [" + c + "]")
	}
	if h.Limited {
		b.WriteString("  [rate-limited]")
	}
	if h.Deferred > 0 {
		fmt.Fprintf(&b, "  [%d held back]", h.Deferred)
	}
	if final {
		b.WriteString("  [destination]")
	}
	return b.String()
}

// maxStars is as many probes as a hop may have.
const maxStars = 20

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
	if r.SharedFrom != "" {
		out += " (shared)" // another trace measured it
	}
	return out
}

// fromOthers reports whether a reply is what another trace measured: formats without a word
// for that leave it out.
func fromOthers(r trace.Reply) bool { return r.SharedFrom != "" }

// duration in milliseconds, with three decimals as traceroute has it.
func duration(d time.Duration) string {
	if d < 0 {
		return "? ms"
	}
	return fmt.Sprintf("%.3f ms", float64(d)/float64(time.Millisecond))
}

// took is how long a trace took, to the precision that matters to a person.
func took(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", max(d, 0).Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// closing says why the trace stopped and what it did to the flow.
func closing(tr *trace.Trace) string {
	probes, shared := 0, 0
	for _, h := range tr.Hops {
		probes += h.Sent
		if slices.ContainsFunc(h.Replies, fromOthers) {
			shared++
		}
	}
	complete := "not complete"
	if tr.Complete {
		complete = "complete"
	}
	parts := []string{complete}
	if shared > 0 {
		parts = append(parts, count(shared, "hop")+" shared with other flows")
	}
	parts = append(parts, count(probes, "probe"), effect(tr))
	if tr.Destination != nil && tr.Destination.By == trace.DestinationByPassive {
		parts = append(parts, "the flow's own RTT is "+duration(tr.Destination.RTT)+" (not a probe's)")
	}
	return stop(tr) + " in " + took(tr.End.Sub(tr.Start)) + ": " + strings.Join(parts, ", ")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
