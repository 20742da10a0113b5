//go:build linux

package link

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"

	"servicetraceroute/internal/lab/tap"
)

// Packets between 10.0.0.1 and 10.0.0.2, and fd09::1 and fd09::2: an ACK of A with
// sequence number 1000; B's ACK of 2000 with SACK blocks 3000-4448 and, packed
// tightly so that it begins at an odd place, the same.
const (
	ack4  = "45000034a1b240004006848f0a0000010a000002" + "9c4001bb000003e8000007d0801001f6142a0000" + "0101080a0000006400000032"
	sack4 = "45000034a1b240004006848f0a0000020a000001" + "01bb9c40000003e8000007d0801001f600000000" + "0101050a00000bb800001160"
	odd4  = "45000034a1b240004006848f0a0000020a000001" + "01bb9c40000003e8000007d0801001f600000000" + "01050a00000bb80000116000"
	syn6  = "600fd4e5001c0640fd090000000000000000000000000001fd090000000000000000000000000002" +
		"9c4101bb000003e8000000007002fde800000000" + "0204058c0101080a"
	rst4 = "4500002800004000400600000a0000020a000001" + "01bb9c40000003e80000000050040000" + "00000000"
)

// packet is one of these with the right checksum of TCP.
func packet(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	tap.FinishChecksum(b)
	return b
}

// sum16 is the Internet checksum of what it is given, 0 if that holds a right one.
func sum16(parts ...[]byte) uint16 {
	sum := uint32(0)
	for _, b := range parts {
		for i, v := range b {
			if i%2 == 0 {
				sum += uint32(v) << 8
			} else {
				sum += uint32(v)
			}
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// timeExceeded is a router's error about a packet, followed by more, with an RFC
// 4884 length if there is more.
func timeExceeded(quoted, more []byte) []byte {
	src, dst := netip.MustParseAddr("10.0.9.9").AsSlice(), quoted[12:16]
	b := []byte{0x45, 0xc0, 0, 0, 0, 7, 0, 0, 63, tap.ICMP, 0, 0}
	icmp := []byte{11, 0, 0, 0, 0, byte(len(more) / 4), 0, 0}
	if quoted[0]>>4 == 6 {
		src, dst = netip.MustParseAddr("fd09::99").AsSlice(), quoted[8:24]
		b = []byte{0x60, 0, 0, 0, 0, 0, tap.ICMPv6, 63}
		icmp[0] = 3
	}
	b = append(append(b, src...), dst...)
	icmp = append(append(icmp, quoted...), more...)
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(icmp)))
		binary.BigEndian.PutUint16(b[10:], sum16(b))
		binary.BigEndian.PutUint16(icmp[2:], sum16(icmp))
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(len(icmp)))
		binary.BigEndian.PutUint16(icmp[2:], sum16(src, dst, binary.BigEndian.AppendUint32(nil, uint32(len(icmp))), []byte{0, tap.ICMPv6}, icmp))
	}
	return append(b, icmp...)
}

// right verifies a packet's checksums, those of a whole quote included.
func right(t *testing.T, b []byte) {
	t.Helper()
	h, ok := tap.Parse(b)
	if !ok || h.Len != len(b) {
		t.Fatalf("not a packet of %d bytes: %x", len(b), b)
	}
	if b[0]>>4 == 4 && sum16(b[:20]) != 0 {
		t.Errorf("the IPv4 header's checksum is wrong: %x", b[:20])
	}
	pseudo := append(h.Src.AsSlice(), h.Dst.AsSlice()...)
	pseudo = append(binary.BigEndian.AppendUint16(pseudo, uint16(len(h.Transport))), 0, h.Proto)
	if h.Proto == tap.ICMP {
		pseudo = nil
	}
	if sum16(pseudo, h.Transport) != 0 {
		t.Errorf("the transport's checksum is wrong: %x", b)
	}
	if q, _, _, ok := h.Quote(); ok && q.Whole {
		size := 20
		if q.Src.Is6() {
			size = 40
		}
		right(t, h.Transport[8:8+size+len(q.Transport)])
	}
}

// ipRight gives an IPv4 packet the right checksum of its header.
func ipRight(b []byte) []byte {
	if b[0]>>4 == 4 {
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], sum16(b[:20]))
	}
	return b
}

const (
	shifted   = 0xfedcba98
	unshifted = 1<<32 - shifted
)

func TestShift(t *testing.T) {
	number := func(b []byte, at int) uint32 { return binary.BigEndian.Uint32(b[at:]) }
	for _, c := range []struct {
		name, text string
		back       bool
		want       map[int]uint32 // by place: how much more
	}{
		{"A to B", ack4, false, map[int]uint32{24: shifted}},
		{"A to B, IPv6", syn6, false, map[int]uint32{44: shifted}},
		{"B to A", sack4, true, map[int]uint32{28: unshifted, 44: unshifted, 48: unshifted}},
		{"B to A, options at odd places", odd4, true, map[int]uint32{28: unshifted, 43: unshifted, 47: unshifted}},
		{"B to A without ACK", rst4, true, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			was := ipRight(packet(t, c.text))
			is := bytes.Clone(was)
			cfg := Config{SeqShift: shifted}
			if n := cfg.rewrite(is, c.back); n != len(was) {
				t.Errorf("%d bytes of %d", n, len(was))
			}
			right(t, is)
			want := bytes.Clone(was)
			for at, more := range c.want {
				binary.BigEndian.PutUint32(want[at:], number(was, at)+more)
			}
			tap.FinishChecksum(want)
			if !bytes.Equal(is, want) {
				t.Errorf("got  %x\nwant %x", is, want)
			}
			// The other way's change takes it back where both have the same fields.
			if cfg.SeqShift = -cfg.SeqShift; cfg.rewrite(is, c.back) != len(was) || !bytes.Equal(is, was) {
				t.Errorf("not taken back: %x", is)
			}
		})
	}
}

// A wrong checksum is not healed: the receiver must still find it.
func TestWrongStaysWrong(t *testing.T) {
	b := packet(t, ack4)
	b[36] ^= 0x55
	cfg := Config{SeqShift: shifted}
	cfg.rewrite(b, false)
	is := bytes.Clone(b)
	if tap.FinishChecksum(b); bytes.Equal(is, b) {
		t.Error("the checksum became right")
	}
}

func TestQuotes(t *testing.T) {
	for _, text := range []string{ack4, syn6} {
		out := ipRight(packet(t, text))
		sent := bytes.Clone(out)
		cfg := Config{SeqShift: shifted}
		cfg.rewrite(out, false)
		for _, gone := range []int{0, 7, 10, 12, 20} { // from the quote's end
			quoted, original := out[:len(out)-gone], sent[:len(sent)-gone]
			back := timeExceeded(quoted, nil)
			if cfg.rewrite(back, true); !bytes.Equal(back, timeExceeded(original, nil)) {
				t.Errorf("got  %x\nwant %x", back, timeExceeded(original, nil))
			}
			if gone == 0 {
				right(t, back)
			}
			untranslated := Config{SeqShift: shifted, QuotesUntranslated: true}
			for _, test := range []struct {
				cfg  Config
				back bool
			}{{untranslated, true}, {cfg, false}, {Config{}, true}} {
				b := timeExceeded(quoted, nil)
				if test.cfg.rewrite(b, test.back); !bytes.Equal(b, timeExceeded(quoted, nil)) {
					t.Errorf("%+v changes a quote, back: %v", test.cfg, test.back)
				}
			}
		}
	}
}

func TestShortQuotes(t *testing.T) {
	cfg := Config{ShortQuotes: true}
	sent := ipRight(packet(t, ack4))
	want := timeExceeded(sent[:28], nil)
	for _, more := range [][]byte{nil, {1}, {1, 2, 3, 4, 5, 6, 7, 8}} {
		b := timeExceeded(sent, more)
		b = b[:cfg.rewrite(b, true)]
		right(t, b)
		if !bytes.Equal(b, want) {
			t.Errorf("got  %x\nwant %x", b, want)
		}
	}
	padded := append(timeExceeded(sent, nil), make([]byte, 5)...) // by Ethernet
	if n := cfg.rewrite(padded, true); n != len(want) {
		t.Errorf("%d bytes with padding", n)
	}
	both := Config{ShortQuotes: true, SeqShift: shifted}
	out := bytes.Clone(sent)
	both.rewrite(out, false)
	b := timeExceeded(out, nil)
	b = b[:both.rewrite(b, true)]
	// Its inner checksum was corrected before it was cut off.
	if right(t, b); !bytes.Equal(b, want) {
		t.Errorf("both: %x", b)
	}
	v6 := timeExceeded(packet(t, syn6), nil)
	fragment := timeExceeded(sent, nil)
	fragment[6] |= 0x20
	echo := timeExceeded(sent, nil)
	echo[20] = 8
	for _, b := range [][]byte{v6, fragment, echo, want, sent} {
		if cfg.rewrite(b, true) != len(b) {
			t.Errorf("was cut: %x", b)
		}
	}
	if b := timeExceeded(sent, nil); cfg.rewrite(b, false) != len(b) {
		t.Error("the other way's errors were cut")
	}
}

// Whatever comes, the box stays up, changes no more than it may, and keeps right
// what was right.
func FuzzRewrite(f *testing.F) {
	for _, text := range []string{ack4, sack4, odd4, syn6, rst4} {
		b := packet(f, text)
		f.Add(b, uint32(shifted), false, false, false)
		f.Add(timeExceeded(b, []byte{1, 2, 3, 4}), uint32(shifted), true, false, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, shift uint32, back, untranslated, short bool) {
		cfg := Config{SeqShift: shift, QuotesUntranslated: untranslated, ShortQuotes: short}
		was := bytes.Clone(b)
		n := cfg.rewrite(b, back)
		if n < 0 || n > len(b) || n < len(b) && !(short && back) {
			t.Fatalf("%d of %d bytes", n, len(b))
		}
		if h, ok := tap.Parse(was); ok && !h.Fragment && h.Proto == tap.TCP && len(was) >= h.Len && len(h.Transport) >= 20 {
			fix := func(p []byte) []byte { tap.FinishChecksum(p); return p }
			if bytes.Equal(fix(bytes.Clone(was)), was) {
				if is := bytes.Clone(b); !bytes.Equal(fix(is), b) {
					t.Errorf("a right checksum became wrong:\n%x\n%x", was, b)
				}
			}
		}
		if len(b) > 1 && !bytes.Equal(b[:1], was[:1]) {
			t.Error("the version changed")
		}
	})
}
