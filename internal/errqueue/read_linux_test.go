package errqueue

import (
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab/nstest"
)

// message is one control message, with its header and padding (cmsg(3)).
func message(level, typ int32, data []byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(len(data))))
	binary.NativeEndian.PutUint32(b[8:], uint32(level))
	binary.NativeEndian.PutUint32(b[12:], uint32(typ))
	copy(b[unix.CmsgLen(0):], data)
	return b
}

func number(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

func seconds(n uint64) []byte {
	return binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, n), 0)
}

// An entry is its messages in whatever order, and none without that of an ICMP error.
func TestDecode(t *testing.T) {
	if unix.CmsgLen(0) != 16 {
		nstest.Skip(t, "the messages of this test are those of 64-bit machines")
	}
	expired := message(unix.IPPROTO_IP, unix.IP_RECVERR, entry(2, 11, 0, "192.0.2.1"))
	ttl, at := message(unix.IPPROTO_IP, unix.IP_TTL, number(63)), message(unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, seconds(5))
	for _, all := range [][][]byte{{expired, ttl, at}, {at, ttl, expired}} {
		var control []byte
		for _, m := range all {
			control = append(control, m...)
		}
		if e, ok := Decode(control); !ok || e.From.String() != "192.0.2.1" || e.TTL != 63 || !e.At.Equal(time.Unix(5, 0)) {
			t.Errorf("%v, %+v", ok, e)
		}
	}
	v6 := append(message(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, entry(3, 3, 0, "2001:db8::1")), message(unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT, number(61))...)
	if e, ok := Decode(v6); !ok || e.From.String() != "2001:db8::1" || e.TTL != 61 || !e.At.IsZero() {
		t.Errorf("%v, %+v", ok, e)
	}
	for _, control := range [][]byte{nil, ttl, append(at, ttl...), expired[:20]} {
		if e, ok := Decode(control); ok || e != (Error{}) {
			t.Errorf("% x: %+v", control, e)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(message(unix.IPPROTO_IP, unix.IP_RECVERR, entry(2, 11, 0, "192.0.2.1")))
	f.Add(append(message(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, entry(3, 3, 0, "2001:db8::1")), message(unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT, number(64))...))
	f.Fuzz(func(t *testing.T, control []byte) {
		if e, ok := Decode(control); ok && (!e.From.IsValid() || e.Kind == 0 || e.TTL < 0 || e.TTL > 255) {
			t.Errorf("%+v", e)
		}
	})
}
