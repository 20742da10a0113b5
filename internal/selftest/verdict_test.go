package selftest

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// fine is a try in which twins fared alike.
func fine() Try {
	flow := Flow{Intact: true, Bytes: 1000, BitRate: 1_000_000, Latency: 40, Counters: map[string]int64{}, Conntrack: 431_999}
	traced := flow
	traced.Counters = map[string]int64{}
	traced.Probes, traced.Traces = 5, 1
	return Try{Traced: traced, Untraced: flow}
}

// with is fine with a change.
func with(change func(*Try)) Try {
	t := fine()
	change(&t)
	return t
}

// sent is a try of datagrams.
func sent(change func(traced, untraced *Datagrams)) Try {
	return with(func(t *Try) {
		a, b := &Datagrams{Sent: 9, Answered: 9, Delivered: 9}, &Datagrams{Sent: 9, Answered: 9, Delivered: 9}
		change(a, b)
		t.Traced.Datagrams, t.Untraced.Datagrams = a, b
	})
}

func retransmits(traced, untraced int64) Try {
	return with(func(t *Try) {
		t.Traced.Counters["Tcp.RetransSegs"], t.Untraced.Counters["Tcp.RetransSegs"] = traced, untraced
	})
}

// record is one of such a pair, of which the network and all else were as they should.
func record(traffic string, tries ...Try) *Record {
	r := newRecord(time.Unix(0, 0))
	r.Pairs = []Pair{{Family: "ipv4", Proto: "tcp", Traffic: traffic, Tries: tries}}
	r.Paths = Paths{Traces: 2, Complete: 2, Reached: 2, Hops: 8}
	return r
}

// Each rule, by what breaks it: the verdict, and what its reason says.
func TestVerdict(t *testing.T) {
	busy := func(t Try) Try { t.Busy = true; return t }
	slower := with(func(t *Try) { t.Traced.BitRate = 890_000 })
	later := with(func(t *Try) { t.Traced.Latency = 60 })
	little := with(func(t *Try) { t.Untraced.Latency, t.Traced.Latency = 0.2, 0.9 })
	forgotten := with(func(t *Try) { t.Traced.Conntrack = 299 })
	for name, c := range map[string]struct {
		r    *Record
		want Verdict
		says string
	}{
		"alike":                             {record(download, fine()), Harmless, ""},
		"bytes lost":                        {record(download, with(func(t *Try) { t.Traced.Intact, t.Traced.Failure = false, "reset" })), Harm, "did not arrive: reset"},
		"bytes lost, busy":                  {record(download, busy(with(func(t *Try) { t.Traced.Intact = false }))), Harm, "did not arrive"},
		"bytes lost by both":                {record(download, with(func(t *Try) { t.Traced.Intact, t.Untraced.Intact = false, false })), NotTried, "0 of 1"},
		"a counter once":                    {record(download, retransmits(1, 0), fine(), fine()), Harmless, ""},
		"a counter in the only try":         {record(download, retransmits(1, 0)), NotTried, "0 of 1"},
		"a counter in the only tries":       {record(download, retransmits(1, 0), retransmits(1, 0)), NotTried, "0 of 1"},
		"a counter in the only calm ones":   {record(download, busy(retransmits(1, 1)), retransmits(1, 0), busy(retransmits(1, 1)), retransmits(1, 0)), NotTried, "0 of 1"},
		"a counter twice":                   {record(download, retransmits(1, 0), retransmits(1, 0), fine()), Harmless, ""},
		"a counter in three of four":        {record(download, retransmits(1, 0), fine(), retransmits(1, 0), retransmits(1, 0)), Harmless, ""},
		"a counter each time":               {record(download, retransmits(1, 0), retransmits(3, 0), retransmits(2, 1)), Harm, "IPv4 download: Tcp.RetransSegs is higher with tracing, in each of 3 tries"},
		"counters of two kinds":             {record(download, retransmits(1, 0), with(func(t *Try) { t.Traced.Counters["Tcp.OutRsts"] = 1 }), fine()), Harmless, ""},
		"a counter of the other twin":       {record(download, retransmits(0, 1), retransmits(0, 1)), Harmless, ""},
		"a counter while busy":              {record(download, busy(retransmits(1, 0)), busy(retransmits(1, 0)), fine()), Harmless, ""},
		"only busy, with a counter":         {record(download, busy(retransmits(1, 1)), busy(retransmits(1, 0))), NotTried, "0 of 1"},
		"only busy, without a blemish":      {record(download, busy(fine())), Harmless, ""},
		"slower":                            {record(upload, slower, slower, slower), Harm, "slower"},
		"slower, of which is not its point": {record(idle, slower, slower, slower), Harmless, ""},
		"later":                             {record(requestResponse, later, later, later), Harm, "later answers"},
		"later datagrams":                   {record(datagrams, later, later, later), Harm, "later answers"},
		"later by a little":                 {record(requestResponse, little, little, little), Harmless, ""},
		"forgotten":                         {record(idle, forgotten, forgotten, forgotten), Harm, "firewall forgets"},
		"forgotten by itself":               {record(idle, with(func(t *Try) { t.Traced.Conntrack, t.Untraced.Conntrack = 299, 299 })), Harmless, ""},
		"not probed":                        {record(download, with(func(t *Try) { t.Traced.Probes = 0 })), NotTried, "0 of 1"},
		"datagrams alike":                   {record(datagrams, sent(func(a, b *Datagrams) {})), Harmless, ""},
		"a datagram more":                   {record(datagrams, sent(func(a, b *Datagrams) { a.Delivered++ })), Harm, "nobody sent: 1"},
		"a stray datagram":                  {record(datagrams, sent(func(a, b *Datagrams) { a.Stray++ })), Harm, "datagrams at the server that nobody sent: 1"},
		"an error":                          {record(datagrams, sent(func(a, b *Datagrams) { a.Errors++ })), Harm, "errors at the application's socket: 1"},
		"stray datagrams anyway":            {record(datagrams, sent(func(a, b *Datagrams) { a.Stray++; b.Stray++ })), Harmless, ""},
		"a false hop":                       {changed(record(download, fine()), func(r *Record) { r.Paths.False = 1 }), Harm, "1 of 8 hops"},
		"a wrong distance":                  {changed(record(download, fine()), func(r *Record) { r.Paths.WrongDistance = 1 }), Harm, "1 of 2 destinations"},
		"something left":                    {changed(record(download, fine()), func(r *Record) { r.LeftBehind = []string{"a table"} }), Harm, "left behind: a table"},
		"nothing run":                       {changed(record(download), func(r *Record) { r.Pairs = nil }), NotTried, "0 of 0"},
	} {
		c.r.Judge()
		if c.r.Verdict != c.want {
			t.Errorf("%s: %v, want %v: %q, not tried %q", name, c.r.Verdict, c.want, c.r.Reasons, c.r.NotTried)
		}
		if said := strings.Join(c.r.Reasons, "\n"); !strings.Contains(said, c.says) || c.want == Harmless && said != "" {
			t.Errorf("%s: reasons %q, want %q", name, said, c.says)
		}
	}
}

func changed(r *Record, change func(*Record)) *Record {
	change(r)
	return r
}

// The line about a pair shows a try in which nothing was worse, and never says so of another.
func TestSummary(t *testing.T) {
	higher := with(func(t *Try) { t.Traced.Counters["Tcp.OutRsts"] = 1 })
	for name, c := range map[string]struct {
		r    *Record
		want string
	}{
		"one was well": {record(download, retransmits(1, 0), fine(), higher), "no counter differs; 3 tries"},
		"none was":     {record(download, retransmits(1, 0), higher), "a harmful counter is higher, not the same one each time; 2 tries"},
		"other twin":   {record(download, retransmits(0, 1)), "no harmful counter is higher"},
	} {
		if got := c.r.Pairs[0].summary(); !strings.HasSuffix(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// What a Tracer refused is said.
func TestRefused(t *testing.T) {
	r := record(datagrams, with(func(t *Try) { t.Traced.Probes, t.Traced.Refused = 0, "recverr" }))
	r.Judge()
	if want := "IPv4 datagrams: was not probed, refused: recverr"; !slices.Equal(r.NotTried, []string{want}) {
		t.Errorf("%q, want %q", r.NotTried, want)
	}
}

// Most of the pairs have to tell something.
func TestVerdictNeedsHalf(t *testing.T) {
	mute := with(func(t *Try) { t.Traced.Probes = 0 })
	for n, want := range map[int]Verdict{0: Harmless, 2: Harmless, 3: NotTried, 4: NotTried} {
		r := record(download)
		for i := range 4 {
			p := Pair{Family: "ipv6", Proto: "tcp", Traffic: download, Tries: []Try{fine()}}
			if i < n {
				p.Tries[0] = mute
			}
			r.Pairs = append(r.Pairs[:i:i], p)
		}
		r.Judge()
		if r.Verdict != want || len(r.NotTried) != n {
			t.Errorf("%d of 4 pairs not probed: %v, want %v; %q", n, r.Verdict, want, r.NotTried)
		}
	}
}

// Harm that comes and goes, in no pair each time, is seen in all of them together, unless
// untraced twins fare worse as well.
func TestVerdictOfAll(t *testing.T) {
	for _, c := range []struct {
		worse, better, busy int
		want                Verdict
	}{{6, 0, 0, Harmless}, {7, 0, 0, Harm}, {7, 1, 0, Harmless}, {10, 1, 0, Harm}, {0, 9, 0, Harmless}, {6, 0, 5, Harmless}} {
		r := record(download)
		r.Pairs = nil
		add := func(n int, tr Try) {
			for range n {
				r.Pairs = append(r.Pairs, Pair{Family: "ipv4", Proto: "tcp", Traffic: download, Tries: []Try{tr, fine()}})
			}
		}
		add(c.worse, retransmits(1, 0))
		add(c.better, retransmits(0, 1))
		add(c.busy, with(func(t *Try) { t.Busy = true; t.Traced.Counters["Tcp.RetransSegs"] = 1 }))
		r.Judge()
		if r.Verdict != c.want {
			t.Errorf("%+v: %v: %v", c, r.Verdict, r.Reasons)
		}
	}
	for _, c := range []struct {
		worse, better int
		want          float64
	}{{0, 0, 1}, {1, 0, 0.5}, {7, 0, 1.0 / 128}, {2, 1, 0.5}, {3, 1, 5.0 / 16}} {
		if got := chance(c.worse, c.better); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("chance(%d, %d) = %v, want %v", c.worse, c.better, got, c.want)
		}
	}
}

// A pair is run again while that can still change what is thought of it.
func TestUndecided(t *testing.T) {
	busy := with(func(t *Try) { t.Busy = true; t.Traced.Counters["Tcp.RetransSegs"] = 1 })
	lost := with(func(t *Try) { t.Traced.Intact = false })
	mute := with(func(t *Try) { t.Traced.Probes = 0 })
	once := retransmits(1, 0)
	for name, c := range map[string]struct {
		tries []Try
		want  bool
	}{
		"fine":                 {[]Try{fine()}, false},
		"a counter":            {[]Try{once}, true},
		"a counter, confirmed": {[]Try{once, once, once}, false},
		"a counter, not yet":   {[]Try{once, once}, true},
		"a counter, dismissed": {[]Try{once, fine()}, false},
		"another counter":      {[]Try{once, with(func(t *Try) { t.Traced.Counters["Tcp.OutRsts"] = 1 })}, false},
		"busy":                 {[]Try{busy}, true},
		"busy, then fine":      {[]Try{busy, fine()}, false},
		"busy too often":       {slices.Repeat([]Try{busy}, mostTries), false},
		"bytes lost":           {[]Try{lost}, false},
		"not probed":           {[]Try{mute}, true},
		"not probed again":     {[]Try{mute, mute}, false},
	} {
		p := Pair{Traffic: download, Tries: c.tries}
		if got := p.undecided(); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestExcess(t *testing.T) {
	for name, c := range map[string]struct {
		traced, untraced map[string]int64
		want             []string
	}{
		"none":              {nil, nil, nil},
		"equal":             {map[string]int64{"Tcp.OutRsts": 1}, map[string]int64{"Tcp.OutRsts": 1}, nil},
		"one more":          {map[string]int64{"Tcp.OutRsts": 2, "A": 1}, map[string]int64{"Tcp.OutRsts": 1}, []string{"A", "Tcp.OutRsts"}},
		"less":              {nil, map[string]int64{"Tcp.OutRsts": 1}, nil},
		"a tail-loss probe": {map[string]int64{"Tcp.RetransSegs": 1, tailLossProbes: 1}, nil, nil},
		"one beyond it":     {map[string]int64{"Tcp.RetransSegs": 2, tailLossProbes: 1}, nil, []string{"Tcp.RetransSegs"}},
		"a needless one":    {map[string]int64{"TcpExt.TCPDSACKRecv": 1, tailLossProbes: 1}, nil, nil},
		"one each, one of them the machine's": {
			map[string]int64{"Tcp.RetransSegs": 1, tailLossProbes: 1}, map[string]int64{tailLossProbes: 1}, nil,
		},
		"theirs hides none":     {map[string]int64{"Tcp.RetransSegs": 1}, map[string]int64{tailLossProbes: 1}, []string{"Tcp.RetransSegs"}},
		"answered after close":  {map[string]int64{"Icmp.InErrors": 1, "Icmp6.InErrors": 1}, nil, nil},
		"others are not spared": {map[string]int64{"TcpExt.TCPTimeouts": 1, tailLossProbes: 1}, nil, []string{"TcpExt.TCPTimeouts"}},
	} {
		if got := Excess(c.traced, c.untraced); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// The default touches every kind of flow over both families.
func TestPlan(t *testing.T) {
	kinds := map[string]bool{}
	for _, p := range (Config{}).withDefaults().plan {
		kinds[p.Family+" "+p.Traffic] = true
	}
	if len(kinds) != 10 {
		t.Errorf("%d kinds: %v", len(kinds), kinds)
	}
	quick := (Config{Quick: true}).withDefaults().plan
	if len(quick) != 3 || quick[0].Family == quick[1].Family {
		t.Errorf("quick: %+v", quick)
	}
	if n := len((Config{Pairs: 20}).withDefaults().plan); n != 22 {
		t.Errorf("20 pairs: %d", n)
	}
}
