package errqueue

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"servicetraceroute/internal/wire"
)

// entry is what the kernel writes (linux/errqueue.h) with the offender's address behind it.
func entry(origin, typ, code uint8, from string) []byte {
	b := make([]byte, 16)
	binary.NativeEndian.PutUint32(b, uint32(syscall.EHOSTUNREACH))
	b[4], b[5], b[6] = origin, typ, code
	binary.NativeEndian.PutUint32(b[8:], 1400)
	if from == "" {
		return append(b, make([]byte, 16)...) // AF_UNSPEC
	}
	a := netip.MustParseAddr(from)
	if a.Is4() {
		b = binary.NativeEndian.AppendUint16(b, familyInet)
		return append(append(append(b, 0, 0), a.AsSlice()...), make([]byte, 8)...)
	}
	b = binary.NativeEndian.AppendUint16(b, familyInet6)
	return append(append(append(b, 0, 0, 0, 0, 0, 0), a.AsSlice()...), 0, 0, 0, 0)
}

func TestExtended(t *testing.T) {
	for _, test := range []struct {
		name string
		b    []byte
		want wire.ICMPKind // 0: not taken
		from string
		mtu  uint32
	}{
		{"time exceeded", entry(2, 11, 0, "192.0.2.1"), wire.TimeExceeded, "192.0.2.1", 0},
		{"port unreachable", entry(2, 3, 3, "192.0.2.1"), wire.PortUnreachable, "192.0.2.1", 0},
		{"prohibited", entry(2, 3, 13, "192.0.2.1"), wire.AdminProhibited, "192.0.2.1", 0},
		{"too big", entry(2, 3, 4, "192.0.2.1"), wire.PacketTooBig, "192.0.2.1", 1400},
		{"reassembly", entry(2, 11, 1, "192.0.2.1"), 0, "", 0},
		{"an echo", entry(2, 8, 0, "192.0.2.1"), 0, "", 0},
		{"time exceeded, IPv6", entry(3, 3, 0, "2001:db8::1"), wire.TimeExceeded, "2001:db8::1", 0},
		{"no route, IPv6", entry(3, 1, 0, "2001:db8::1"), wire.NetUnreachable, "2001:db8::1", 0},
		{"this host's own", entry(1, 11, 0, "192.0.2.1"), 0, "", 0},
		{"a timestamp", entry(4, 11, 0, "192.0.2.1"), 0, "", 0},
		{"nobody", entry(2, 11, 0, ""), 0, "", 0},
		{"families mixed", entry(2, 11, 0, "2001:db8::1"), 0, "", 0},
		{"cut short", entry(2, 11, 0, "192.0.2.1")[:20], 0, "", 0},
		{"cut short, IPv6", entry(3, 3, 0, "2001:db8::1")[:32], 0, "", 0},
	} {
		var e Error
		ok := e.extended(test.b)
		if ok != (test.want != 0) || ok && (e.Kind != test.want || e.From.String() != test.from || e.MTU != test.mtu || e.Errno != syscall.EHOSTUNREACH) {
			t.Errorf("%s: %v %+v", test.name, ok, e)
		}
	}
}

func TestStamp(t *testing.T) {
	b := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, 1700000000), 5000)
	if got := Stamp(b); !got.Equal(time.Unix(1700000000, 5000)) || !Stamp(b[:15]).IsZero() {
		t.Errorf("%v", got)
	}
	if HopLimit(binary.NativeEndian.AppendUint32(nil, 64)) != 64 || HopLimit(nil) != 0 {
		t.Error("hop limit")
	}
}

func FuzzExtended(f *testing.F) {
	f.Add(entry(2, 11, 0, "192.0.2.1"))
	f.Add(entry(3, 3, 0, "2001:db8::1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var e Error
		if e.extended(b) && (!e.From.IsValid() || e.Kind == 0) {
			t.Errorf("%+v", e)
		}
		Stamp(b)
		HopLimit(b)
	})
}
