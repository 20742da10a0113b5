package probe

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

func udpProbe(t *testing.T, v6, damaged bool, n uint64) (*Table, *Sent, []byte) {
	t.Helper()
	f := &flow.Flow{Key: trace.FlowKey{
		Proto: trace.UDP, Src: netip.MustParseAddrPort("192.0.2.1:40000"), Dst: netip.MustParseAddrPort("203.0.113.7:443"),
	}, UDP: &flow.UDP{}}
	if v6 {
		f.Key.Src, f.Key.Dst = netip.MustParseAddrPort("[2001:db8::1]:40000"), netip.MustParseAddrPort("[2001:db8::7]:443")
	}
	f.UDP.Newest = flow.Template{TOS: 0xb9, FlowLabel: 0x12345, Valid: true}
	s := &Sent{TTL: 3, Damaged: damaged}
	CraftUDP(s, f, 3, rand.New(rand.NewPCG(n, 1)))
	s.ID = uint16(1000 + n)
	b := s.AppendTo(nil)
	s.Len = len(b)
	table := NewTable()
	table.Add(time.Unix(0, 0), s, time.Second)
	return table, s, b
}

func quoted(t *testing.T, b []byte) *wire.Quote {
	t.Helper()
	var q wire.Quote
	if err := q.Decode(b); err != nil {
		t.Fatal(err)
	}
	return &q
}

func TestMatchUDP(t *testing.T) {
	for _, damaged := range []bool{false, true} {
		testMatchUDP(t, damaged)
	}
}

func testMatchUDP(t *testing.T, damaged bool) {
	table, s, b := udpProbe(t, false, damaged, 1)
	fix := func(change func(*wire.UDPProbe)) []byte {
		u := s.datagram(nil)
		change(&u)
		return u.AppendTo(nil)
	}
	set := func(at int, v byte) []byte {
		c := append([]byte(nil), b...)
		c[at] = v
		return c
	}
	translated := fix(func(u *wire.UDPProbe) { u.Src = netip.MustParseAddrPort("100.64.0.9:61000") })
	otherID := fix(func(u *wire.UDPProbe) { u.ID = 7 })
	for name, test := range map[string]struct {
		quote []byte
		want  bool
	}{
		"whole":                          {b, true},
		"28 bytes":                       {b[:28], true},
		"translated, whole":              {translated, true},
		"translated, 28 bytes":           {translated[:28], true},
		"swapped ID, 28 bytes":           {fix(func(u *wire.UDPProbe) { u.ID = swap16(u.ID) })[:28], true},
		"another ID, whole":              {otherID, true},
		"another ID, 28 bytes":           {otherID[:28], false},
		"half of the nonce":              {b[:32], true}, // then the checksum tells
		"another nonce":                  {set(30, b[30]+1), false},
		"another checksum, 28 bytes":     {set(27, b[27]+1)[:28], false},
		"another destination":            {fix(func(u *wire.UDPProbe) { u.Dst = netip.MustParseAddrPort("203.0.113.8:443") }), false},
		"another port":                   {fix(func(u *wire.UDPProbe) { u.Dst = netip.AddrPortFrom(u.Dst.Addr(), 444) }), false},
		"longer: the application's":      {fix(func(u *wire.UDPProbe) { u.Payload = append(u.Payload, 1) }), false},
		"source translated, not its sum": {func() []byte { c := append([]byte(nil), b[:28]...); c[12] = 100; return c }(), false},
		"IP header alone":                {b[:20], false},
	} {
		got, v := table.Match(quoted(t, test.quote))
		if (got == s && v == Exact) != test.want || got == nil != (v == NoMatch) {
			t.Errorf("%s, damaged %t: %v, verdict %d", name, damaged, got, v)
		}
	}
	table.Expire(time.Unix(10, 0))
	if got, _ := table.Match(quoted(t, b)); got != nil || table.Len() != 0 || table.IDs() != 0 {
		t.Errorf("forgotten, and found: %v", got)
	}
}

func TestMatchUDP6(t *testing.T) {
	for _, damaged := range []bool{false, true} {
		table, s, b := udpProbe(t, true, damaged, 2)
		if got, v := table.Match(quoted(t, b)); got != s || v != Exact {
			t.Errorf("%v %d", got, v)
		}
		if got, _ := table.Match(quoted(t, b[:48])); got != nil {
			t.Error("believed without its nonce: nothing in 48 bytes is random but 16 bits")
		}
		if d := s.Differences(quoted(t, b)); d != (Differences{}) {
			t.Errorf("%+v", d)
		}
	}
}

// A TCP probe with the same identification is not taken for a datagram.
func TestMatchUDPAmongTCP(t *testing.T) {
	table, s, b := udpProbe(t, false, false, 3)
	tcp := &Sent{TCPProbe: s.TCPProbe}
	table.Add(time.Unix(0, 0), tcp, time.Second)
	if got, _ := table.Match(quoted(t, b[:28])); got != nil {
		t.Errorf("%+v", got)
	}
}

func TestOwnUDP(t *testing.T) {
	for _, damaged := range []bool{false, true} {
		testOwnUDP(t, damaged)
	}
}

func testOwnUDP(t *testing.T, damaged bool) {
	table, s, b := udpProbe(t, false, damaged, 4)
	own := func(b []byte) (*Sent, bool) {
		var ip wire.Packet
		var u wire.UDP
		if ip.Decode(b, len(b)) != nil || u.Decode(ip.Transport, ip.TransportLen) != nil {
			t.Fatal("malformed")
		}
		return table.OwnUDP(&ip, &u)
	}
	if got, forwarded := own(b); got != s || forwarded {
		t.Errorf("%v %v", got, forwarded)
	}
	u := s.datagram(nil)
	u.Src = netip.MustParseAddrPort("100.64.0.9:61000")
	if got, forwarded := own(u.AppendTo(nil)); got != s || !forwarded {
		t.Errorf("translated: %v %v", got, forwarded)
	}
	u.Payload = []byte{5, 1, 2, 3, 4, 5, 6, 7, 8}
	if got, _ := own(u.AppendTo(nil)); got != nil {
		t.Errorf("somebody else's: %v", got)
	}
}

// A captured probe is read as what it was sent as, so that quotes of it match.
func TestSeenUDP(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, damaged := range []bool{false, true} {
			_, s, b := udpProbe(t, v6, damaged, 5)
			var ip wire.Packet
			var u wire.UDP
			if ip.Decode(b, len(b)) != nil || u.Decode(ip.Transport, ip.TransportLen) != nil {
				t.Fatal("malformed")
			}
			if got, ok := SeenUDP(&ip, &u); !ok || got.Damaged != damaged || string(got.AppendTo(nil)) != string(s.AppendTo(nil)) {
				t.Errorf("%+v", got)
			}
		}
	}
}
