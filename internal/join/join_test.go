package join

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"servicetraceroute/trace"
)

var noon = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

// taken is a trace of a flow, after so many seconds.
func taken(src, dst string, after int, hops ...string) *trace.Trace {
	start := noon.Add(time.Duration(after) * time.Second)
	tr := &trace.Trace{
		ID: fmt.Sprintf("%016x", after), Start: start, End: start.Add(time.Second), Algorithm: trace.Adaptive, Stop: trace.StopDestination, Reached: true,
		Flow:        trace.Tuple{FlowKey: trace.FlowKey{Proto: trace.TCP, Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}, Direction: trace.Out},
		Destination: &trace.Destination{TTL: len(hops) + 1, By: trace.DestinationByAck},
		Observed:    trace.Observed{RTT: -1}, Hops: []trace.Hop{},
	}
	for i, h := range hops {
		hop := trace.Hop{TTL: i + 1, Sent: 1, Replies: []trace.Reply{}}
		if h != "" {
			hop.Replies = append(hop.Replies, trace.Reply{Addr: netip.MustParseAddr(h), Kind: trace.TimeExceeded})
		}
		tr.Hops = append(tr.Hops, hop)
	}
	return tr
}

func TestJoin(t *testing.T) {
	const client, server, outside, inside = "10.0.0.1:40000", "203.0.113.7:443", "198.51.100.1", "10.1.0.9:443"
	a := taken(client, server, 0)
	natted := func(tr *trace.Trace, src string) *trace.Trace {
		tr.Flow.NAT = &trace.FlowKey{Proto: trace.TCP, Src: netip.MustParseAddrPort(src), Dst: tr.Flow.Dst}
		return tr
	}
	for _, test := range []struct {
		name        string
		there, back []*trace.Trace
		pairs       []Match
		unsure      int
	}{
		{"plain", []*trace.Trace{a}, []*trace.Trace{taken(server, client, 1)}, []Match{Exact}, 0},
		{"translated by this host", []*trace.Trace{natted(taken(client, server, 0), outside+":40000")}, []*trace.Trace{taken(server, outside+":40000", 1)}, []Match{Exact}, 0},
		{"address translated", []*trace.Trace{a}, []*trace.Trace{taken(server, outside+":40000", 1)}, []Match{ByPort}, 0},
		{"address and port translated", []*trace.Trace{a}, []*trace.Trace{taken(server, outside+":1024", 1)}, []Match{ByEnd}, 0},
		{"the server's address translated", []*trace.Trace{a}, []*trace.Trace{taken(inside, client, 1)}, []Match{ByPort}, 0},
		{"both translated", []*trace.Trace{a}, []*trace.Trace{taken(inside, outside+":40000", 1)}, nil, 1},
		{"another server", []*trace.Trace{a}, []*trace.Trace{taken("203.0.113.8:444", outside+":1024", 1)}, nil, 0},
		{"too late", []*trace.Trace{a}, []*trace.Trace{taken(server, client, 3600)}, nil, 0},
		{"the port decides", []*trace.Trace{a}, []*trace.Trace{taken(server, outside+":1024", 1), taken(server, outside+":40000", 1)}, []Match{ByPort}, 0},
		{"two fit", []*trace.Trace{a}, []*trace.Trace{taken(server, outside+":1024", 1), taken(server, outside+":1025", 1)}, nil, 1},
		{"two want one", []*trace.Trace{a, taken("10.0.0.2:40000", server, 0)}, []*trace.Trace{taken(server, outside+":40000", 1)}, nil, 2},
		{"one is surer", []*trace.Trace{a, taken("10.0.0.2:50000", server, 0)}, []*trace.Trace{taken(server, outside+":40000", 1)}, []Match{ByPort}, 1},
		{"not translated, as another one shows", []*trace.Trace{a, taken("10.0.0.1:50000", server, 0)}, []*trace.Trace{taken(server, client, 1), taken(server, outside+":50000", 1)}, []Match{Exact}, 0},
		{"again and again", []*trace.Trace{a, taken(client, server, 30)}, []*trace.Trace{taken(server, client, 31), taken(server, client, 1)}, []Match{Exact, Exact}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := Join(test.there, test.back, time.Minute)
			var got []Match
			for _, p := range r.Pairs {
				got = append(got, p.Match)
				if gap := apart(p.There, p.Back); gap > 5*time.Second {
					t.Errorf("joined with a trace %v away", gap)
				}
			}
			if !slices.Equal(got, test.pairs) || len(r.Unsure) != test.unsure {
				t.Errorf("%v, unsure %+v; want %v, %d", got, r.Unsure, test.pairs, test.unsure)
			}
			if n := len(r.Pairs) + len(r.Unsure) + r.AloneThere; n != len(test.there) {
				t.Errorf("%d of %d accounted for", n, len(test.there))
			}
		})
	}
}

// Three routers in a row; each shows on the way there the address towards the first host,
// on the way back the other.
// TestAbout: all traces that lie within the time are looked at, and where that is short few others.
func TestAbout(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var back []*trace.Trace
	for i := range 2000 {
		b := taken("203.0.113.7:443", fmt.Sprintf("10.0.0.1:%d", 2000+i), rng.IntN(3600))
		b.End = b.Start.Add(time.Duration(rng.IntN(20)) * time.Second)
		back = append(back, b)
	}
	x := newIndex(back)
	list := x.byEnd[endOf{trace.TCP, netip.MustParseAddrPort("203.0.113.7:443")}]
	if len(list) != len(back) {
		t.Fatalf("%d of %d traces", len(list), len(back))
	}
	for _, within := range []time.Duration{0, time.Second, time.Minute, math.MaxInt64} {
		looked := 0
		for range 100 {
			a := taken("10.0.0.1:1", "203.0.113.7:443", rng.IntN(3600))
			about := x.about(a, list, within)
			looked += len(about)
			for _, b := range x.find(a, within).all {
				if apart(a, b) > within {
					t.Errorf("within %v: %v apart", within, apart(a, b))
				}
			}
			for _, b := range back {
				if apart(a, b) <= within && !slices.Contains(about, b) {
					t.Errorf("within %v: of %v to %v the trace of %v to %v is left out", within, a.Start, a.End, b.Start, b.End)
				}
			}
		}
		if within <= time.Second && looked > 100*len(back)/50 {
			t.Errorf("within %v: %d looks at %d traces", within, looked, len(back))
		}
	}
}

func TestPaths(t *testing.T) {
	there := taken("10.0.0.1:40000", "10.0.0.14:443", 0, "10.0.0.2", "10.0.0.6", "10.0.0.10")
	back := taken("10.0.0.14:443", "10.0.0.1:40000", 0, "10.0.0.13", "10.0.0.9", "10.0.0.5")
	p := Pair{there, back, Exact}.Paths()
	if p.Asymmetric() || len(p.Differs()) > 0 || len(p.Steps) != 3 {
		t.Errorf("%+v", p)
	}
	for i, s := range p.Steps {
		if s.Relation != SameLink || s.TTL != i+1 || s.BackTTL != 3-i {
			t.Errorf("%+v", s)
		}
	}
	// The first router has the host in a subnet of any size.
	home := taken("192.168.1.50:40000", "10.0.0.14:443", 0, "192.168.1.1", "10.0.0.6", "10.0.0.10")
	if p := (Pair{home, taken("10.0.0.14:443", "192.168.1.50:40000", 0, "10.0.0.13", "10.0.0.9", "10.0.0.5"), Exact}).Paths(); len(p.Differs()) > 0 || p.Steps[0].Relation != Unknown {
		t.Errorf("%+v", p)
	}
	// The middle router is another one on the way back.
	back = taken("10.0.0.14:443", "10.0.0.1:40000", 0, "10.0.0.13", "10.0.0.89", "10.0.0.85")
	if p := (Pair{there, back, Exact}).Paths(); !slices.Equal(p.Differs(), []int{2, 3}) {
		t.Errorf("%+v", p)
	}
	// The way back is longer.
	back = taken("10.0.0.14:443", "10.0.0.1:40000", 0, "10.0.0.13", "10.0.0.9", "10.0.0.33", "10.0.0.5")
	if p := (Pair{there, back, Exact}).Paths(); !p.Asymmetric() || p.HopsThere != 3 || p.HopsBack != 4 {
		t.Errorf("%+v", p)
	}
	// The router behind the middle one is silent on the way back: where its link leads nobody knows.
	back = taken("10.0.0.14:443", "10.0.0.1:40000", 0, "10.0.0.13", "10.0.0.9", "")
	if p := (Pair{there, back, Exact}).Paths(); len(p.Differs()) > 0 {
		t.Errorf("%+v", p)
	}
	back = taken("10.0.0.14:443", "10.0.0.1:40000", 0, "10.0.0.13", "", "10.0.0.5")
	if p := (Pair{there, back, Exact}).Paths(); len(p.Differs()) > 0 || p.Steps[1].Relation != SameLink || p.Steps[2].Relation != Unknown {
		t.Errorf("%+v", p)
	}
	// What was shared by another flow says nothing.
	back = taken("10.0.0.14:443", "10.0.0.1:40000", 0, "10.0.0.13", "10.0.0.89", "10.0.0.5")
	back.Hops[1].Replies[0].SharedFrom = "another"
	if p := (Pair{there, back, Exact}).Paths(); len(p.Differs()) > 0 {
		t.Errorf("%+v", p)
	}
	// Silence says nothing.
	back = taken("10.0.0.14:443", "10.0.0.1:40000", 0, "", "", "")
	if p := (Pair{there, back, Exact}).Paths(); len(p.Differs()) > 0 {
		t.Errorf("%+v", p)
	}
}

func TestRead(t *testing.T) {
	var b bytes.Buffer
	tr := taken("10.0.0.1:40000", "203.0.113.7:443", 0, "192.0.2.1")
	for _, ev := range []trace.Event{&trace.Flow{Tuple: tr.Flow, Time: noon, State: trace.FlowMatched}, tr, &trace.Stats{Time: noon}} {
		if err := json.NewEncoder(&b).Encode(ev); err != nil {
			t.Fatal(err)
		}
	}
	all, err := Read(strings.NewReader(b.String() + "\n"))
	if err != nil || len(all) != 1 || all[0].ID != tr.ID || len(all[0].Hops) != 1 {
		t.Errorf("%v, %v", all, err)
	}
	for text, want := range map[string]string{
		"{": "line 1: not a record", "\n{}": "line 2: not a record of service-traceroute/1",
		`{"schema":"service-traceroute/1","type":"trace","hops":7}`: "line 1: ",
	} {
		if _, err := Read(strings.NewReader(text)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	line, err := json.Marshal(tr)
	if err != nil {
		t.Fatal(err)
	}
	all, err = Read(strings.NewReader(string(line) + "\n" + string(line[:len(line)/2])))
	if !errors.Is(err, ErrCut) || len(all) != 1 {
		t.Errorf("a file that is being written: %v, %v", all, err)
	}
	if _, err := Read(strings.NewReader(string(line) + "\n" + string(line[:len(line)/2]) + "\n" + string(line))); err == nil || errors.Is(err, ErrCut) {
		t.Errorf("a line in the midst that is cut: %v", err)
	}
	for was, is := range map[string]string{
		`"ttl":1`: `"ttl":2000000000`, `"hops":[{"ttl":1`: `"hops":[{"ttl":0`, `"src":"10.0.0.1"`: `"src":""`, `"addr":"192.0.2.1"`: `"addr":"fe80::1%\u001b[2J"`,
	} {
		bad := strings.Replace(string(line), was, is, 1)
		if bad == string(line) {
			t.Fatalf("no %s in %s", was, line)
		}
		if all, err := Read(strings.NewReader(bad)); err == nil || !strings.HasPrefix(err.Error(), "line 1: ") {
			t.Errorf("%s: %v, %v", is, all, err)
		}
	}
	refused := taken("10.0.0.1:40000", "203.0.113.7:443", 0)
	refused.Stop, refused.Reason = trace.StopRefused, trace.ReasonMD5
	if b, err := json.Marshal(refused); err != nil {
		t.Fatal(err)
	} else if all, err := Read(bytes.NewReader(b)); err != nil || len(all) != 0 {
		t.Errorf("a refused flow: %v, %v", all, err)
	}
	if _, err := read(strings.NewReader(strings.Repeat(string(line)+"\n", 3)), 2); !errors.Is(err, ErrTooMany) {
		t.Errorf("no bound: %v", err)
	}
}

// FuzzRead: whatever a file says, it is refused or its traces are put together, each once.
func FuzzRead(f *testing.F) {
	var b bytes.Buffer
	for i, tr := range []*trace.Trace{taken("10.0.0.1:40000", "203.0.113.7:443", 0, "192.0.2.1", ""), taken("203.0.113.7:443", "198.51.100.1:1024", 1, "192.0.2.2")} {
		if err := json.NewEncoder(&b).Encode(tr); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes(), i, int64(time.Minute))
	}
	f.Add(b.Bytes()[:b.Len()-20], 1, int64(0))
	f.Fuzz(func(t *testing.T, text []byte, first int, within int64) {
		all, err := Read(bytes.NewReader(text))
		if err != nil && !errors.Is(err, ErrCut) {
			return
		}
		first = max(0, min(first, len(all)))
		there, back := all[:first], all[first:]
		r := Join(there, back, time.Duration(within))
		for _, p := range r.Pairs {
			if !slices.Contains(there, p.There) || !slices.Contains(back, p.Back) || p.Match == 0 {
				t.Errorf("%+v", p)
			}
			p.Paths().Differs()
		}
		if n := len(r.Pairs) + len(r.Unsure) + r.AloneThere; n != len(there) || r.AloneBack > len(back) {
			t.Errorf("%d of %d traces, %d of %d alone", n, len(there), r.AloneBack, len(back))
		}
	})
}
