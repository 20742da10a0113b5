//go:build linux

package servicetraceroute_test

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
	"servicetraceroute/trace"
)

// wound is a source whose clock is set again and again: each packet bears a bare
// wall-clock time, shifted by what shift says.
type wound struct {
	servicetraceroute.Source
	shift func() time.Duration
}

// ReadBatch implements Source.
func (w *wound) ReadBatch() ([]servicetraceroute.Packet, error) {
	batch, err := w.Source.ReadBatch()
	batch = append([]servicetraceroute.Packet(nil), batch...)
	for i := range batch {
		batch[i].Time = batch[i].Time.Round(0).Add(w.shift())
	}
	return batch, err
}

// LocalAddrs is the wrapped source's.
func (w *wound) LocalAddrs() ([]netip.Addr, error) {
	return w.Source.(interface {
		LocalAddrs() ([]netip.Addr, error)
	}).LocalAddrs()
}

// Steps of the packets' clock end no trace, hide no flow and make no round trip
// negative or long.
func TestPacketClockSteps(t *testing.T) {
	for name, hours := range map[string][]int{
		"steady": {0}, "hour ahead": {1}, "ten years ago": {-24 * 365 * 10},
		"forward": {0, 0, 1}, "back": {0, 0, -1}, "to and fro": {0, 1, 0, -1, -2, 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net, err := simnet.New(wires(ladder(3, scenario.ICMPLimit{}), 5*time.Millisecond), simnet.Options{})
				if err != nil {
					t.Fatal(err)
				}
				defer net.Close()
				source, sink, err := net.Tap("client")
				if err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				w := &wound{source, func() time.Duration {
					i := int(time.Since(start) / (70 * time.Millisecond))
					return time.Duration(hours[min(i, len(hours)-1)]) * time.Hour
				}}
				s := &sim{t: t, net: net}
				s.tracer, err = servicetraceroute.New(servicetraceroute.Config{
					Source: w, Sink: sink, Defaults: servicetraceroute.Params{FlowTimeout: 10 * time.Second},
				})
				if err != nil {
					t.Fatal(err)
				}
				stop := s.watch(servicetraceroute.Selection{Idle: 30 * time.Second})
				f := s.start(chatty(false))
				<-f.Done()
				all := stop()
				if err := s.tracer.Close(); err != nil {
					t.Error(err)
				}
				if len(all.traces) != 1 {
					t.Fatalf("%d traces", len(all.traces))
				}
				tr := all.traces[0]
				if tr.Stop != trace.StopDestination || !tr.Reached || tr.Observed.Retransmits != 0 || tr.Impact != (trace.Impact{}) {
					t.Errorf("%v", tr)
				}
				if took := tr.End.Sub(tr.Start); took < 0 || took > 10*time.Second {
					t.Errorf("the trace took %v", took)
				}
				for _, h := range tr.Hops {
					want := time.Duration(h.TTL) * 10 * time.Millisecond
					for _, r := range h.Replies {
						if r.Late || (r.RTT-want).Abs() > time.Millisecond {
							t.Errorf("TTL %d: %v (late %v), want %v", h.TTL, r.RTT, r.Late, want)
						}
					}
				}
				if rtt := tr.Observed.RTT; rtt < 30*time.Millisecond || rtt > 100*time.Millisecond {
					t.Errorf("the flow's own round trip is %v", rtt)
				}
			})
		})
	}
}
