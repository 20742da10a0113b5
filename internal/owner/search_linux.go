package owner

import "slices"

// search finds processes until Close.
func (w *Watcher) search() {
	var recent []int // those that were found last are likely to be next
	for {
		select {
		case <-w.quit:
			return
		case p := <-w.pending:
			if !w.prepare(&p) {
				continue
			}
			if pid, under := w.pid(&p, recent); pid != 0 {
				recent = remember(recent, pid)
				w.finish(&p, pid, under)
				continue
			}
			w.unknown.Add(1)
			p.owner.Final = true
			w.tell(p.owner)
		}
	}
}

// prepare does for a flow what its beginning left open; false when nothing more is
// to be found out.
func (w *Watcher) prepare(p *pending) bool {
	if p.ask && !w.inquire(p) {
		return false
	}
	if p.owner.Process.Cgroup != "" {
		return true
	}
	return w.belongs(p, func(id uint64) (string, bool) { return w.groups.search(id), true })
}

const maxRecent = 32

func remember(recent []int, pid int) []int {
	recent = slices.DeleteFunc(recent, func(p int) bool { return p == pid })
	return append([]int{pid}, recent[:min(len(recent), maxRecent-1)]...)
}

// pid returns a process that has the socket open, and of which wanted tree it is.
func (w *Watcher) pid(p *pending, recent []int) (pid, under int) {
	if p.answer.inode == 0 {
		return 0, 0
	}
	socket := link(p.answer.inode)
	look := func(pids []int) bool {
		for _, candidate := range pids {
			if w.proc.holds(candidate, socket) {
				pid = candidate
				return true
			}
		}
		return false
	}
	want := w.wanted.Load()
	if group := p.owner.Process.Cgroup; group != "" && look(w.groups.members(group)) {
		return pid, 0
	}
	if want.Tree != 0 && look(w.proc.tree(want.Tree)) {
		return pid, want.Tree
	}
	if look(want.PIDs) {
		return pid, 0
	}
	if !p.answer.hasCgroup { // an older kernel: the groups' processes tell
		for _, group := range want.Cgroups {
			if look(w.groups.members(group)) {
				return pid, 0
			}
		}
	}
	if want.Everyone {
		alive := w.proc.all()
		slices.Sort(alive)
		slices.Reverse(alive) // who connects now has often started a moment ago
		alive = slices.DeleteFunc(alive, func(p int) bool { return slices.Contains(recent, p) })
		if look(recent) || look(alive) {
			return pid, 0
		}
	}
	return 0, 0
}

// finish tells the process. Numbers of processes come round again only after all
// others were used, so this is still the one that had the socket a moment ago.
func (w *Watcher) finish(p *pending, pid, under int) {
	proc, exe, ok := w.proc.describe(pid)
	if ok {
		if proc.Cgroup == "" {
			proc.Cgroup = p.owner.Process.Cgroup
		}
		p.owner.Process, p.owner.Exe, p.owner.Under = proc, exe, under
		w.found.Add(1)
	} else {
		w.unknown.Add(1)
	}
	p.owner.Final = true
	w.tell(p.owner)
}
