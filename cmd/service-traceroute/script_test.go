package main

import (
	"bytes"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"service-traceroute": main})
}

// TestScripts runs the command line as users see it. Nothing in the scripts needs
// privileges: every one of them ends before a socket would be opened.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": status, "screen": screen, "told": told,
		},
	})
}

// status N ARGS… runs service-traceroute and wants exit status N.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: status N ARGS…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	switch err := ts.Exec("service-traceroute", args[1:]...); {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d\n%s", got, want, ts.ReadFile("stderr"))
	}
}

// screen wants the last output to fit a screen and to have examples.
func screen(ts *testscript.TestScript, neg bool, _ []string) {
	out := ts.ReadFile("stdout")
	if n := strings.Count(out, "\n"); n == 0 || n > 24 {
		ts.Fatalf("%d lines of help", n)
	}
	for line := range strings.Lines(out) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 100 {
			ts.Fatalf("%d columns: %s", n, line)
		}
	}
	if neg || !strings.Contains(out, "Examples:\n  ") {
		ts.Fatalf("no examples in\n%s", out)
	}
}

// told wants nothing on standard output, and on standard error one "error:" line
// that contains the first argument and, with a second one, a "hint:" line with
// that.
func told(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: told ERROR [HINT]")
	}
	if out := ts.ReadFile("stdout"); out != "" {
		ts.Fatalf("standard output: %s", out)
	}
	lines := strings.Split(strings.TrimSuffix(ts.ReadFile("stderr"), "\n"), "\n")
	for i, prefix := range []string{"error: ", "hint: "}[:len(args)] {
		if i >= len(lines) || !strings.HasPrefix(lines[i], prefix) || !strings.Contains(lines[i], args[i]) {
			ts.Fatalf("want a line %q with %q in\n%s", prefix, args[i], strings.Join(lines, "\n"))
		}
	}
	if len(lines) > 2 {
		ts.Fatalf("more than an error and a hint:\n%s", strings.Join(lines, "\n"))
	}
}

// Every command must be known to the scripts.
func TestEveryCommandHasHelp(t *testing.T) {
	for _, cmd := range newRootCommand().Commands() {
		var out bytes.Buffer
		cmd.SetOut(&out)
		if err := cmd.Help(); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(out.String(), "\n"); n > 24 || !strings.Contains(out.String(), "service-traceroute "+cmd.Name()) {
			t.Errorf("%s: %d lines of help:\n%s", cmd.Name(), n, out.String())
		}
	}
}
