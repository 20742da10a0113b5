package servicetraceroute

import (
	"errors"
	"fmt"
	"os"
	"time"

	"servicetraceroute/internal/engine"
	"servicetraceroute/internal/owner"
	"servicetraceroute/internal/service"
	"servicetraceroute/trace"
)

// ErrNoProcesses: a Selection by process needs Config.Processes.
var ErrNoProcesses = errors.New("needs Config.Processes")

// Run selects what one command opens, with all that it starts: service.by is
// "run".
type Run struct {
	// Name and Value become the service's.
	Name, Value string
	// Cgroup is the control group (cgroup2) that the command was started in, as a
	// path or as a directory; empty: none. This way is exact, also for flows of a
	// millisecond.
	Cgroup string
	// Descendants is a process whose descendants are the command and all that it
	// starts; 0: none. It is the way where no control group can be made: whose a
	// flow is must be found in /proc while its socket is open.
	Descendants int
}

// openOwners opens what tells whose flows are, if it is wanted.
func (t *Tracer) openOwners() (err error) {
	if t.cfg.Processes {
		t.owners, err = owner.Open(t.wakeLoop)
	}
	return err
}

// openSockets opens what tells the window scale of flows that began before, and whose
// flows are, where the flows are this host's. Without it such a flow has less room for
// probes, and records name no process.
func (t *Tracer) openSockets() {
	if t.cfg.Source != nil {
		return
	}
	var err error
	if t.sockets, err = owner.OpenSockets(); err != nil {
		t.log.Info("window scales of flows that exist already, and flows' processes, stay unknown", "err", err)
		return
	}
	t.finder = owner.NewFinder(t.sockets)
}

// translated finds out how the one flow that the watch wants looks on the wire, when
// that is asked for as its socket knows it and this host translates it.
func (t *Tracer) translated(w *engine.Watch) {
	f := w.Selector.Flow
	if t.sockets == nil || !f.Src.Addr().IsValid() || f.Src.Port() == 0 {
		return
	}
	if wire := t.sockets.OnWire(f.FlowKey); wire != f.FlowKey {
		f.NAT = &wire
	}
}

// tellScales answers the engine's questions. The kernel does within microseconds.
func (t *Tracer) tellScales() {
	for _, q := range t.engine.Scales() {
		if t.sockets == nil {
			continue
		}
		h, err := t.sockets.Handshake(q.Key, q.Interface)
		if err != nil {
			t.log.Debug("window scale not known", "err", err) // of a flow that only passes, say
			continue
		}
		t.engine.Scale(q.Key, h.LocalScale, h.PeerScale, h.SACK)
	}
}

// tellHearings answers what UDP flows' sockets hear of ICMP errors. One that cannot be
// asked might hear all: a forwarded flow's, or one in another network namespace.
func (t *Tracer) tellHearings(now time.Time) (any bool) {
	for _, q := range t.engine.Hearings() {
		any = true
		what := engine.HearsErrors
		if deaf, ok := t.source.(interface{ Deaf() bool }); ok && deaf.Deaf() {
			what = engine.HearsNothing
		} else if t.sockets != nil {
			ears, err := t.sockets.Ears(q.Key, q.Interface)
			switch {
			case err != nil:
				t.log.Debug("whether a socket hears of errors is not known", "err", err)
			case ears == owner.Deaf:
				what = engine.HearsNothing
			case ears == owner.HearsRefusals && !t.rule.possible():
				what = engine.HearsNothing // but of a firewall's, should one refuse a probe
			case t.rule.ready():
				what = engine.HearsOthers
			}
		}
		t.engine.Hears(now, q.Key, what)
	}
	return any
}

// tellPlaces answers who the ends of flows are that this host may only forward. It reports
// whether there were any: what they begin is due now.
func (t *Tracer) tellPlaces(now time.Time) (any bool) {
	for _, k := range t.engine.Places() {
		any = true
		if !t.blind {
			c, err := t.sockets.Connection(k)
			if err == nil {
				if h := c.Handshake; c.KnowsHandshake && c.Answers.Src == k.Dst { // there is no socket to ask
					t.engine.Scale(k, h.LocalScale, h.PeerScale, h.SACK)
				}
				t.engine.Place(now, k, c.First, c.Answers)
				continue
			}
			t.blind = errors.Is(err, os.ErrPermission)
			t.log.Debug("a flow is not tracked", "err", err)
		}
		t.engine.Untracked(now, k)
	}
	if any && t.blind && !t.blindTold && t.wantsTransit() {
		t.blindTold = true
		t.log.Warn("forwarded flows whose addresses this host translates cannot be told from its own: that takes CAP_NET_ADMIN")
	}
	return any
}

// wantsTransit reports whether a watch may select forwarded flows.
func (t *Tracer) wantsTransit() bool {
	for w := range t.watches {
		if w.Selector.WantsTransit() {
			return true
		}
	}
	return false
}

// takeOwners hands the engine what was found out since the last call.
func (t *Tracer) takeOwners(now time.Time) {
	if t.finder != nil {
		for _, found := range t.finder.Found() {
			t.engine.Found(found)
		}
	}
	if t.owners == nil {
		return
	}
	for {
		select {
		case o := <-t.owners.Owners():
			t.engine.Owner(now, o)
		default:
			return
		}
	}
}

// askOwners asks what the engine wants to know.
func (t *Tracer) askOwners() {
	for _, q := range t.engine.Questions() {
		if t.owners != nil {
			t.owners.Ask(q.Key, q.Interface)
		}
	}
	if all := t.engine.Wonders(); t.finder != nil {
		t.finder.Ask(all...)
	}
}

// wantOwners looks only for those that some watch depends on.
func (t *Tracer) wantOwners() {
	if t.owners == nil {
		return
	}
	var want owner.Want
	for w := range t.watches {
		want = want.And(w.Selector.Want())
	}
	t.owners.Want(want)
}

// ownerStats are nil where nobody can be asked.
func (t *Tracer) ownerStats() *trace.OwnerStats {
	if t.owners == nil && t.finder == nil {
		return nil
	}
	var s trace.OwnerStats
	if t.owners != nil {
		s = trace.OwnerStats(t.owners.Stats())
	}
	if t.finder != nil {
		f := t.finder.Stats()
		s.Asked, s.Found, s.Unknown, s.Dropped = s.Asked+f.Asked, s.Found+f.Found, s.Unknown+f.Unknown, s.Dropped+f.Dropped
	}
	return &s
}

// owned puts the selection's conditions on a flow's owner into the watch.
func (s Selection) owned(w *engine.Watch) error {
	for _, name := range s.Processes {
		if name == "" {
			return errors.New("servicetraceroute: Selection.Processes: an empty name")
		}
	}
	for _, pid := range s.PIDs {
		if pid <= 0 {
			return fmt.Errorf("servicetraceroute: Selection.PIDs: %d is no process", pid)
		}
	}
	hierarchy, _ := owner.FindHierarchy() // without one a path is what was written
	for _, group := range s.Cgroups {
		if group == "" {
			return errors.New("servicetraceroute: Selection.Cgroups: an empty path")
		}
		w.Selector.Cgroups = append(w.Selector.Cgroups, hierarchy.Group(group))
	}
	w.Selector.Processes, w.Selector.PIDs = s.Processes, s.PIDs
	if r := s.Run; r != nil {
		if r.Cgroup == "" && r.Descendants <= 0 {
			return errors.New("servicetraceroute: Selection.Run: neither Cgroup nor Descendants")
		}
		w.Selector.Run = &service.Run{
			Service: trace.Service{Name: r.Name, By: trace.ByRun, Value: r.Value}, Tree: max(r.Descendants, 0),
		}
		if r.Cgroup != "" {
			w.Selector.Run.Cgroup = hierarchy.Group(r.Cgroup)
		}
	}
	return nil
}
