package selftest

import (
	"context"
	"errors"
	"slices"
	"time"

	"servicetraceroute"
	"servicetraceroute/trace"
)

// watch is a Tracer at the client that traces what goes to the server, again and again.
type watch struct {
	tracer *servicetraceroute.Tracer
	cancel context.CancelFunc
	done   chan struct{}
	traces []*trace.Trace // when done is closed
	err    error
}

// retrace is how often a flow is traced.
const retrace = time.Second

// watch opens the Tracer and returns when it sees all that begins.
func (s *suite) watch(ctx context.Context) (*watch, error) {
	w := &watch{done: make(chan struct{})}
	err := s.bench.Client.Do(func() (err error) {
		w.tracer, err = s.cfg.open(servicetraceroute.Config{Backend: s.cfg.Backend})
		return err
	})
	if err != nil {
		return nil, err
	}
	ctx, w.cancel = context.WithCancel(ctx)
	ready := make(chan struct{})
	sel := servicetraceroute.Selection{
		Hosts:   []string{s.bench.Server.Addr(false).String(), s.bench.Server.Addr(true).String()},
		Retrace: retrace, Params: servicetraceroute.Params{UDPProbe: servicetraceroute.UDPAlways},
		Ready: func() { close(ready) },
	}
	go func() {
		defer close(w.done)
		for ev, err := range w.tracer.Watch(ctx, sel) {
			if err != nil {
				w.err = err
				return
			}
			if tr, ok := ev.(*trace.Trace); ok {
				w.traces = append(w.traces, tr)
			}
		}
	}()
	select {
	case <-ready:
	case <-w.done:
	}
	return w, nil
}

// end closes the Tracer, takes what it found into the record, and looks for what stayed
// behind.
func (w *watch) end(f *Flow, s *suite) error {
	w.cancel()
	<-w.done
	stats := w.tracer.Stats()
	s.rec.System.Backend, s.rec.System.BackendReason = stats.Backend, public(stats.Reason, s.names...)
	f.Probes, f.Traces = stats.Probes.Sent, len(w.traces)
	for _, tr := range w.traces {
		if tr.Stop == trace.StopRefused {
			f.Refused = tr.Reason.String()
			continue
		}
		s.rec.Paths.add(tr, routers(s.lab.Layout().Network), s.nodes)
	}
	if err := errors.Join(w.err, w.tracer.Close()); err != nil {
		return err
	}
	now, err := thingsAt(s.bench.Client)
	for _, what := range now.more(s.before) {
		if !slices.Contains(s.rec.LeftBehind, what) {
			s.rec.LeftBehind = append(s.rec.LeftBehind, what)
		}
	}
	return err
}
