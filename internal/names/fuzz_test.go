package names

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// FuzzAnswer holds what is learned of any bytes against miekg/dns's reading of the
// whole message and the plainest way to follow its records.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []struct{ question, records string }{
		{"www.example. A", "www.example. 60 IN A 192.0.2.1"},
		{"www.example. AAAA", "www.example. 60 IN CNAME a.cdn.\na.cdn. 60 IN AAAA 2001:db8::1"},
		{"www.example. HTTPS", "www.example. 60 IN HTTPS 1 svc.cdn. alpn=h3 ipv4hint=192.0.2.1 ipv6hint=2001:db8::1\nadditional:\nsvc.cdn. 60 IN A 192.0.2.2"},
		{"_dns.example. SVCB", "_dns.example. 60 IN SVCB 0 dot.example."},
		{"www.example. A", "www.example. 60 IN CNAME www.example.\nwww.example. 60 IN TXT \"x\""},
		{`a\.b\001.example. A`, `a\.b\001.example. 60 IN A 0.0.0.0`},
	} {
		f.Add(reply(f, seed.question, seed.records, func(m *dns.Msg) { m.SetEdns0(1232, true) }))
		f.Add(reply(f, seed.question, seed.records, func(m *dns.Msg) { m.Truncated, m.Compress = true, false }))
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		c := New(Limits{})
		learned := c.Learn(start, msg)
		s := c.Stats()
		if learned != (s.Answers == 1) || s.Answers+s.Other+s.Malformed+s.RecordsDropped == 0 || s.AddressesDropped > 0 {
			t.Fatalf("learned %v, %+v", learned, s)
		}
		c.Query(start, client, server, msg)
		c.Answer(start, client, server, msg)

		var m dns.Msg
		whole := m.Unpack(msg) == nil && len(m.Question) == 1
		if !whole || m.Truncated || s.RecordsDropped > 0 {
			return // of these less or more is known
		}
		if s.Malformed > 0 && !lax(msg, &m) {
			t.Fatalf("malformed, but miekg/dns reads\n%v", &m)
		}
		if s.Malformed > 0 {
			return
		}
		want := plain(&m)
		if len(want) != c.Len() {
			t.Fatalf("%d addresses, want %v of\n%v", c.Len(), want, &m)
		}
		for _, addr := range want {
			found := c.Of(start, addr)
			if len(found) == 0 || found[0].Asked() != strings.TrimSuffix(strings.ToLower(m.Question[0].Name), ".") {
				t.Fatalf("%v is called %v in\n%v", addr, found, &m)
			}
		}
	})
}

// lax reports what miekg/dns lets pass: fewer records than the header says, a
// question that is cut or compressed, and records without data, as updates have
// them.
func lax(msg []byte, m *dns.Msg) bool {
	var q question
	return readQuestion(msg, &q) == malformed ||
		q.an+q.ns+q.ar != len(m.Answer)+len(m.Ns)+len(m.Extra) ||
		slices.ContainsFunc(slices.Concat(m.Answer, m.Extra), func(rr dns.RR) bool { return rr.Header().Rdlength == 0 })
}

// plain returns the addresses of a message.
func plain(m *dns.Msg) (found []netip.Addr) {
	q := m.Question[0]
	service := q.Qtype == dns.TypeHTTPS || q.Qtype == dns.TypeSVCB
	if !m.Response || m.Opcode != 0 || m.Rcode != 0 || q.Qclass != dns.ClassINET || q.Name == "." ||
		!service && q.Qtype != dns.TypeA && q.Qtype != dns.TypeAAAA {
		return nil
	}
	records := m.Answer
	if service {
		records = slices.Concat(m.Answer, m.Extra)
	}
	add := func(ips ...net.IP) {
		for _, ip := range ips {
			at, _ := netip.AddrFromSlice(ip)
			if at = at.Unmap(); at.IsValid() && !at.IsUnspecified() && !at.IsMulticast() && !slices.Contains(found, at) {
				found = append(found, at)
			}
		}
	}
	owned := func(name string, visit func(dns.RR)) {
		for _, rr := range records {
			if strings.EqualFold(rr.Header().Name, name) && rr.Header().Class == dns.ClassINET {
				visit(rr)
			}
		}
	}
	addresses := func(rr dns.RR) {
		switch rr := rr.(type) {
		case *dns.A:
			add(rr.A)
		case *dns.AAAA:
			add(rr.AAAA)
		}
	}
	seen := map[string]bool{}
	for name := q.Name; name != "." && !seen[strings.ToLower(name)]; {
		seen[strings.ToLower(name)] = true
		next := "."
		owned(name, func(rr dns.RR) {
			addresses(rr)
			var s *dns.SVCB
			switch rr := rr.(type) {
			case *dns.CNAME:
				if next == "." {
					next = rr.Target
				}
			case *dns.HTTPS:
				s = &rr.SVCB
			case *dns.SVCB:
				s = rr
			}
			if s == nil {
				return
			}
			if s.Target != "." {
				owned(s.Target, addresses)
			}
			for _, v := range s.Value {
				switch v := v.(type) {
				case *dns.SVCBIPv4Hint:
					if s.Priority != 0 {
						add(v.Hint...)
					}
				case *dns.SVCBIPv6Hint:
					if s.Priority != 0 {
						add(v.Hint...)
					}
				}
			}
		})
		name = next
	}
	return found
}

func BenchmarkAnswer(b *testing.B) {
	const question = "www.example. A"
	answer := reply(b, question, "www.example. 60 IN CNAME a.cdn.example.\na.cdn.example. 60 IN CNAME b.cdn.example.\n"+
		"b.cdn.example. 60 IN A 192.0.2.1\nb.cdn.example. 60 IN A 192.0.2.2\nb.cdn.example. 60 IN A 192.0.2.3\nb.cdn.example. 60 IN A 192.0.2.4")
	ask := pack(b, query(question))
	random := make([]byte, 512)
	for i := range random {
		random[i] = byte(i*i*7 + i)
	}
	lie := slices.Clone(answer)[:40]
	lie[7] = 255 // answers that are not there
	compressed := bomb(b)
	for _, bench := range []struct {
		name string
		run  func(*Cache)
	}{
		{"asked", func(c *Cache) { c.Query(start, client, server, ask); c.Answer(start, client, server, answer) }},
		{"trusted", func(c *Cache) { c.Learn(start, answer) }},
		{"junk/unasked", func(c *Cache) { c.Answer(start, server, client, answer) }},
		{"junk/random", func(c *Cache) { c.Answer(start, client, server, random) }},
		{"junk/overcounted", func(c *Cache) { c.Answer(start, client, server, lie) }},
		{"junk/other", func(c *Cache) { c.Answer(start, client, server, ask) }},
		{"worst/64KiB", func(c *Cache) { c.Learn(start, compressed) }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			c := New(Limits{})
			c.Query(start, client, server, ask)
			b.ReportAllocs()
			for b.Loop() {
				bench.run(c)
			}
		})
	}
}

// bomb is the costliest message that we could think of: as many HTTPS records as fit,
// each owned by a long name through a pointer of its own.
func bomb(b *testing.B) []byte {
	label := strings.Repeat("x", 60) + "."
	name := strings.Repeat(label, 4)
	msg := reply(b, name+" HTTPS", "")
	n := 0
	for ; len(msg)+2*17 < dns.MaxMsgSize; n++ {
		first := 12
		if n%2 == 1 {
			first += 61 // another owner, so that none is remembered
		}
		msg = append(msg, 0xC0, byte(first), 0, byte(dns.TypeHTTPS), 0, 1, 0, 0, 0, 60, 0, 5, 0, 1, 1, 'x', 0)
	}
	msg[6], msg[7] = byte(n>>8), byte(n)
	return msg
}

func BenchmarkOf(b *testing.B) {
	c := New(Limits{})
	c.Learn(start, reply(b, "www.example. A", "www.example. 60 IN A 192.0.2.1"))
	for name, addr := range map[string]string{"known": "192.0.2.1", "unknown": "192.0.2.2"} {
		at := netip.MustParseAddr(addr)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.Of(start, at)
			}
		})
	}
}
