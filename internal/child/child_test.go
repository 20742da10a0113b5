//go:build unix

package child

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	for name, mode := range map[string]os.FileMode{"good": 0o755, "data": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	folder := filepath.Join(dir, "folder")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{
		"good": 0, filepath.Join(dir, "good"): 0, "bad": StatusNotFound, filepath.Join(dir, "bad"): StatusNotFound,
		filepath.Join(dir, "data"): StatusNotExecutable, folder: StatusNotExecutable,
	} {
		path, err := Find(name)
		var start *StartError
		switch {
		case want == 0 && (err != nil || filepath.Base(path) != "good"):
			t.Errorf("%s: %q, %v", name, path, err)
		case want != 0 && (!errors.As(err, &start) || start.Status != want || strings.Count(err.Error(), filepath.Base(name)) != 1):
			t.Errorf("%s: %v, want status %d", name, err, want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	for name, value := range map[string]string{
		"SUDO_UID": "1", "SUDO_COMMAND": "x", "SUDO_EDITOR": "vi", "HOME": "/root", "USER": "root", "LOGNAME": "root", "TERM": "x",
	} {
		t.Setenv(name, value)
	}
	ours := (*User)(nil).environment()
	if !slices.Contains(ours, "SUDO_UID=1") || !slices.Contains(ours, "HOME=/root") {
		t.Errorf("our own: %q", ours)
	}
	theirs := (&User{UID: 7, Name: "ann", Home: "/home/ann"}).environment()
	for _, v := range []string{"HOME=/home/ann", "USER=ann", "LOGNAME=ann", "TERM=x", "SUDO_EDITOR=vi"} {
		if !slices.Contains(theirs, v) {
			t.Errorf("lacks %s", v)
		}
	}
	for _, v := range []string{"HOME=/root", "USER=root", "SUDO_UID=1", "SUDO_COMMAND=x"} {
		if slices.Contains(theirs, v) {
			t.Errorf("has %s", v)
		}
	}
	if unknown := (&User{UID: 7}).environment(); !slices.Contains(unknown, "HOME=/root") {
		t.Error("a user without an entry has the home that is set")
	}
}

func TestUserOf(t *testing.T) {
	u := UserOf(3_999_999, 5)
	if u.UID != 3_999_999 || u.GID != 5 || u.Name != "" || !slices.Equal(u.Groups, []uint32{5}) {
		t.Errorf("nobody with an entry: %+v", u)
	}
	if u, err := LookupUser("0"); err != nil || u.UID != 0 {
		t.Errorf("by number: %+v, %v", u, err)
	}
	for _, name := range []string{"no-such-user", "", "3999999", "-1"} {
		if u, err := LookupUser(name); err == nil {
			t.Errorf("%q: %+v", name, u)
		}
	}
}
