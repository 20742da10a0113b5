package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/child"
	"servicetraceroute/internal/output"
	"servicetraceroute/internal/privilege"
	"servicetraceroute/trace"
)

const (
	// afterwards is how long traces may go on when the command has ended.
	afterwards = 3 * time.Second
	// A flow's last packets may be under way to us when the command is gone.
	settleLook  = 5 * time.Millisecond
	settleLooks = 3
	// maxHeld bounds the records, maxTalk the bytes, that wait for the command's end.
	maxHeld = 20000
	maxTalk = 1 << 20
)

// session is one command while it runs and is traced.
type session struct {
	tracer  *servicetraceroute.Tracer
	sel     servicetraceroute.Selection
	w       output.Writer
	hold    bool // records wait until the command has ended
	done    func() error
	later   *held
	stderr  io.Writer
	command child.Command
	needed  []privilege.Capability // beside what tells whose flows are

	group   *child.Group
	process *child.Process
	raise   func() error // to remove the group
	asked   time.Time    // when the command was first asked to end

	// Owned by the goroutine of watch until it has ended.
	cancel  context.CancelFunc
	ended   chan struct{}
	events  []trace.Event
	closing *trace.Stats // there was no room for it; nil: there was
	lost    int
	matched bool
	traced  bool
	failure error
}

// run starts the command and returns its status, and with it what else went wrong.
func (s *session) run(ctx context.Context) error {
	signals := commandSignals()
	takeSignals(ctx)
	defer signal.Stop(signals)
	if by, ok := endedBy(ctx); ok {
		return errors.Join(by.status(), s.done())
	}
	if err := s.start(signals); err != nil {
		return errors.Join(err, s.done())
	}
	raise, lowering := privilege.Lower(s.forTidying(), s.keep()...)
	s.raise = raise // after an error the command runs all the same, and is not to be left alone
	over := make(chan struct{})
	var passing sync.WaitGroup
	passing.Go(func() { s.pass(signals, over) })
	status, err := s.process.Wait()
	close(over)
	passing.Wait()
	s.settle(signals)
	s.cancel()
	<-s.ended
	if err != nil { // nobody knows what became of it
		status = exitFailed
	}
	return errors.Join(exitStatus(status), failed(lowering, ""), failed(err, ""), s.tell())
}

// start begins to watch and then starts the command, in a control group of its own
// if that can be. A signal that comes before the command runs ends us.
func (s *session) start(signals <-chan os.Signal) error {
	group, err := child.NewGroup()
	if err == nil {
		s.group, s.command.Group = group, group
	}
	if err := s.shed(); err != nil {
		_, _ = s.removeGroup()
		return failed(err, "")
	}
	var status exitStatus
	if group != nil {
		err := s.attempt(&servicetraceroute.Run{Cgroup: group.Path()}, signals)
		if err == nil {
			return nil
		}
		_, _ = s.removeGroup()
		if errors.As(err, &status) {
			return status
		}
		// Whether the group or the command is to blame shows without the group.
		s.group, s.command.Group = nil, nil
	}
	if err := child.Subreap(); err != nil {
		return failed(err, "")
	}
	err = s.attempt(&servicetraceroute.Run{Descendants: os.Getpid()}, signals)
	if err == nil || errors.As(err, &status) {
		return err
	}
	return notStarted(err)
}

// attempt watches and then starts the command. After an error nothing of both is
// left.
func (s *session) attempt(run *servicetraceroute.Run, signals <-chan os.Signal) error {
	if err := s.watch(run, signals); err != nil {
		return err
	}
	err := s.launch(signals)
	if err != nil {
		s.cancel()
		<-s.ended
	}
	return err
}

// launch starts the command, unless a signal came before. One that came while it was
// started may have missed it and is sent again: a command that just begins has no
// handlers yet, so had it got the first one it would have ended.
func (s *session) launch(signals <-chan os.Signal) (err error) {
	if sig := pending(signals); sig != 0 {
		return signalled(sig).status()
	}
	if s.process, err = child.Start(s.command); err != nil {
		return err
	}
	if sig := pending(signals); sig != 0 {
		_ = s.process.Signal(sig) // it may have ended just now
		if ends(sig) {
			s.asked = time.Now()
		}
	}
	return nil
}

// shed gives up before the command starts what it takes nothing of: each call stops
// all threads for a moment, and afterwards a first connection may begin at once.
func (s *session) shed() (err error) {
	if s.command.User != nil { // to become whom takes root
		return privilege.NothingInherited()
	}
	s.raise, err = privilege.Shed(s.forTidying(), s.keep()...)
	return err
}

// keep are the capabilities that are needed to see which of the command's
// processes has a socket open (none where it runs as the user who we become), and
// what its socket calls a flow that is translated; to hand it signals; and what else is
// needed.
func (s *session) keep() []privilege.Capability {
	keep := append(translations(), s.needed...)
	uid, _, under := privilege.Invoker() // who we become, if not root
	user := s.command.User
	switch {
	case os.Geteuid() != 0:
		return keep
	case user != nil && int(user.UID) != uid:
		keep = append(keep, privilege.Kill)
	case user != nil && under:
		return keep
	}
	return append(keep, privilege.SysPtrace, privilege.DACReadSearch)
}

// forTidying are the capabilities that removing the control group takes.
func (s *session) forTidying() []privilege.Capability {
	if s.group != nil && s.group.Guarded() {
		return []privilege.Capability{privilege.DACOverride}
	}
	return nil
}

// watch traces the command's flows until cancel. It returns when nothing that the
// command will open can be missed any more; an error is the status of a signal.
func (s *session) watch(run *servicetraceroute.Run, signals <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(context.Background())
	sel := s.sel
	run.Name, run.Value = service(s.command.Argv)
	sel.Run = run
	s.cancel, s.ended = cancel, make(chan struct{})
	ready := make(chan struct{})
	sel.Ready = func() { close(ready) }
	go func() {
		defer close(s.ended)
		for ev, err := range s.tracer.Watch(ctx, sel) {
			if err != nil {
				if ctx.Err() == nil {
					s.failure = err
				}
				return
			}
			if flow, ok := ev.(*trace.Flow); ok && flow.State != trace.FlowIgnored {
				s.matched = true
			}
			if _, ok := ev.(*trace.Trace); ok {
				s.traced = true
			}
			s.take(ev)
		}
	}()
	for {
		select {
		case <-ready:
			return nil
		case <-s.ended: // it failed, which is said when the command has ended
			return nil
		case sig := <-signals:
			if sig != syscall.SIGPIPE {
				cancel()
				<-s.ended
				return signalled(sig.(syscall.Signal)).status()
			}
		}
	}
}

// take writes a record, or keeps it for the end.
func (s *session) take(ev trace.Event) {
	switch {
	case s.failure != nil:
	case !s.hold:
		if err := s.w.Write(ev); err != nil {
			s.failure = fmt.Errorf("write: %w", err)
		}
	case len(s.events) < maxHeld:
		s.events = append(s.events, ev)
	default:
		if st, ok := ev.(*trace.Stats); ok { // the last word
			s.closing = st
			return
		}
		s.lost++
	}
}

// ends reports whether a signal is a wish to end that no terminal sends to the
// command, as it does Ctrl-C and Ctrl-\.
func ends(sig os.Signal) bool { return sig == syscall.SIGTERM || sig == syscall.SIGHUP }

// pass hands on what is meant for the command. A second wish to end is meant for us.
func (s *session) pass(signals <-chan os.Signal, over <-chan struct{}) {
	for {
		select {
		case <-over:
			return
		case sig := <-signals:
			if !ends(sig) {
				continue
			}
			if s.asked.IsZero() {
				s.asked = time.Now()
				if err := s.process.Signal(sig); errors.Is(err, os.ErrPermission) { // else it ended just now
					complain(s.stderr, fmt.Errorf("%v for the command: %w", sig, err))
				}
			} else if time.Since(s.asked) > sameWish {
				s.abandon(sig.(syscall.Signal))
			}
		}
	}
}

// abandon ends us and leaves the command to itself.
func (s *session) abandon(sig syscall.Signal) {
	s.cancel()
	_, _ = s.removeGroup()
	os.Exit(int(signalled(sig).status()))
}

// removeGroup removes the control group, as whoever may, and returns how many
// processes were left in it.
func (s *session) removeGroup() (left int, err error) {
	if s.group == nil {
		return 0, nil
	}
	if s.raise != nil {
		err = s.raise()
	}
	left, removing := s.group.Remove()
	return left, errors.Join(err, removing)
}

// settle waits for the traces in progress, or for a signal.
func (s *session) settle(signals <-chan os.Signal) {
	over := time.After(afterwards)
	look := time.NewTicker(settleLook)
	defer look.Stop()
	for calm := 0; calm < settleLooks; {
		select {
		case <-over:
			return
		case <-s.ended:
			return
		case sig := <-signals:
			if sig != syscall.SIGPIPE {
				return
			}
		case <-look.C:
			calm++
			if st := s.tracer.Stats(); st.Traces.Started != st.Traces.Done {
				calm = 0
			}
		}
	}
}

// tell says what was found and returns what went wrong: the command has ended and its
// status stands.
func (s *session) tell() error {
	s.later.release()
	if s.closing != nil {
		s.events = append(s.events, s.closing)
	}
	for _, ev := range s.events {
		if s.failure == nil {
			if err := s.w.Write(ev); err != nil {
				s.failure = fmt.Errorf("write: %w", err)
			}
		}
	}
	if s.lost > 0 {
		fmt.Fprintf(s.stderr, "warning: %d more records were not kept; -o FILE writes all of them as they come\n", s.lost)
	}
	name, _ := service(s.command.Argv)
	switch {
	case s.traced || s.failure != nil:
	case s.matched:
		fmt.Fprintf(s.stderr, "service-traceroute: flows of %s were seen, none was traced\n", output.Escape(name))
	default:
		fmt.Fprintf(s.stderr, "service-traceroute: no flow of %s was seen\n", output.Escape(name))
	}
	left, removing := s.removeGroup()
	if left > 0 {
		fmt.Fprintf(s.stderr, "service-traceroute: %d processes of %s go on, untraced\n", left, output.Escape(name))
	}
	failure := s.failure
	if failure != nil {
		failure = failed(inFlags(failure), "")
	}
	return errors.Join(failure, failed(removing, ""), s.done())
}

// held keeps what is written until the command has ended.
type held struct {
	w    io.Writer
	mu   sync.Mutex
	buf  bytes.Buffer
	lost int
	open bool
}

// Write implements io.Writer.
func (h *held) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open {
		return h.w.Write(b)
	}
	if h.buf.Len()+len(b) > maxTalk {
		h.lost += len(b)
		return len(b), nil
	}
	return h.buf.Write(b)
}

// release writes it, and from now on everything at once.
func (h *held) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open = true
	_, _ = h.w.Write(h.buf.Bytes())
	if h.lost > 0 {
		fmt.Fprintf(h.w, "warning: %d bytes of log were not kept\n", h.lost)
	}
}
