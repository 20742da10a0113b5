// Command service-traceroute traces the paths of flows that applications already
// have. See the commands' help, and package servicetraceroute for the library.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/output"
)

// Exit statuses.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2
	exitNoMatch = 3
	exitByForce = 130 // a second Ctrl-C
)

func main() {
	lab.Main() // the demo's lab is made of this very program
	os.Exit(run(os.Args[1:]))
}

// run executes the command line and returns its exit status.
func run(args []string) int {
	root := newRootCommand()
	root.SetArgs(args)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	ctx = context.WithValue(ctx, interruptsKey{}, heed(cancel, wishes(root, args)))
	return conclude(root.ExecuteContext(ctx), os.Stderr)
}

// exitStatus ends the process with a status and nothing more to say.
type exitStatus int

// Error implements error.
func (s exitStatus) Error() string { return "exit status " + strconv.Itoa(int(s)) }

// failure is an error with an exit status and a hint.
type failure struct {
	err    error
	hint   string
	status int
}

// Error implements error.
func (f *failure) Error() string { return f.err.Error() }

// Unwrap implements the errors package's convention.
func (f *failure) Unwrap() error { return f.err }

func usage(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &failure{err, hint, exitUsage}
}

func failed(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &failure{err, hint, exitFailed}
}

// errNoMatch ends a run whose time is over without a flow that matched. It is
// said on stderr by the command itself.
var errNoMatch = &failure{
	errors.New("the time is over and no flow matched"),
	"only flows that showed a packet meanwhile count; fewer narrowing flags or a longer --duration let more match", exitNoMatch,
}

// conclude prints what went wrong, each error once, and returns the exit status: that
// of the first.
func conclude(err error, w io.Writer) int {
	status := exitDone
	var said []string
	for i, err := range each(err) {
		f := &failure{err: err, status: exitUsage, hint: "see service-traceroute -h"}
		errors.As(err, &f)
		var quiet exitStatus
		if errors.As(err, &quiet) {
			f.status = int(quiet)
		} else if text := f.err.Error(); !slices.Contains(said, text) {
			said = append(said, text)
			complain(w, f.err)
			if f.hint != "" {
				fmt.Fprintf(w, "hint: %s\n", output.Escape(f.hint))
			}
		}
		if i == 0 {
			status = f.status
		}
	}
	return status
}

// complain prints an error as one line. Its words may be somebody else's: names,
// files, what a server said.
func complain(w io.Writer, err error) {
	fmt.Fprintf(w, "error: %s\n", output.Escape(strings.ReplaceAll(err.Error(), "\n", "; ")))
}

// each takes apart what errors.Join put together, also within a failure, whose hint
// is that of the first. Errors that wrap several in words of their own stay whole.
func each(err error) (all []error) {
	if err == nil {
		return nil
	}
	if f, ok := err.(*failure); ok {
		for i, err := range each(f.err) {
			part := &failure{err, f.hint, f.status}
			if i > 0 {
				part.hint = ""
			}
			all = append(all, part)
		}
		if len(all) == 1 {
			return []error{err} // the very same
		}
		return all
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) == 0 || err.Error() != errors.Join(joined.Unwrap()...).Error() {
		return []error{err}
	}
	for _, err := range joined.Unwrap() {
		all = append(all, each(err)...)
	}
	return all
}
