package quic

import (
	"crypto/tls"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"servicetraceroute/internal/hello"
)

func FuzzPacket(f *testing.F) {
	for _, v := range vectors {
		f.Add(vectorOf(f, v.client))
		f.Add(vectorOf(f, v.server))
		f.Add(vectorOf(f, v.retry))
	}
	f.Add([]byte{0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Packet
		rest, err := p.Decode(b)
		if err != nil {
			return
		}
		if p.Type == 0 || len(p.Whole)+len(rest) != len(b) || len(p.Whole) == 0 {
			t.Errorf("%v, %d and %d of %d bytes", p.Type, len(p.Whole), len(rest), len(b))
		}
		if p.Type == Initial && p.Number+maxNumber+sampleSize > len(p.Whole) {
			t.Errorf("number at %d of %d", p.Number, len(p.Whole))
		}
	})
}

// Any datagrams, from both sides: no panic, all counted, and a good hello is read
// after them all the same.
func FuzzInitial(f *testing.F) {
	msg := clientHello(f, &tls.Config{ServerName: "a.example"})
	good := datagram(initial{keyID: []byte("good one"), payload: cryptoFrame(0, msg)}.seal())
	for _, v := range vectors {
		f.Add(vectorOf(f, v.client), vectorOf(f, v.retry))
	}
	f.Add(datagram(initial{payload: cryptoFrame(0, msg[:100])}.seal()), retryPacket(versionOf(1), firstID, nil, nil, []byte{1}))
	f.Add(datagram(initial{payload: cryptoFrame(16000, msg[:300])}.seal()), []byte{0x40})
	f.Fuzz(func(t *testing.T, client, server []byte) {
		c := newConn()
		for range 2 {
			c.Client(start, client)
			c.Server(server)
		}
		h, s := c.Client(start, good)
		if s != hello.Done || c.d.stats.Done != 1 {
			t.Errorf("%v, %+v", s, h)
		}
		if st := c.d.Stats(); st.Seen != st.Decrypted+st.Failed+st.Limited+st.Small {
			t.Errorf("%+v", st)
		}
	})
}

// Any payload of a packet that decrypts: a server could not be fooled by it either.
func FuzzFrames(f *testing.F) {
	msg := clientHello(f, &tls.Config{ServerName: "a.example"})
	f.Add(cryptoFrame(0, msg), cryptoFrame(100, msg[100:]))
	f.Add(append([]byte{frameACK, 9, 0, 1, 3, 1, 2, framePing, 0, 0}, cryptoFrame(3, msg[3:])...), cryptoFrame(0, msg[:5]))
	f.Add([]byte{frameClose, 0, 0, 0}, []byte{frameACKECN, 0, 0, 0, 0, 1, 1, 1})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		if len(first) > 60_000 || len(second) > 60_000 {
			return
		}
		c := newConn()
		for i, payload := range [][]byte{first, second} {
			h, s := c.Client(start, datagram(initial{payload: payload, number: int64(i)}.seal()))
			if s == hello.Done && h.Kind != hello.KindQUIC {
				t.Errorf("%+v", h)
			}
		}
		if c.crypto != nil && (c.crypto.n > MaxFragments || len(c.crypto.buf) > MaxCrypto) {
			t.Errorf("%d pieces, %d bytes", c.crypto.n, len(c.crypto.buf))
		}
	})
}

// However a good hello is cut, shuffled and spread, it says the same.
func FuzzPieces(f *testing.F) {
	msg := clientHello(f, &tls.Config{ServerName: "www.example.com", NextProtos: []string{"h3"}})
	f.Add(uint64(1), uint8(1))
	f.Add(uint64(2), uint8(7))
	f.Fuzz(func(t *testing.T, seed uint64, datagrams uint8) {
		c := newConn()
		var h hello.Hello
		var s hello.Status
		for _, d := range chaos(rand.New(rand.NewPCG(seed, 0)), msg, int(datagrams)%8+1) {
			h, s = c.Client(start, d)
		}
		want(t, h, s, hello.Done, "www.example.com")
		if !slices.Equal(h.ALPN, []string{"h3"}) {
			t.Errorf("%+v", h)
		}
	})
}

// What costs is bounded; the rest costs nothing that the collector has to look after.
func TestAllocations(t *testing.T) {
	msg := clientHello(t, &tls.Config{ServerName: "a.example"})
	junk := datagram(initial{payload: []byte{framePing}, dcid: []byte("not mine")}.seal())
	l := Limits{Rate: 1, Burst: 1, SourceRate: 1, SourceBurst: 1}
	spent := NewDecoder(l).NewConn(outside)
	spent.Client(start, junk)
	begun := newConn()
	begun.Client(start, datagram(initial{payload: cryptoFrame(0, msg[:500])}.seal()))
	again := datagram(initial{payload: cryptoFrame(0, msg[:500]), number: 1}.seal())
	known := newConn()
	known.Client(start, inOne(msg))
	for _, test := range []struct {
		name     string
		c        *Conn
		datagram []byte
	}{
		{"junk, allowance spent", spent, junk},
		{"junk in a datagram that is too small", newConn(), junk[:MinDatagram-1]},
		{"no QUIC", newConn(), make([]byte, 1300)},
		{"same connection", begun, again},
		{"hello known", known, inOne(msg)},
	} {
		if n := testing.AllocsPerRun(100, func() { test.c.Client(start, test.datagram) }); n != 0 {
			t.Errorf("%s: %v allocations", test.name, n)
		}
	}
}

func BenchmarkClient(b *testing.B) {
	msg := clientHello(b, &tls.Config{ServerName: "www.example.com", NextProtos: []string{"h3"}})
	chrome := chaos(rand.New(rand.NewPCG(1, 2)), msg, 2)
	junk := datagram(initial{payload: make([]byte, MinDatagram), dcid: []byte("not mine")}.seal())
	ample := Limits{Rate: 1e9, Burst: 1e9, SourceRate: 1e9, SourceBurst: 1e9}
	run := func(name string, l Limits, src func(int) netip.Addr, datagrams ...[]byte) {
		b.Run(name, func(b *testing.B) {
			d := NewDecoder(l)
			b.ReportAllocs()
			n, now := 0, start
			for b.Loop() {
				c := d.NewConn(src(n))
				for _, x := range datagrams {
					c.Client(now, x)
				}
				n++
				now = now.Add(10 * time.Microsecond) // 100,000 a second
			}
		})
	}
	run("hello in one datagram", ample, only(netip.Addr{}), inOne(msg))
	run("hello in many pieces", ample, only(netip.Addr{}), chrome...)
	run("junk without limit", ample, only(outside), junk)
	run("junk at 100000 a second", Limits{}, only(outside), junk)
	run("junk at 100000 a second, spoofed sources", Limits{}, spoofed, junk)
	run("junk that is too small", Limits{}, only(outside), junk[:MinDatagram-1])
	b.Run("packet of a known hello", func(b *testing.B) {
		c := newConn()
		c.Client(start, inOne(msg))
		b.ReportAllocs()
		for b.Loop() {
			c.Client(start, junk)
		}
	})
	b.Run("junk in a connection that began", func(b *testing.B) {
		c := NewDecoder(Limits{}).NewConn(outside)
		c.Client(start, datagram(initial{payload: cryptoFrame(0, msg[:500])}.seal()))
		for range 50 {
			c.Client(start, junk)
		}
		bad := slices.Clone(junk)
		bad[len(bad)-1] ^= 1
		b.ReportAllocs()
		for b.Loop() {
			c.Client(start, bad)
		}
	})
}

func BenchmarkKeys(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		clientKeys(&versions[0], firstID)
	}
}
