//go:build linux

package peer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
)

// stream is the endless content that belongs to a seed.
type stream struct{ src *rand.ChaCha8 }

func newStream(seed uint64) *stream {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	copy(key[8:], "lab content")
	return &stream{rand.NewChaCha8(key)}
}

func (s *stream) Read(p []byte) (int, error) { return s.src.Read(p) }

// chunk is how much of a stream is made, sent or compared at a time.
const chunk = 32 << 10

// StreamHash returns the hexadecimal SHA-256 of a stream's first n bytes.
func StreamHash(seed uint64, n int64) string {
	h := sha256.New()
	_, _ = io.CopyN(h, newStream(seed), n) // neither side can fail
	return hex.EncodeToString(h.Sum(nil))
}

// checker is told what was received and compares it with what must have been
// sent. It never stops a transfer: a corrupted one is to be seen to its end.
type checker struct {
	want     io.Reader
	sum      hash.Hash
	n        int64
	mismatch int64 // offset of the first wrong byte, -1: none
	buf      [chunk]byte
}

func newChecker(want io.Reader) *checker {
	return &checker{want: want, sum: sha256.New(), mismatch: -1}
}

func (c *checker) Write(p []byte) (int, error) {
	c.sum.Write(p)
	for rest := p; len(rest) > 0; {
		got := rest[:min(len(rest), len(c.buf))]
		rest = rest[len(got):]
		want := c.buf[:len(got)]
		if _, err := io.ReadFull(c.want, want); err != nil {
			return 0, fmt.Errorf("expected stream: %w", err)
		}
		if c.mismatch < 0 && !bytes.Equal(got, want) {
			c.mismatch = c.n + int64(firstDifference(got, want))
		}
		c.n += int64(len(got))
	}
	return len(p), nil
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

func (c *checker) hash() string { return hex.EncodeToString(c.sum.Sum(nil)) }

// err says where the stream went wrong.
func (c *checker) err() error {
	if c.mismatch < 0 {
		return nil
	}
	return fmt.Errorf("received stream differs at byte %d", c.mismatch)
}

// mask turns a request into its answer. An echo would not do: a packet sent back
// by something on the way would pass for the server's answer.
const mask = 0xa5

// masked is a stream as the server answers it.
type masked struct{ r io.Reader }

func (m masked) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	maskBytes(p[:n])
	return n, err
}

func maskBytes(p []byte) {
	for i := range p {
		p[i] ^= mask
	}
}

// trailer ends a transfer: how many bytes its sender sent (of an upload: its
// receiver received), and their SHA-256.
type trailer struct {
	Bytes int64
	Sum   [sha256.Size]byte
}

const trailerLen = 8 + sha256.Size

func (t trailer) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(t.Bytes))
	return append(b, t.Sum[:]...)
}

func parseTrailer(b []byte) (trailer, error) {
	if len(b) != trailerLen {
		return trailer{}, fmt.Errorf("stream ended without its trailer: %w", io.ErrUnexpectedEOF)
	}
	t := trailer{Bytes: int64(binary.BigEndian.Uint64(b))}
	copy(t.Sum[:], b[8:])
	return t, nil
}
