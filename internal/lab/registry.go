//go:build linux

package lab

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// registryPrefix begins the names of the directories of live labs. What follows
// is the controller's pid and start time, and something unique.
const registryPrefix = "service-traceroute-lab-"

// registry lists a lab's processes in a file, for whoever comes later and finds
// the controller dead. Nodes end by themselves when the controller is gone; the
// list is for the one that could not, for instance because it was stopped.
type registry struct {
	dir string

	mu   sync.Mutex
	file *os.File
}

func newRegistry(parent string) (*registry, error) {
	started, err := startTime(os.Getpid())
	if err != nil {
		return nil, err
	}
	// MkdirTemp makes it with mode 0700.
	dir, err := os.MkdirTemp(parent, fmt.Sprintf("%s%d-%d-*", registryPrefix, os.Getpid(), started))
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "processes"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &registry{dir: dir, file: f}, nil
}

// add records a process. One write with O_APPEND is one line, also for a reader
// that comes in between.
func (r *registry) add(pid int) error {
	started, err := startTime(pid)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, err = fmt.Fprintf(r.file, "%d %d\n", pid, started)
	return err
}

func (r *registry) remove() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.file.Close()
	return os.RemoveAll(r.dir)
}

// sweep removes what dead controllers of this user left in parent: their nodes,
// what runs in these nodes' namespaces, and the directories. Trouble with one of
// them is not the new lab's; the next sweep tries again.
func sweep(parent string) {
	dirs, _ := filepath.Glob(filepath.Join(parent, registryPrefix+"*"))
	for _, dir := range dirs {
		var pid int
		var started uint64
		name := strings.TrimPrefix(filepath.Base(dir), registryPrefix)
		if _, err := fmt.Sscanf(name, "%d-%d-", &pid, &started); err != nil || !ownDirectory(dir) {
			continue
		}
		if now, err := startTime(pid); err == nil && now == started {
			continue
		}
		list, _ := os.ReadFile(filepath.Join(dir, "processes"))
		killLeftovers(list)
		_ = os.RemoveAll(dir)
	}
}

// ownDirectory reports whether dir can be believed: in /tmp anybody could make
// one that lists other people's processes.
func ownDirectory(dir string) bool {
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() || info.Mode().Perm() != 0o700 {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

func killLeftovers(list []byte) {
	lines := bufio.NewScanner(bytes.NewReader(list))
	for lines.Scan() {
		var pid int
		var started uint64
		if _, err := fmt.Sscanf(lines.Text(), "%d %d", &pid, &started); err != nil || !isNode(pid, started) {
			continue
		}
		// The node first, or it would be told apart from what else runs in its
		// namespace by nothing.
		if netns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil {
			killInNamespace(netns, os.Getpid())
		}
		for range 100 {
			if !isNode(pid, started) {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// isNode reports whether the process is the node that the list means: the same
// start time, and the name that nodes run under.
func isNode(pid int, started uint64) bool {
	now, err := startTime(pid)
	if err != nil || now != started {
		return false
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && bytes.HasPrefix(cmdline, []byte(argv0))
}
