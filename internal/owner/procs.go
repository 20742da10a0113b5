package owner

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"servicetraceroute/trace"
)

// procs reads a proc file system; the value is its directory.
type procs string

// maxTree bounds a walk through descendants.
const maxTree = 65536

// all returns every process.
func (p procs) all() []int {
	dir, err := os.Open(string(p))
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// tree returns the descendants of a process, not itself. Each thread has children
// of its own (proc_tid_children(5)).
func (p procs) tree(root int) []int {
	pids := []int{root}
	for i := 0; i < len(pids) && len(pids) < maxTree; i++ {
		lists, _ := filepath.Glob(fmt.Sprintf("%s/%d/task/*/children", p, pids[i]))
		for _, list := range lists {
			b, _ := os.ReadFile(list)
			pids = append(pids, numbers(string(b))...)
		}
	}
	return pids[1:]
}

func numbers(text string) []int {
	var out []int
	for _, word := range strings.Fields(text) {
		if n, err := strconv.Atoi(word); err == nil && n > 0 {
			out = append(out, n)
		}
	}
	return out
}

// holds reports whether one of the process's descriptors is the socket.
func (p procs) holds(pid int, socket string) bool {
	return len(p.holding(pid, 1, func(s string) bool { return s == socket })) > 0
}

// holding returns which of the wanted sockets the process has open, each once; it looks
// no further when there are so many.
func (p procs) holding(pid, most int, wanted func(socket string) bool) (held []string) {
	dir, err := os.Open(fmt.Sprintf("%s/%d/fd", p, pid))
	if err != nil {
		return nil // gone, or not ours to read
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(64)
		for _, name := range names {
			if to, err := os.Readlink(dir.Name() + "/" + name); err == nil && wanted(to) && !slices.Contains(held, to) {
				held = append(held, to)
			}
		}
		if err != nil || len(held) >= most {
			return held
		}
	}
}

// link is how a socket appears among the descriptors of a process.
func link(inode uint32) string { return fmt.Sprintf("socket:[%d]", inode) }

// describe reads what a record tells of a process; false when it is gone.
func (p procs) describe(pid int) (proc trace.Process, exe string, ok bool) {
	dir := fmt.Sprintf("%s/%d/", p, pid)
	comm, err := os.ReadFile(dir + "comm")
	if err != nil {
		return proc, "", false
	}
	proc = trace.Process{PID: pid, Name: strings.TrimSuffix(string(comm), "\n")}
	if to, err := os.Readlink(dir + "exe"); err == nil {
		exe = filepath.Base(strings.TrimSuffix(to, " (deleted)"))
	}
	// The kernel cuts names: the executable's tells the rest.
	if len(proc.Name) == commLen && strings.HasPrefix(exe, proc.Name) {
		proc.Name = exe
	}
	b, _ := os.ReadFile(dir + "cgroup")
	proc.Cgroup, _ = parseCgroup(string(b))
	return proc, exe, true
}
