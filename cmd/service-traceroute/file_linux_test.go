package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/internal/privilege"
)

func TestCreatePrivate(t *testing.T) {
	t.Setenv("SUDO_UID", "")
	name := filepath.Join(t.TempDir(), "paths.ndjson")
	for _, before := range []os.FileMode{0, 0o644} {
		if before != 0 {
			if err := os.WriteFile(name, []byte("older and longer"), before); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(name, before); err != nil {
				t.Fatal(err)
			}
		}
		file, err := createPrivate(name)
		if err != nil {
			t.Fatal(err)
		}
		info, err := file.Stat()
		if err != nil || info.Mode() != 0o600 || info.Size() != 0 {
			t.Errorf("mode before %v: %v %d bytes, %v", before, info.Mode(), info.Size(), err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Where others may write, a name may lead elsewhere: nobody's file is overwritten.
func TestCreatePrivateOfOthers(t *testing.T) {
	t.Setenv("SUDO_UID", "")
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	put := func(name string, owner int) {
		t.Helper()
		if err := os.WriteFile(in(name), []byte("precious"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(in(name), owner, owner); err != nil {
			nstest.Skip(t, "needs root, to make files of other users: %v", err)
		}
	}
	const other, invoker = 12345, 54321
	put("own", os.Geteuid())
	put("other", other)
	put("invoker", invoker)
	for name, to := range map[string]string{"link": "own", "dangling": "new", "loop": "loop", "foreign": "other"} {
		if err := os.Symlink(in(to), in(name)); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(name, why string) {
		t.Helper()
		file, err := createPrivate(in(name))
		var f *failure
		if file != nil || err == nil || !strings.Contains(err.Error(), why) || strings.Contains(why, "this ") && (!errors.As(err, &f) || f.hint == "") {
			t.Errorf("%s: %v, %v", name, file, err)
		}
	}
	refused("other", "this file belongs to another user (12345)")
	refused("invoker", "this file belongs to another user (54321)")
	refused("link", "this is a symbolic link to a file")
	refused("foreign", "this is a symbolic link to a file")
	refused("dangling", "no such file")
	refused("loop", "too many levels")
	refused(".", "is a directory")
	for _, name := range []string{"own", "other", "invoker"} {
		info, err := os.Stat(in(name))
		if b, _ := os.ReadFile(in(name)); err != nil || string(b) != "precious" || info.Mode() != 0o644 {
			t.Errorf("%s was touched: %q %v, %v", name, b, info.Mode(), err)
		}
	}
	t.Setenv("SUDO_UID", fmt.Sprint(invoker))
	t.Setenv("SUDO_GID", fmt.Sprint(invoker))
	if _, _, under := privilege.Invoker(); !under {
		return // in a user namespace there is nobody whom sudo could mean
	}
	refused("other", "this file belongs to another user (12345)")
	for _, name := range []string{"invoker", "own", "new file"} {
		file, err := createPrivate(in(name))
		if err != nil {
			t.Errorf("%s under sudo: %v", name, err)
			continue
		}
		file.Close()
	}
	info, err := os.Stat(in("new file"))
	if err != nil {
		t.Fatal(err)
	}
	if uid, ok := ownerOf(info); !ok || uid != invoker {
		t.Errorf("a new file belongs to %d", uid)
	}
}

// Pipes, devices and what is standard output already stay what they are.
func TestCreatePrivateSpecial(t *testing.T) {
	dir := t.TempDir()
	null, err := createPrivate("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	null.Close()
	pipe, link := filepath.Join(dir, "pipe"), filepath.Join(dir, "link")
	if err := errors.Join(syscall.Mkfifo(pipe, 0o644), os.Symlink(pipe, link)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{pipe, link} {
		got := make(chan string)
		go func() {
			b, _ := os.ReadFile(pipe)
			got <- string(b)
		}()
		file, err := openPrivate(t.Context(), name, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(file, "through")
		file.Close()
		if text := <-got; text != "through" {
			t.Errorf("%s: %q", name, text)
		}
	}
	if info, err := os.Stat(pipe); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the pipe: %v, %v", info.Mode(), err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(2*soon, func() { cancel(signalled(syscall.SIGINT)) })
	var talk bytes.Buffer
	if _, err := openPrivate(ctx, pipe, &talk); err == nil || !strings.HasSuffix(err.Error(), "nobody reads it: interrupt") || talk.Len() == 0 {
		t.Errorf("without a reader: %v, %q", err, talk.String())
	}
	if file, err := openPrivate(ctx, filepath.Join(dir, "plain"), &talk); err != nil {
		t.Errorf("Ctrl-C came before, and nobody had to be waited for: %v", err)
	} else {
		file.Close()
	}
	if file, err := os.OpenFile(pipe, os.O_RDONLY|syscall.O_NONBLOCK, 0); err == nil {
		file.Close() // lets go of who still opens it
	}
}

func init() {
	programs["writes"] = func() {
		file, err := createPrivate(os.Args[1])
		if err == nil {
			_, err = io.WriteString(file, "records\n")
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// /dev/stdout is standard output, wherever that goes: nothing of it is lost.
func TestCreatePrivateStdout(t *testing.T) {
	for _, test := range []struct{ script, want string }{
		{"echo before >f; writes /dev/stdout >>f; echo after >>f; cat f", "before\nrecords\nafter\n"},
		{"(echo before; writes /dev/stdout; echo after) >f; cat f", "before\nrecords\nafter\n"},
		{"(writes /dev/stderr) 2>f; cat f", "records\n"},
		{"writes /dev/stdout | cat", "records\n"},
		{"writes /dev/fd/3 3>&1 | cat", "records\n"},
		{"writes /proc/self/fd/3 3>f || cat f", ""},
		{"umask 0; writes new; writes new; cat new; stat -c %a new", "records\n600\n"},
	} {
		cmd := exec.Command("sh", "-c", test.script)
		cmd.Dir = t.TempDir()
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := cmd.Run(); err != nil || out.String() != test.want {
			t.Errorf("%s: %v, %q", test.script, err, out.String())
		}
	}
}
