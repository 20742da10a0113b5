package ladder

import (
	"context"
	"net"
	"net/netip"
	"time"

	"servicetraceroute/trace"
)

// connector makes attempts, as Ladder does.
type connector interface {
	Connect(ctx context.Context, ttl int, wait time.Duration) (Answer, *net.TCPConn, error)
}

// Run climbs until the path is known, and returns the connection if an attempt became one.
// When ctx ends the trace is cut, as deadline or cancelled, which is no error. An error is
// local; what was found before is in the Climb.
func Run(ctx context.Context, cfg Config, l connector, dst netip.Addr) (c *Climb, conn *net.TCPConn, err error) {
	c = NewClimb(cfg, dst)
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		if ctx.Err() != nil {
			c.Cut(cutBy(ctx))
		}
		ttl, ok := c.Next()
		if !ok {
			return c, conn, nil
		}
		pause.Reset(cfg.Gap)
		a, made, err := l.Connect(ctx, ttl, cfg.Wait())
		switch {
		case ctx.Err() != nil && made == nil:
			c.Cut(cutBy(ctx))
			c.Take(Answer{}) // it had left
		case err != nil:
			return c, nil, err
		default:
			conn = made
			c.Take(a)
		}
	}
}

// cutBy is why a trace stops when ctx has ended.
func cutBy(ctx context.Context) trace.Stop {
	if ctx.Err() == context.DeadlineExceeded {
		return trace.StopDeadline
	}
	return trace.StopCancelled
}
