package route

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"servicetraceroute/trace"
)

func key(src, dst string) trace.FlowKey {
	return trace.FlowKey{Proto: trace.UDP, Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
}

// answer is a message with attributes behind its route.
func answer(typ uint16, attrs ...[]byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, 0)
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, make([]byte, 10+routeLen)...)
	for _, a := range attrs {
		b = append(b, a...)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

func TestParseAnswer(t *testing.T) {
	four := binary.NativeEndian.AppendUint32(nil, 4)
	oif, dst := appendAttr(nil, attrOIF, four), appendAttr(nil, attrDst, []byte{192, 0, 2, 1})
	odd := appendAttr(nil, 15, []byte{254}) // padded
	for _, test := range []struct {
		name string
		b    []byte
		want int // 0: an error
	}{
		{"the interface", answer(newRoute, dst, oif), 4},
		{"behind what is padded", answer(newRoute, odd, oif), 4},
		{"no interface", answer(newRoute, dst), 0},
		{"an address is none", answer(newRoute, appendAttr(nil, attrSrc, four)), 0},
		{"another message", answer(getRoute, oif), 0},
		{"cut short", answer(newRoute, oif)[:34], 0},
		{"an attribute beyond the end", answer(newRoute, oif[:6]), 0},
		{"an attribute without length", answer(newRoute, make([]byte, 8)), 0},
		{"nothing", nil, 0},
	} {
		got, err := parseAnswer(test.b)
		if got != test.want || (err == nil) != (test.want != 0) {
			t.Errorf("%s: %d, %v", test.name, got, err)
		}
	}
	refused := answer(isError)
	no := int32(syscall.ENETUNREACH)
	binary.NativeEndian.PutUint32(refused[headerLen:], uint32(-no))
	if _, err := parseAnswer(refused); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("%v", err)
	}
}

// Balancing over routes depends on ports and protocol: the question has them.
func TestRequest(t *testing.T) {
	a, b := appendRequest(nil, key("192.0.2.1:1000", "203.0.113.7:443")), appendRequest(nil, key("192.0.2.1:1001", "203.0.113.7:443"))
	if slices.Equal(a, b) || len(a) != int(binary.NativeEndian.Uint32(a)) || len(a)%4 != 0 {
		t.Errorf("% x\n% x", a, b)
	}
	if v6 := appendRequest(nil, key("[2001:db8::1]:1000", "[2001:db8::2]:443")); v6[headerLen] != familyIn6 || v6[headerLen+1] != 128 {
		t.Errorf("% x", v6)
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add(answer(newRoute, appendAttr(nil, attrOIF, []byte{4, 0, 0, 0})))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = parseAnswer(b) })
}
