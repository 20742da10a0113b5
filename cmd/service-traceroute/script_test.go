package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
)

// programs are what scripts can run.
var programs = map[string]func(){"service-traceroute": main}

// commands are what scripts can say.
var commands = map[string]func(*testscript.TestScript, bool, []string){
	"status": status, "screen": screen, "told": told, "unhex": unhex,
}

func TestMain(m *testing.M) { testscript.Main(m, programs) }

// TestScripts runs the command line as users see it. Nothing in the scripts needs
// privileges: every one of them ends before a socket would be opened.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Cmds: commands, Condition: func(cond string) (bool, error) {
		if cond != "may-skip" {
			return false, fmt.Errorf("unknown condition %q", cond)
		}
		return os.Getenv("SERVICE_TRACEROUTE_NO_SKIP") != "1", nil // else it goes on, and fails for what it lacks
	}})
}

// status N ARGS… runs service-traceroute and wants exit status N. ARGS may begin
// with "without THING", see there.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: status N ARGS…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	program, rest := "service-traceroute", args[1:]
	if len(rest) > 1 && rest[0] == "without" {
		program, rest = "without", append([]string{rest[1], program}, rest[2:]...)
	}
	switch err := ts.Exec(program, rest...); {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d\n%s", got, want, ts.ReadFile("stderr"))
	}
}

// unhex FROM TO writes the bytes whose hexadecimal digits a file holds.
func unhex(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: unhex FROM TO")
	}
	b, err := hex.DecodeString(strings.ReplaceAll(ts.ReadFile(args[0]), "\n", ""))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), b, 0o600))
}

// screen wants the last output to fit a screen and to have examples.
func screen(ts *testscript.TestScript, neg bool, _ []string) {
	if err := fitsScreen(ts.ReadFile("stdout")); neg || err != nil {
		ts.Fatalf("%v", err)
	}
}

// fitsScreen wants at most 24 lines of 80 columns, and examples.
func fitsScreen(help string) error {
	if n := strings.Count(help, "\n"); n == 0 || n > 24 {
		return fmt.Errorf("%d lines of help", n)
	}
	for line := range strings.Lines(help) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
			return fmt.Errorf("%d columns: %s", n, line)
		}
	}
	if !strings.Contains(help, "Examples:\n  ") {
		return fmt.Errorf("no examples in\n%s", help)
	}
	return nil
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

// Every command of the tree has a help that fits a screen of 80 columns and 24
// lines and shows examples.
func TestEveryCommandHasHelp(t *testing.T) {
	commandsBelow(newRootCommand(), func(cmd *cobra.Command) {
		var out bytes.Buffer
		cmd.SetOut(&out)
		if err := cmd.Help(); err != nil {
			t.Fatal(err)
		}
		text := out.String()
		if err := fitsScreen(text); err != nil {
			t.Errorf("%s: %v", cmd.CommandPath(), err)
		}
		if !strings.Contains(text, cmd.CommandPath()) {
			t.Errorf("%s: not in its own help:\n%s", cmd.CommandPath(), text)
		}
	})
}

// Every command knows the same flags about itself, without other arguments.
func TestEveryCommandTellsOfItself(t *testing.T) {
	root := newRootCommand()
	root.InitDefaultHelpCmd() // as Execute does
	commandsBelow(root, func(cmd *cobra.Command) {
		for flag, want := range map[string]string{
			"--version": "service-traceroute " + version() + "\n", "-h": "Examples:\n", "--help": "Examples:\n",
			"--help-all": "  -h, --help ",
		} {
			var out, errs bytes.Buffer
			root := newRootCommand()
			root.SetOut(&out)
			root.SetErr(&errs)
			root.SetArgs(append(strings.Fields(cmd.CommandPath())[1:], flag))
			if err := root.Execute(); err != nil || !strings.Contains(out.String(), want) || errs.Len() > 0 {
				t.Errorf("%s %s: %v, %q %q", cmd.CommandPath(), flag, err, out.String(), errs.String())
			}
			if flag == "--help-all" && (!strings.Contains(out.String(), "--version ") || !strings.Contains(out.String(), "--help-all ")) {
				t.Errorf("%s lists\n%s", cmd.CommandPath(), out.String())
			}
		}
	})
}

func commandsBelow(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, c := range cmd.Commands() {
		commandsBelow(c, visit)
	}
}

// The commands are listed in the help of the whole.
func TestRootListsCommands(t *testing.T) {
	for _, cmd := range newRootCommand().Commands() {
		if !strings.Contains(rootHelp, "\n  "+cmd.Name()+" ") {
			t.Errorf("%s is not listed", cmd.Name())
		}
	}
}
