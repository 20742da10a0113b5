//go:build linux

package owner

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Groups that come later are found though as many as can be remembered came before, and
// those that went are still known.
func TestGroupsComeAndGo(t *testing.T) {
	dir := t.TempDir()
	group := func(name string) uint64 {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Ino
	}
	g := &groups{h: Hierarchy{"/", dir}}
	first, other := group("a/1"), group("b")
	g.want([]string{"/a"})
	if got := g.search(first); got != "/a/1" {
		t.Errorf("%q", got)
	}
	if got := g.search(other); got != "" {
		t.Errorf("a group that is not wanted: %q", got)
	}
	for i := range maxOurs {
		g.ours[1<<40+uint64(i)] = fmt.Sprint(i)
	}
	if got := g.search(group("a/2")); got != "/a/2" {
		t.Errorf("the newest: %q", got)
	}
	if n := len(g.ours); n != maxOurs {
		t.Errorf("%d are remembered", n)
	}
	g = &groups{h: Hierarchy{"/", dir}}
	g.want([]string{"/a"})
	second, third := group("a/2"), group("a/3")
	if err := os.Remove(filepath.Join(dir, "a/2")); err != nil {
		t.Fatal(err)
	}
	g.search(third)
	if got := g.search(second); got != "/a/2" {
		t.Errorf("one that went: %q", got)
	}
}
