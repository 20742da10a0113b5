package child

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"servicetraceroute/internal/owner"
)

// Group is a control group (cgroups(7), version 2) for one command, below the one
// that this process is in.
type Group struct {
	path        string
	dir, parent string
	file        *os.File
}

// NewGroup makes one. It fails where the file system is not mounted or not
// writable: then the command's descendants tell as much, if less surely.
func NewGroup() (*Group, error) {
	h, err := owner.FindHierarchy()
	if err != nil {
		return nil, err
	}
	own, err := owner.OwnGroup()
	if err != nil {
		return nil, err
	}
	parent, ok := h.Dir(own)
	if !ok {
		return nil, fmt.Errorf("child: control group %s is not below the mounted one: %w", own, fs.ErrNotExist)
	}
	// One that an earlier process of this number left behind is no obstacle.
	for i := range 100 {
		name := fmt.Sprintf("service-traceroute-%d", os.Getpid())
		if i > 0 {
			name += "-" + strconv.Itoa(i)
		}
		dir := filepath.Join(parent, name)
		switch err = os.Mkdir(dir, 0o755); {
		case errors.Is(err, fs.ErrExist):
			continue
		case err != nil:
			return nil, fmt.Errorf("child: make a control group: %w", err)
		}
		g := &Group{path: path.Join(own, name), dir: dir, parent: parent}
		if g.file, err = os.Open(dir); err != nil {
			return nil, errors.Join(fmt.Errorf("child: %w", err), os.Remove(dir))
		}
		return g, nil
	}
	return nil, fmt.Errorf("child: make a control group: %w", err)
}

// Path is the group's path below the root of the hierarchy.
func (g *Group) Path() string { return g.path }

// Guarded reports whether not even the owner of the directory may remove the group
// from it: so it is with the root of the hierarchy, where a container or a system
// without sessions keeps its processes.
func (g *Group) Guarded() bool {
	info, err := os.Stat(g.parent)
	return err == nil && info.Mode().Perm()&0o200 == 0
}

// Processes lists who is in the group itself.
func (g *Group) Processes() []string {
	b, _ := os.ReadFile(filepath.Join(g.dir, "cgroup.procs"))
	return strings.Fields(string(b))
}

// Remove removes the group. Processes that the command left behind go on in the
// group where they would be had there been none of ours; it returns how many. One
// that the command has divided itself, and left something in, stays: what is in
// there may depend on it.
func (g *Group) Remove() (moved int, err error) {
	if g.file != nil {
		_ = g.file.Close()
		g.file = nil
	}
	// A process that has just ended can be in it for a moment.
	for range 100 {
		g.removeEmpty()
		if err = os.Remove(g.dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			return moved, nil
		}
		for _, pid := range g.Processes() {
			if os.WriteFile(filepath.Join(g.parent, "cgroup.procs"), []byte(pid), 0) == nil {
				moved++
			}
		}
		time.Sleep(2 * time.Millisecond)
	}
	return moved, fmt.Errorf("child: control group %s stays: %w", g.path, err)
}

// removeEmpty removes the groups below that nothing is in, the lowest first.
func (g *Group) removeEmpty() {
	var dirs []string
	_ = filepath.WalkDir(g.dir, func(dir string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && dir != g.dir {
			dirs = append(dirs, dir)
		}
		return nil
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		_ = os.Remove(dirs[i]) // one that is in use says so
	}
}
