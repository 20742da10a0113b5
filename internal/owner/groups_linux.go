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
}

const (
	maxForeign = 4096
	maxOurs    = 65536
)

// want replaces the groups asked for.
func (g *groups) want(paths []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wanted = paths
	g.ours, g.foreign = map[uint64]string{}, map[uint64]struct{}{}
	g.scan()
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
	defer g.mu.Unlock()
	g.scan()
	path, ok := g.ours[id]
	if !ok {
		if len(g.foreign) >= maxForeign {
			clear(g.foreign)
		}
		g.foreign[id] = struct{}{}
	}
	return path
}

// scan reads the directories of all wanted groups. The caller holds mu.
func (g *groups) scan() {
	for _, group := range g.wanted {
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
			if st, ok := info.Sys().(*syscall.Stat_t); ok && len(g.ours) < maxOurs {
				g.ours[st.Ino] = g.h.Group(dir)
			}
			return nil
		})
	}
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
