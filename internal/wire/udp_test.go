package wire

import (
	"errors"
	"net/netip"
	"testing"
)

func TestUDPDecode(t *testing.T) {
	head := func(length uint16, payload ...byte) []byte {
		b := be.AppendUint16(be.AppendUint16(nil, 40000), 443)
		return append(be.AppendUint16(be.AppendUint16(b, length), 0xabcd), payload...)
	}
	for name, test := range map[string]struct {
		b       []byte
		wire    int
		payload int // on the wire; -1: an error
		err     error
	}{
		"empty":           {head(8), 8, 0, nil},
		"with payload":    {head(11, 1, 2, 3), 11, 3, nil},
		"cut by capture":  {head(500, 1, 2, 3), 500, 492, nil},
		"padded":          {head(10, 1, 2, 0, 0), 12, 2, nil},
		"left to offload": {head(0, 1, 2, 3), 11, 3, nil},
		"longer than it":  {head(12, 1, 2, 3), 11, -1, ErrMalformed},
		"shorter":         {head(7, 1, 2, 3), 11, -1, ErrMalformed},
		"no header":       {head(8)[:7], 8, -1, ErrTruncated},
		"nothing":         {nil, 0, -1, ErrTruncated},
	} {
		var u UDP
		err := u.Decode(test.b, test.wire)
		if !errors.Is(err, test.err) || err == nil && (u.PayloadLen != test.payload || u.SrcPort != 40000 || u.DstPort != 443) {
			t.Errorf("%s: %+v, %v", name, u, err)
		}
		if err == nil && len(u.Payload) > u.PayloadLen {
			t.Errorf("%s: %d bytes of %d", name, len(u.Payload), u.PayloadLen)
		}
	}
}

func FuzzUDP(f *testing.F) {
	f.Add([]byte{0, 53, 0, 99, 0, 9, 1, 2, 3}, 9)
	f.Fuzz(func(t *testing.T, b []byte, wireLen int) {
		var u UDP
		if u.Decode(b, wireLen) == nil && (len(u.Payload) > len(b) || u.PayloadLen < len(u.Payload)) {
			t.Errorf("%+v", u)
		}
	})
}

func TestUDPQuote(t *testing.T) {
	for _, ends := range [][2]string{{"192.0.2.1:40000", "203.0.113.7:443"}, {"[2001:db8::1]:40000", "[2001:db8::7]:443"}} {
		p := UDPProbe{
			Src: netip.MustParseAddrPort(ends[0]), Dst: netip.MustParseAddrPort(ends[1]), TTL: 3, ID: 77,
			Payload: []byte{5, 1, 2, 3, 4, 5, 6, 7, 8},
		}
		b := p.AppendTo(nil)
		var q Quote
		if err := q.Decode(b); err != nil || q.UDPHeadLen != 9 || q.UDPHead[8] != 8 || q.Checksum != p.ChecksumBetween(p.Src, p.Dst) {
			t.Errorf("%+v, %v", q, err)
		}
		if err := q.Decode(b[:len(b)-9]); err != nil || q.UDPHeadLen != 0 || !q.HasUDP || q.UDPLen != 17 {
			t.Errorf("header alone: %+v, %v", q, err)
		}
		if err := q.Decode(append(b, 1, 2, 3)); err != nil || q.UDPHeadLen != 9 {
			t.Errorf("padded: %+v, %v", q, err)
		}
		other := p
		other.Src = netip.AddrPortFrom(p.Src.Addr().Next(), 61000)
		if err := q.Decode(other.AppendTo(nil)); err != nil || q.Checksum != p.ChecksumBetween(other.Src, p.Dst) || q.Checksum == p.ChecksumBetween(p.Src, p.Dst) {
			t.Errorf("translated: %+v, %v", q, err)
		}
	}
}
