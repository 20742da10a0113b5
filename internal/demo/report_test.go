package demo

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"servicetraceroute/internal/classic"
	"servicetraceroute/trace"
)

// result is a path 10.0.0.1, 10.0.0.2, … to the server at TTL 4; classic
// traceroutes saw the given last bytes instead, 0 is silence.
func result(udp, tcp []byte) *Result {
	addr := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, last}) }
	classicHops := func(lasts []byte) []classic.Hop {
		var hops []classic.Hop
		for i, last := range lasts {
			h := classic.Hop{TTL: i + 1, Reached: i == 3}
			if last != 0 {
				h.Addr = addr(last)
			}
			hops = append(hops, h)
		}
		return hops
	}
	r := &Result{Intact: true, Bytes: 6 << 20, UDP: classicHops(udp), TCP: classicHops(tcp)}
	r.Trace = &trace.Trace{
		End: time.Time{}.Add(time.Second), Algorithm: trace.Adaptive, Stop: trace.StopDestination, Reached: true, Complete: true,
		Flow: trace.Tuple{FlowKey: trace.FlowKey{
			Proto: trace.TCP, Src: netip.MustParseAddrPort("192.0.2.1:40000"), Dst: netip.MustParseAddrPort("10.0.0.4:443"),
		}},
		Destination: &trace.Destination{TTL: 4, RTT: time.Millisecond, By: trace.DestinationByAck},
	}
	for ttl := 1; ttl <= 4; ttl++ {
		kind := trace.TimeExceeded
		if ttl == 4 {
			kind = trace.TCPAck
		}
		r.Trace.Hops = append(r.Trace.Hops, trace.Hop{
			TTL: ttl, Sent: 1, Replies: []trace.Reply{{Addr: addr(byte(ttl)), RTT: time.Millisecond, Kind: kind}},
		})
	}
	return r
}

func TestReport(t *testing.T) {
	for name, c := range map[string]struct {
		r    *Result
		want []string
	}{
		"other branches": {result([]byte{1, 12, 13}, []byte{1, 22, 3, 4}), []string{
			"  2  10.0.0.2            10.0.0.12 ≠           10.0.0.22 ≠\n",
			"  4  10.0.0.4            *                     10.0.0.4\n",
			"1. UDP traceroute: other routers at TTL 2 and 3; after TTL 3 the firewall drops it.\n",
			"2. TCP traceroute: other routers at TTL 2: each SYN is a new flow, not the download's.\n",
			"3. Service Traceroute: the download's own path; 6 MiB arrived intact, 0 retransmits, 0 resets.\n",
		}},
		"the same by chance": {result([]byte{1, 2, 3}, []byte{1, 0, 3, 4}), []string{
			"1. UDP traceroute: by chance the same routers, this time; after TTL 3 the firewall",
			"2. TCP traceroute: by chance the same routers, this time: each SYN",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := c.r.Write(&b); err != nil {
				t.Fatal(err)
			}
			for _, want := range c.want {
				if !strings.Contains(b.String(), want) {
					t.Errorf("lacks %q:\n%s", want, b.String())
				}
			}
			for line := range strings.Lines(b.String()) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
					t.Errorf("%d columns: %s", n, line)
				}
			}
			if c.r.Failed() {
				t.Error("failed")
			}
		})
	}
}

func TestDamageIsToldAndFails(t *testing.T) {
	r := result(nil, nil)
	r.Intact = false
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "DAMAGED") || !r.Failed() {
		t.Errorf("failed = %v\n%s", r.Failed(), b.String())
	}
}

func TestWrap(t *testing.T) {
	word := strings.Repeat("ü", 49)
	for in, want := range map[string]string{
		"short\nlines\n":                  "short\nlines\n",
		word + " " + word + "\n":          word + " " + word + "\n",
		word + " " + word + " x y\n":      word + " " + word + "\n  x y\n",
		strings.Repeat("x", 150) + "\n":   strings.Repeat("x", 150) + "\n",
		word + " " + word + "ab c":        word + "\n  " + word + "ab c",
		word + " " + word + "a b\nnext\n": word + " " + word + "a\n  b\nnext\n",
	} {
		if got := wrap(in); got != want {
			t.Errorf("wrap(%q) = %q, want %q", in, got, want)
		}
	}
}
