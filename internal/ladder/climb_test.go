package ladder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute/trace"
)

var (
	server = netip.MustParseAddr("203.0.113.7")
	border = netip.MustParsePrefix("198.51.100.0/24")
)

// router is the address of the one at a TTL.
func router(ttl int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(ttl)}) }

// path is a connector for which things are decided by TTL and attempt.
type path struct {
	rtt    time.Duration
	answer func(ttl, attempt int) Answer
	asked  []int // the TTLs
	times  []time.Time
	fails  error
}

// Connect implements connector. A silent hop takes as long as it is waited for.
func (p *path) Connect(ctx context.Context, ttl int, wait time.Duration) (Answer, *net.TCPConn, error) {
	attempt := 1
	for _, t := range p.asked {
		if t == ttl {
			attempt++
		}
	}
	p.asked, p.times = append(p.asked, ttl), append(p.times, time.Now())
	if p.fails != nil {
		return Answer{}, nil, p.fails
	}
	a := p.answer(ttl, attempt)
	if a.Kind != 0 {
		wait = p.rtt
	}
	select {
	case <-ctx.Done():
		return Answer{}, nil, ctx.Err()
	case <-time.After(wait):
	}
	a.RTT = p.rtt
	if a.Kind == trace.TCPAck {
		return a, new(net.TCPConn), nil
	}
	return a, nil, nil
}

// straight is a path with the server at that distance, on which the named TTLs are silent.
func straight(distance int, end trace.ReplyKind, silent ...int) func(ttl, attempt int) Answer {
	return func(ttl, attempt int) Answer {
		for _, s := range silent {
			if s == ttl {
				return Answer{}
			}
		}
		if ttl >= distance {
			return Answer{Kind: end, Addr: server}
		}
		return Answer{Kind: trace.TimeExceeded, Addr: router(ttl), ReplyTTL: 64 - ttl}
	}
}

// at changes what one TTL answers.
func at(where int, kind trace.ReplyKind, addr netip.Addr, otherwise func(ttl, attempt int) Answer) func(ttl, attempt int) Answer {
	return func(ttl, attempt int) Answer {
		if ttl == where {
			return Answer{Kind: kind, Addr: addr}
		}
		return otherwise(ttl, attempt)
	}
}

// words are a trace in a line: sent and answers of each hop, why it stopped, the destination.
func words(t *trace.Trace) string {
	var b strings.Builder
	for _, h := range t.Hops {
		fmt.Fprintf(&b, "%d:%d", h.TTL, h.Sent)
		for _, r := range h.Replies {
			fmt.Fprintf(&b, "=%v", r.Kind)
		}
		b.WriteByte(' ')
	}
	fmt.Fprintf(&b, "%v", t.Stop)
	if t.Destination != nil {
		fmt.Fprintf(&b, " %d %v", t.Destination.TTL, t.Destination.By)
	}
	if t.Complete {
		b.WriteString(" complete")
	}
	return b.String()
}

func TestClimb(t *testing.T) {
	usual := Config{FirstTTL: 1, MaxTTL: 32, Probes: 3, MaxSilent: 5, Timeout: 2 * time.Second, Borders: []netip.Prefix{border}}
	with := func(change func(*Config)) Config {
		c := usual
		change(&c)
		return c
	}
	for _, test := range []struct {
		name   string
		cfg    Config
		answer func(ttl, attempt int) Answer
		want   string
		made   bool
	}{
		{"a connection", usual, straight(3, trace.TCPAck), "1:1=time-exceeded 2:1=time-exceeded 3:1=tcp-ack destination 3 ack complete", true},
		{"a neighbour", usual, straight(1, trace.TCPAck), "1:1=tcp-ack destination 1 ack complete", true},
		{"a refusal", usual, straight(2, trace.TCPRst), "1:1=time-exceeded 2:1=tcp-rst destination 2 ack complete", false},
		{"a silent hop", usual, straight(3, trace.TCPAck, 2), "1:1=time-exceeded 2:3 3:1=tcp-ack destination 3 ack complete", true},
		{"lost once", usual, func(ttl, attempt int) Answer {
			if ttl == 1 && attempt == 1 {
				return Answer{}
			}
			return straight(2, trace.TCPAck)(ttl, attempt)
		}, "1:2=time-exceeded 2:1=tcp-ack destination 2 ack complete", true},
		{"silent hops", with(func(c *Config) { c.MaxSilent, c.Probes = 2, 1 }), straight(9, trace.TCPAck, 2, 3, 4),
			"1:1=time-exceeded 2:1 3:1 silent-hops", false},
		{"silent hops, not in a row", with(func(c *Config) { c.MaxSilent, c.Probes = 2, 1 }), straight(5, trace.TCPAck, 2, 4),
			"1:1=time-exceeded 2:1 3:1=time-exceeded 4:1 5:1=tcp-ack destination 5 ack complete", true},
		{"no limit of silence", with(func(c *Config) { c.MaxSilent, c.Probes, c.MaxTTL = 0, 1, 4 }), straight(9, trace.TCPAck, 1, 2, 3, 4),
			"1:1 2:1 3:1 4:1 max-ttl complete", false},
		{"the highest TTL", with(func(c *Config) { c.MaxTTL = 2 }), straight(9, trace.TCPAck), "1:1=time-exceeded 2:1=time-exceeded max-ttl complete", false},
		{"a later start", with(func(c *Config) { c.FirstTTL = 2 }), straight(3, trace.TCPAck), "2:1=time-exceeded 3:1=tcp-ack destination 3 ack", true},
		{"a border", usual, at(2, trace.TimeExceeded, border.Addr(), straight(4, trace.TCPAck)), "1:1=time-exceeded 2:1=time-exceeded border complete", false},
		{"a router refuses", usual, at(2, trace.AdminProhibited, router(2), straight(4, trace.TCPAck)),
			"1:1=time-exceeded 2:1=admin-prohibited unreachable complete", false},
		{"the destination refuses", usual, at(2, trace.PortUnreachable, server, straight(4, trace.TCPAck)),
			"1:1=time-exceeded 2:1=port-unreachable destination 2 icmp complete", false},
		{"no way, says the destination's address", usual, at(2, trace.HostUnreachable, server, straight(4, trace.TCPAck)),
			"1:1=time-exceeded 2:1=host-unreachable unreachable complete", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &path{rtt: 10 * time.Millisecond, answer: test.answer}
				c, conn, err := Run(t.Context(), test.cfg, p, server)
				if err != nil || (conn != nil) != test.made {
					t.Fatalf("%v, %v", conn, err)
				}
				var tr trace.Trace
				c.Into(&tr)
				if got := words(&tr); got != test.want {
					t.Errorf("%s\nwant %s", got, test.want)
				}
				if tr.Reached != (tr.Destination != nil) || tr.Complete != (tr.PathID != "") || tr.Algorithm != trace.PacketByPacket {
					t.Errorf("%+v", tr)
				}
			})
		})
	}
}

// The path's name is that of the same path by any other back end.
func TestPathID(t *testing.T) {
	c, _, err := Run(t.Context(), Config{FirstTTL: 1, MaxTTL: 9, Probes: 1, Timeout: 1}, &path{answer: straight(3, trace.TCPAck)}, server)
	if err != nil {
		t.Fatal(err)
	}
	var tr trace.Trace
	c.Into(&tr)
	want := trace.PathID([]trace.Hop{{TTL: 1, Replies: []trace.Reply{{Addr: router(1)}}}, {TTL: 2, Replies: []trace.Reply{{Addr: router(2)}}}}, 2)
	if tr.PathID != want {
		t.Errorf("%s, want %s", tr.PathID, want)
	}
}

// Silence is given up before the kernel sends the SYN again, and no SYN follows another
// faster than it may.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &path{rtt: time.Millisecond, answer: straight(4, trace.TCPAck, 1)}
		cfg := Config{FirstTTL: 1, MaxTTL: 9, Probes: 2, Timeout: 2 * time.Second, Gap: 5 * time.Millisecond}
		start := time.Now()
		if _, _, err := Run(t.Context(), cfg, p, server); err != nil {
			t.Fatal(err)
		}
		for i, want := range []time.Duration{0, 900, 1800, 1805, 1810} {
			if got := p.times[i].Sub(start); got != want*time.Millisecond {
				t.Errorf("SYN %d after %v, want %d ms", i+1, got, want)
			}
		}
		if w := (Config{Timeout: 300 * time.Millisecond}).Wait(); w != 300*time.Millisecond {
			t.Errorf("a shorter timeout waits %v", w)
		}
	})
}

// When ctx ends the trace has what was found, and says why it ends there.
func TestCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{FirstTTL: 1, MaxTTL: 9, Probes: 3, Timeout: 2 * time.Second}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c, conn, err := Run(ctx, cfg, &path{rtt: time.Millisecond, answer: straight(4, trace.TCPAck, 2)}, server)
		var tr trace.Trace
		c.Into(&tr)
		if got, want := words(&tr), "1:1=time-exceeded 2:2 deadline"; err != nil || conn != nil || got != want {
			t.Errorf("%q, want %q; %v %v", got, want, conn, err)
		}
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		p := &path{answer: straight(4, trace.TCPAck)}
		c, _, err = Run(ctx, cfg, p, server)
		if err != nil || c.Stop() != trace.StopCancelled || len(p.asked) != 0 {
			t.Errorf("%v after %v, %v", c.Stop(), p.asked, err)
		}
	})
}

// What is wrong here ends it at once.
func TestLocalError(t *testing.T) {
	gone := errors.New("network is down")
	p := &path{fails: gone}
	if _, _, err := Run(t.Context(), Config{FirstTTL: 1, MaxTTL: 9, Probes: 3, Timeout: 1}, p, server); !errors.Is(err, gone) || len(p.asked) != 1 {
		t.Errorf("%v after %v", err, p.asked)
	}
}
