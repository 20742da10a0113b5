package owner

import (
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// groups knows the wanted control groups by the ids that the kernel gives to
// sockets: the inode numbers of their directories.
type groups struct {
	h  Hierarchy
	mu sync.Mutex
	// wanted are the groups asked for, ours what lies in them by id, foreign the ids
	// that do not: a group never moves to another parent.
	wanted  []string
	ours    map[uint64]string
	foreign map[uint64]struct{}
	asked   int // how often others were wanted: what a scan finds may be of before
}

const (
	maxForeign = 4096
	maxOurs    = 65536
)

// want replaces the groups asked for.
func (g *groups) want(paths []string) {
	found := g.scan(paths)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wanted, g.ours, g.foreign = paths, found, map[uint64]struct{}{}
	g.asked++
}

// lookup returns the path of a wanted group. known is false when it has to be
// looked for, see search.
func (g *groups) lookup(id uint64) (path string, known bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if path, ok := g.ours[id]; ok {
		return path, true
	}
	_, known = g.foreign[id]
	return "", known || len(g.wanted) == 0
}

// search looks for a group that may be new.
func (g *groups) search(id uint64) string {
	if path, known := g.lookup(id); known {
		return path
	}
	g.mu.Lock()
	wanted, asked := g.wanted, g.asked
	g.mu.Unlock()
	found := g.scan(wanted)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.asked != asked {
		return g.ours[id] // just read
	}
	for id, path := range g.ours { // their sockets may outlive groups
		if _, again := found[id]; !again && len(found) < maxOurs {
			found[id] = path
		}
	}
	g.ours = found
	path, ok := g.ours[id]
	if !ok {
		if len(g.foreign) >= maxForeign {
			clear(g.foreign)
		}
		g.foreign[id] = struct{}{}
	}
	return path
}

// scan reads the directories of groups: what lies in them, by id.
func (g *groups) scan(wanted []string) map[uint64]string {
	found := map[uint64]string{}
	for _, group := range wanted {
		top, ok := g.h.Dir(group)
		if !ok {
			continue
		}
		_ = filepath.WalkDir(top, func(dir string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil // it may have gone meanwhile
			}
			info, err := os.Lstat(dir)
			if err != nil {
				return nil
			}
			if st, ok := info.Sys().(*syscall.Stat_t); ok && len(found) < maxOurs {
				found[st.Ino] = g.h.Group(dir)
			}
			return nil
		})
	}
	return found
}

// members returns the processes of a group and of those below it.
func (g *groups) members(group string) []int {
	top, ok := g.h.Dir(group)
	if !ok {
		return nil
	}
	var all []int
	_ = filepath.WalkDir(top, func(dir string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			all = append(all, numbers(string(b))...)
		}
		return nil
	})
	return all
}
