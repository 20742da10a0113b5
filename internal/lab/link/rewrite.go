//go:build linux

package link

import (
	"encoding/binary"

	"servicetraceroute/internal/lab/tap"
)

// Where fields stand in a TCP header (RFC 9293) and its options.
const (
	tcpSeq   = 4
	tcpAck   = 8
	tcpCheck = 16
	tcpSACK  = 5 // RFC 2018
)

// rewrite changes a packet in place, from its IP header on, as the configuration
// has it, and returns its new length. back says that it goes from B to A. What it
// does not understand stays as it is. Checksums are corrected, not made anew (RFC
// 1624): a wrong one stays wrong.
func (c *Config) rewrite(ip []byte, back bool) (length int) {
	h, ok := tap.Parse(ip)
	if !ok || h.Fragment {
		return len(ip)
	}
	switch {
	case h.Proto == tap.TCP && c.SeqShift != 0:
		c.shift(&h, back)
	case h.Proto == tap.ICMP && back, h.Proto == tap.ICMPv6 && back:
		if c.SeqShift != 0 && !c.QuotesUntranslated {
			c.translate(&h)
		}
		if c.ShortQuotes && h.Proto == tap.ICMP {
			return shorten(ip, &h)
		}
	}
	return len(ip)
}

// shift hides A's numbers from B.
func (c *Config) shift(h *tap.Header, back bool) {
	t := h.Transport
	if len(t) < 20 {
		return
	}
	check := t[tcpCheck : tcpCheck+2]
	if !back {
		add(t, tcpSeq, c.SeqShift, check)
		return
	}
	if h.Flags&tap.ACK == 0 {
		return
	}
	add(t, tcpAck, -c.SeqShift, check)
	for at, end := 20, min(int(t[12]>>4)*4, len(t)); at < end; {
		if t[at] == 0 {
			return
		}
		if t[at] == 1 {
			at++
			continue
		}
		if at+1 == end || t[at+1] < 2 || at+int(t[at+1]) > end {
			return
		}
		next := at + int(t[at+1])
		if t[at] == tcpSACK {
			for edge := at + 2; edge+4 <= next; edge += 4 {
				add(t, edge, -c.SeqShift, check)
			}
		}
		at = next
	}
}

// translate gives the segment that an ICMP error quotes the number that A sent.
func (c *Config) translate(h *tap.Header) {
	q, _, _, ok := h.Quote()
	if !ok || q.Fragment || q.Proto != tap.TCP {
		return
	}
	// All that changes in the quote counts in the error's own checksum too, the
	// quoted checksum included.
	t, outer := q.Transport, h.Transport[2:4]
	if len(t) < tcpCheck+2 {
		add(t, tcpSeq, -c.SeqShift, outer)
		return
	}
	quoted := t[tcpCheck : tcpCheck+2]
	was := [2]byte(quoted)
	add(t, tcpSeq, -c.SeqShift, outer, quoted)
	patch(outer, was[:], quoted)
}

// shorten cuts an ICMP error's quote to the IP header and 8 bytes, and returns the
// packet's new length.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|     Type      |     Code      |          Checksum             |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|     unused    |    Length     |          unused               |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|      Internet Header + leading octets of original datagram    |
//
// Length is of RFC 4884 and says where extensions begin. Without them it is 0.
func shorten(ip []byte, h *tap.Header) int {
	icmp := h.Transport
	const moreFragments = 0x20
	if len(icmp) < 8+20 || len(ip) < h.Len || ip[6]&moreFragments != 0 || icmp[8]>>4 != 4 {
		return len(ip)
	}
	if typ := icmp[0]; typ != 3 && typ != 11 && typ != 12 {
		return len(ip)
	}
	size := int(icmp[8]&0xf) * 4
	keep := 8 + size + 8
	if size < 20 || len(icmp) <= keep {
		return len(ip)
	}
	// Zeros, as which bytes beyond the end count in a checksum, can go.
	check := icmp[2:4]
	none := make([]byte, len(icmp)-keep+1)
	put(icmp, 4, []byte{icmp[4], 0}, check)
	gone := append(icmp[keep:len(icmp):len(icmp)], 0) // a copy: of even length
	patch(check, gone[:len(gone)&^1], none)
	length := h.Len - len(icmp) + keep
	put(ip, 2, binary.BigEndian.AppendUint16(nil, uint16(length)), ip[10:12])
	return length
}

// add adds to the 32-bit number at a place of b, even or odd, and corrects the
// checksums of which b's words are part.
func add(b []byte, at int, delta uint32, checks ...[]byte) {
	// A number at an odd place spoils three words of the sum.
	from, to := at&^1, (at+5)&^1
	if to > len(b) {
		return
	}
	var room [6]byte
	words := append(room[:0], b[from:to]...)
	n := words[at-from:]
	binary.BigEndian.PutUint32(n, binary.BigEndian.Uint32(n)+delta)
	put(b, from, words, checks...)
}

// put writes words at an even place of b and corrects checksums.
func put(b []byte, at int, words []byte, checks ...[]byte) {
	old := b[at : at+len(words)]
	for _, c := range checks {
		patch(c, old, words)
	}
	copy(old, words)
}

// patch corrects a checksum for words that change (RFC 1624, equation 3).
func patch(check, before, after []byte) {
	sum := uint32(^binary.BigEndian.Uint16(check))
	for i := 0; i+1 < len(before); i += 2 {
		sum += uint32(^binary.BigEndian.Uint16(before[i:])) + uint32(binary.BigEndian.Uint16(after[i:]))
		sum = sum&0xffff + sum>>16
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(check, ^uint16(sum))
}
