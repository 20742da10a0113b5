package owner

import (
	"os"
	"strings"
	"testing"
)

func TestSelf(t *testing.T) {
	comm, err := os.ReadFile("/proc/self/comm") // not the file's: run by /proc/self/exe, as in a user namespace, it is another
	if err != nil {
		t.Fatal(err)
	}
	group, err := OwnGroup()
	if err != nil {
		t.Fatal(err)
	}
	if p := Self(); p == nil || p.PID != os.Getpid() || p.Name != strings.TrimSpace(string(comm)) || p.Cgroup != group {
		t.Errorf("%+v, in %s", p, group)
	}
}
