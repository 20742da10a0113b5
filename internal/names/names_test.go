package names

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func after(d time.Duration) time.Time { return start.Add(d) }

// reply packs an answer to a question like "www.example. A" with records in zone
// file form; those below a line "additional:" go there.
func reply(t testing.TB, question string, records string, change ...func(*dns.Msg)) []byte {
	t.Helper()
	m := query(question)
	m.Response, m.RecursionAvailable, m.Compress = true, true, true
	section := &m.Answer
	for line := range strings.Lines(records) {
		if line = strings.TrimSpace(line); line == "additional:" {
			section = &m.Extra
		} else if line != "" {
			rr, err := dns.NewRR(line)
			if err != nil {
				t.Fatal(err)
			}
			*section = append(*section, rr)
		}
	}
	for _, f := range change {
		f(m)
	}
	return pack(t, m)
}

func query(question string) *dns.Msg {
	m, space := new(dns.Msg), strings.LastIndex(question, " ")
	m.SetQuestion(question[:space], dns.StringToType[question[space+1:]])
	m.Id = 4242
	return m
}

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	msg, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// say writes an address's names as "asked>next>last +asked2".
func say(found []Name) string {
	var all []string
	for _, n := range found {
		text := strings.Join(n.Chain, ">")
		if n.Joined {
			text = "+" + text
		}
		all = append(all, text)
	}
	return strings.Join(all, " ")
}

func of(c *Cache, at time.Duration, addr string) string {
	return say(c.Of(after(at), netip.MustParseAddr(addr)))
}

func TestAnswers(t *testing.T) {
	for _, test := range []struct {
		name, question, records string
		addr, want              string
	}{
		{"A", "www.example. A", "www.example. 60 IN A 192.0.2.1", "192.0.2.1", "www.example"},
		{"AAAA", "www.example. AAAA", "www.example. 60 IN AAAA 2001:db8::1", "2001:db8::1", "www.example"},
		{"AAAA of an IPv4 address", "www.example. AAAA", "www.example. 60 IN AAAA ::ffff:192.0.2.1", "192.0.2.1", "www.example"},
		{"asked by its IPv4-mapped form", "www.example. A", "www.example. 60 IN A 192.0.2.1", "::ffff:192.0.2.1", "www.example"},
		{"all addresses", "www.example. A", "www.example. 60 IN A 192.0.2.1\nwww.example. 60 IN A 192.0.2.2", "192.0.2.2", "www.example"},
		{"another address", "www.example. A", "www.example. 60 IN A 192.0.2.1", "192.0.2.9", ""},
		{"without case", "wWw.Example. A", "WWW.eXample. 60 IN A 192.0.2.1", "192.0.2.1", "www.example"},
		{"a chain", "www.example. A", "www.example. 60 IN CNAME a.cdn.\na.cdn. 60 IN CNAME b.cdn.\nb.cdn. 60 IN A 192.0.2.1", "192.0.2.1", "www.example>a.cdn>b.cdn"},
		{"a chain in any order", "www.example. A", "b.cdn. 60 IN A 192.0.2.1\na.cdn. 60 IN CNAME B.cdn.\nwww.example. 60 IN CNAME a.cdn.", "192.0.2.1", "www.example>a.cdn>b.cdn"},
		{"a chain that leads nowhere", "www.example. A", "www.example. 60 IN CNAME a.cdn.\nb.cdn. 60 IN A 192.0.2.1", "192.0.2.1", ""},
		{"a chain that leads back", "www.example. A", "www.example. 60 IN CNAME a.cdn.\na.cdn. 60 IN CNAME www.example.\na.cdn. 60 IN A 192.0.2.1", "192.0.2.1", "www.example>a.cdn"},
		{"DNAME", "www.example. A", "example. 60 IN DNAME other.\nwww.example. 60 IN CNAME www.other.\nwww.other. 60 IN A 192.0.2.1", "192.0.2.1", "www.example>www.other"},
		{"a name nobody asked for", "www.example. A", "www.bank. 60 IN A 192.0.2.1", "192.0.2.1", ""},
		{"nor the additional section of one", "www.example. A", "www.example. 60 IN A 192.0.2.2\nadditional:\nwww.example. 60 IN A 192.0.2.1", "192.0.2.1", ""},
		{"signatures between", "www.example. A", "www.example. 60 IN RRSIG A 13 2 60 20300101000000 20200101000000 1 example. c2lnbmVk\nwww.example. 60 IN A 192.0.2.1", "192.0.2.1", "www.example"},
		{"another class", "www.example. A", "www.example. 60 CH A 192.0.2.1", "192.0.2.1", ""},
		{"blocked", "ads.example. A", "ads.example. 60 IN A 0.0.0.0", "0.0.0.0", ""},
		{"multicast", "m.example. A", "m.example. 60 IN A 224.0.0.5", "224.0.0.5", ""},
		{"an answer to MX", "example. MX", "example. 60 IN A 192.0.2.1", "192.0.2.1", ""},
		{"an answer to ANY", "example. ANY", "example. 60 IN A 192.0.2.1", "192.0.2.1", ""},
		{"the root", ". A", ". 60 IN A 192.0.2.1", "192.0.2.1", ""},
		{"odd labels", `a\.b\ \195\188\"._x.example. A`, `a\.b\ \195\188\"._X.example. 60 IN A 192.0.2.1`, "192.0.2.1", `a\.b\ \195\188\"._x.example`},
		{"another script", "XN--bcher-KVA.example. A", "xn--bcher-kva.example. 60 IN A 192.0.2.1", "192.0.2.1", "xn--bcher-kva.example"},
		{"HTTPS, IPv4 hint", "www.example. HTTPS", `www.example. 60 IN HTTPS 1 . alpn="h3,h2" ipv4hint=192.0.2.1,192.0.2.2 ipv6hint=2001:db8::1`, "192.0.2.2", "www.example"},
		{"HTTPS, IPv6 hint", "www.example. HTTPS", `www.example. 60 IN HTTPS 1 . alpn="h3,h2" ipv4hint=192.0.2.1 ipv6hint=2001:db8::1`, "2001:db8::1", "www.example"},
		{"HTTPS with a target", "www.example. HTTPS", "www.example. 60 IN HTTPS 1 svc.cdn. ipv4hint=192.0.2.1", "192.0.2.1", "www.example>svc.cdn"},
		{"HTTPS behind a CNAME", "www.example. HTTPS", "www.example. 60 IN CNAME a.cdn.\na.cdn. 60 IN HTTPS 1 . ipv4hint=192.0.2.1", "192.0.2.1", "www.example>a.cdn"},
		{"HTTPS with its target's addresses", "www.example. HTTPS", "www.example. 60 IN HTTPS 1 svc.cdn.\nadditional:\nsvc.cdn. 60 IN A 192.0.2.1", "192.0.2.1", "www.example>svc.cdn"},
		{"an alias with its target's addresses", "www.example. HTTPS", "www.example. 60 IN HTTPS 0 svc.cdn.\nadditional:\nsvc.cdn. 60 IN AAAA 2001:db8::1", "2001:db8::1", "www.example>svc.cdn"},
		{"addresses of no target", "www.example. HTTPS", "www.example. 60 IN HTTPS 1 svc.cdn.\nadditional:\nwww.bank. 60 IN A 192.0.2.1", "192.0.2.1", ""},
		{"an alias has no hints", "www.example. HTTPS", "www.example. 60 IN HTTPS 0 svc.cdn. ipv4hint=192.0.2.1", "192.0.2.1", ""},
		{"an alias to nowhere", "www.example. HTTPS", "www.example. 60 IN HTTPS 0 .", "192.0.2.1", ""},
		{"SVCB", "_dns.example. SVCB", "_dns.example. 60 IN SVCB 1 dot.example. port=853 ipv4hint=192.0.2.1", "192.0.2.1", "_dns.example>dot.example"},
		{"HTTPS on another port", "_8443._https.example. HTTPS", "_8443._https.example. 60 IN HTTPS 1 . ipv4hint=192.0.2.1", "192.0.2.1", "_8443._https.example"},
	} {
		for _, compress := range []bool{true, false} {
			msg := reply(t, test.question, test.records, func(m *dns.Msg) { m.Compress = compress; m.SetEdns0(1232, true) })
			c := New(Limits{})
			learned := c.Learn(start, msg)
			if got := of(c, 0, test.addr); got != test.want || learned != (c.Stats().Answers == 1) || c.Stats().Malformed > 0 {
				t.Errorf("%s: %q, learned %v, %+v", test.name, got, learned, c.Stats())
			}
			// Two taps see it twice, the client's query is seen as well.
			before := c.Stats()
			c.Learn(start, msg)
			c.Learn(start, pack(t, query(test.question)))
			if got := of(c, 0, test.addr); got != test.want || c.Stats().NamesDropped != before.NamesDropped {
				t.Errorf("%s, seen twice: %q", test.name, got)
			}
		}
	}
}

func TestNoAnswers(t *testing.T) {
	const question, records = "www.example. A", "www.example. 60 IN A 192.0.2.1"
	for _, test := range []struct {
		name   string
		change func(*dns.Msg)
		want   Stats
	}{
		{"an answer", func(*dns.Msg) {}, Stats{Answers: 1}},
		{"a query", func(m *dns.Msg) { m.Response = false }, Stats{Other: 1}},
		{"no such name", func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }, Stats{Other: 1}},
		{"an extended error", func(m *dns.Msg) { m.SetEdns0(1232, false); m.Rcode = dns.RcodeBadVers }, Stats{Other: 1}},
		{"no records", func(m *dns.Msg) { m.Answer = nil }, Stats{Other: 1}},
		{"a notification", func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, Stats{Other: 1}},
		{"no question", func(m *dns.Msg) { m.Question = nil }, Stats{Other: 1}},
		{"two questions", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, Stats{Other: 1}},
		{"a question of another class", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, Stats{Other: 1}},
		{"truncated, and something is there", func(m *dns.Msg) { m.Truncated = true }, Stats{Answers: 1}},
		{"truncated to nothing", func(m *dns.Msg) { m.Truncated, m.Answer = true, nil }, Stats{Other: 1}},
	} {
		c := New(Limits{})
		learned := c.Learn(start, reply(t, question, records, test.change))
		if got := c.Stats(); got != test.want || learned != (test.want.Answers > 0) {
			t.Errorf("%s: learned %v, %+v", test.name, learned, got)
		}
	}
}

// Wherever a message is cut it is not believed, unless it says itself that it was.
func TestCut(t *testing.T) {
	records := "www.example. 60 IN A 192.0.2.1\nwww.example. 60 IN A 192.0.2.2"
	whole := reply(t, "www.example. A", records)
	truncated := reply(t, "www.example. A", records, func(m *dns.Msg) { m.Truncated = true })
	for n := range whole {
		c := New(Limits{})
		if c.Learn(start, whole[:n]) || c.Stats() != (Stats{Malformed: 1}) {
			t.Errorf("%d bytes: %+v", n, c.Stats())
		}
		c = New(Limits{})
		c.Learn(start, truncated[:n])
		want := ""
		if n >= len(whole)-16 { // an address without the other
			want = "www.example"
		}
		if got := of(c, 0, "192.0.2.1"); got != want {
			t.Errorf("%d bytes, truncated: %q", n, got)
		}
	}
	c := New(Limits{})
	if c.Learn(start, make([]byte, dns.MaxMsgSize+1)) || c.Stats().Malformed != 1 {
		t.Error("a message too long for DNS")
	}
}

func TestTimeToLive(t *testing.T) {
	for _, test := range []struct {
		name, records string
		last          time.Duration
	}{
		{"its own", "www.example. 60 IN A 192.0.2.1", time.Minute + Grace},
		{"none", "www.example. 0 IN A 192.0.2.1", Grace},
		{"the chain's least", "www.example. 5 IN CNAME a.cdn.\na.cdn. 60 IN A 192.0.2.1", 5*time.Second + Grace},
		{"the longest believed", "www.example. 2147483647 IN A 192.0.2.1", 7*24*time.Hour + Grace},
		{"negative", "www.example. 2147483648 IN A 192.0.2.1", Grace},
	} {
		c := New(Limits{})
		c.Learn(start, reply(t, "www.example. A", test.records))
		if of(c, test.last, "192.0.2.1") == "" {
			t.Errorf("%s: over too early", test.name)
		}
		if of(c, test.last+1, "192.0.2.1") != "" || c.Len() != 0 {
			t.Errorf("%s: not over", test.name)
		}
	}
}

func TestSeveralNames(t *testing.T) {
	c := New(Limits{})
	learn := func(at time.Duration, question, records string) {
		t.Helper()
		if !c.Learn(after(at), reply(t, question, records)) {
			t.Fatal("nothing learned")
		}
	}
	want := func(at time.Duration, names string) {
		t.Helper()
		if got := of(c, at, "192.0.2.1"); got != names {
			t.Errorf("at %v: %q, want %q", at, got, names)
		}
	}
	learn(0, "a.example. A", "a.example. 60 IN CNAME x.cdn.\nx.cdn. 60 IN A 192.0.2.1")
	learn(1, "b.example. A", "b.example. 600 IN CNAME x.cdn.\nx.cdn. 600 IN A 192.0.2.1")
	want(2, "a.example>x.cdn b.example>x.cdn")
	// Of one that says less the chain stays; of another chain both do.
	learn(3, "a.example. HTTPS", "a.example. 60 IN HTTPS 1 . ipv4hint=192.0.2.1")
	want(4, "b.example>x.cdn a.example>x.cdn")
	learn(5, "a.example. A", "a.example. 60 IN CNAME y.cdn.\ny.cdn. 60 IN A 192.0.2.1")
	want(6, "b.example>x.cdn a.example>x.cdn a.example>y.cdn")
	want(Grace+2*time.Minute, "b.example>x.cdn")
	// An answer renews.
	learn(Grace+5*time.Minute, "b.example. A", "b.example. 600 IN CNAME x.cdn.\nx.cdn. 600 IN A 192.0.2.1")
	want(Grace+15*time.Minute, "b.example>x.cdn")
	if s := c.Stats(); s.NamesDropped+s.AddressesDropped > 0 {
		t.Errorf("%+v", s)
	}
}

// The target of an HTTPS record is asked for by a question of its own.
func TestTargets(t *testing.T) {
	const (
		https = "www.example. 60 IN HTTPS 1 svc.cdn. alpn=h3"
		alias = "example. 60 IN HTTPS 0 www.example."
		a     = "svc.cdn. 60 IN CNAME pool.cdn.\npool.cdn. 60 IN A 192.0.2.1"
	)
	type step struct{ question, records string }
	for _, test := range []struct {
		name  string
		steps []step
		want  string
	}{
		{"the record first", []step{{"www.example. HTTPS", https}, {"svc.cdn. A", a}}, "svc.cdn>pool.cdn +www.example>svc.cdn>pool.cdn"},
		{"the address first", []step{{"svc.cdn. A", a}, {"www.example. HTTPS", https}}, "svc.cdn>pool.cdn +www.example>svc.cdn>pool.cdn"},
		{"two steps", []step{{"www.example. HTTPS", https}, {"example. HTTPS", alias}, {"svc.cdn. A", a}},
			"svc.cdn>pool.cdn +www.example>svc.cdn>pool.cdn +example>www.example>svc.cdn>pool.cdn"},
		{"a loop", []step{{"svc.cdn. HTTPS", "svc.cdn. 60 IN HTTPS 1 www.example."}, {"www.example. HTTPS", https}, {"svc.cdn. A", a}}, "svc.cdn>pool.cdn +www.example>svc.cdn>pool.cdn"},
		{"the hint said it", []step{{"www.example. HTTPS", https + " ipv4hint=192.0.2.1"}, {"svc.cdn. A", "svc.cdn. 60 IN A 192.0.2.1"}}, "www.example>svc.cdn svc.cdn"},
		{"the name itself has the address too", []step{{"www.example. HTTPS", https}, {"www.example. A", "www.example. 60 IN A 192.0.2.1"}, {"svc.cdn. A", a}}, "+www.example>svc.cdn>pool.cdn svc.cdn>pool.cdn"},
		{"the owner behind a CNAME", []step{{"www.example. HTTPS", "www.example. 60 IN CNAME svc.cdn.\nsvc.cdn. 60 IN HTTPS 1 . alpn=h2"}, {"svc.cdn. A", a}}, "svc.cdn>pool.cdn +www.example>svc.cdn>pool.cdn"},
		{"another target", []step{{"www.example. HTTPS", "www.example. 60 IN HTTPS 1 svc2.cdn."}, {"svc.cdn. A", a}}, "svc.cdn>pool.cdn"},
	} {
		c := New(Limits{})
		for _, s := range test.steps {
			if !c.Learn(start, reply(t, s.question, s.records)) {
				t.Errorf("%s: nothing learned of %s", test.name, s.question)
			}
		}
		if got := of(c, 0, "192.0.2.1"); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
		if got := of(c, Grace+time.Minute+1, "192.0.2.1"); got != "" {
			t.Errorf("%s: %q after its time", test.name, got)
		}
	}
	// A target forgotten leads nowhere, and an address asked anew is found by one remembered.
	c := New(Limits{})
	c.Learn(start, reply(t, "www.example. HTTPS", https))
	c.Learn(after(Grace+time.Minute), reply(t, "svc.cdn. A", a))
	if got := of(c, Grace+time.Minute, "192.0.2.1"); got != "svc.cdn>pool.cdn +www.example>svc.cdn>pool.cdn" {
		t.Errorf("at the last moment: %q", got)
	}
	if got := of(c, Grace+time.Minute+1, "192.0.2.1"); got != "svc.cdn>pool.cdn" {
		t.Errorf("after it: %q", got)
	}
}

func TestLimits(t *testing.T) {
	c := New(Limits{Addresses: 3, Names: 2})
	learn := func(at time.Duration, name, addr string) {
		c.Learn(after(at), reply(t, name+" A", name+" 60 IN A "+addr))
	}
	for i := range 3 {
		learn(0, fmt.Sprintf("n%d.example.", i), "192.0.2.1")
	}
	if got := of(c, 0, "192.0.2.1"); got != "n1.example n2.example" || c.Stats().NamesDropped != 1 {
		t.Errorf("%q, %+v", got, c.Stats())
	}
	learn(1, "a.example.", "192.0.2.2")
	learn(2, "b.example.", "192.0.2.3")
	of(c, 3, "192.0.2.1") // used
	learn(4, "c.example.", "192.0.2.4")
	if of(c, 5, "192.0.2.1") == "" || of(c, 5, "192.0.2.2") != "" || c.Len() != 3 || c.Stats().AddressesDropped != 1 {
		t.Errorf("%d addresses, %+v", c.Len(), c.Stats())
	}
	// What is over makes room without loss.
	learn(time.Hour, "d.example.", "192.0.2.5")
	if c.Len() != 3 || c.Stats().AddressesDropped != 1 {
		t.Errorf("%d addresses, %+v", c.Len(), c.Stats())
	}

	c = New(Limits{Bytes: 100_000})
	for i := range 5000 {
		learn(0, fmt.Sprintf("%s%d.example.", strings.Repeat("long.", 30), i), netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String())
	}
	if c.addrs.bytes > 100_000 || c.Len() < 200 || c.Stats().AddressesDropped != uint64(5000-c.Len()) {
		t.Errorf("%d addresses in %d bytes, %+v", c.Len(), c.addrs.bytes, c.Stats())
	}
}

func TestLimitsOfAnAnswer(t *testing.T) {
	var b strings.Builder
	for i := range maxAddrs + 10 {
		fmt.Fprintf(&b, "many.example. 60 IN A 10.0.%d.%d\n", i/256, i%256)
	}
	c := New(Limits{})
	c.Learn(start, reply(t, "many.example. A", b.String()))
	if c.Len() != maxAddrs || c.Stats().RecordsDropped != 10 {
		t.Errorf("%d addresses, %+v", c.Len(), c.Stats())
	}

	b.Reset()
	for i := range maxChain + 1 {
		fmt.Fprintf(&b, "c%d.example. 60 IN CNAME c%d.example.\n", i, i+1)
	}
	fmt.Fprintf(&b, "c%d.example. 60 IN A 192.0.2.1\nc%d.example. 60 IN A 192.0.2.2", maxChain, maxChain-1)
	c = New(Limits{})
	c.Learn(start, reply(t, "c0.example. A", b.String()))
	if of(c, 0, "192.0.2.1") != "" || of(c, 0, "192.0.2.2") == "" || c.Stats().RecordsDropped != 1 {
		t.Errorf("%+v", c.Stats())
	}

	b.Reset()
	for i := range maxServices + 5 {
		fmt.Fprintf(&b, "s.example. 60 IN HTTPS %d s%d.example. ipv4hint=192.0.2.%d\n", i+1, i, i+1)
	}
	c = New(Limits{})
	c.Learn(start, reply(t, "s.example. HTTPS", b.String()))
	if c.Len() != maxServices || c.Stats().RecordsDropped != 5 {
		t.Errorf("%d addresses, %+v", c.Len(), c.Stats())
	}

	long := strings.Repeat(`\000`, 63) + "." + strings.Repeat(`\000`, 20) + "."
	c = New(Limits{})
	if c.Learn(start, reply(t, long+" A", long+" 60 IN A 192.0.2.1")) || c.Stats().RecordsDropped != 1 {
		t.Errorf("a name of escapes: %+v", c.Stats())
	}
}

func TestJoinedLimit(t *testing.T) {
	c := New(Limits{Names: 100})
	for i := range 2 * maxJoined {
		c.Learn(start, reply(t, fmt.Sprintf("n%d.example. HTTPS", i), fmt.Sprintf("n%d.example. 60 IN HTTPS 1 svc.cdn.", i)))
	}
	c.Learn(start, reply(t, "svc.cdn. A", "svc.cdn. 60 IN A 192.0.2.1"))
	dropped := c.Stats().NamesDropped
	if got := c.Of(start, netip.MustParseAddr("192.0.2.1")); len(got) != maxJoined || c.Stats().NamesDropped != dropped+1 {
		t.Errorf("%d names, %+v", len(got), c.Stats())
	}
}

func TestExpire(t *testing.T) {
	c := New(Limits{})
	for i := range 1000 {
		ttl := 60
		if i%10 == 0 {
			ttl = 86400
		}
		c.Learn(start, reply(t, "www.example. A", fmt.Sprintf("www.example. %d IN A 10.0.%d.%d", ttl, i/256, i%256)))
		c.Learn(start, reply(t, "www.example. HTTPS", fmt.Sprintf("www.example. %d IN HTTPS 1 t%d.example.", ttl, i)))
	}
	for i := range 20 {
		c.Expire(after(time.Hour))
		of(c, time.Hour, fmt.Sprintf("10.0.0.%d", 10*i)) // moves the live ones about
	}
	if c.Len() != 100 || len(c.targets.pages) != 100 || c.addrs.bytes != 100*(pageCost+nameCost+stringCost+len("www.example")) {
		t.Errorf("%d addresses, %d targets, %d bytes", c.Len(), len(c.targets.pages), c.addrs.bytes)
	}
	for range 10 {
		c.Expire(after(48 * time.Hour))
	}
	if c.Len() != 0 || len(c.targets.pages) != 0 || c.addrs.bytes != 0 || c.addrs.oldest != nil || c.addrs.newest != nil {
		t.Errorf("%d addresses, %d targets, %d bytes", c.Len(), len(c.targets.pages), c.addrs.bytes)
	}
	if c.Stats().AddressesDropped != 0 {
		t.Errorf("%+v", c.Stats())
	}
}

func TestNoAllocations(t *testing.T) {
	c := New(Limits{})
	c.Learn(start, reply(t, "www.example. A", "www.example. 60 IN A 192.0.2.1"))
	c.Learn(start, reply(t, "www.example. HTTPS", "www.example. 60 IN HTTPS 1 svc.cdn."))
	known, unknown := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::7")
	answer, ask := reply(t, "www.example. A", "www.example. 60 IN A 192.0.2.1"), pack(t, query("www.example. A"))
	junk := slices.Concat(make([]byte, 12), answer)
	c.Query(start, client, server, ask)
	for name, f := range map[string]func(){
		"known":   func() { c.Of(start, known) },
		"unknown": func() { c.Of(start, unknown) },
		"unasked": func() { c.Answer(start, server, client, answer) },
		"query":   func() { c.Query(start, client, server, ask) },
		"junk":    func() { c.Answer(start, client, server, junk) },
	} {
		f()
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
