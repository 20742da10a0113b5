package quic

import (
	"bytes"
	"encoding/hex"
	"testing"

	"servicetraceroute/internal/hello"
)

// The examples of RFC 9001 appendix A and RFC 9369 appendix A.
var vectors = []struct {
	name           string
	version        uint32
	client, server string // files
	retry          string
	sample, mask   string // of the client's packet
}{
	{"version 1", Version1, "rfc9001-a2-client-initial", "rfc9001-a3-server-initial", "rfc9001-a4-retry",
		"d1b1c98dd7689fb8ec11d242b123dc9b", "437b9aec36"},
	{"version 2", Version2, "rfc9369-a2-client-initial", "rfc9369-a3-server-initial", "rfc9369-a4-retry",
		"ffe67b6abcdb4298b485dd04de806071", "94a0c95e80"},
}

func TestClientInitial(t *testing.T) {
	frame := vectorOf(t, "rfc9001-a2-crypto-frame")
	for _, v := range vectors {
		t.Run(v.name, func(t *testing.T) {
			packet := vectorOf(t, v.client)
			var p Packet
			rest, err := p.Decode(packet)
			if err != nil || len(rest) > 0 || p.Type != Initial || p.Version != v.version || !bytes.Equal(p.DCID, firstID) {
				t.Fatalf("%v, %+v", err, p)
			}
			k := clientKeys(p.known, firstID)
			var s scratch
			payload, number, ok := k.open(&s, &p, -1)
			if !ok || number != 2 || len(payload) != 1162 || !bytes.HasPrefix(payload, frame) {
				t.Errorf("opened %v, number %d, %d bytes", ok, number, len(payload))
			}
			if got := hex.EncodeToString(packet[p.Number+maxNumber:][:sampleSize]); got != v.sample {
				t.Errorf("sample %s", got)
			}
			if got := hex.EncodeToString(s.mask[:5]); got != v.mask {
				t.Errorf("mask %s", got)
			}
			padded := append(bytes.Clone(frame), make([]byte, 1162-len(frame))...)
			made := initial{version: v.version, number: 2, size: 4, payload: padded}.seal()
			if !bytes.Equal(made, packet) {
				t.Error("the tests' own packets are made in another way")
			}
			c := newConn()
			h, status := c.Client(start, packet)
			want(t, h, status, hello.Done, "example.com")
		})
	}
}

// A server's packets do not open: their keys are others, and nobody needs them.
func TestServerInitial(t *testing.T) {
	for _, v := range vectors {
		packet := vectorOf(t, v.server)
		var p Packet
		if rest, err := p.Decode(packet); err != nil || len(rest) > 0 || p.Type != Initial || len(p.DCID) != 0 || len(p.SCID) != 8 {
			t.Errorf("%v, %+v", err, p)
		}
		k := clientKeys(p.known, firstID)
		if _, _, ok := k.open(new(scratch), &p, -1); ok {
			t.Error("opened with the client's keys")
		}
	}
}

func TestRetryTag(t *testing.T) {
	for _, v := range vectors {
		packet := vectorOf(t, v.retry)
		var p Packet
		if _, err := p.Decode(packet); err != nil || p.Type != Retry || string(p.Token) != "token" {
			t.Fatalf("%v, %+v", err, p)
		}
		if !checkRetry(new(scratch), &p, firstID) {
			t.Error("tag of the RFC's example is wrong")
		}
		if checkRetry(new(scratch), &p, firstID[:7]) {
			t.Error("right also for another id")
		}
		for i := range packet {
			packet[i] ^= 1
			if _, err := p.Decode(packet); err == nil && p.Type == Retry && checkRetry(new(scratch), &p, firstID) {
				t.Errorf("right also with byte %d changed", i)
			}
			packet[i] ^= 1
		}
	}
}

func TestFullNumber(t *testing.T) {
	for _, test := range []struct {
		largest, truncated int64
		bits               int
		want               int64
	}{
		{0xa82f30ea, 0x9b32, 16, 0xa82f9b32}, // the example of RFC 9000 appendix A.3
		{-1, 0, 8, 0}, {-1, 255, 8, 255}, {0, 1, 8, 1}, {255, 0, 8, 256}, {200, 10, 8, 266}, {300, 255, 8, 255},
	} {
		if got := fullNumber(test.largest, test.truncated, test.bits); got != test.want {
			t.Errorf("%+v: %d", test, got)
		}
	}
}
