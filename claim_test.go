//go:build linux

package servicetraceroute_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/simnet"
	"servicetraceroute/trace"
)

// trace asks for exactly this flow.
func (s *sim) trace(f *simnet.Flow) *trace.Trace {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	key := trace.FlowKey{Proto: trace.TCP, Src: f.Tuple.Src, Dst: f.Tuple.Dst}
	tr, err := s.tracer.Trace(ctx, trace.Flow{Tuple: trace.Tuple{FlowKey: key}})
	if err != nil {
		s.t.Error(err)
	}
	return tr
}

// A flow that a Watch traces, or has traced, is traced for its own sake when it is
// asked for, as often as that; the Watch keeps what it knows of it.
func TestTraceOfAWatchedFlow(t *testing.T) {
	controlled(t, func(t *testing.T, s *sim) {
		stop := s.watch(servicetraceroute.Selection{})
		f := s.start(chatty(false))
		time.Sleep(200 * time.Millisecond) // the Watch's trace is under way
		ids := map[string]bool{}
		for range 2 {
			tr := s.trace(f)
			s.judge(tr)
			if !tr.Complete || tr.Service.By != trace.ByConnection || ids[tr.ID] {
				t.Error(describe(tr))
			}
			ids[tr.ID] = true
		}
		<-f.Done()
		all := stop()
		if len(all.traces) != 1 || !all.traces[0].Complete || all.traces[0].Service.By != trace.ByAddress || ids[all.traces[0].ID] {
			t.Errorf("the watch has %d traces", len(all.traces))
		}
	})
}

// Retracing goes on after a flow was lent.
func TestRetraceOfALentFlow(t *testing.T) {
	controlled(t, func(t *testing.T, s *sim) {
		stop := s.watch(servicetraceroute.Selection{Retrace: 3 * time.Second})
		f := s.start(chatty(false))
		time.Sleep(3 * time.Second)
		if tr := s.trace(f); !tr.Complete {
			t.Error(describe(tr))
		}
		<-f.Done()
		if all := stop(); len(all.traces) < 2 {
			t.Errorf("the watch has %d traces", len(all.traces))
		}
	})
}

// Who asks for the same flow at the same time gets a trace, too.
func TestTwoTracesOfOneFlow(t *testing.T) {
	controlled(t, func(t *testing.T, s *sim) {
		f := s.start(chatty(false))
		time.Sleep(100 * time.Millisecond)
		var group sync.WaitGroup
		var traces [2]*trace.Trace
		for i := range traces {
			group.Go(func() { traces[i] = s.trace(f) })
		}
		group.Wait()
		for _, tr := range traces {
			if tr == nil || !tr.Complete {
				t.Fatalf("%+v", tr)
			}
		}
		<-f.Done()
		synctest.Wait()
	})
}
