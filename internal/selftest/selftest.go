package selftest

import (
	"errors"
	"time"

	"servicetraceroute"
)

// Config says how much is tried. The zero value is the default.
type Config struct {
	// Pairs are the kinds of TCP flows that are run with and without tracing; 0: 8.
	// Two kinds of UDP flows, one if Quick, follow.
	Pairs int
	// Quick makes flows last a second instead of two and a half; Pairs is then 2 by default.
	Quick bool
	// Congestion is the congestion control of both hosts; empty: the machine's own default.
	Congestion string
	// Backend is the Tracer's.
	Backend servicetraceroute.Backend
	// Version is this program's, for the record.
	Version string
	// Progress, if there is one, is told what is begun: flow done+1 of total, of which
	// there are more when a pair is tried again.
	Progress func(done, total int, what string)

	plan []Pair // for tests: instead of the default
	// open, for tests, opens another Tracer than New would.
	open func(servicetraceroute.Config) (*servicetraceroute.Tracer, error)
}

// ErrCongestion is matched by errors of Run about a Congestion that cannot be had.
var ErrCongestion = errors.New("not available here")

// withDefaults puts the defaults where nothing is said.
func (c Config) withDefaults() Config {
	udp := 2
	if c.Pairs == 0 {
		c.Pairs = 8
		if c.Quick {
			c.Pairs = 2
		}
	}
	if c.Quick {
		udp = 1
	}
	if c.plan == nil {
		c.plan = plan(c.Pairs, udp)
	}
	if c.open == nil {
		c.open = servicetraceroute.New
	}
	if c.Progress == nil {
		c.Progress = func(int, int, string) {}
	}
	return c
}

// life is how long a flow takes, about.
func (c Config) life() time.Duration {
	if c.Quick {
		return 1200 * time.Millisecond
	}
	return 2500 * time.Millisecond
}

// Estimate is how long Run takes on a machine that is not busy, about.
func (c Config) Estimate() time.Duration {
	c = c.withDefaults()
	const around = 500 * time.Millisecond // opening, connecting, the last packets
	return time.Second + 2*time.Duration(len(c.plan))*(c.life()+around)
}
