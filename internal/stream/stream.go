// Package stream puts the bytes of one direction of a TCP connection in order:
// segments go in as they were captured, reordered, repeated and overlapping; what
// comes out is a prefix of what was sent, never anything else. It holds a bounded
// number of bytes, does no I/O and reads no clock.
//
// It is meant for the few bytes at the start of a connection (a ClientHello, DNS
// messages), not for following a whole one: a stream that lost something stops.
// Whether a segment is believable (its place in the window, its acknowledgement) is
// the caller's matter: whoever can forge one can spoil a stream, as he can the
// connection itself.
package stream

import (
	"slices"

	"servicetraceroute/internal/wire"
)

// maxPieces bounds the islands behind a gap. Neighbours are joined, so that one
// lost segment leaves one island, however much follows it.
const maxPieces = 32

// Stream is one direction of one connection. The zero value holds nothing and
// stops at the first byte; New makes a useful one. Not safe for concurrent use.
type Stream struct {
	limit   int
	started bool
	stopped bool
	next    uint32 // sequence number behind the last byte in order
	buf     []byte // bytes in order; those before start were skipped
	start   int
	pieces  []piece // out of order, by place, apart from each other and from buf
	held    int     // bytes in pieces
}

// piece is an island: data that lies behind a gap.
type piece struct {
	seq  uint32
	data []byte
}

func (p piece) end() uint32 { return p.seq + uint32(len(p.data)) }

// New returns a stream that holds at most limit bytes, in and out of order
// together, and at most 1 GiB. Islands may take up to twice their bytes in memory.
func New(limit int) *Stream {
	return &Stream{limit: min(max(limit, 0), 1<<30)}
}

// Start tells the sequence number of the first byte: that of the SYN plus one.
// Without it the first segment added is the first, even if it came too early. It
// does nothing once there was a segment.
func (s *Stream) Start(seq uint32) {
	if !s.started {
		s.started, s.next = true, seq
	}
}

// Add takes in one segment, whose data is copied. Of bytes that come twice the
// first are kept. Where the limit does not allow all of it (bytes nobody skips, or
// a gap with too much behind it), the stream takes what fits and stops for good.
// An empty segment changes nothing.
func (s *Stream) Add(seq uint32, data []byte) {
	if s.stopped || len(data) == 0 {
		return
	}
	s.Start(seq)
	ahead := int64(wire.SeqDiff(seq, s.next)) // as int32, the farthest past has no negative
	if ahead < 0 {
		if -ahead >= int64(len(data)) {
			return // all of it is old
		}
		data, ahead = data[-ahead:], 0
	}
	if room := int64(s.limit-len(s.Bytes())) - ahead; int64(len(data)) > room {
		data = data[:max(room, 0)]
		s.stopped = true
	}
	if ahead == 0 {
		s.follow(data)
	} else {
		s.keep(s.next+uint32(ahead), data)
	}
	if s.stopped {
		s.pieces, s.held = nil, 0 // the gap stays
	}
}

// follow appends what comes next, and all islands that this reaches.
func (s *Stream) follow(data []byte) {
	for {
		n := len(data)
		if len(s.pieces) > 0 {
			n = min(n, int(wire.SeqDiff(s.pieces[0].seq, s.next)))
		}
		s.push(data[:n])
		data = data[n:]
		if len(s.pieces) == 0 || s.pieces[0].seq != s.next {
			return
		}
		island := s.pieces[0].data
		s.pieces = slices.Delete(s.pieces, 0, 1)
		s.held -= len(island)
		s.push(island)
		data = data[min(len(data), len(island)):] // it came second
	}
}

// push appends to buf, whose capacity never exceeds the limit.
func (s *Stream) push(data []byte) {
	if len(s.buf)+len(data) > cap(s.buf) {
		live := s.Bytes()
		to := s.buf[:0]
		if need := len(live) + len(data); need > cap(s.buf) {
			to = make([]byte, 0, min(max(need, 2*cap(s.buf)), s.limit))
		}
		s.buf, s.start = append(to, live...), 0
	}
	s.buf = append(s.buf, data...)
	s.next += uint32(len(data))
}

// keep puts data behind a gap where no island has bytes yet.
func (s *Stream) keep(seq uint32, data []byte) {
	before := func(n int, mark uint32) int { return min(n, max(0, int(wire.SeqDiff(mark, seq)))) }
	for i := 0; len(data) > 0; i++ {
		n := len(data)
		if i < len(s.pieces) {
			n = before(n, s.pieces[i].seq)
		}
		if n > 0 {
			grown := s.insert(i, seq, data[:n])
			if s.stopped {
				return
			}
			i += grown
			seq, data = seq+uint32(n), data[n:]
		}
		if i < len(s.pieces) { // what it has already
			n = before(len(data), s.pieces[i].end())
			seq, data = seq+uint32(n), data[n:]
		}
	}
}

// insert makes an island before the i-th, or lets the one that ends there grow, and
// returns how many it made. With too many the stream stops.
func (s *Stream) insert(i int, seq uint32, data []byte) int {
	if i > 0 && s.pieces[i-1].end() == seq {
		grows := &s.pieces[i-1]
		grows.data = append(grows.data, data...)
		s.held += len(data)
		return 0
	}
	if len(s.pieces) >= maxPieces {
		s.stopped = true
		return 0
	}
	s.pieces = slices.Insert(s.pieces, i, piece{seq, slices.Clone(data)})
	s.held += len(data)
	return 1
}

// Bytes returns the bytes in order that were not skipped. They belong to the
// stream, and change with the next Add or Skip.
func (s *Stream) Bytes() []byte { return s.buf[s.start:] }

// Skip forgets the first n of Bytes, or all of them if there are fewer.
func (s *Stream) Skip(n int) {
	s.start += min(max(n, 0), len(s.buf)-s.start)
	if s.start == len(s.buf) {
		s.buf, s.start = nil, 0 // connections idle between messages; they hold nothing then
	}
}

// Held is the number of bytes held, in and out of order.
func (s *Stream) Held() int { return len(s.Bytes()) + s.held }

// Stopped reports that the stream takes in nothing more: it was full, or what came
// behind a gap was too much. Bytes stay.
func (s *Stream) Stopped() bool { return s.stopped }
