package privacy

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"testing"
)

// mask returns a mask with a key of its own.
func mask(seed byte) *Mask {
	var k Key
	for i := range k {
		k[i] = byte(i)*7 + seed
	}
	return New(k)
}

// The sample of the reference implementation (Crypto-PAn 1.0, sample_trace_raw.dat).
func TestReferenceImplementation(t *testing.T) {
	s := newScheme([32]byte{
		21, 34, 23, 141, 51, 164, 207, 128, 19, 10, 91, 22, 73, 144, 125, 16,
		216, 152, 143, 131, 121, 121, 101, 39, 98, 87, 76, 45, 42, 132, 34, 2,
	})
	for in, want := range map[string]string{
		"128.11.68.132": "135.242.180.132", "129.118.74.4": "134.136.186.123", "130.132.252.244": "133.68.164.234",
		"141.223.7.43": "141.167.8.160", "141.233.145.108": "141.129.237.235", "152.163.225.39": "151.140.114.167",
		"156.29.3.236": "147.225.12.42", "165.247.96.84": "162.9.99.234", "166.107.77.190": "160.132.178.185",
		"192.102.249.13": "252.138.62.131", "192.215.32.125": "252.43.47.189", "192.233.80.103": "252.25.108.8",
	} {
		b := netip.MustParseAddr(in).AsSlice()
		s.permute(b, 0)
		if got, _ := netip.AddrFromSlice(b); got.String() != want {
			t.Errorf("%s became %v, not %s", in, got, want)
		}
	}
}

// What an address is for stays; loopback and unspecified stay whole.
func TestKindsStay(t *testing.T) {
	for _, text := range []string{
		"10.1.2.3", "192.168.0.1", "172.16.0.1", "172.31.255.255", "100.64.0.9", "169.254.7.7", "224.0.0.251", "255.255.255.255", "0.0.0.9",
		"8.8.8.8", "192.169.0.1", "172.32.0.1", "fe80::1", "fd00::1", "2001:db8::1", "2606:4700::1111", "64:ff9b::808:808", "ff02::fb", "100::1",
	} {
		a := netip.MustParseAddr(text)
		for seed := range byte(20) {
			got := mask(seed).Addr(a)
			if kindOf(got) != kindOf(a) || got.Is4() != a.Is4() {
				t.Errorf("%v became %v", a, got)
			}
		}
		if got := mask(1).Addr(a); got == a && kindOf(a).Bits() < 96 {
			t.Errorf("%v stayed", a)
		}
	}
	for _, text := range []string{"0.0.0.0", "127.0.0.1", "::", "::1"} {
		if got := mask(1).Addr(netip.MustParseAddr(text)); got.String() != text {
			t.Errorf("%s became %v", text, got)
		}
	}
	if got := mask(1).Addr(netip.Addr{}); got.IsValid() {
		t.Errorf("no address became %v", got)
	}
	if got := mask(1).Addr(netip.MustParseAddr("fe80::1%eth0")); got.Zone() != "" {
		t.Errorf("the zone stays: %v", got)
	}
	mapped := mask(1).Addr(netip.MustParseAddr("::ffff:192.0.2.1"))
	if want := mask(1).Addr(netip.MustParseAddr("192.0.2.1")); !mapped.Is4In6() || mapped.Unmap() != want {
		t.Errorf("mapped %v, plain %v", mapped, want)
	}
}

// One for one: no two addresses of a /16 and of its neighbours become one.
func TestOneForOne(t *testing.T) {
	m, seen := mask(3), map[netip.Addr]netip.Addr{}
	for n := range uint32(1 << 17) {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], 0xc0a70000+n) // 192.167/16, global, and 192.168/16
		a := netip.AddrFrom4(b)
		got := m.Addr(a)
		if other, ok := seen[got]; ok {
			t.Fatalf("%v and %v both became %v", a, other, got)
		}
		seen[got] = a
	}
}

func TestKeysDiffer(t *testing.T) {
	a := netip.MustParseAddr("198.51.100.7")
	if one, other := New(NewKey()), New(NewKey()); one.Addr(a) == other.Addr(a) {
		t.Errorf("two random keys give %v", one.Addr(a))
	}
	if one, again, other := mask(1), mask(1), mask(2); one.Addr(a) != again.Addr(a) || one.Addr(a) == other.Addr(a) {
		t.Error("the key alone decides")
	}
}

// shared is how many first bits two addresses share.
func shared(a, b netip.Addr) int {
	x, y := a.AsSlice(), b.AsSlice()
	for i := range x {
		if d := x[i] ^ y[i]; d != 0 {
			return i*8 + bits.LeadingZeros8(d)
		}
	}
	return len(x) * 8
}

// FuzzAddr: neighbours stay neighbours, kinds stay, and nothing else is left of an
// address than its kind.
func FuzzAddr(f *testing.F) {
	f.Add([]byte{192, 0, 2, 1}, []byte{192, 0, 2, 200})
	f.Add([]byte{192, 168, 0, 1}, []byte{192, 168, 7, 1})
	f.Add(netip.MustParseAddr("2001:db8::1").AsSlice(), netip.MustParseAddr("2001:db8::2:1").AsSlice())
	m := mask(9)
	f.Fuzz(func(t *testing.T, x, y []byte) {
		a, ok := netip.AddrFromSlice(x)
		b, ok2 := netip.AddrFromSlice(y)
		if !ok || !ok2 || a.Is4() != b.Is4() || a.Is4In6() || b.Is4In6() || kindOf(a) != kindOf(b) {
			return // not two that are of one kind
		}
		ma, mb := m.Addr(a), m.Addr(b)
		if (a == b) != (ma == mb) {
			t.Fatalf("%v and %v became %v and %v", a, b, ma, mb)
		}
		if kindOf(ma) != kindOf(a) {
			t.Fatalf("%v became %v", a, ma)
		}
		special := func(a netip.Addr) bool { return a.IsLoopback() || a.IsUnspecified() }
		if n := shared(a, b); n >= 16 && kindOf(a).IsValid() && !special(a) && !special(b) && shared(ma, mb) != n {
			t.Fatalf("%v and %v share %d bits, %v and %v %d", a, b, n, ma, mb, shared(ma, mb))
		}
		if n := shared(a, b); a.Is4() && n >= 16 && !special(a) && !special(b) && shared(ma, mb) != n {
			t.Fatalf("%v and %v share %d bits, %v and %v %d", a, b, n, ma, mb, shared(ma, mb))
		}
	})
}

func BenchmarkAddr(b *testing.B) {
	for _, text := range []string{"203.0.113.7", "2001:db8::7"} {
		b.Run(text, func(b *testing.B) {
			m, a := mask(1), netip.MustParseAddr(text)
			for b.Loop() {
				m.Addr(a)
			}
		})
	}
}
