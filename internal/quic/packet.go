package quic

import (
	"encoding/binary"
	"errors"
)

// Errors of decoding. They are values, so that a bad packet costs nothing.
var (
	ErrTruncated = errors.New("quic: truncated packet")
	ErrMalformed = errors.New("quic: malformed packet")
)

var be = binary.BigEndian

// Type is a packet's. The zero value is invalid.
type Type uint8

// The types.
const (
	Initial Type = iota + 1
	ZeroRTT
	Handshake
	Retry
	VersionNegotiation
	Unknown // has a long header of a version that is not read
	Short   // has no long header: QUIC's 1-RTT packets, or anything else
)

func (t Type) String() string {
	switch t {
	case Initial:
		return "initial"
	case ZeroRTT:
		return "0-rtt"
	case Handshake:
		return "handshake"
	case Retry:
		return "retry"
	case VersionNegotiation:
		return "version-negotiation"
	case Unknown:
		return "unknown"
	case Short:
		return "short"
	}
	return "invalid"
}

const (
	longHeader = 0x80 // bit of the first byte
	maxCID     = 20   // bytes of a connection id in versions 1 and 2
	tagSize    = 16   // of the AEAD, and of a Retry
	sampleSize = 16   // of header protection
	maxNumber  = 4    // bytes of a packet number
)

// Packet is one packet of a datagram. Its slices alias the datagram.
type Packet struct {
	Type    Type
	Version uint32
	DCID    []byte // where it goes, as the receiver calls it
	SCID    []byte // where it comes from
	Token   []byte // of an Initial or Retry
	Whole   []byte // from the first byte to the packet's end
	Number  int    // of an Initial: at which byte of Whole the packet number begins
	known   *version
}

// Decode reads the packet at the beginning of a datagram and returns what follows
// it there: another packet, or padding. Only long headers are read; of a Short
// packet not even the length is known, nor of an Unknown one.
//
//	Long Header Packet {                            RFC 9000 section 17.2
//	  Header Form (1) = 1, Fixed Bit (1),           RFC 9287: the bit may be 0
//	  Long Packet Type (2), Type-Specific Bits (4),
//	  Version (32),
//	  Destination Connection ID Length (8), Destination Connection ID (0..160),
//	  Source Connection ID Length (8), Source Connection ID (0..160),
//	  Type-Specific Payload (..),
//	}
//
// The ids may be longer in versions to come (RFC 8999 section 5.1).
func (p *Packet) Decode(datagram []byte) (rest []byte, err error) {
	*p = Packet{Whole: datagram}
	if len(datagram) == 0 {
		return nil, ErrTruncated
	}
	if datagram[0]&longHeader == 0 {
		p.Type = Short
		return nil, nil
	}
	if len(datagram) < 5 {
		return nil, ErrTruncated
	}
	p.Version = be.Uint32(datagram[1:])
	dcid, b, ok := vector8(datagram[5:])
	if !ok {
		return nil, ErrTruncated
	}
	scid, b, ok := vector8(b)
	if !ok {
		return nil, ErrTruncated
	}
	p.DCID, p.SCID, p.known = dcid, scid, versionOf(p.Version)
	switch {
	case p.Version == negotiation:
		return nil, p.negotiation(b)
	case p.known == nil:
		p.Type = Unknown
		return nil, nil
	case len(dcid) > maxCID || len(scid) > maxCID:
		return nil, ErrMalformed
	}
	p.Type = p.known.types[datagram[0]>>4&3]
	if p.Type == Retry {
		return nil, p.retry(b)
	}
	return p.numbered(b)
}

// negotiation reads nothing: which versions the server knows does not matter here.
//
//	Supported Version (32) ...,                     RFC 9000 section 17.2.1
func (p *Packet) negotiation(b []byte) error {
	if len(b) == 0 || len(b)%4 != 0 {
		return ErrMalformed
	}
	p.Type = VersionNegotiation
	return nil
}

// retry reads what follows a Retry's ids.
//
//	Retry Token (..), Retry Integrity Tag (128),    RFC 9000 section 17.2.5
func (p *Packet) retry(b []byte) error {
	if len(b) < tagSize {
		return ErrTruncated
	}
	p.Token = b[:len(b)-tagSize]
	return nil
}

// numbered reads what follows the ids of the other types.
//
//	Token Length (i), Token (..),                   RFC 9000 section 17.2.2,
//	Length (i),                                     Initials only: the token
//	Packet Number (8..32),
//	Packet Payload (8..),
func (p *Packet) numbered(b []byte) (rest []byte, err error) {
	if p.Type == Initial {
		size, after, ok := varint(b)
		if !ok || size > uint64(len(after)) {
			return nil, ErrTruncated
		}
		p.Token, b = after[:size], after[size:]
	}
	size, b, ok := varint(b)
	if !ok || size > uint64(len(b)) {
		return nil, ErrTruncated
	}
	// Where it could not even be unprotected it is none (RFC 9001 section 5.4.2).
	if size < maxNumber+sampleSize {
		return nil, ErrMalformed
	}
	p.Number = len(p.Whole) - len(b)
	p.Whole = p.Whole[:p.Number+int(size)]
	return b[size:], nil
}

// varint splits off an integer whose first two bits tell its size (RFC 9000
// section 16).
func varint(b []byte) (v uint64, rest []byte, ok bool) {
	if len(b) == 0 {
		return 0, nil, false
	}
	size := 1 << (b[0] >> 6)
	if len(b) < size {
		return 0, nil, false
	}
	v = uint64(b[0] & 0x3f)
	for _, c := range b[1:size] {
		v = v<<8 | uint64(c)
	}
	return v, b[size:], true
}

// vector8 splits off a vector whose length is in one byte before it.
func vector8(b []byte) (v, rest []byte, ok bool) {
	if len(b) < 1 || len(b)-1 < int(b[0]) {
		return nil, nil, false
	}
	end := 1 + int(b[0])
	return b[1:end], b[end:], true
}
