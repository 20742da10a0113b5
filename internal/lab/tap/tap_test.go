//go:build linux

package tap

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab/nstest"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Packets as a Linux host sent them: an ACK with timestamps, an IPv6 SYN.
const (
	ack4 = "45000034a1b240004006848f0a0000010a000002" +
		"9c4001bb000003e8000007d0801001f6142a0000" + "0101080a0000006400000032"
	syn6 = "600fd4e5001c0640fd090000000000000000000000000001fd090000000000000000000000000002" +
		"9c4101bb000003e8000000007002fde800000000" + "0204058c0101080a"
)

func TestParse(t *testing.T) {
	b := unhex(t, ack4)
	h, ok := Parse(b)
	if !ok || h.Src != netip.MustParseAddr("10.0.0.1") || h.Dst != netip.MustParseAddr("10.0.0.2") ||
		h.Sport != 40000 || h.Dport != 443 || h.Seq != 1000 || h.Ack != 2000 || h.Flags != ACK ||
		h.TSval != 100 || h.ID != 0xa1b2 || h.TTL != 64 || h.Payload != 0 || !h.Whole {
		t.Errorf("IPv4: %v %+v", ok, h)
	}
	for n := range b {
		h, ok := Parse(b[:n])
		if ok != (n >= 28) || ok && h.Seq != 1000 || ok && h.Whole != (n == len(b)) {
			t.Errorf("cut to %d bytes: %v %+v", n, ok, h)
		}
	}

	b = unhex(t, syn6)
	h, ok = Parse(b)
	if !ok || h.Src != netip.MustParseAddr("fd09::1") || h.Sport != 40001 || h.Seq != 1000 || h.Flags != SYN || h.TTL != 64 || h.Payload != 0 {
		t.Errorf("IPv6: %v %+v", ok, h)
	}
	// The same behind a hop-by-hop and a first fragment header.
	ext := append(append(bytes.Clone(b[:40]), 44, 0, 1, 4, 0, 0, 0, 0, TCP, 0, 0, 1, 0, 0, 0, 9), b[40:]...)
	ext[6] = 0
	binary.BigEndian.PutUint16(ext[4:], uint16(len(ext)-40))
	if h, ok := Parse(ext); !ok || h.Sport != 40001 || h.Fragment || h.Proto != TCP {
		t.Errorf("extension headers: %v %+v", ok, h)
	}
	binary.BigEndian.PutUint16(ext[50:], 8)
	if h, ok := Parse(ext); !ok || !h.Fragment || h.Sport != 0 {
		t.Errorf("later fragment: %v %+v", ok, h)
	}
}

func TestFinishChecksum(t *testing.T) {
	for _, s := range []string{ack4, syn6} {
		b := unhex(t, s)
		FinishChecksum(b)
		h, _ := Parse(b)
		// With its checksum in place a segment adds up to all ones.
		sum := uint64(TCP) + uint64(len(h.Transport))
		for _, part := range [][]byte{h.Src.AsSlice(), h.Dst.AsSlice(), h.Transport} {
			for i := 0; i+1 < len(part); i += 2 {
				sum += uint64(part[i])<<8 | uint64(part[i+1])
			}
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		if sum != 0xffff {
			t.Errorf("checksum of %x adds up to %#x", b, sum)
		}
	}
}

// A ring that is not emptied drops, says so, and goes on afterwards.
func TestRealRing(t *testing.T) {
	ns := nstest.New(t)
	var ring *Ring
	var conn net.Conn
	ns.Must(t, func() (err error) {
		if ring, err = Open(Config{Snap: 100, Frames: 64, IgnoreOutgoing: true}); err != nil {
			return err
		}
		conn, err = net.Dial("udp", "127.0.0.1:9") // nobody there: errors come back
		return err
	})
	defer ring.Close()
	defer conn.Close()
	room := ring.n
	for range room {
		_, _ = conn.Write(make([]byte, 500)) // every other one fails with that error
	}
	read := func() (n int) {
		for {
			f, ok := ring.Next()
			if !ok {
				return n
			}
			n++
			h, parsed := Parse(f.Data[f.Net:])
			if f.Outgoing || !f.Loopback || !parsed || f.Len <= len(f.Data) || h.Src != netip.MustParseAddr("127.0.0.1") {
				t.Fatalf("frame %+v, header %+v", f, h)
			}
			if age := time.Since(time.Unix(0, f.Time)); age < 0 || age > time.Second {
				t.Fatalf("a frame is %v old", age)
			}
		}
	}
	dropped := ring.Dropped()
	n := read()
	if n == 0 || n > room || n < room/2 {
		t.Errorf("read %d frames from a ring of %d", n, room)
	}
	for range 2 * room {
		_, _ = conn.Write(make([]byte, 500))
		_, _ = conn.Write(make([]byte, 500))
	}
	if ring.Dropped() == dropped {
		t.Error("a full ring has dropped nothing")
	}
	if n := read(); n != room {
		t.Errorf("read %d frames from a full ring of %d", n, room)
	}
	_, _ = conn.Write(make([]byte, 500))
	_, _ = conn.Write(make([]byte, 500))
	if n := read(); n == 0 {
		t.Error("nothing comes after a full ring was read")
	}
	fds := []unix.PollFd{{Fd: int32(ring.FD()), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 0); n != 0 || err != nil {
		t.Errorf("an empty ring is readable: %d, %v", n, err)
	}
}
