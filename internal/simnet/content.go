package simnet

import (
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
	for i := 0; i < len(b); {
		at := uint64(off) + uint64(i)
		word := mix(flow<<1 | uint64(s) ^ at/8<<20)
		switch {
		case s == fromClient && at < 8:
			word = magic
		case s == fromClient && at < greeting:
			word = flow
		}
		for k := at % 8; k < 8 && i < len(b); k++ {
			b[i] = byte(word >> (56 - 8*k))
			i++
		}
	}
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
		if c.mismatch < 0 {
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
