package owner

import (
	"strings"
	"testing"
)

const hybrid = `22 28 0:21 / /proc rw,relatime shared:12 - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:1 master:2 - cgroup cgroup rw,cpu
junk
33 31 0:30 /
41 31 0:38 /a\040b /sys/fs/cgroup/uni\040fied rw,relatime shared:9 - cgroup2 cgroup2 rw
42 31 0:38 / /elsewhere rw,relatime - cgroup2 cgroup2 rw
`

func TestMountinfo(t *testing.T) {
	for text, want := range map[string]Hierarchy{
		hybrid: {"/a b", "/sys/fs/cgroup/uni fied"},
		"30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n":        {"/", "/sys/fs/cgroup"},
		"30 23 0:26 / /sys/fs/cgroup rw,nosuid a:1 b:2 c:3 - cgroup2 none rw": {"/", "/sys/fs/cgroup"},
		"30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup cgroup rw,cgroup2\n":  {},
		"": {},
	} {
		got, ok := parseMountinfo(strings.NewReader(text))
		if got != want || ok != (want != Hierarchy{}) {
			t.Errorf("%q: %+v, %v", text, got, ok)
		}
	}
}

func TestUnescape(t *testing.T) {
	for text, want := range map[string]string{`a\040b`: "a b", `\134`: `\`, `a\04`: `a\04`, `\999x`: `\999x`, `\777`: `\777`, "": ""} {
		if got := unescape(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// A group may be written as its path or as its directory; both ways lead back.
func TestGroupsAndDirectories(t *testing.T) {
	h := Hierarchy{"/", "/sys/fs/cgroup"}
	for text, want := range map[string]string{
		"/user.slice": "/user.slice", "user.slice/": "/user.slice", "/sys/fs/cgroup/user.slice": "/user.slice", "/sys/fs/cgroup": "/",
		"/sys/fs/cgroupx": "/sys/fs/cgroupx", "/a/../b": "/b",
	} {
		if got := h.Group(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	for _, h := range []Hierarchy{h, {"/docker/1", "/sys/fs/cgroup/unified"}} {
		group := strings.TrimSuffix(h.Root, "/") + "/x/y"
		dir, ok := h.Dir(group)
		if !ok || dir != h.Point+"/x/y" || h.Group(dir) != group {
			t.Errorf("%+v: %q %v", h, dir, ok)
		}
	}
	if dir, ok := (Hierarchy{"/docker/1", "/p"}).Dir("/docker/2"); ok {
		t.Errorf("outside of the mount: %q", dir)
	}
	if _, ok := (Hierarchy{}).Dir("/x"); ok {
		t.Error("a directory without a mount")
	}
}

func TestParseCgroup(t *testing.T) {
	for text, want := range map[string]string{
		"12:cpu:/x\n0::/user.slice/a b\n": "/user.slice/a b", "0::/\n": "/", "1:name=systemd:/y\n": "", "": "",
	} {
		if got, ok := parseCgroup(text); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %v", text, got, ok)
		}
	}
}
