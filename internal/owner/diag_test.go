package owner

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"servicetraceroute/trace"
)

// littleEndian: the golden bytes are those of such machines, which all that this
// project is built for are.
func littleEndian(t *testing.T) {
	one := uint16(1)
	if *(*byte)(unsafe.Pointer(&one)) != 1 {
		t.Fatal("the golden bytes are little-endian")
	}
}

func key(proto trace.Proto, src, dst string) trace.FlowKey {
	return trace.FlowKey{Proto: proto, Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
}

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRequest(t *testing.T) {
	littleEndian(t)
	const header = "48000000 1400 0100 07000000 00000000 "
	const pad12 = "000000000000000000000000"
	for name, test := range map[string]struct {
		key  trace.FlowKey
		want string
	}{
		"TCP over IPv4": {
			key(trace.TCP, "192.0.2.1:40000", "203.0.113.7:443"),
			header + "02 06 00 00 ffffffff 9c40 01bb c0000201" + pad12 + "cb007107" + pad12 + "03000000 ffffffffffffffff",
		},
		"TCP over IPv6": {
			key(trace.TCP, "[2001:db8::1]:40000", "[2001:db8::7]:443"),
			header + "0a 06 00 00 ffffffff 9c40 01bb 20010db8000000000000000000000001 20010db8000000000000000000000007 03000000 ffffffffffffffff",
		},
		"UDP, ends swapped": {
			key(trace.UDP, "192.0.2.1:40000", "203.0.113.7:443"),
			header + "02 11 00 00 ffffffff 01bb 9c40 cb007107" + pad12 + "c0000201" + pad12 + "03000000 ffffffffffffffff",
		},
	} {
		got := appendRequest([]byte("before"), 7, test.key, 3, 0)
		if want := append([]byte("before"), unhex(t, test.want)...); string(got) != string(want) {
			t.Errorf("%s:\n%x\n%x", name, got, want)
		}
	}
}

// golden is an answer of a Linux 6.18 kernel about an established socket, whose
// cookie, times and addresses were put right for the documentation.
func golden(t testing.TB) []byte {
	return unhex(t, "8c000000 1400 0000 07000000 00000000"+
		"02 01 00 00 9c40 01bb c0000201 000000000000000000000000 cb007107 000000000000000000000000 00000000 0100000000000000"+
		"00000000 00000000 00000000 e8030000 39300000"+
		"0500 0800 00000000 0800 0f00 00000000 0c00 1500 8877665544332211 0600 1600 0100 0000 0500 1200 ff000000")
}

func TestAnswer(t *testing.T) {
	littleEndian(t)
	b := golden(t)
	b[0] = byte(len(b))
	got, err := parseAnswer(b, 7)
	want := answer{state: 1, uid: 1000, inode: 12345, cgroup: 0x1122334455667788, hasCgroup: true, recvErr: true, hasSockOpt: true}
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if _, err := parseAnswer(b, 8); !errors.Is(err, errStale) {
		t.Errorf("the answer to another question: %v", err)
	}
	for n := range b {
		if _, err := parseAnswer(b[:n], 7); err == nil {
			t.Errorf("cut to %d bytes it is an answer", n)
		}
	}
	refused := func(errno syscall.Errno) []byte {
		code := byte(-int8(errno))
		return unhex(t, "24000000 0200 0000 07000000 00000000"+hex.EncodeToString([]byte{code, 255, 255, 255})+strings.Repeat("00", 16))
	}
	if _, err := parseAnswer(refused(syscall.ENOENT), 7); !errors.Is(err, errGone) {
		t.Errorf("no such socket: %v", err)
	}
	if _, err := parseAnswer(refused(syscall.EPERM), 7); !errors.Is(err, os.ErrPermission) {
		t.Errorf("not permitted: %v", err)
	}
}

func TestInfo(t *testing.T) {
	for name, test := range map[string]struct {
		info []byte
		want Handshake
		ok   bool
	}{
		"scaled":     {[]byte{1, 0, 0, 0, 0, 7, 0xa7, 0}, Handshake{LocalScale: 10, PeerScale: 7, SACK: true}, true},
		"not scaled": {[]byte{1, 0, 0, 0, 0, 1, 0xa7, 0}, Handshake{}, true},
		"too short":  {[]byte{1, 0, 0, 0, 0, 7}, Handshake{}, false},
	} {
		if got, ok := parseInfo(test.info); got != test.want || ok != test.ok {
			t.Errorf("%s: %+v, %v", name, got, ok)
		}
	}
	littleEndian(t)
	b := appendRequest(nil, 7, key(trace.TCP, "192.0.2.1:40000", "203.0.113.7:443"), 3, diagInfo)
	if b[headerLen+2] != 2 {
		t.Errorf("asks for %#x", b[headerLen+2])
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(golden(f), uint32(7))
	f.Add([]byte{}, uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, seq uint32) {
		if a, err := parseAnswer(b, seq); err != nil && a != (answer{}) {
			t.Errorf("%+v with %v", a, err)
		}
	})
}
