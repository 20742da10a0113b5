package wire

// Sequence numbers are compared modulo 2^32 (RFC 9293 section 3.4).

// SeqLess reports whether a comes before b.
func SeqLess(a, b uint32) bool { return int32(a-b) < 0 }

// SeqDiff returns how far a lies after b; negative if before.
func SeqDiff(a, b uint32) int32 { return int32(a - b) }

// SeqMax returns the later one.
func SeqMax(a, b uint32) uint32 {
	if SeqLess(a, b) {
		return b
	}
	return a
}
