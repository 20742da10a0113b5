package quic

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// granted is how many of n derivations are allowed.
func granted(l *Limiter, now time.Time, n int, src func(int) netip.Addr) int {
	yes := 0
	for i := range n {
		if l.Allow(now, src(i)) {
			yes++
		}
	}
	return yes
}

func only(a netip.Addr) func(int) netip.Addr { return func(int) netip.Addr { return a } }

// spoofed is another source each time.
func spoofed(i int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 0x0a000000+uint32(i))
	return netip.AddrFrom4(b)
}

func TestSourceAllowance(t *testing.T) {
	for _, src := range []string{"192.0.2.7", "2001:db8::1", "::ffff:192.0.2.9", "::"} {
		l := NewLimiter(Limits{})
		a := netip.MustParseAddr(src)
		for _, step := range []struct {
			after time.Duration
			want  int
		}{
			{0, 40}, {0, 0}, {50 * time.Millisecond, 1}, {1050 * time.Millisecond, 20}, {-time.Hour, 0}, {time.Hour, 40},
		} {
			if got := granted(l, start.Add(step.after), 100, only(a)); got != step.want {
				t.Errorf("%s after %v: %d", src, step.after, got)
			}
		}
	}
}

func TestSourcesAreApart(t *testing.T) {
	l := NewLimiter(Limits{})
	granted(l, start, 100, only(outside))
	for _, test := range []struct {
		src  string
		want int
	}{
		{"192.0.2.8", 40}, {"::ffff:192.0.2.7", 0}, // the same address as outside
		{"2001:db8::1", 40}, {"2001:db8::2", 0}, {"2001:db8:0:1::1", 40}, // IPv6 by /64
	} {
		if got := granted(l, start, 100, only(netip.MustParseAddr(test.src))); got != test.want {
			t.Errorf("%s: %d", test.src, got)
		}
	}
}

// However many sources junk claims to come from, it gets what all others get, and
// this host's own flows keep theirs.
func TestAllowanceOfAll(t *testing.T) {
	l := NewLimiter(Limits{})
	if got := granted(l, start, 100_000, spoofed); got != 1000 {
		t.Errorf("%d at once", got)
	}
	total := 0
	for i := range 1000 {
		total += granted(l, start.Add(time.Duration(i+1)*time.Millisecond), 100, func(n int) netip.Addr { return spoofed(i*100 + n) })
	}
	if total < 1990 || total > 2000 {
		t.Errorf("%d in the second after", total)
	}
	now := start.Add(time.Second)
	if got := granted(l, now, 2000, only(netip.Addr{})); got != 1000 {
		t.Errorf("%d of this host's own", got)
	}
	if got := granted(l, now.Add(time.Second/10), 2000, only(netip.Addr{})); got != 200 {
		t.Errorf("%d of this host's own after a tenth of a second", got)
	}
}

// The table does not grow, and who is in it is not forgotten for the sake of who
// sends once.
func TestTableIsBounded(t *testing.T) {
	l := NewLimiter(Limits{Rate: 1e9, Burst: 1e9, Sources: 100})
	if len(l.sources) != 128 {
		t.Fatalf("%d places", len(l.sources))
	}
	granted(l, start, 40, only(outside))
	granted(l, start, 10_000, spoofed)
	if got := granted(l, start, 100, only(outside)); got != 0 {
		t.Errorf("%d for a source that had spent its own", got)
	}
	if len(l.sources) != 128 {
		t.Errorf("%d places", len(l.sources))
	}
}
