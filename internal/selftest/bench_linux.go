package selftest

import (
	"context"
	"sync"
	"time"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/link"
	"servicetraceroute/internal/lab/peer"
)

// Bench is what flows are measured on: two hosts with one slow link between them. Flows
// must run one after another; all else on its hosts would be counted as theirs.
type Bench struct {
	Client, Server *lab.Node
	Slow           *lab.Node // the process of the slow link
	Firewall       *lab.Node // with connection tracking; nil: there is none
}

// LongestStall is how late this process may be run for a flow to be compared: when a
// machine is so busy, the lab's own hosts and its link stop as well, and TCP takes that
// for loss.
const LongestStall = 20 * time.Millisecond

// settling is how long the last packets of a flow may take.
const settling = 100 * time.Millisecond

// Outcome is what became of one flow, at both ends.
type Outcome struct {
	Moved     [2]peer.Counters // client, server: all that changed
	Conntrack time.Duration    // the least time the firewall still gave the flow; 0: not seen
	Stall     time.Duration    // the longest that this process had to wait for a processor
	Lost      uint64           // segments that the slow link lost on purpose
	Trouble   uint64           // and frames that it lost without being asked to
}

// Calm reports whether the machine let the lab's own parts run in time.
func (o *Outcome) Calm() bool { return o.Stall < LongestStall && o.Trouble == 0 }

// Sum adds up the named counters of both ends, without those that did not move.
func (o *Outcome) Sum(names []string) peer.Counters {
	all := peer.Counters{}
	for _, c := range o.Moved {
		for name, v := range c.Only(names) {
			all[name] += v
		}
	}
	return all
}

// Settle sets both hosts so that twins fare alike.
func (b *Bench) Settle(ctx context.Context) error {
	for _, end := range []*lab.Node{b.Client, b.Server} {
		for name, value := range map[string]string{
			// What one flow learnt about the path must not help its twin.
			"net.ipv4.tcp_no_metrics_save": "1",
			// Twice what the path holds: its queue never overflows, so that whatever is
			// lost was meant to be.
			"net.ipv4.tcp_rmem": "4096 131072 500000",
			"net.ipv4.tcp_wmem": "4096 65536 500000",
		} {
			if err := end.Sysctl(ctx, name, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// Counters reads those of client and server.
func (b *Bench) Counters(ctx context.Context) (c [2]peer.Counters, err error) {
	for i, end := range []*lab.Node{b.Client, b.Server} {
		if c[i], err = peer.ReadCounters(ctx, end); err != nil {
			return c, err
		}
	}
	return c, nil
}

// Measure lets flow, which runs one to its end, happen and tells what it moved. During,
// if there is one, runs beside it until its context ends.
func (b *Bench) Measure(ctx context.Context, flow func(context.Context) error, during func(context.Context)) (o Outcome, err error) {
	before, err := b.Counters(ctx)
	if err != nil {
		return o, err
	}
	lost, trouble, err := b.losses(ctx)
	if err != nil {
		return o, err
	}
	beside, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() { o.Conntrack = b.patience(beside) })
	all.Go(func() { o.Stall = Stalls(beside) })
	if during != nil {
		all.Go(func() { during(beside) })
	}
	if err := flow(beside); err != nil {
		return o, err
	}
	wait(ctx, settling)
	after, err := b.Counters(ctx)
	if err != nil {
		return o, err
	}
	for i := range after {
		o.Moved[i] = after[i].Delta(before[i])
	}
	lostNow, troubleNow, err := b.losses(ctx)
	o.Lost, o.Trouble = lostNow-lost, troubleNow-trouble
	cancel()
	all.Wait()
	return o, err
}

// losses counts what the slow link lost: because it should, and because the machine was
// too busy.
func (b *Bench) losses(ctx context.Context) (lost, trouble uint64, err error) {
	s, err := link.ReadStats(ctx, b.Slow, "a0", "b0")
	if err != nil {
		return 0, 0, err
	}
	for _, c := range []link.Counts{s.AB, s.BA} {
		lost += c.Lost
		trouble += c.Queue + c.Overflow + c.Oversize + c.Failed + c.Missed
	}
	return lost, trouble, nil
}

// Stalls is the longest that a sleep was overdue, until ctx ends.
func Stalls(ctx context.Context) (worst time.Duration) {
	const nap = 2 * time.Millisecond
	for ctx.Err() == nil {
		start := time.Now()
		time.Sleep(nap)
		worst = max(worst, time.Since(start)-nap)
	}
	return worst
}

// patience is the least time that the firewall still gave an established flow, looked
// at now and then; 0 if there was none.
func (b *Bench) patience(ctx context.Context) (least time.Duration) {
	const established = 300 * time.Second // what shows that the handshake was seen
	for b.Firewall != nil {
		if !wait(ctx, 700*time.Millisecond) {
			break
		}
		all, err := b.Firewall.Conntrack(ctx)
		if err != nil {
			continue
		}
		// Flows that have ended are still there, for two minutes at most.
		for _, c := range all {
			if c.Protocol == 6 && c.Timeout > established-30*time.Second && (least == 0 || c.Timeout < least) {
				least = c.Timeout
			}
		}
	}
	return least
}

// wait sleeps and reports whether it was not interrupted.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
