package owner

import (
	"path"
	"strings"
	"testing"
)

// FuzzMountinfo: whatever file systems are called, a hierarchy is a clean path.
func FuzzMountinfo(f *testing.F) {
	f.Add("41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n")
	f.Add("1 2 0:3 /a\\040b /sys\\134x\\011 rw - cgroup2 a b\n - \n")
	f.Fuzz(func(t *testing.T, text string) {
		h, ok := parseMountinfo(strings.NewReader(text))
		if !ok && h != (Hierarchy{}) || ok && (!path.IsAbs(h.Root) || path.Clean(h.Root) != h.Root || path.Clean(h.Point) != h.Point) {
			t.Errorf("%+v, %v", h, ok)
		}
		if group, ok := parseCgroup(text); ok && strings.Contains(group, "\n") {
			t.Errorf("%q", group)
		}
	})
}
