package owner

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"servicetraceroute/trace"
)

// fake makes a proc file system from files and links.
func fake(t *testing.T, files, links map[string]string) procs {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		must(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	for name, to := range links {
		must(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755))
		must(t, os.Symlink(to, filepath.Join(dir, name)))
	}
	return procs(dir)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTree(t *testing.T) {
	p := fake(t, map[string]string{
		"1/task/1/children": "10 20 ", "10/task/10/children": "", "10/task/11/children": "12\n", "20/task/20/children": "21 x",
		"30/task/30/children": "31", "self/comm": "",
	}, nil)
	got := p.tree(10)
	if !slices.Equal(got, []int{12}) {
		t.Errorf("a thread's child: %v", got)
	}
	if got := p.tree(99); len(got) != 0 {
		t.Errorf("of nobody: %v", got)
	}
	if got := p.tree(1); !slices.Equal(got, []int{10, 20, 12, 21}) {
		t.Errorf("all generations: %v", got)
	}
	all := p.all()
	slices.Sort(all)
	if !slices.Equal(all, []int{1, 10, 20, 30}) {
		t.Errorf("all: %v", all)
	}
}

func TestHoldsAndDescribe(t *testing.T) {
	p := fake(t, map[string]string{
		"7/comm": "a-very-long-nam\n", "7/cgroup": "0::/x\n", "8/comm": "python3\n",
	}, map[string]string{
		"7/fd/0": "/dev/null", "7/fd/3": "socket:[123]", "7/exe": "/usr/bin/a-very-long-name (deleted)", "8/exe": "/usr/bin/python3.12",
	})
	for pid, want := range map[int]bool{7: true, 8: false, 9: false} {
		if p.holds(pid, link(123)) != want || p.holds(pid, link(12)) {
			t.Errorf("%d holds the socket: %v", pid, !want)
		}
	}
	proc, exe, ok := p.describe(7)
	if want := (trace.Process{PID: 7, Name: "a-very-long-name", Cgroup: "/x"}); proc != want || exe != "a-very-long-name" || !ok {
		t.Errorf("%+v %q %v", proc, exe, ok)
	}
	o := Owner{Process: proc, Exe: exe}
	if !o.Is("a-very-long-name") || !o.Is("a-very-long-nam") || o.Is("a-very") || o.Is("") {
		t.Error("the whole name is its name")
	}
	proc, exe, _ = p.describe(8)
	o = Owner{Process: proc, Exe: exe}
	if !o.Is("python3") || !o.Is("python3.12") || o.Is("python") {
		t.Errorf("%+v", o)
	}
	o = Owner{Process: trace.Process{PID: 1, Name: "a-very-long-nam"}} // its executable may not be read
	if !o.Is("a-very-long-name") {
		t.Error("the kernel's 15 bytes of a longer name")
	}
	if _, _, ok := p.describe(9); ok {
		t.Error("nobody was described")
	}
}
