package names

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var (
	client = netip.MustParseAddrPort("192.0.2.2:5000")
	server = netip.MustParseAddrPort("192.0.2.3:53")
)

func TestOnlyWhatWasAskedFor(t *testing.T) {
	const question, records = "www.example. A", "www.example. 60 IN A 192.0.2.1"
	elsewhere := netip.MustParseAddrPort("192.0.2.2:5001")
	for _, test := range []struct {
		name           string
		client, server netip.AddrPort
		question       string
		change         func(*dns.Msg)
		want           bool
	}{
		{"the answer", client, server, question, func(*dns.Msg) {}, true},
		{"in other letters", client, server, "wWw.eXAMPLE. A", func(*dns.Msg) {}, true},
		{"to another port", elsewhere, server, question, func(*dns.Msg) {}, false},
		{"from another server", client, elsewhere, question, func(*dns.Msg) {}, false},
		{"the wrong way", server, client, question, func(*dns.Msg) {}, false},
		{"another id", client, server, question, func(m *dns.Msg) { m.Id++ }, false},
		{"another type", client, server, "www.example. AAAA", func(*dns.Msg) {}, false},
		{"another name", client, server, "www.example2. A", func(*dns.Msg) {}, false},
	} {
		c := New(Limits{})
		c.Query(start, client, server, pack(t, query(question)))
		learned := c.Answer(start, test.client, test.server, reply(t, test.question, records, test.change))
		want := Stats{Queries: 1, Unasked: 1}
		if test.want {
			want = Stats{Queries: 1, Answers: 1}
		}
		if learned != test.want || c.Stats() != want {
			t.Errorf("%s: learned %v, %+v", test.name, learned, c.Stats())
		}
	}
}

// The client takes the first answer; so do we.
func TestFirstAnswerCounts(t *testing.T) {
	const question = "www.example. A"
	ask := pack(t, query(question))
	answer := func(last int) []byte {
		return reply(t, question, fmt.Sprintf("www.example. 60 IN A 192.0.2.%d", last))
	}
	fail := reply(t, question, "", func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure })

	c := New(Limits{})
	c.Query(start, client, server, ask)
	c.Query(start, client, server, ask) // seen twice
	cut := answer(8)
	c.Answer(start, client, server, cut[:len(cut)-1]) // no answer to the client either
	c.Answer(start, client, server, answer(1))
	c.Answer(start, client, server, answer(1)) // seen twice
	c.Answer(start, client, server, answer(9))
	if c.Len() != 1 || of(c, 0, "192.0.2.1") == "" || c.Stats() != (Stats{Queries: 2, Answers: 1, Repeated: 2, Malformed: 1}) {
		t.Errorf("%d addresses, %+v", c.Len(), c.Stats())
	}
	// An error is an answer too. Asked once more, the next one counts.
	c.Query(start, client, server, ask)
	c.Answer(start, client, server, fail)
	c.Answer(start, client, server, answer(9))
	if c.Len() != 1 {
		t.Error("an answer after the error is believed")
	}
	c.Query(start, client, server, ask)
	if !c.Answer(start, client, server, answer(2)) {
		t.Error("the answer to a repeated question is not believed")
	}
}

func TestNoQuestion(t *testing.T) {
	c := New(Limits{})
	other := []string{"www.example. MX", "www.example. ANY", ". A"}
	for _, question := range other {
		c.Query(start, client, server, pack(t, query(question)))
	}
	c.Query(start, client, server, reply(t, "www.example. A", ""))
	c.Query(start, client, server, nil)
	if c.Stats() != (Stats{Other: 4, Malformed: 1}) || len(c.asked.young.answered) > 0 {
		t.Errorf("%+v", c.Stats())
	}
}

func TestQueryLife(t *testing.T) {
	for _, test := range []struct {
		name       string
		began, ask time.Duration // an earlier question begins a generation
		late       time.Duration
		want       bool
	}{
		{"at once", 0, 0, 0, true},
		{"at the end of its life", 0, 0, QueryLife, true},
		{"asked late in a generation", 0, QueryLife - 1, 2*QueryLife - 1, true},
		{"two lives", 0, 0, 2 * QueryLife, false},
		{"much later", 0, 0, time.Hour, false},
		{"the clock went back", time.Hour, time.Hour, 0, true},
	} {
		c := New(Limits{})
		c.Query(after(test.began), client, server, pack(t, query("earlier.example. A")))
		c.Query(after(test.ask), client, server, pack(t, query("www.example. A")))
		got := c.Answer(after(test.late), client, server, reply(t, "www.example. A", "www.example. 60 IN A 192.0.2.1"))
		if got != test.want || c.Stats().QueriesDropped > 0 {
			t.Errorf("%s: %v, %+v", test.name, got, c.Stats())
		}
	}
}

func TestTooManyQueries(t *testing.T) {
	c := New(Limits{Queries: 10})
	ask := func(i int) {
		m := query("www.example. A")
		m.Id = uint16(i)
		c.Query(start, client, server, pack(t, m))
	}
	answer := func(i int) bool {
		return c.Answer(start, client, server, reply(t, "www.example. A", "www.example. 60 IN A 192.0.2.1", func(m *dns.Msg) { m.Id = uint16(i) }))
	}
	for i := range 10 {
		ask(i)
	}
	if c.Stats().QueriesDropped != 0 || !answer(0) || !answer(9) {
		t.Errorf("%+v", c.Stats())
	}
	ask(3) // again: it moves to the young ones, and the old ones go
	if c.Stats().QueriesDropped != 3 || !answer(3) || answer(4) || !answer(8) {
		t.Errorf("%+v", c.Stats())
	}
	for i := range 1000 {
		ask(i)
		if n := len(c.asked.young.answered) + len(c.asked.old.answered); n > 10 {
			t.Fatalf("%d questions", n)
		}
	}
}
