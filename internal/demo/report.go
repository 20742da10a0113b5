package demo

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"servicetraceroute/internal/classic"
	"servicetraceroute/internal/output"
	"servicetraceroute/trace"
)

// Write shows the result: the trace as the tool prints it, the classic
// traceroutes beside it, and three lines that say what that means.
func (r *Result) Write(w io.Writer) error {
	var b bytes.Buffer
	text, err := output.New("text", &b, output.Options{})
	if err != nil {
		return err
	}
	fmt.Fprintln(&b, "\nService Traceroute, inside the download's own flow:")
	if err := text.Write(r.Trace); err != nil {
		return err
	}
	fmt.Fprintln(&b, "\nBeside it, classic traceroutes, whose probes are flows of their own (≠: another branch):")
	fmt.Fprintf(&b, "%3s  %-18s  %-20s  %s\n", "TTL", "the flow itself", "UDP traceroute", "TCP traceroute")
	last := max(len(r.Trace.Hops), len(r.UDP), len(r.TCP))
	for ttl := 1; ttl <= last; ttl++ {
		own := r.own(ttl)
		fmt.Fprintf(&b, "%3d  %-18s  %-20s  %s\n", ttl, show(own, own), show(at(r.UDP, ttl), own), show(at(r.TCP, ttl), own))
	}
	fmt.Fprintf(&b, "\n%s\n%s\n%s\n", r.aboutUDP(), r.aboutTCP(), r.aboutFlow())
	_, err = io.WriteString(w, wrap(b.String()))
	return err
}

const width = 100 // columns

// wrap breaks lines that are too long for most terminals at spaces.
func wrap(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		for utf8.RuneCountInString(line) > width+1 { // with its newline
			at := strings.LastIndexByte(string([]rune(line)[:width+1]), ' ')
			if at <= 2 {
				break
			}
			b.WriteString(line[:at] + "\n")
			line = "  " + line[at+1:]
		}
		b.WriteString(line)
	}
	return b.String()
}

func (r *Result) own(ttl int) netip.Addr {
	for _, h := range r.Trace.Hops {
		if h.TTL == ttl && len(h.Replies) > 0 {
			return h.Replies[0].Addr
		}
	}
	return netip.Addr{}
}

func at(hops []classic.Hop, ttl int) netip.Addr {
	if ttl <= len(hops) {
		return hops[ttl-1].Addr
	}
	return netip.Addr{}
}

func show(a, own netip.Addr) string {
	switch {
	case !a.IsValid():
		return "*"
	case own.IsValid() && a != own:
		return a.String() + " ≠"
	}
	return a.String()
}

// differing lists the TTLs at which a classic traceroute saw another router.
func (r *Result) differing(hops []classic.Hop) []int {
	var ttls []int
	for _, h := range hops {
		if own := r.own(h.TTL); own.IsValid() && h.Addr.IsValid() && own != h.Addr {
			ttls = append(ttls, h.TTL)
		}
	}
	return ttls
}

func (r *Result) aboutUDP() string {
	end := "then the server."
	if !slices.ContainsFunc(r.UDP, func(h classic.Hop) bool { return h.Reached }) {
		end = fmt.Sprintf("after TTL %d the firewall drops it.", len(r.UDP))
	}
	return "1. UDP traceroute: " + r.branches(r.UDP) + "; " + end
}

func (r *Result) aboutTCP() string {
	return "2. TCP traceroute: " + r.branches(r.TCP) + ": each SYN is a new flow, not the download's."
}

// branches says where a classic traceroute left the flow's path.
func (r *Result) branches(hops []classic.Hop) string {
	if d := r.differing(hops); len(d) > 0 {
		return "other routers at TTL " + list(d)
	}
	return "by chance the same routers, this time"
}

func (r *Result) aboutFlow() string {
	kept := "arrived intact"
	if !r.Intact {
		kept = "were DAMAGED"
	}
	i := r.Trace.Impact
	return fmt.Sprintf("3. Service Traceroute: the download's own path; %d MiB %s, %d retransmits, %d resets.",
		r.Bytes>>20, kept, i.Retransmits, i.RSTs)
}

func list(ttls []int) string {
	s := ""
	for i, t := range ttls {
		switch {
		case i > 0 && i == len(ttls)-1:
			s += " and "
		case i > 0:
			s += ", "
		}
		s += fmt.Sprint(t)
	}
	return s
}

// Failed reports whether the demo did not show what it should.
func (r *Result) Failed() bool {
	return r.Trace.Stop != trace.StopDestination || !r.Intact
}
