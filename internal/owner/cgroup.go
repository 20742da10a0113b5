package owner

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
)

// Hierarchy is where the cgroup2 file system is mounted, which holds the control
// groups below Root (cgroups(7)).
type Hierarchy struct {
	Root  string // path of the mounted group
	Point string // directory
}

// FindHierarchy reads /proc/self/mountinfo. Beside version 1 the mount is not at
// /sys/fs/cgroup itself.
func FindHierarchy() (Hierarchy, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Hierarchy{}, fmt.Errorf("owner: %w", err)
	}
	defer file.Close()
	h, ok := parseMountinfo(file)
	if !ok {
		return h, fmt.Errorf("owner: no cgroup2 file system is mounted: %w", os.ErrNotExist)
	}
	return h, nil
}

// parseMountinfo finds the first cgroup2 mount (proc_pid_mountinfo(5)):
//
//	41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
//
// with any number of fields before the lone hyphen.
func parseMountinfo(r io.Reader) (Hierarchy, bool) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 6 {
			continue
		}
		if kind, _, _ := strings.Cut(after, " "); kind != "cgroup2" {
			continue
		}
		return Hierarchy{Root: path.Clean("/" + unescape(fields[3])), Point: path.Clean(unescape(fields[4]))}, true
	}
	return Hierarchy{}, false
}

// unescape undoes the octal escapes of white space.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Dir returns the directory of a group; false when it is not below the mount.
func (h Hierarchy) Dir(group string) (string, bool) {
	group = path.Clean("/" + group)
	if !Below(group, h.Root) || h.Point == "" {
		return "", false
	}
	return path.Join(h.Point, strings.TrimPrefix(group, h.Root)), true
}

// Group returns the path of a group which a user may have written as that or as a
// directory.
func (h Hierarchy) Group(text string) string {
	text = path.Clean("/" + text)
	if h.Point != "" && h.Point != "/" && Below(text, h.Point) {
		return path.Join(h.Root, strings.TrimPrefix(text, h.Point))
	}
	return text
}

// Below reports whether a group is another one or lies below it.
func Below(group, top string) bool {
	return group == top || top == "/" || strings.HasPrefix(group, top+"/")
}

// OwnGroup returns the group of this process.
func OwnGroup() (string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("owner: %w", err)
	}
	group, ok := parseCgroup(string(b))
	if !ok {
		return "", fmt.Errorf("owner: this process is in no control group of version 2: %w", os.ErrNotExist)
	}
	return group, nil
}

// parseCgroup finds version 2's line "0::/path" in /proc/PID/cgroup.
func parseCgroup(text string) (string, bool) {
	for line := range strings.Lines(text) {
		if group, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return group, true
		}
	}
	return "", false
}
