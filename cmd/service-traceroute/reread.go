package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"servicetraceroute"
	"servicetraceroute/internal/output"
)

// A trace with files reads them again when it gets SIGHUP, as daemons do; without any the
// signal ends it, as it ends other commands.

// selecting are the flags that say which flows are traced and how, and so can change while
// that goes on. What the others say holds until the end.
var selecting = []string{
	"service", "catalogue", "host", "match", "port", "proto", "process", "pid", "cgroup", "direction", "ipv4", "ipv6",
	"algorithm", "first-ttl", "max-ttl", "probes", "timeout", "probe-interval", "ttl-interval", "max-silent", "border", "border-file",
	"flow-timeout", "after-close", "udp-probe", "per", "every", "start-on", "retrace", "when", "cool-down", "share", "stop-new-after", "idle",
}

// hasTerminal reports whether the process has a controlling terminal (tty(4)). Whoever had
// one, and has none when SIGHUP comes, is to end: that was what the signal says.
func hasTerminal() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	_ = tty.Close()
	return true
}

// hangUp ends this process as SIGTERM does.
func hangUp() {
	if self, err := os.FindProcess(os.Getpid()); err == nil {
		_ = self.Signal(syscall.SIGTERM)
	}
}

// rereads reports whether there is anything to read again.
func (f *traceFlags) rereads() bool {
	return f.from != "" || len(f.serviceFlags.files)+len(f.borderFile) > 0
}

// hangups are the wishes to read the files again, until stop; none where there are no files.
func (f *traceFlags) hangups() (wishes chan os.Signal, stop func()) {
	wishes = make(chan os.Signal, 1)
	if !f.rereads() {
		return wishes, func() {}
	}
	f.terminal = hasTerminal() && !signal.Ignored(syscall.SIGHUP)
	signal.Notify(wishes, syscall.SIGHUP)
	return wishes, func() { signal.Stop(wishes) }
}

// follow reads the files again whenever that is wished for, until ctx ends.
func (f *traceFlags) follow(ctx context.Context, wishes <-chan os.Signal, t watcher, w *switching, p *progress) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-wishes:
		}
		if f.terminal && !hasTerminal() {
			hangUp()
			return
		}
		_ = p.aside(func() error { // records wait meanwhile: they are written as the flags say
			held, err := f.renew(ctx, t, w)
			switch {
			case ctx.Err() != nil:
			case err != nil:
				conclude(err, p.w)
				fmt.Fprintln(p.w, "what is traced stays as it was")
			default:
				fmt.Fprintf(p.w, "files read again; watching for flows of %s\n", f.what())
			}
			if err == nil && len(held) > 0 {
				fmt.Fprintf(p.w, "warning: %s: as before, until the next start\n", strings.Join(held, ", "))
			}
			return nil
		})
	}
}

// renew reads the files again and puts in force what they say.
func (f *traceFlags) renew(ctx context.Context, t watcher, w *switching) (held []string, err error) {
	undo := f.keep()
	sel, held, err := f.reread()
	if err != nil {
		undo()
		return nil, err
	}
	switch err := t.SetSelection(ctx, sel); {
	case errors.Is(err, servicetraceroute.ErrNoProcesses):
		undo()
		return nil, failed(errors.New("whose flows are is not known: when this began nothing asked for it"), "start it again")
	case err != nil:
		undo()
		return nil, watchFailed(err)
	}
	f.report(sel)
	w.Writer, err = f.writer()
	return held, err
}

// reread reads the configuration file and all others again. Held are flags that have
// another value there but cannot change now.
func (f *traceFlags) reread() (sel servicetraceroute.Selection, held []string, err error) {
	file := &configFile{}
	if f.from != "" {
		before := f.values()
		f.reset()
		if file, err = f.configuration.read(); err != nil {
			return sel, nil, err
		}
		held = f.hold(before)
	}
	if err = f.something(); err == nil {
		sel, err = f.selection()
	}
	return sel, held, file.place(err)
}

// keep returns what gives the flags the values that they have now.
func (c *configuration) keep() (undo func()) {
	before, own := c.values(), c.own
	return func() {
		c.own = own
		c.flags.VisitAll(func(flag *pflag.Flag) { before[flag.Name].put(flag) })
	}
}

func (c *configuration) values() map[string]text {
	all := map[string]text{}
	c.flags.VisitAll(func(flag *pflag.Flag) { all[flag.Name] = textOf(flag.Value) })
	return all
}

// text is a flag's value.
type text struct {
	one  string
	list []string // of one that repeats
}

func textOf(v pflag.Value) text {
	if list, ok := v.(pflag.SliceValue); ok {
		return text{list: slices.Clone(list.GetSlice())}
	}
	return text{one: v.String()}
}

func (t text) equal(o text) bool { return t.one == o.one && slices.Equal(t.list, o.list) }

// put gives a flag the value, which it has had before.
func (t text) put(flag *pflag.Flag) {
	if list, ok := flag.Value.(pflag.SliceValue); ok {
		_ = list.Replace(t.list)
		return
	}
	_ = flag.Value.Set(t.one)
}

// reset gives flags that the command line left alone their defaults.
func (c *configuration) reset() {
	c.flags.VisitAll(func(flag *pflag.Flag) {
		if slices.Contains(c.given, flag.Name) || slices.Contains(notInFile, flag.Name) {
			return
		}
		flag.Changed = false
		initial := text{one: flag.DefValue}
		if _, ok := flag.Value.(pflag.SliceValue); ok {
			initial = text{} // no list has a default
		}
		initial.put(flag)
	})
}

// hold gives the flags that cannot change now their old values, and names those.
func (c *configuration) hold(before map[string]text) (held []string) {
	c.flags.VisitAll(func(flag *pflag.Flag) {
		if old := before[flag.Name]; !slices.Contains(selecting, flag.Name) && !old.equal(textOf(flag.Value)) {
			held = append(held, flag.Name)
			old.put(flag)
		}
	})
	return held
}

// switching is a writer that can be replaced. Whoever uses it holds the progress's lock.
type switching struct{ output.Writer }
