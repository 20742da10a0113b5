package quic

// Bounds of what is kept of one flow's CRYPTO stream.
const (
	MaxCrypto    = 16 << 10 // bytes from its beginning
	MaxFragments = 64       // pieces with gaps between them
	step         = 2 << 10  // by which the memory for them grows
)

// stream puts the pieces of a CRYPTO stream together, in whatever order they come.
// Where two of them overlap the earlier one counts: honest ones agree (RFC 9000
// section 2.2). The zero value is empty.
type stream struct {
	buf   []byte // valid where spans say so
	spans [MaxFragments]span
	n     int
}

// span is a piece that is there, from (included) to (not).
type span struct{ from, to uint16 }

// add takes in a piece. It is false for one that is beyond the bounds.
func (s *stream) add(offset uint64, data []byte) bool {
	if offset > MaxCrypto || len(data) > MaxCrypto-int(offset) {
		return false
	}
	if len(data) == 0 {
		return true
	}
	from, to := int(offset), int(offset)+len(data)
	// Spans i to j-1 touch the piece, and become one with it.
	i := 0
	for i < s.n && int(s.spans[i].to) < from {
		i++
	}
	j := i
	for j < s.n && int(s.spans[j].from) <= to {
		j++
	}
	if i == j && s.n == MaxFragments {
		return false
	}
	if to > len(s.buf) {
		larger := make([]byte, (to+step-1)/step*step)
		copy(larger, s.buf)
		s.buf = larger
	}
	merged, at := span{uint16(from), uint16(to)}, from
	for _, have := range s.spans[i:j] {
		if int(have.from) > at {
			copy(s.buf[at:have.from], data[at-from:])
		}
		at = max(at, int(have.to))
		merged = span{min(merged.from, have.from), max(merged.to, have.to)}
	}
	if at < to {
		copy(s.buf[at:to], data[at-from:])
	}
	copy(s.spans[i+1:], s.spans[j:s.n])
	s.spans[i] = merged
	s.n += 1 - (j - i)
	return true
}

// prefix is the stream's beginning, as far as it is without a gap.
func (s *stream) prefix() []byte {
	if s.n == 0 || s.spans[0].from > 0 {
		return nil
	}
	return s.buf[:s.spans[0].to]
}
