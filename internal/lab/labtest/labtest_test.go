//go:build linux

package labtest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

const envHolder = "LABTEST_HOLDER"

func TestMain(m *testing.M) {
	if file := os.Getenv(envHolder); file != "" {
		if _, err := lock(file); err != nil {
			panic(err)
		}
		fmt.Println("locked")
		time.Sleep(time.Hour)
	}
	os.Exit(m.Run())
}

// TestLock checks that a lock keeps other processes out until its holder is gone,
// however it went.
func TestLock(t *testing.T) {
	file := t.TempDir() + "/lock"
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envHolder+"="+file)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		f, err := lock(file)
		if err == nil {
			f.Close()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("locked twice: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestRequire(t *testing.T) {
	t.Setenv(EnvNoSkip, "")
	skipped := false
	t.Run("skips", func(t *testing.T) {
		defer func() { skipped = t.Skipped() }()
		Require(t) // Main was not called
	})
	if !skipped {
		t.Error("a test that needs a lab ran without")
	}
}
