// Command service-traceroute traces the paths of flows that applications already
// have. See the commands' help, and package servicetraceroute for the library.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"servicetraceroute/internal/lab"
)

// Exit statuses.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitNoMatch  = 3
	exitByForce  = 130 // a second Ctrl-C
	secondSignal = 2
)

// sameWish is within what time a second signal is the first one once more.
const sameWish = 200 * time.Millisecond

func main() {
	lab.Main() // the demo's lab is made of this very program
	os.Exit(run(os.Args[1:]))
}

// run executes the command line and returns its exit status.
func run(args []string) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, secondSignal)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel() // what was found is still printed
		// timeout(1) and some supervisors signal a process and then its group:
		// that is one wish, not two.
		for first := time.Now(); ; {
			<-signals
			if time.Since(first) > sameWish {
				os.Exit(exitByForce)
			}
		}
	}()
	root := newRootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	return report(err)
}

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
var errNoMatch = &failure{errors.New("the time is over and no flow matched"), "", exitNoMatch}

// report prints an error with its hint and returns its exit status.
func report(err error) int {
	f := &failure{err: err, status: exitUsage, hint: "see service-traceroute -h"}
	errors.As(err, &f)
	// Joined errors come in several lines.
	fmt.Fprintf(os.Stderr, "error: %s\n", strings.ReplaceAll(f.err.Error(), "\n", "; "))
	if f.hint != "" {
		fmt.Fprintf(os.Stderr, "hint: %s\n", f.hint)
	}
	return f.status
}
