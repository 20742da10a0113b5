package simnet

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"hash"
)

// side is whose stream it is.
type side uint64

const (
	fromClient side = iota
	fromServer
)

const (
	// greeting is how many bytes of the client's stream name the flow.
	greeting = 16
	magic    = 0x73696d6e65743031 // "simnet01"
)

var errGreeting = errors.New("simnet: no greeting")

// fill writes a piece of a flow's content. It follows from the place alone, so a
// sender keeps nothing, and data that is written at the wrong place is wrong.
func fill(b []byte, flow uint64, s side, off int64) {
	at := uint64(off)
	for len(b) > 0 {
		var w [8]byte
		be.PutUint64(w[:], word(flow, s, at/8))
		n := copy(b, w[at%8:])
		b, at = b[n:], at+uint64(n)
		for ; len(b) >= 8; b, at = b[8:], at+8 {
			be.PutUint64(b, word(flow, s, at/8))
		}
	}
}

// word returns 8 bytes of a flow's content.
func word(flow uint64, s side, i uint64) uint64 {
	switch {
	case s == fromClient && i == 0:
		return magic
	case s == fromClient && i == 1:
		return flow
	}
	return mix(flow<<1 | uint64(s) ^ i<<20)
}

// checker compares what was received with what must have been sent.
type checker struct {
	flow     uint64
	side     side
	n        int64
	mismatch int64
	sum      hash.Hash
	buf      [4096]byte
}

func newChecker(flow uint64, s side) *checker {
	return &checker{flow: flow, side: s, mismatch: -1, sum: sha256.New()}
}

func (c *checker) write(b []byte) {
	c.sum.Write(b)
	for len(b) > 0 {
		want := c.buf[:min(len(b), len(c.buf))]
		fill(want, c.flow, c.side, c.n)
		if c.mismatch < 0 && !bytes.Equal(want, b[:len(want)]) {
			for i := range want {
				if b[i] != want[i] {
					c.mismatch = c.n + int64(i)
					break
				}
			}
		}
		b, c.n = b[len(want):], c.n+int64(len(want))
	}
}
