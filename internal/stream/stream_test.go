package stream

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
)

// segment is what a packet carries: text at an offset from the first byte.
type segment struct {
	at   int
	text string
}

func TestOrder(t *testing.T) {
	for _, test := range []struct {
		name     string
		segments []segment
		want     string
		held     int
	}{
		{"in order", []segment{{0, "abc"}, {3, "def"}}, "abcdef", 6},
		{"an empty one", []segment{{0, ""}, {0, "abc"}}, "abc", 3},
		{"swapped", []segment{{3, "def"}, {0, "abc"}}, "abcdef", 6},
		{"the first is missing", []segment{{3, "def"}}, "", 3},
		{"repeated", []segment{{0, "abc"}, {0, "abc"}, {3, "def"}, {0, "abcdef"}}, "abcdef", 6},
		{"a repetition that goes on", []segment{{0, "abc"}, {1, "bcdef"}}, "abcdef", 6},
		{"two islands, joined by a third", []segment{{1, "b"}, {5, "f"}, {2, "cde"}, {0, "a"}}, "abcdef", 6},
		{"over two islands", []segment{{1, "b"}, {4, "e"}, {0, "abcdef"}}, "abcdef", 6},
		{"behind a gap over two islands", []segment{{2, "c"}, {4, "e"}, {1, "bcdef"}}, "", 5},
		{"and then the gap is filled", []segment{{2, "c"}, {4, "e"}, {1, "bcdef"}, {0, "a"}}, "abcdef", 6},
		{"before the first byte", []segment{{-3, "xyz"}, {0, "abc"}}, "abc", 3},
		{"across the first byte", []segment{{-3, "xyzab"}}, "ab", 2},
		{"of two versions the first counts", []segment{{0, "abc"}, {0, "xyzdef"}}, "abcdef", 6},
		{"also behind a gap", []segment{{2, "cd"}, {1, "xyzw"}, {0, "a"}}, "axcdw", 5},
		{"also when the gap is filled", []segment{{2, "cd"}, {0, "vwxyz"}}, "vwcdz", 5},
	} {
		for _, first := range []uint32{0, 1 << 31, 1<<32 - 4} { // the numbers wrap in the last
			s := New(100)
			s.Start(first)
			for _, seg := range test.segments {
				s.Add(first+uint32(seg.at), []byte(seg.text))
			}
			if got := string(s.Bytes()); got != test.want || s.Held() != test.held || s.Stopped() {
				t.Errorf("%s, from %d: %q, %d held, stopped %v", test.name, first, got, s.Held(), s.Stopped())
			}
		}
	}
}

func TestWithoutStart(t *testing.T) {
	s := New(100)
	s.Add(1000, []byte("abc"))
	s.Start(5) // too late
	s.Add(1003, []byte("def"))
	if got := string(s.Bytes()); got != "abcdef" {
		t.Errorf("%q", got)
	}
}

func TestSkip(t *testing.T) {
	s := New(8)
	for i := range uint32(100) {
		s.Add(i*5, []byte("abcde"))
		s.Skip(3)
		if got := string(s.Bytes()); got != "de" || s.Stopped() {
			t.Fatalf("%d: %q, stopped %v", i, got, s.Stopped())
		}
		s.Skip(-1)
		s.Skip(1000)
		if s.Held() != 0 {
			t.Fatal("skipped bytes are held")
		}
	}
}

func TestLimit(t *testing.T) {
	for _, test := range []struct {
		name     string
		limit    int
		segments []segment
		want     string
		stopped  bool
	}{
		{"exactly full", 6, []segment{{0, "abc"}, {3, "def"}}, "abcdef", false},
		{"a repetition needs no room", 6, []segment{{0, "abcdef"}, {0, "abcdef"}}, "abcdef", false},
		{"one too many: what fits is there", 6, []segment{{0, "abc"}, {3, "defg"}}, "abcdef", true},
		{"one big segment", 4, []segment{{0, "abcdef"}}, "abcd", true},
		{"nothing after it stopped", 4, []segment{{2, "cdef"}, {0, "ab"}}, "", true},
		{"an island that fits", 6, []segment{{5, "f"}, {0, "abcde"}}, "abcdef", false},
		{"an island too far away", 6, []segment{{0, "a"}, {6, "g"}}, "a", true},
		{"far, far away", 6, []segment{{0, "a"}, {1 << 30, "g"}}, "a", true},
		{"the other half of the numbers is the past", 6, []segment{{0, "a"}, {-1<<31 + 1, "x"}}, "a", false},
		{"no limit is no room", 0, []segment{{0, "a"}}, "", true},
		{"nor is a negative one", -1, []segment{{0, "a"}}, "", true},
	} {
		s := New(test.limit)
		s.Start(0)
		for _, seg := range test.segments {
			s.Add(uint32(seg.at), []byte(seg.text))
		}
		if got := string(s.Bytes()); got != test.want || s.Stopped() != test.stopped || s.Held() > max(test.limit, 0) {
			t.Errorf("%s: %q, %d held, stopped %v", test.name, got, s.Held(), s.Stopped())
		}
	}
}

func TestTooManyIslands(t *testing.T) {
	s := New(1000)
	s.Start(0)
	for i := range uint32(maxPieces) {
		s.Add(2*i+1, []byte("x"))
	}
	if s.Stopped() || s.Held() != maxPieces {
		t.Fatalf("%d held, stopped %v", s.Held(), s.Stopped())
	}
	s.Add(500, []byte("x"))
	if !s.Stopped() || s.Held() != 0 {
		t.Errorf("%d held, stopped %v", s.Held(), s.Stopped())
	}
	// One lost segment before many makes one island.
	s = New(1000)
	s.Start(0)
	for i := range uint32(2 * maxPieces) {
		s.Add(i+1, []byte("x"))
	}
	s.Add(0, []byte("x"))
	if s.Stopped() || len(s.Bytes()) != 2*maxPieces+1 {
		t.Errorf("%d in order, stopped %v", len(s.Bytes()), s.Stopped())
	}
}

func TestZeroValue(t *testing.T) {
	var s Stream
	s.Skip(1)
	s.Add(7, []byte("x"))
	if !s.Stopped() || s.Held() != 0 {
		t.Errorf("%d held, stopped %v", s.Held(), s.Stopped())
	}
}

// An Add into room that is there allocates nothing; the buffer stays below the limit.
func TestCapacity(t *testing.T) {
	s := New(1000)
	data := []byte(strings.Repeat("x", 100))
	for i := range uint32(10) {
		s.Add(i*100, data)
	}
	if cap(s.buf) > 1000 {
		t.Errorf("a buffer of %d bytes for a limit of 1000", cap(s.buf))
	}
	seq := uint32(1000)
	if n := testing.AllocsPerRun(100, func() {
		s.Skip(100)
		s.Add(seq, data)
		seq += 100
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzStream cuts a true stream into segments of which some overlap, repeat, are
// swapped or lost, and checks after each that what came out is a prefix of it.
func FuzzStream(f *testing.F) {
	f.Add(uint32(0), uint16(100), []byte{0, 10, 10, 10, 5, 20})
	f.Add(uint32(1<<32-20), uint16(64), []byte{30, 10, 20, 11, 0, 21, 40, 255})
	f.Add(uint32(7), uint16(9), []byte{200, 1, 0, 1, 1, 30})
	f.Fuzz(func(t *testing.T, first uint32, limit uint16, cuts []byte) {
		random := rand.New(rand.NewPCG(1, 2))
		sent := make([]byte, 1024)
		for i := range sent {
			sent[i] = byte(random.Uint32())
		}
		s := New(int(limit))
		s.Start(first)
		skipped, contiguous := 0, 0
		var seen [1024]bool
		for ; len(cuts) >= 2; cuts = cuts[2:] {
			from := int(cuts[0]) * 4
			to := min(from+int(cuts[1]), len(sent))
			s.Add(first+uint32(from), sent[from:to])
			for i := from; i < to; i++ {
				seen[i] = true
			}
			for contiguous < len(seen) && seen[contiguous] {
				contiguous++
			}
			got := s.Bytes()
			if !bytes.HasPrefix(sent[skipped:], got) {
				t.Fatal("not what was sent")
			}
			if s.Held() > int(limit) || len(s.pieces) > maxPieces {
				t.Fatalf("%d bytes held with a limit of %d, in %d pieces", s.Held(), limit, len(s.pieces))
			}
			if !s.Stopped() && skipped+len(got) != contiguous {
				t.Fatalf("%d bytes in order of %d that came", skipped+len(got), contiguous)
			}
			if cuts[1]%4 == 0 {
				skipped += len(got) / 2
				s.Skip(len(got) / 2)
			}
		}
	})
}

func BenchmarkAdd(b *testing.B) {
	data := make([]byte, 1400)
	for b.Loop() {
		s := New(1 << 16)
		s.Add(1400, data)
		s.Add(0, data)
	}
}
