package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"testing"
)

// A signal that came before a command deals with signals itself is known to it.
func TestTakeSignals(t *testing.T) {
	for range 100 {
		ctx, cancel := context.WithCancelCause(t.Context())
		ctx = context.WithValue(ctx, interruptsKey{}, heed(cancel, []os.Signal{syscall.SIGTERM}))
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM) // or a later one would end the test
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-c
		takeSignals(ctx)
		by, ok := endedBy(ctx)
		if !ok || by.status() != 143 {
			t.Fatalf("%v %v, %v", by, ok, context.Cause(ctx))
		}
		signal.Stop(c)
	}
}

// Only of run the signals that were ignored stay so. What has nothing to say at its end takes
// none.
func TestWishes(t *testing.T) {
	signal.Ignore(syscall.SIGINT)
	defer signal.Reset(syscall.SIGINT)
	for command, want := range map[string]int{"run": 1, "trace": 2, "dial": 2, "demo": 2, "replay": 2, "selftest": 2, "services": 0, "completion": 0, "": 0} {
		if list := wishes(newRootCommand(), []string{command, "--help"}); len(list) != want {
			t.Errorf("%s: %v", command, list)
		}
	}
}

func TestPending(t *testing.T) {
	c := make(chan os.Signal, 2)
	c <- syscall.SIGPIPE
	c <- syscall.SIGHUP
	if sig := pending(c); sig != syscall.SIGHUP {
		t.Errorf("%v", sig)
	}
	if sig := pending(c); sig != 0 {
		t.Errorf("then %v", sig)
	}
}
