package owner

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSelf(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	group, err := OwnGroup()
	if err != nil {
		t.Fatal(err)
	}
	if p := Self(); p == nil || p.PID != os.Getpid() || p.Name != filepath.Base(exe) || p.Cgroup != group {
		t.Errorf("%+v, in %s", p, group)
	}
}
