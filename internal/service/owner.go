package service

import (
	"slices"
	"strconv"

	"servicetraceroute/internal/owner"
	"servicetraceroute/trace"
)

// ByOwner reports whether a flow's owner decides, alone or among others.
func (s *Selector) ByOwner() bool {
	return len(s.Processes)+len(s.PIDs)+len(s.Cgroups) > 0 || s.Run != nil || s.use(OwnerFields)
}

// Want is whom the selector needs to know.
func (s *Selector) Want() owner.Want {
	w := owner.Want{Everyone: len(s.Processes) > 0 || s.use(OwnerFields), PIDs: s.PIDs, Cgroups: s.Cgroups}
	if r := s.Run; r != nil {
		w.Tree = r.Tree
		if r.Cgroup != "" {
			w.Cgroups = append(slices.Clip(w.Cgroups), r.Cgroup)
		}
	}
	return w
}

// owned holds a flow's owner against every condition and says which one selects
// the flow when there is nothing else to.
func (s *Selector) owned(o *owner.Owner) (trace.Service, Verdict) {
	var why trace.Service
	verdict := Yes
	// The last that is asked for is what the record names.
	for _, c := range []struct {
		wanted bool
		ask    func(*owner.Owner) (trace.Service, Verdict)
	}{
		{len(s.Cgroups) > 0, s.inCgroup}, {len(s.PIDs) > 0, s.hasPID}, {len(s.Processes) > 0, s.hasName}, {s.Run != nil, s.ran},
	} {
		if !c.wanted {
			continue
		}
		by, v := trace.Service{}, Wait
		if o != nil {
			by, v = c.ask(o)
		}
		if v == No && !o.Final {
			v = Wait
		}
		verdict, why = min(verdict, v), by
	}
	return why, verdict
}

func (s *Selector) inCgroup(o *owner.Owner) (trace.Service, Verdict) {
	for _, group := range s.Cgroups {
		if at := o.Process.Cgroup; at != "" && owner.Below(at, group) {
			return trace.Service{Name: group, By: trace.ByCgroup, Value: at}, Yes
		}
	}
	return trace.Service{}, No
}

func (s *Selector) hasPID(o *owner.Owner) (trace.Service, Verdict) {
	if pid := o.Process.PID; pid != 0 && slices.Contains(s.PIDs, pid) {
		text := strconv.Itoa(pid)
		return trace.Service{Name: text, By: trace.ByProcess, Value: text}, Yes
	}
	return trace.Service{}, No
}

func (s *Selector) hasName(o *owner.Owner) (trace.Service, Verdict) {
	for _, name := range s.Processes {
		if o.Is(name) {
			return trace.Service{Name: name, By: trace.ByProcess, Value: o.Process.Name}, Yes
		}
	}
	return trace.Service{}, No
}

func (s *Selector) ran(o *owner.Owner) (trace.Service, Verdict) {
	r := s.Run
	if r.Cgroup != "" && o.Process.Cgroup != "" && owner.Below(o.Process.Cgroup, r.Cgroup) || r.Tree != 0 && o.Under == r.Tree {
		return r.Service, Yes
	}
	return trace.Service{}, No
}
