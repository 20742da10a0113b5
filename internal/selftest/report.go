package selftest

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Write says in words what was tried, what was seen and what that means.
func (r *Record) Write(w io.Writer) error {
	b := bufio.NewWriter(w)
	s := &r.System
	fmt.Fprintf(b, "self-test of service-traceroute %s on %s %s (%s)\n", s.Version, systemName(s.OS), s.Kernel, s.Arch)
	fmt.Fprintf(b, "  back end %s (%s)\n  congestion control %s, offloads %s\n",
		cmp.Or(s.Backend, "none"), cmp.Or(s.BackendReason, "no flow was traced"), cmp.Or(s.Congestion, "unknown"), cmp.Or(strings.Join(s.Offloads, " "), "none"))
	n := &r.Network
	wall := ""
	if n.Firewall {
		wall = " (one is a stateful firewall)"
	}
	fmt.Fprintf(b, "\ntried: each flow with and without tracing, in turns;\n  %d routers%s, %g Mbit/s, %g ms each way\n",
		n.Routers, wall, float64(n.BitRate)/1e6, n.DelayMS)
	for i := range r.Pairs {
		fmt.Fprintf(b, "  %-22s %s\n", r.Pairs[i].name(), r.Pairs[i].summary())
	}
	fmt.Fprintf(b, "  compared: every byte, speed, delay, %d counters of the kernel at both ends\n", len(r.Compared))
	p := &r.Paths
	fmt.Fprintf(b, "seen: %d traces, %d complete; false: %d of %d hops, %d of %d destinations\n",
		p.Traces, p.Complete, p.False, p.Hops, p.WrongDistance, p.Reached)
	fmt.Fprintf(b, "left behind: %s\n", cmp.Or(strings.Join(r.LeftBehind, ", "), "nothing"))
	for _, what := range r.NotTried {
		fmt.Fprintf(b, "not tried: %s\n", what)
	}
	fmt.Fprintf(b, "\nverdict: %s\n", strings.ToUpper(r.Verdict.String()))
	for _, why := range r.Reasons {
		fmt.Fprintf(b, "  %s\n", why)
	}
	return b.Flush()
}

func systemName(os string) string {
	if os == "linux" {
		return "Linux"
	}
	return os
}

// summary is one line about a pair: its twins side by side, those of its last try that
// can be compared, of one in which nothing was worse if there is one.
func (p *Pair) summary() string {
	if len(p.Tries) == 0 {
		return "not run"
	}
	t := &p.Tries[len(p.Tries)-1]
	for _, well := range []bool{false, true} {
		for i := range p.Tries {
			if try := &p.Tries[i]; try.comparable(p.Traffic) && (!well || len(try.worse(p.Traffic)) == 0) {
				t = try
			}
		}
	}
	with, without := &t.Traced, &t.Untraced
	var parts []string
	switch p.Traffic {
	case download, upload:
		parts = append(parts, fmt.Sprintf("%.2f Mbit/s traced, %.2f untraced", float64(with.BitRate)/1e6, float64(without.BitRate)/1e6))
	case idle:
		parts = append(parts, "alive traced, alive untraced")
		if !with.Intact || !without.Intact {
			parts[0] = fmt.Sprintf("alive traced %v, untraced %v", with.Intact, without.Intact)
		}
	default:
		parts = append(parts, fmt.Sprintf("answers in %.1f ms traced, %.1f untraced", with.Latency, without.Latency))
	}
	parts = append(parts, fmt.Sprintf("%d probes", with.Probes))
	found, why := p.judge()
	switch {
	case len(found) > 0:
		parts = append(parts, "HARM")
	case why != "":
		parts = append(parts, why)
	case t.same():
		parts = append(parts, "no counter differs")
	case len(Excess(with.Counters, without.Counters)) > 0:
		parts = append(parts, "a harmful counter is higher, not the same one each time")
	default:
		parts = append(parts, "no harmful counter is higher")
	}
	if n := len(p.Tries); n > 1 {
		parts = append(parts, fmt.Sprintf("%d tries", n))
	}
	return strings.Join(parts, "; ")
}

// same reports whether no counter tells the twins apart.
func (t *Try) same() bool {
	return len(Excess(t.Traced.Counters, t.Untraced.Counters)) == 0 && len(Excess(t.Untraced.Counters, t.Traced.Counters)) == 0
}

// Table is docs/stacks.md's: one row for each record, which names gives the file of.
func Table(records []*Record, names []string) string {
	var b strings.Builder
	b.WriteString("| kernel | system | back end | congestion control | offloads | tcp_sack, tcp_timestamps, tcp_ecn | flows, IPv4 and IPv6 | counters compared | result | record |\n" +
		"|---|---|---|---|---|---|---|---|---|---|\n")
	for i, r := range records {
		s := &r.System
		result := r.Verdict.String()
		if r.Verdict != Harmless {
			result += ": " + strings.Join(r.Reasons, "; ")
		}
		fmt.Fprintf(&b, "| %s | %s/%s | %s | %s | %s | %s | %s | %d | %s | [%s](stacks/%s) |\n",
			s.Kernel, s.OS, s.Arch, s.Backend, s.Congestion, strings.Join(s.Offloads, " "),
			strings.Join([]string{s.setting("sack"), s.setting("timestamps"), s.setting("ecn")}, ", "),
			r.kinds(), len(r.Compared), result, r.Time.Format("2006-01-02"), names[i])
	}
	return b.String()
}

func (s *System) setting(name string) string { return cmp.Or(s.Sysctls["net.ipv4.tcp_"+name], "?") }

// kinds counts pairs by protocol and probes in all of them.
func (r *Record) kinds() string {
	count := map[string]int{}
	var probes uint64
	for _, p := range r.Pairs {
		count[p.Proto]++
		for _, t := range p.Tries {
			probes += t.Traced.Probes
		}
	}
	var parts []string
	for _, proto := range []string{"tcp", "udp"} {
		parts = append(parts, fmt.Sprintf("%d %s", count[proto], strings.ToUpper(proto)))
	}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return strings.HasPrefix(s, "0 ") }), ", ") + fmt.Sprintf("; %d probes", probes)
}
