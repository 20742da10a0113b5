package demo

import (
	"fmt"
	"io"
	"net/netip"
	"slices"

	"servicetraceroute/internal/classic"
	"servicetraceroute/internal/output"
	"servicetraceroute/trace"
)

// Write shows the result: the trace as the tool prints it, the classic
// traceroutes beside it, and three lines that say what that means.
func (r *Result) Write(w io.Writer) error {
	text, err := output.New("text", w, output.Options{})
	if err != nil {
		return err
	}
	fmt.Fprintln(w, "\nService Traceroute, inside the download's own flow:")
	if err := text.Write(r.Trace); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nBeside it, classic traceroutes, whose probes are flows of their own (≠: another branch):")
	fmt.Fprintf(w, "%3s  %-18s  %-20s  %-20s\n", "TTL", "the flow itself", "UDP traceroute", "TCP traceroute")
	last := max(len(r.Trace.Hops), len(r.UDP), len(r.TCP))
	for ttl := 1; ttl <= last; ttl++ {
		own := r.own(ttl)
		fmt.Fprintf(w, "%3d  %-18s  %-20s  %-20s\n", ttl, show(own, own), show(at(r.UDP, ttl), own), show(at(r.TCP, ttl), own))
	}
	_, err = fmt.Fprintf(w, "\n%s\n%s\n%s\n", r.aboutUDP(), r.aboutTCP(), r.aboutFlow())
	return err
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
	reached := slices.ContainsFunc(r.UDP, func(h classic.Hop) bool { return h.Reached })
	way := "took the same branches, this time"
	if d := r.differing(r.UDP); len(d) > 0 {
		way = "took other branches at TTL " + list(d)
	}
	if reached {
		return "1. UDP traceroute " + way + "."
	}
	return fmt.Sprintf("1. UDP traceroute %s, and ends at TTL %d: the firewall drops it.", way, len(r.UDP))
}

func (r *Result) aboutTCP() string {
	if d := r.differing(r.TCP); len(d) > 0 {
		return "2. TCP traceroute reaches the server, but its SYNs took other branches at TTL " + list(d) + ": not the download's path."
	}
	return "2. TCP traceroute took the same branches, this time; its SYNs are hashed anew in every run."
}

func (r *Result) aboutFlow() string {
	kept := "arrived byte for byte"
	if !r.Intact {
		kept = "was DAMAGED"
	}
	i := r.Trace.Impact
	return fmt.Sprintf("3. Service Traceroute shows the way the download itself took; its %d bytes %s, with %d retransmits and %d resets near probes.",
		r.Bytes, kept, i.Retransmits, i.RSTs)
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
