package servicetraceroute

import (
	"errors"
	"log/slog"
	"time"

	"servicetraceroute/internal/engine"
	"servicetraceroute/internal/firewall"
)

// WarnErrorsHeard begins what the Logger is told when the first UDP flow is refused because
// ICMP errors about its probes might be heard of and cannot be dropped.
const WarnErrorsHeard = "UDP flows whose sockets hear of ICMP errors, or over IPv6 may, are refused"

// WarnClientsHear is the same for forwarded flows, whose clients would hear of them.
const WarnClientsHear = "forwarded flows are refused"

// dropRule drops the ICMP errors about probes, where applications would hear of them. It
// belongs to the loop.
type dropRule struct {
	rule   *firewall.Rule // nil: there is none
	err    error          // why it is of no use
	told   bool           // in the log
	toldOf bool           // of forwarded flows
	log    *slog.Logger
	probes [][]byte
}

// openRule prepares the rule in the network namespace of the calling thread. It is not
// in force before a flow needs it: a host's packets pass no rule for nothing.
func openRule(cfg Config) *dropRule {
	r := &dropRule{log: cfg.Logger}
	if cfg.Source != nil || cfg.NoProbe {
		r.err, r.told, r.toldOf = errors.ErrUnsupported, true, true // whose packets these are is not known here
		return r
	}
	r.rule, r.err = firewall.Open()
	return r
}

// possible is ready where nobody is told that it cannot be.
func (r *dropRule) possible() bool {
	if r.err == nil {
		r.err = r.rule.Ready()
	}
	return r.err == nil
}

// ready puts the rule in force; false where that cannot be.
func (r *dropRule) ready() bool { return r.readyFor(WarnErrorsHeard, &r.told) }

// readyForwarded is ready for forwarded flows.
func (r *dropRule) readyForwarded() bool { return r.readyFor(WarnClientsHear, &r.toldOf) }

func (r *dropRule) readyFor(without string, told *bool) bool {
	possible := r.possible()
	if !possible && !*told {
		*told = true
		r.log.Warn(without+": to drop ICMP errors about probes takes CAP_NET_ADMIN and nf_tables", "err", r.err)
	}
	return possible
}

// add makes the rule know those of the probes that need it. With an error these must
// not leave.
func (r *dropRule) add(probes []engine.Probe) error {
	r.probes = r.probes[:0]
	for i := range probes {
		if probes[i].DropErrors {
			r.probes = append(r.probes, probes[i].Packet)
		}
	}
	if len(r.probes) == 0 {
		return nil
	}
	if r.err != nil {
		return r.err
	}
	return r.rule.Add(r.probes...)
}

// dropped is how many errors were dropped so far.
func (r *dropRule) dropped() uint64 {
	if r.rule == nil {
		return 0
	}
	n, err := r.rule.Dropped()
	if err != nil {
		r.log.Debug("dropped ICMP errors not counted", "err", err)
	}
	return n
}

// close removes the rule, when answers have come that are under way: without the rule, an
// application would hear of them.
func (r *dropRule) close(answersUntil time.Time) error {
	if r.rule == nil {
		return nil
	}
	time.Sleep(time.Until(answersUntil))
	return r.rule.Close()
}
