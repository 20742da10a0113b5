package quic

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

func TestDecode(t *testing.T) {
	id := func(n int) []byte { return append([]byte{byte(n)}, make([]byte, n)...) }
	long := func(first byte, version uint32, parts ...[]byte) []byte {
		return append(be.AppendUint32([]byte{first}, version), bytes.Join(parts, nil)...)
	}
	rest := make([]byte, 24) // 23 of length 20 and more
	body := append([]byte{20}, rest[:23]...)
	tests := []struct {
		name   string
		packet []byte
		typ    Type
		err    error
		rest   int
	}{
		{"initial", long(0xc0, Version1, id(8), id(0), []byte{0}, body), Initial, nil, 3},
		{"0-RTT", long(0xd0, Version1, id(8), id(0), body), ZeroRTT, nil, 3},
		{"handshake", long(0xe0, Version1, id(8), id(20), body), Handshake, nil, 3},
		{"retry", long(0xf0, Version1, id(8), id(4), rest), Retry, nil, 0},
		{"initial, version 2", long(0xd0, Version2, id(8), id(0), []byte{0}, body), Initial, nil, 3},
		{"0-RTT, version 2", long(0xe0, Version2, id(8), id(0), body), ZeroRTT, nil, 3},
		{"handshake, version 2", long(0xf0, Version2, id(8), id(0), body), Handshake, nil, 3},
		{"retry, version 2", long(0xc0, Version2, id(8), id(4), rest), Retry, nil, 0},
		{"fixed bit 0", long(0x80, Version1, id(8), id(0), []byte{0}, body), Initial, nil, 3},
		{"version negotiation", long(0x80, negotiation, id(255), id(255), rest), VersionNegotiation, nil, 0},
		{"version negotiation, no version", long(0x80, negotiation, id(8), id(8)), 0, ErrMalformed, 0},
		{"version negotiation, odd", long(0x80, negotiation, id(8), id(8), rest[:5]), 0, ErrMalformed, 0},
		{"unknown version, long ids", long(0xc0, 0xff00001d, id(255), id(255), rest), Unknown, nil, 0},
		{"short header", rest, Short, nil, 0},
		{"id too long", long(0xc0, Version1, id(21), id(0), []byte{0}, body), 0, ErrMalformed, 0},
		{"other id too long", long(0xc0, Version1, id(8), id(21), []byte{0}, body), 0, ErrMalformed, 0},
		{"token cut", long(0xc0, Version1, id(8), id(0), []byte{0x7f, 0xff}, body), Initial, ErrTruncated, 0},
		{"length beyond the end", long(0xc0, Version1, id(8), id(0), []byte{0, 24}, rest[:23]), Initial, ErrTruncated, 0},
		{"too short to be unprotected", long(0xc0, Version1, id(8), id(0), []byte{0, 19}, rest), Initial, ErrMalformed, 0},
		{"retry cut", long(0xf0, Version1, id(8), id(4), rest[:15]), Retry, ErrTruncated, 0},
		{"nothing", nil, 0, ErrTruncated, 0},
		{"no version", []byte{0xc0, 0, 0, 0}, 0, ErrTruncated, 0},
		{"no ids", long(0xc0, Version1), 0, ErrTruncated, 0},
		{"one id", long(0xc0, Version1, id(8)), 0, ErrTruncated, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var p Packet
			rest, err := p.Decode(test.packet)
			if err != test.err || err == nil && p.Type != test.typ || len(rest) != test.rest {
				t.Errorf("%v, %v, %d bytes after it", p.Type, err, len(rest))
			}
		})
	}
}

func TestFrames(t *testing.T) {
	for _, test := range []struct {
		name    string
		payload []byte
		legal   bool
	}{
		{"padding", make([]byte, 100), true},
		{"ping", []byte{1}, true},
		{"acknowledgement", []byte{2, 0x40, 200, 0, 1, 3, 1, 2}, true},
		{"acknowledgement with ECN", []byte{3, 9, 0, 0, 0, 1, 2, 3, 1}, true},
		{"acknowledgement, range missing", []byte{2, 9, 0, 1, 3, 1}, false},
		{"acknowledgement, more ranges than bytes", []byte{2, 9, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0}, false},
		{"acknowledgement, ECN missing", []byte{3, 9, 0, 0, 0, 1, 2}, false},
		{"crypto", []byte{6, 0, 2, 'h', 'i'}, true},
		{"crypto cut", []byte{6, 0, 3, 'h', 'i'}, false},
		{"crypto without length", []byte{6, 0}, false},
		{"close", []byte{0x1c, 0x41, 0, 6, 2, 'n', 'o'}, true},
		{"close cut", []byte{0x1c, 0x41, 0, 6, 3, 'n', 'o'}, false},
		{"close by the application", []byte{0x1d, 0, 0}, false},
		{"stream", []byte{8, 0, 0}, false},
		{"type in two bytes", []byte{0x40, 1}, false},
		{"nothing", nil, false},
	} {
		if got := legal(test.payload); got != test.legal {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

func TestVarints(t *testing.T) { // RFC 9000 appendix A.1
	for _, test := range []struct {
		in   string
		want uint64
	}{
		{"\xc2\x19\x7c\x5e\xff\x14\xe8\x8c", 151288809941952652}, {"\x9d\x7f\x3e\x7d", 494878333}, {"\x7b\xbd", 15293}, {"\x25", 37}, {"\x40\x25", 37},
	} {
		if v, rest, ok := varint([]byte(test.in)); !ok || v != test.want || len(rest) > 0 {
			t.Errorf("%x: %d, %v", test.in, v, ok)
		}
		if _, _, ok := varint([]byte(test.in[1:])); ok && len(test.in) == 1 {
			t.Errorf("%x: cut", test.in)
		}
	}
}

// The pieces of a stream agree with a stream that is told byte by byte.
func TestStream(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		var s stream
		var have [600]bool
		var is [600]byte
		for range 100 {
			from := r.IntN(len(have))
			data := make([]byte, r.IntN(min(30, len(have)-from)+1))
			for i := range data {
				data[i] = byte(r.IntN(256)) // overlaps disagree: the first counts
			}
			pieces := s.n
			if !s.add(uint64(from), data) {
				if pieces < MaxFragments {
					t.Fatalf("refused with %d pieces", pieces)
				}
				continue
			}
			for i, c := range data {
				if !have[from+i] {
					have[from+i], is[from+i] = true, c
				}
			}
		}
		n := 0
		for n < len(have) && have[n] {
			n++
		}
		if !bytes.Equal(s.prefix(), is[:n]) {
			t.Fatalf("beginning of %d bytes, want %d", len(s.prefix()), n)
		}
		for i := 1; i < s.n; i++ {
			if s.spans[i-1].to >= s.spans[i].from {
				t.Fatalf("%v", s.spans[:s.n])
			}
		}
	}
}

func TestStreamBounds(t *testing.T) {
	var s stream
	for i := range MaxFragments {
		if !s.add(uint64(2*i+1), []byte{1}) {
			t.Fatalf("piece %d refused", i)
		}
	}
	if s.add(2*MaxFragments+1, []byte{1}) {
		t.Error("one piece too many")
	}
	if !s.add(0, []byte{1}) || !s.add(2, []byte{1}) || !s.add(2*MaxFragments+1, []byte{1}) {
		t.Error("no room after a gap was closed")
	}
	if !s.add(4, []byte{1}) || !s.add(MaxCrypto-1, []byte{1}) || len(s.buf) != MaxCrypto {
		t.Errorf("%d bytes", len(s.buf))
	}
	if s.add(MaxCrypto, []byte{1}) || s.add(1<<62-1, []byte{1}) || s.add(0, make([]byte, MaxCrypto+1)) {
		t.Error("beyond the bound")
	}
	if !s.add(MaxCrypto, nil) {
		t.Error("nothing at the bound is no harm")
	}
}
