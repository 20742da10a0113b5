package names

import (
	"encoding/binary"

	"servicetraceroute/internal/stream"
)

// maxHeld is what a Stream may hold: a whole message, and a whole captured packet
// (both up to 64 KiB) behind the part of it that came before.
const maxHeld = 2 << 16

// Stream takes the DNS messages out of one direction of a TCP connection, where
// each follows its length in two bytes (RFC 1035 section 4.2.2). Make one with
// NewStream, one per connection and direction, for connections whose SYN was seen:
// in the middle of a stream no message's begin can be told. Not safe for concurrent
// use.
type Stream struct {
	bytes  *stream.Stream
	broken bool
}

// NewStream returns a stream that holds at most 128 KiB, and nothing between
// messages.
func NewStream() *Stream { return &Stream{bytes: stream.New(maxHeld)} }

// Start tells the sequence number of the first byte, that of the SYN plus one.
func (s *Stream) Start(seq uint32) { s.bytes.Start(seq) }

// Add takes in one segment, in any order. Call Next until there is no more after it.
func (s *Stream) Add(seq uint32, data []byte) {
	if !s.broken {
		s.bytes.Add(seq, data)
	}
}

// Next returns the next whole message, without its length. It belongs to the
// stream until the next Add.
func (s *Stream) Next() (msg []byte, ok bool) {
	data := s.bytes.Bytes()
	if s.broken || len(data) < 2 {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(data))
	if n < headerLen { // no DNS, or the beginning was missed
		s.broken = true
		s.bytes.Skip(len(data))
		return nil, false
	}
	if len(data) < 2+n {
		return nil, false
	}
	s.bytes.Skip(2 + n)
	return data[2 : 2+n : 2+n], true
}

// Held is the number of bytes held.
func (s *Stream) Held() int { return s.bytes.Held() }

// Stopped reports that no more messages will come, beyond those that are complete:
// bytes were lost, or it is not DNS. The caller counts it and lets go of the
// stream.
func (s *Stream) Stopped() bool { return s.broken || s.bytes.Stopped() }
