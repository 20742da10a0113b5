package quic

import (
	"bytes"
	"crypto/tls"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"servicetraceroute/internal/hello"
)

// chaos cuts a hello into pieces in disorder, some of them twice and overlapping,
// between PING and PADDING, and deals them out to packets and datagrams: as Chrome
// does, and worse.
func chaos(r *rand.Rand, msg []byte, datagrams int) [][]byte {
	var frames [][]byte
	for at := 0; at < len(msg); {
		n := min(len(msg)-at, 30+r.IntN(400))
		from := max(0, at-r.IntN(50))
		frames = append(frames, cryptoFrame(from, msg[from:at+n]))
		if r.IntN(4) == 0 {
			frames = append(frames, cryptoFrame(at, msg[at:at+n]))
		}
		at += n
	}
	r.Shuffle(len(frames), func(i, j int) { frames[i], frames[j] = frames[j], frames[i] })
	fill := [][]byte{{framePing}, make([]byte, 1+r.IntN(9)), {frameACK, 5, 0, 1, 1, 0, 1}, {frameACKECN, 5, 0, 0, 0, 1, 2, 3}, {frameClose, 0, 0, 1, 'x'}}
	var out [][]byte
	number := int64(r.IntN(200))
	for part := range slices.Chunk(frames, (len(frames)+datagrams-1)/datagrams) {
		var packets [][]byte
		for in := range slices.Chunk(part, 3) {
			var payload []byte
			for _, f := range in {
				payload = append(append(payload, fill[r.IntN(len(fill))]...), f...)
			}
			number += 1 + int64(r.IntN(3))
			packets = append(packets, initial{payload: payload, number: number, size: 2 + r.IntN(3), token: make([]byte, r.IntN(80)), scid: []byte("me")}.seal())
		}
		out = append(out, datagram(packets[:min(len(packets), maxInitials)]...))
		if len(packets) > maxInitials {
			out = append(out, datagram(packets[maxInitials:]...))
		}
	}
	r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func TestChaos(t *testing.T) {
	long := strings.Repeat(strings.Repeat("n", 49)+".", 5) + "xyz"
	r := rand.New(rand.NewPCG(1, 2))
	for _, name := range []string{"www.example.com", long} {
		msg := clientHello(t, &tls.Config{ServerName: name, NextProtos: []string{"h3"}})
		for range 200 {
			c := newConn()
			parts := chaos(r, msg, 1+r.IntN(4))
			for i, d := range parts {
				before := bytes.Clone(d)
				h, s := c.Client(start, d)
				if !bytes.Equal(d, before) {
					t.Fatal("the datagram was written to")
				}
				if s == hello.More && i < len(parts)-1 {
					want(t, h, s, hello.More, "")
					continue
				}
				want(t, h, s, hello.Done, name)
				if !slices.Equal(h.ALPN, []string{"h3"}) {
					t.Errorf("%+v", h)
				}
			}
			st := c.d.Stats()
			if st.Done != 1 || st.Failed+st.Limited+st.Small+st.Malformed+st.Dropped+st.Incomplete != 0 || st.Seen != st.Decrypted {
				t.Fatalf("%+v", st)
			}
		}
	}
}

// What a datagram by itself, to a new Conn, comes to.
func TestDatagrams(t *testing.T) {
	msg := clientHello(t, &tls.Config{ServerName: "a.example"})
	frame := cryptoFrame(0, msg)
	other := []byte("8 other.")
	damaged := inOne(msg)
	damaged[len(frame)/2] ^= 1
	small := initial{payload: frame}.seal()
	large := datagram(initial{payload: append(bytes.Clone(frame), make([]byte, MinDatagram)...)}.seal())
	tests := []struct {
		name     string
		datagram []byte
		status   hello.Status
		stats    Stats
	}{
		{"whole hello", large, hello.Done, Stats{Seen: 1, Decrypted: 1, Done: 1}},
		{"fixed bit not set (RFC 9287)", datagram(initial{payload: frame, first: 0x40}.seal()), hello.Done, Stats{Seen: 1, Decrypted: 1, Done: 1}},
		{"a token and long ids", datagram(initial{payload: frame, token: make([]byte, 300), keyID: make([]byte, 20), scid: make([]byte, 20)}.seal()), hello.Done,
			Stats{Seen: 1, Decrypted: 1, Done: 1}},
		{"half of it", datagram(initial{payload: cryptoFrame(0, msg[:len(msg)/2])}.seal()), hello.More, Stats{Seen: 1, Decrypted: 1}},
		{"the other half", datagram(initial{payload: cryptoFrame(100, msg[100:])}.seal()), hello.More, Stats{Seen: 1, Decrypted: 1}},
		{"coalesced", datagram(initial{payload: cryptoFrame(100, msg[100:])}.seal(), initial{payload: cryptoFrame(0, msg[:100]), number: 1}.seal()), hello.Done,
			Stats{Seen: 2, Decrypted: 2, Done: 1}},
		{"0-RTT before", datagram(longPacket(1, firstID), initial{payload: frame}.seal()), hello.Done, Stats{Seen: 1, Decrypted: 1, Done: 1}},
		{"0-RTT alone", longPacket(1, firstID), hello.More, Stats{}},
		{"second to another id", datagram(longPacket(1, other), initial{payload: frame}.seal()), hello.More, Stats{}},
		{"damaged", damaged, hello.More, Stats{Seen: 1, Failed: 1}},
		{"other keys", datagram(initial{payload: frame, dcid: other}.seal()), hello.More, Stats{Seen: 1, Failed: 1}},
		{"other keys, twice in a datagram", datagram(initial{payload: frame, dcid: other}.seal(), initial{payload: frame, dcid: other}.seal()), hello.More,
			Stats{Seen: 2, Failed: 2}},
		{"id that is too short", datagram(initial{payload: frame, keyID: firstID[:7]}.seal()), hello.Not, Stats{Seen: 1, Failed: 1}},
		{"ping alone", datagram(initial{payload: []byte{framePing}}.seal()), hello.More, Stats{Seen: 1, Decrypted: 1}},
		{"frame that does not belong", datagram(initial{payload: append(bytes.Clone(frame), 8, 0)}.seal()), hello.More, Stats{Seen: 1, Decrypted: 1, Malformed: 1}},
		{"no hello", datagram(initial{payload: cryptoFrame(0, []byte{2, 0, 0, 1, 0})}.seal()), hello.Not, Stats{Seen: 1, Decrypted: 1, Malformed: 1}},
		{"beyond the bound", datagram(initial{payload: cryptoFrame(MaxCrypto-1, []byte{1, 2})}.seal()), hello.More, Stats{Seen: 1, Decrypted: 1, Dropped: 1}},
		{"less than a client may send", small[:min(len(small), MinDatagram-1)], hello.Not, Stats{}},
		{"reserved version", append([]byte{0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 0, 0}, make([]byte, 1200)...), hello.More, Stats{}},
		{"version that is not read", append([]byte{0xc0, 'Q', '0', '4', '6', 0, 0}, make([]byte, 1200)...), hello.Not, Stats{}},
		{"short header", append([]byte{0x40}, make([]byte, 1300)...), hello.Not, Stats{}},
		{"DNS", []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01"), hello.Not, Stats{}},
		{"nothing", nil, hello.Not, Stats{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := newConn()
			h, s := c.Client(start, test.datagram)
			if s != test.status || s == hello.Done && h.Name != "a.example" || s != hello.Done && !reflect.DeepEqual(h, hello.Hello{}) {
				t.Errorf("%v, %+v", s, h)
			}
			if st := c.d.Stats(); st != test.stats {
				t.Errorf("%+v\nwant %+v", st, test.stats)
			}
		})
	}
}

// longPacket is a packet of another type than Initial, of version 1.
func longPacket(typ byte, dcid []byte) []byte {
	b := []byte{0xc0 | typ<<4, 0, 0, 0, 1, byte(len(dcid))}
	b = append(append(b, dcid...), 0)
	return append(appendVarint(b, 30), make([]byte, 30)...)
}

func TestSmallDatagram(t *testing.T) {
	msg := clientHello(t, &tls.Config{ServerName: "a.example", CurvePreferences: []tls.CurveID{tls.X25519}})
	packet := initial{payload: cryptoFrame(0, msg)}.seal()
	if len(packet) >= MinDatagram {
		t.Fatalf("%d bytes", len(packet))
	}
	c := newConn()
	for _, extra := range []int{0, MinDatagram - 1 - len(packet)} {
		h, s := c.Client(start, append(bytes.Clone(packet), make([]byte, extra)...))
		want(t, h, s, hello.Not, "")
	}
	h, s := c.Client(start, datagram(packet))
	want(t, h, s, hello.Done, "a.example")
	if st := c.d.Stats(); st.Small != 2 || st.Seen != 3 {
		t.Errorf("%+v", st)
	}
}

// The server chooses another id for the client to use; the keys stay.
func TestIDChangesKeysStay(t *testing.T) {
	msg := clientHello(t, &tls.Config{ServerName: "a.example"})
	c := newConn()
	h, s := c.Client(start, datagram(initial{payload: cryptoFrame(0, msg[:300])}.seal()))
	want(t, h, s, hello.More, "")
	for _, dcid := range [][]byte{[]byte("server's"), {}, {1, 2, 3}} {
		h, s = c.Client(start, datagram(initial{dcid: dcid, payload: []byte{frameACK, 0, 0, 0, 0}, number: 1}.seal()))
		want(t, h, s, hello.More, "")
	}
	h, s = c.Client(start, datagram(initial{dcid: []byte("server's"), payload: cryptoFrame(300, msg[300:]), number: 2}.seal()))
	want(t, h, s, hello.Done, "a.example")
	if st := c.d.Stats(); st.Decrypted != 5 || st.Failed != 0 {
		t.Errorf("%+v", st)
	}
}

// What anybody can send in the client's name changes nothing, before and between.
func TestJunkChangesNothing(t *testing.T) {
	msg := clientHello(t, &tls.Config{ServerName: "a.example"})
	junk := [][]byte{
		datagram(initial{payload: cryptoFrame(0, []byte{9, 9, 9}), keyID: []byte("another.."), dcid: []byte("not mine")}.seal()),
		datagram(initial{payload: cryptoFrame(0, []byte{9, 9, 9}), keyID: []byte("not mine"), dcid: firstID}.seal()),
		datagram(initial{payload: cryptoFrame(0, []byte{9, 9, 9}), keyID: []byte{1}}.seal()),
		append([]byte{0x40}, make([]byte, 1300)...), {}, make([]byte, 2000), bytes.Repeat([]byte{0xff}, 1300),
		append([]byte{0xc0, 0, 0, 0, 1, 8}, bytes.Repeat([]byte{0xff}, 1300)...),
	}
	c := newConn()
	for i, part := range [][]byte{cryptoFrame(0, msg[:200]), cryptoFrame(400, msg[400:]), cryptoFrame(200, msg[200:400])} {
		for _, j := range junk {
			if _, s := c.Client(start, j); s == hello.Done {
				t.Fatal("done by junk")
			}
			c.Server(j)
		}
		h, s := c.Client(start, datagram(initial{payload: part, number: int64(i)}.seal()))
		if i < 2 {
			want(t, h, s, hello.More, "")
			continue
		}
		want(t, h, s, hello.Done, "a.example")
	}
	// Nor after it is known.
	for _, j := range junk {
		h, s := c.Client(start, j)
		want(t, h, s, hello.Done, "a.example")
	}
	if st := c.d.Stats(); st.Incomplete != 0 || st.Decrypted != 3 {
		t.Errorf("%+v", st)
	}
}

func TestRetry(t *testing.T) {
	msg := clientHello(t, &tls.Config{ServerName: "a.example"})
	me, short, long := []byte("me"), []byte{1, 2, 3, 4}, []byte("server's id")
	v1 := versionOf(Version1)
	good := func(scid []byte) []byte { return retryPacket(v1, firstID, me, scid, []byte("token")) }
	badTag := good(short)
	badTag[len(badTag)-1] ^= 1
	for _, test := range []struct {
		name    string
		server  []byte
		scid    []byte // what the client uses then
		retries uint64
		done    bool
	}{
		{"short id", good(short), short, 1, true},
		{"no id", good(nil), nil, 1, true},
		{"long id", good(long), long, 1, true},
		{"long id, Retry not seen", nil, long, 0, true},
		{"short id, Retry not seen", nil, short, 0, false},
		{"tag wrong", badTag, short, 0, false},
		{"tag for another id", retryPacket(v1, []byte("not mine"), me, short, []byte("token")), short, 0, false},
		{"to another client", retryPacket(v1, firstID, []byte("you"), short, []byte("token")), short, 0, false},
		{"no token", retryPacket(v1, firstID, me, short, nil), short, 0, false},
		{"of another version", retryPacket(versionOf(Version2), firstID, me, short, []byte("token")), short, 0, false},
		{"naming another id", good([]byte("xx")), short, 1, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newConn()
			h, s := c.Client(start, datagram(initial{payload: cryptoFrame(0, msg[:500]), scid: me}.seal()))
			want(t, h, s, hello.More, "")
			c.Server(test.server)
			c.Server(retryPacket(v1, firstID, me, []byte("second"), []byte("token"))) // the client heeds one only
			scid := append([]byte{}, test.scid...)
			for at, part := range [][]byte{msg[:700], msg[700:]} {
				h, s = c.Client(start, datagram(initial{keyID: scid, scid: me, token: []byte("token"), payload: cryptoFrame(at*700, part), number: int64(1 + at)}.seal()))
			}
			if test.done {
				want(t, h, s, hello.Done, "a.example")
			} else {
				want(t, h, s, hello.More, "")
			}
			st := c.d.Stats()
			if test.server == nil || test.retries == 0 {
				// The second Retry was the first that was right.
				st.Retries--
			}
			if st.Retries != test.retries {
				t.Errorf("%+v", st)
			}
		})
	}
	// Before the client's Initial was seen nobody can tell whether a Retry is right.
	c := newConn()
	c.Server(good(short))
	if st := c.d.Stats(); st.Retries != 0 {
		t.Errorf("%+v", st)
	}
}

// The same ports serve a second connection while the first's hello is not whole.
func TestAnotherConnection(t *testing.T) {
	msg := clientHello(t, &tls.Config{ServerName: "a.example"})
	for _, version := range []uint32{Version1, Version2} {
		c := newConn()
		c.Client(start, datagram(initial{payload: cryptoFrame(0, msg[:500]), number: 70000, size: 3}.seal()))
		second := []byte("the second")
		if version == Version2 { // as after Version Negotiation, which lets the id stay
			second = firstID
			c.Server(append(append([]byte{0x80, 0, 0, 0, 0, 0, 8}, firstID...), 0x6b, 0x33, 0x43, 0xcf))
		}
		h, s := c.Client(start, datagram(initial{version: version, keyID: second, payload: cryptoFrame(500, msg[500:])}.seal()))
		want(t, h, s, hello.More, "")
		h, s = c.Client(start, datagram(initial{version: version, keyID: second, payload: cryptoFrame(0, msg[:500]), number: 1}.seal()))
		want(t, h, s, hello.Done, "a.example")
		if st := c.d.Stats(); st.Incomplete != 1 || st.Done != 1 {
			t.Errorf("%+v", st)
		}
	}
}

func TestClose(t *testing.T) {
	msg := clientHello(t, &tls.Config{ServerName: "a.example"})
	c := newConn()
	c.Close() // nothing was begun
	if st := c.d.Stats(); st.Incomplete != 0 {
		t.Errorf("%+v", st)
	}
	c.Client(start, datagram(initial{payload: cryptoFrame(0, msg[:500])}.seal()))
	c.Close()
	h, s := c.Client(start, datagram(initial{payload: cryptoFrame(500, msg[500:])}.seal()))
	want(t, h, s, hello.More, "")
	h, s = c.Client(start, inOne(msg))
	want(t, h, s, hello.Done, "a.example")
	c.Close()
	h, s = c.Client(start, nil)
	want(t, h, s, hello.Done, "a.example")
	if st := c.d.Stats(); st.Incomplete != 1 {
		t.Errorf("%+v", st)
	}
}

// A datagram of nothing but tiny Initials costs no more than a few decryptions.
func TestManyInitialsInADatagram(t *testing.T) {
	c := newConn()
	one := initial{payload: []byte{framePing}, dcid: []byte("not mine")}.seal()
	c.Client(start, bytes.Repeat(one, 1000))
	if st := c.d.Stats(); st.Seen != maxInitials || st.Failed != maxInitials || st.Dropped != 1 {
		t.Errorf("%+v", st)
	}
}

// Junk beyond the allowance is not decrypted, and neither is what is good; the
// others have theirs.
func TestAllowance(t *testing.T) {
	msg := clientHello(t, &tls.Config{ServerName: "a.example"})
	junk := datagram(initial{payload: []byte{framePing}, dcid: []byte("not mine")}.seal())
	d := NewDecoder(Limits{})
	for range 1000 {
		d.NewConn(outside).Client(start, junk)
	}
	if st := d.Stats(); st.Failed != 40 || st.Limited != 960 {
		t.Errorf("%+v", st)
	}
	good := inOne(msg)
	h, s := d.NewConn(outside).Client(start, good)
	want(t, h, s, hello.More, "")
	for _, src := range []netip.Addr{outside.Next(), {}} {
		h, s = d.NewConn(src).Client(start, good)
		want(t, h, s, hello.Done, "a.example")
	}
	// Keys that are there need no allowance.
	c := d.NewConn(outside.Next())
	c.Client(start, datagram(initial{payload: cryptoFrame(0, msg[:500])}.seal()))
	for range 50 {
		d.NewConn(outside.Next()).Client(start, junk)
	}
	h, s = c.Client(start, datagram(initial{payload: cryptoFrame(500, msg[500:]), number: 1}.seal()))
	want(t, h, s, hello.Done, "a.example")
}
