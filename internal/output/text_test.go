package output

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"servicetraceroute/trace"
)

// short is a trace of two hops, the second silent.
func short() *trace.Trace {
	first := trace.Reply{Addr: netip.MustParseAddr("192.0.2.1"), RTT: 312 * time.Microsecond, Kind: trace.TimeExceeded}
	return &trace.Trace{
		Algorithm: trace.Adaptive, Stop: trace.StopFlowClosed, Mixed: true,
		Flow: trace.Tuple{FlowKey: trace.FlowKey{
			Proto: trace.TCP, Src: netip.MustParseAddrPort("[2001:db8::1]:40510"), Dst: netip.MustParseAddrPort("[2001:db8::7]:443"),
		}},
		Hops: []trace.Hop{{TTL: 1, Sent: 1, Replies: []trace.Reply{first}}, {TTL: 2, Sent: 3}},
	}
}

func text(t *testing.T, ev trace.Event, opts Options) string {
	t.Helper()
	var b bytes.Buffer
	w, err := New("text", &b, opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(ev); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Styles add sequences around lines and change nothing else.
func TestStyle(t *testing.T) {
	styled := text(t, short(), Options{Style: true})
	want := "\x1b[1mtcp [2001:db8::1]:40510 -> [2001:db8::7]:443\x1b[0m\n" +
		"  1  192.0.2.1  0.312 ms\n" +
		"\x1b[2m  2  *  *  *\x1b[0m\n" +
		"\x1b[1mwarning: mixed:\x1b[0m the path changed"
	if !strings.HasPrefix(styled, want) {
		t.Errorf("got %q\nwant %q", styled, want)
	}
	bare := strings.NewReplacer(bold, "", dim, "", plain, "").Replace(styled)
	if got := text(t, short(), Options{}); got != bare {
		t.Errorf("got %q\nwant %q", got, bare)
	}
}

// Unreachables are marked as traceroute(8) marks them.
func TestMarks(t *testing.T) {
	for kind, want := range map[trace.ReplyKind]string{
		trace.TimeExceeded: "", trace.TCPAck: "", trace.NetUnreachable: " !N", trace.HostUnreachable: " !H", trace.PortUnreachable: " !P",
		trace.AdminProhibited: " !X", trace.Unreachable: " !U", trace.PacketTooBig: " !F", trace.TCPRst: " RST",
	} {
		if got := mark(trace.Reply{Kind: kind}); got != want {
			t.Errorf("%v: %q, want %q", kind, got, want)
		}
		if got := mark(trace.Reply{Kind: kind, Late: true}); got != want+" (late)" {
			t.Errorf("late %v: %q", kind, got)
		}
	}
}

// FuzzEscape: nothing that a terminal obeys comes through, as text or as JSON.
func FuzzEscape(f *testing.F) {
	f.Add("a\x1b[31mb\xff\u202e")
	f.Add("\u0085\u009b2J\x7f\U000e0001")
	f.Fuzz(func(t *testing.T, in string) {
		var b bytes.Buffer
		if err := encoder(&b).Encode(in); err != nil {
			t.Fatal(err)
		}
		for _, r := range strings.TrimSuffix(b.String(), "\n") {
			if r < 0x20 || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
				t.Fatalf("JSON of %q is %q", in, b.String())
			}
		}
		var back string
		if err := json.Unmarshal(b.Bytes(), &back); err != nil || utf8.ValidString(in) && back != in {
			t.Fatalf("%q came back as %q: %v", in, back, err)
		}
		for _, r := range Escape(in) {
			if r < 0x20 || r >= 0x7f && r < 0xa0 || r == '\ufffd' || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
				t.Fatalf("Escape(%q) holds %q", in, r)
			}
		}
	})
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestWriteErrorsAreReported(t *testing.T) {
	for _, format := range Formats {
		w, err := New(format, full{}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Write(short()); err == nil {
			t.Errorf("%s: no error", format)
		}
	}
}

// A finding says where it is, and why not better.
func TestFindingsSayWhere(t *testing.T) {
	f := trace.Finding{Flow: flow, Kind: trace.NATSrc, TTLFrom: 2, TTL: 4, Value: "v", Evidence: []string{"TTL 4: seen", "TTL 3 unknown: silent"}, Confidence: 0.95}
	at, first := f, f
	at.Kind, at.Evidence = trace.MTU, nil
	first.TTLFrom, first.Evidence = 0, nil
	for want, f := range map[string]trace.Finding{
		"nat-src between TTL 2 and 4 of 10.0.0.1:40510 -> 203.0.113.7:443: v (confidence 0.95); TTL 3 unknown: silent": f,
		"mtu at TTL 4 of 10.0.0.1:40510 -> 203.0.113.7:443: v (confidence 0.95)":                                       at,
		"nat-src between this host and TTL 4 of 10.0.0.1:40510 -> 203.0.113.7:443: v (confidence 0.95)":                first,
	} {
		var b strings.Builder
		if err := (&Text{w: &b}).Write(&f); err != nil || b.String() != "finding: "+want+"\n" {
			t.Errorf("%q, want %q", b.String(), want)
		}
	}
}
