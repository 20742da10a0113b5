//go:build linux

package servicetraceroute_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
	"servicetraceroute/trace"
)

func controlled(t *testing.T, test func(t *testing.T, s *sim)) {
	synctest.Test(t, func(t *testing.T) {
		test(t, newSim(t, wires(ladder(1, scenario.ICMPLimit{}), time.Millisecond), simnet.Options{}, servicetraceroute.Config{}))
	})
}

func TestPause(t *testing.T) {
	controlled(t, func(t *testing.T, s *sim) {
		stop := s.watch(servicetraceroute.Selection{})
		s.tracer.Pause()
		f := s.start(chatty(false))
		time.Sleep(3 * time.Second)
		if st := s.tracer.Stats(); st.Traces.Started != 0 || st.Flows.Matched != 1 {
			t.Errorf("%+v", st)
		}
		s.tracer.Resume()
		<-f.Done()
		if all := stop(); len(all.traces) != 1 || !all.traces[0].Complete {
			t.Errorf("%+v", all)
		}
	})
}

func TestLast(t *testing.T) {
	controlled(t, func(t *testing.T, s *sim) {
		stop := s.watch(servicetraceroute.Selection{Retrace: 2 * time.Second})
		f := s.start(chatty(false))
		if _, ok := s.tracer.Last(trace.FlowKey{Proto: trace.TCP}); ok {
			t.Error("a flow that never was has a trace")
		}
		<-f.Done()
		all := stop()
		last := all.traces[len(all.traces)-1]
		if tr, ok := s.tracer.Last(last.Flow.FlowKey); !ok || tr != last || len(all.traces) < 2 {
			t.Errorf("%d traces, last %v, %v", len(all.traces), tr, ok)
		}
	})
}

// Another selection ends what it does not select, keeps what it does, and finds
// flows that were not selected before.
func TestSetSelection(t *testing.T) {
	controlled(t, func(t *testing.T, s *sim) {
		if err := s.tracer.SetSelection(t.Context(), servicetraceroute.Selection{Hosts: []string{"192.0.2.1"}}); err == nil {
			t.Error("nothing was there to be replaced")
		}
		stop := s.watch(servicetraceroute.Selection{Ports: []string{"80"}})
		f := s.start(chatty(false))
		time.Sleep(3 * time.Second)
		if n := s.tracer.Stats().Flows.Matched; n != 0 {
			t.Errorf("%d flows", n)
		}
		if err := s.tracer.SetSelection(t.Context(), servicetraceroute.Selection{}); err == nil {
			t.Error("a selection of nothing was taken")
		}
		server := s.net.Addr("server", false).String()
		err := s.tracer.SetSelection(t.Context(), servicetraceroute.Selection{
			Hosts: []string{server}, Params: servicetraceroute.Params{Algorithm: trace.Concurrent},
			Policies: map[string]servicetraceroute.Policy{server: {Params: servicetraceroute.Params{Algorithm: trace.Concurrent, MaxTTL: 3}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		<-f.Done()
		all := stop()
		if len(all.traces) != 1 || all.traces[0].Algorithm != trace.Concurrent || len(all.traces[0].Hops) != 3 || all.traces[0].Stop != trace.StopMaxTTL {
			t.Errorf("%+v", all.traces)
		}
	})
	controlled(t, func(t *testing.T, s *sim) {
		stop := s.watch(servicetraceroute.Selection{Retrace: time.Nanosecond})
		f := s.start(chatty(false))
		time.Sleep(2 * time.Second)
		if err := s.tracer.SetSelection(t.Context(), servicetraceroute.Selection{Hosts: []string{"192.0.2.1"}}); err != nil {
			t.Fatal(err)
		}
		sent := s.tracer.Stats().Probes.Sent
		<-f.Done()
		all := stop()
		if last := all.traces[len(all.traces)-1]; last.Stop != trace.StopCancelled || all.stats.Probes.Sent != sent {
			t.Errorf("%v, %d probes after the selection changed", last.Stop, all.stats.Probes.Sent-sent)
		}
	})
}

// A watch ends by itself when its flows are silent, not before.
func TestIdle(t *testing.T) {
	controlled(t, func(t *testing.T, s *sim) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		f := s.start(chatty(false)) // 10 s
		server := s.net.Addr("server", false).String()
		for _, err := range s.tracer.Watch(ctx, servicetraceroute.Selection{Hosts: []string{server}, Idle: 3 * time.Second}) {
			if err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took < 12500*time.Millisecond || took > 16*time.Second {
			t.Errorf("it ended after %v", took)
		}
		<-f.Done()
	})
}

// A watch that starts nothing new ends with its last trace.
func TestStopNewAfter(t *testing.T) {
	controlled(t, func(t *testing.T, s *sim) {
		start := time.Now()
		f := s.start(chatty(false))
		server := s.net.Addr("server", false).String()
		var traces int
		for ev, err := range s.tracer.Watch(t.Context(), servicetraceroute.Selection{Hosts: []string{server}, StopNewAfter: 500 * time.Millisecond}) {
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := ev.(*trace.Trace); ok {
				traces++
			}
		}
		if took := time.Since(start); traces != 1 || took > 5*time.Second {
			t.Errorf("%d traces in %v", traces, took)
		}
		<-f.Done()
	})
}
