package packetfile

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"servicetraceroute/internal/capture"
)

const (
	// maxBlock bounds what is read at once: a record of pcap, a block of pcapng that is
	// looked into. The longest packet of Linux (BIG TCP) has half of it.
	maxBlock = 1 << 20
	// maxInterfaces bounds those of one file; packets of others are passed over.
	maxInterfaces = 4096
)

// ErrFormat is matched by the error about a file that is neither pcap nor pcapng.
var ErrFormat = errors.New("neither pcap nor pcapng")

// Error tells where a file is broken. It matches io.ErrUnexpectedEOF when the file
// ends there, in the middle of something.
type Error struct {
	Offset int64 // of the record or block, from the beginning of the file
	Err    error
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("packetfile: at byte %d: %v", e.Offset, e.Err) }

// Unwrap implements the errors package's convention.
func (e *Error) Unwrap() error { return e.Err }

// Counts are what became of the packets of a file.
type Counts struct {
	Packets     uint64 // handed out
	NotIP       uint64 // ARP and whatever else is no IP
	Cut         uint64 // not even the beginning of an IP header was captured
	LinkType    uint64 // of interfaces whose link type is not known here
	NoInterface uint64 // of interfaces that the file does not describe
	TooLong     uint64 // longer than 1 MiB
	Lost        uint64 // lost to who captured, as the file itself says
	Blocks      uint64 // blocks of pcapng that hold no packets: names, statistics, what is not known
}

// Interface is one that a file describes.
type Interface struct {
	Name     string // bytes from outside; empty when the file does not tell
	LinkType uint32 // LINKTYPE_ number (tcpdump.org/linktypes.html)

	snap   uint32
	ticks  uint64 // a second; 0: not to be told
	offset int64  // s, to be added
}

// Reader reads packets one by one. It is not safe for concurrent use.
type Reader struct {
	in     *bufio.Reader
	offset int64 // of what comes next
	skip   int64 // bytes to pass over first
	next   func() (capture.Packet, bool, error)
	err    error // final

	order      binary.ByteOrder
	nano       bool // pcap
	pcapng     bool
	section    []int        // numbers of the section's interfaces, 0: too many
	interfaces []*Interface // by number, from 1
	latest     time.Time
	until      time.Time
	counts     Counts
}

// NewReader returns a reader of r, which it reads ahead of what it hands out and does
// not close. What the file is shows with the first Next.
func NewReader(r io.Reader) *Reader {
	f := &Reader{in: bufio.NewReaderSize(r, maxBlock)}
	f.next = f.begin
	return f
}

// Next returns the next packet. Its Data is valid until the next call. Direction is 0
// where the file does not tell, Interface counts from 1, NextHop is the Ethernet
// destination. After the last packet it returns io.EOF, at a broken place an *Error,
// and goes on doing so. Errors of the reader below are returned as they are, and
// Next can be called again: a deadline loses nothing.
func (f *Reader) Next() (capture.Packet, error) {
	for {
		if p, ok, err := f.step(); ok || err != nil {
			return p, err
		}
	}
}

// step reads one record or block, which need not hold a packet.
func (f *Reader) step() (p capture.Packet, ok bool, err error) {
	if f.err != nil {
		return p, false, f.err
	}
	if err = f.pass(); err == nil {
		p, ok, err = f.next()
	}
	if err != nil {
		return capture.Packet{}, false, f.fail(err)
	}
	if ok {
		f.counts.Packets++
	}
	return p, ok, nil
}

// Counts returns what was counted so far.
func (f *Reader) Counts() Counts { return f.counts }

// Format is "pcap" or "pcapng" once the first Next told it, else empty.
func (f *Reader) Format() string {
	switch {
	case f.pcapng:
		return "pcapng"
	case f.order != nil:
		return "pcap"
	}
	return ""
}

// Until is when the capture ended, as far as the file told so far; zero: it did not.
func (f *Reader) Until() time.Time { return f.until }

// Interface returns one by the number that packets have.
func (f *Reader) Interface(number int) (Interface, bool) {
	if number < 1 || number > len(f.interfaces) {
		return Interface{}, false
	}
	return *f.interfaces[number-1], true
}

// ready reports whether the next step has all it needs, so that it will not wait. It
// ends the last packet.
func (f *Reader) ready() bool {
	have := int64(f.in.Buffered())
	if f.err != nil || have < f.skip || f.pass() != nil {
		return false
	}
	b, _ := f.in.Peek(min(f.in.Buffered(), recordHeader))
	switch {
	case f.order == nil || len(b) < blockBounds:
		return false
	case f.pcapng:
		return int64(f.in.Buffered()) >= int64(f.order.Uint32(b[4:]))
	}
	return len(b) == recordHeader && int64(f.in.Buffered()) >= recordHeader+int64(f.order.Uint32(b[8:]))
}

// fail keeps an error of the file; those of the reader below may pass.
func (f *Reader) fail(err error) error {
	var broken *Error
	if err == io.EOF || errors.As(err, &broken) {
		f.err = err
	}
	return err
}

// broken is the error of what begins at the current offset.
func (f *Reader) broken(format string, args ...any) error {
	return &Error{f.offset, fmt.Errorf(format, args...)}
}

// peek returns the next n bytes, at most maxBlock, without taking them. At the end
// of the file that is io.EOF when nothing is left, else an *Error.
func (f *Reader) peek(n int) ([]byte, error) {
	b, err := f.in.Peek(n)
	if len(b) == n {
		return b, nil
	}
	if err == io.EOF && len(b) > 0 {
		return nil, f.broken("the file ends after %d bytes of %d: %w", len(b), n, io.ErrUnexpectedEOF)
	}
	return nil, err
}

// take ends what begins here: the next call of pass goes over it. Slices of the
// buffer stay valid until then.
func (f *Reader) take(n int64) { f.skip = n }

// pass goes over what was taken.
func (f *Reader) pass() error {
	for f.skip > 0 {
		n, err := f.in.Discard(int(min(f.skip, maxBlock)))
		f.skip -= int64(n)
		f.offset += int64(n)
		if err == io.EOF {
			return f.broken("the file ends %d bytes before the block does: %w", f.skip, io.ErrUnexpectedEOF)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// begin tells the format by the first four bytes.
func (f *Reader) begin() (p capture.Packet, ok bool, err error) {
	b, err := f.peek(4)
	if err != nil {
		return p, false, err
	}
	switch magic := binary.LittleEndian.Uint32(b); magic {
	case sectionHeader: // a palindrome
		f.next, f.pcapng = f.block, true
		return p, false, nil
	case 0xa1b2c3d4, 0xa1b23c4d:
		f.order, f.nano = binary.LittleEndian, magic == 0xa1b23c4d
	case 0xd4c3b2a1, 0x4d3cb2a1:
		f.order, f.nano = binary.BigEndian, magic == 0x4d3cb2a1
	default:
		return p, false, f.broken("% x: %w", b, ErrFormat)
	}
	return p, false, f.fileHeader()
}

// lastSecond is the last second that RFC 3339 can write.
var lastSecond = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC).Unix()

// at makes a time of seconds and nanoseconds, within what records can show.
func at(sec int64, nsec int64) time.Time {
	if sec < 0 || sec > lastSecond {
		return time.Unix(min(max(sec, 0), lastSecond), 0)
	}
	return time.Unix(sec, nsec)
}
