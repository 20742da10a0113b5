package names

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

const (
	headerLen = 12
	minRecord = 11 // root owner, type, class, TTL, length
	maxWire   = 255
)

// verdict is what a message is good for. The zero value is invalid.
type verdict uint8

const (
	useful verdict = iota + 1
	other          // a message, but none that says anything about addresses
	malformed
)

// question is the front of a message: the header and its only question.
type question struct {
	id, flags  uint16
	an, ns, ar int
	qtype      uint16
	name       [maxWire]byte // as on the wire, in lower case
	nameLen    int
	end        int // of the question section
}

const (
	flagQR     = 1 << 15
	flagTC     = 1 << 9
	opcodeMask = 0xF << 11
	rcodeMask  = 0xF
)

// readQuestion looks at the header and the question only, so that all that is not
// an answer about addresses costs little.
//
//	  0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15     RFC 1035 section 4.1.1
//	+--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+
//	|                      ID                       |
//	|QR|   Opcode  |AA|TC|RD|RA| Z|AD|CD|   RCODE   |
//	|            QDCOUNT, ANCOUNT, NSCOUNT, ARCOUNT |
//	+--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+
func readQuestion(msg []byte, q *question) verdict {
	if len(msg) < headerLen || len(msg) > dns.MaxMsgSize {
		return malformed
	}
	word := func(i int) uint16 { return binary.BigEndian.Uint16(msg[2*i:]) }
	q.id, q.flags = word(0), word(1)
	q.an, q.ns, q.ar = int(word(3)), int(word(4)), int(word(5))
	if q.flags&opcodeMask != 0 || word(2) != 1 {
		return other
	}
	if !q.readName(msg) || q.end+4 > len(msg) {
		return malformed
	}
	q.qtype = binary.BigEndian.Uint16(msg[q.end:])
	class := binary.BigEndian.Uint16(msg[q.end+2:])
	q.end += 4
	if (q.an+q.ns+q.ar)*minRecord > len(msg)-q.end && q.flags&flagTC == 0 {
		return malformed
	}
	switch q.qtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeSVCB:
		if class == dns.ClassINET && q.nameLen > 1 { // not of the root
			return useful
		}
	}
	return other
}

// readName reads the question's name: labels without compression, since nothing
// stands before it that a pointer could point to.
func (q *question) readName(msg []byte) bool {
	q.nameLen, q.end = 0, headerLen
	for {
		if q.end >= len(msg) {
			return false
		}
		n := int(msg[q.end]) + 1
		if n > 64 || q.end+n > len(msg) || q.nameLen+n > maxWire {
			return false
		}
		q.name[q.nameLen] = msg[q.end]
		for i := 1; i < n; i++ {
			c := msg[q.end+i]
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			q.name[q.nameLen+i] = c
		}
		q.nameLen += n
		q.end += n
		if n == 1 {
			return true
		}
	}
}
