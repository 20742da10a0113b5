package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// sameWish is within what time a second signal is the first one once more:
// timeout(1) and some supervisors signal a process and then its group.
const sameWish = 200 * time.Millisecond

// signalled is why a context ended: the user's signal.
type signalled syscall.Signal

// Error implements error.
func (s signalled) Error() string { return syscall.Signal(s).String() }

// status is the exit status of what a signal ended, as a shell has it.
func (s signalled) status() exitStatus { return exitStatus(128 + int(s)) }

// endedBy returns the signal that ended ctx.
func endedBy(ctx context.Context) (by signalled, ok bool) {
	ok = errors.As(context.Cause(ctx), &by)
	return by, ok
}

// interrupted gives an error the status of the signal that ended ctx, if one did.
func interrupted(ctx context.Context, err error) error {
	by, ok := endedBy(ctx)
	if !ok {
		return err
	}
	f := &failure{err: err}
	errors.As(err, &f)
	return &failure{f.err, f.hint, int(by.status())}
}

// interrupts are the signals that ask this process to end.
type interrupts struct {
	c    chan os.Signal
	over chan struct{} // all that came before they were taken were heard
}

// heed ends a context when one of the signals comes. A second one ends the process.
func heed(cancel context.CancelCauseFunc, list []os.Signal) *interrupts {
	i := &interrupts{make(chan os.Signal, 2), make(chan struct{})}
	if len(list) > 0 { // of none Notify makes all
		signal.Notify(i.c, list...)
	}
	go i.hear(cancel)
	return i
}

func (i *interrupts) hear(cancel context.CancelCauseFunc) {
	defer close(i.over)
	var first time.Time
	for sig := range i.c {
		switch {
		case first.IsZero():
			first = time.Now()
			cancel(signalled(sig.(syscall.Signal))) // what was found is still printed
		case time.Since(first) > sameWish:
			os.Exit(exitByForce)
		}
	}
}

type interruptsKey struct{}

// takeSignals lets a command deal with signals itself. It has to receive them
// before, so that there is no moment at which one would be lost; of what came until
// then the context knows afterwards.
func takeSignals(ctx context.Context) {
	if i, ok := ctx.Value(interruptsKey{}).(*interrupts); ok {
		signal.Stop(i.c)
		close(i.c)
		<-i.over
	}
}

// wishes are the signals by which a user asks to end. Commands take them also where
// they were ignored, as tcpdump does: a script may end what it started in the
// background. The command of run is to find ignored what was ignored, and Notify
// would undo that.
func wishes(root *cobra.Command, args []string) []os.Signal {
	all := []os.Signal{os.Interrupt, syscall.SIGTERM}
	cmd, _, err := root.Find(args)
	switch {
	case err != nil:
		return all
	case cmd.Name() == "run":
		return slices.DeleteFunc(all, signal.Ignored)
	case !gentle(cmd):
		return nil
	}
	return all
}

// gentle reports whether a command has something to say when it is asked to end. The others
// end at once, as a process does by itself.
func gentle(cmd *cobra.Command) bool {
	for ; cmd.HasParent(); cmd = cmd.Parent() {
		switch cmd.Name() {
		case "trace", "compare", "dial", "demo", "replay", "selftest":
			return true
		}
	}
	return false
}

// commandSignals receives all that concerns the command of run. What was ignored
// when this process was started (nohup, a script's background) stays ignored, for the
// command too.
//
// Go's runtime installs handlers of its own before anything else runs: only of SIGINT
// and SIGHUP it leaves to be seen that they were ignored. A shell without job control
// ignores SIGQUIT along with SIGINT (POSIX.1-2024, XCU 2.11), so one tells of both; of
// SIGTERM nothing tells.
func commandSignals() chan os.Signal {
	c := make(chan os.Signal, 16)
	if signal.Ignored(os.Interrupt) {
		signal.Ignore(syscall.SIGQUIT)
	}
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(sig) {
			signal.Notify(c, sig)
		}
	}
	// Whoever reads our output may go away; the status is the command's all the same.
	signal.Notify(c, syscall.SIGPIPE)
	return c
}

// pending returns a signal that came and was not dealt with, 0 when there is none.
func pending(signals <-chan os.Signal) syscall.Signal {
	// What Stop waits for, of one channel, holds for all: whatever was delivered to this
	// process is in them. SIGPIPE is received elsewhere, so its handling stays.
	flush := make(chan os.Signal, 1)
	signal.Notify(flush, syscall.SIGPIPE)
	signal.Stop(flush)
	for {
		select {
		case sig := <-signals:
			if sig != syscall.SIGPIPE {
				return sig.(syscall.Signal)
			}
		default:
			return 0
		}
	}
}
