package packetfile

import (
	"encoding/binary"
	"math"
	"math/bits"
	"time"

	"servicetraceroute/internal/capture"
)

// Block types.
const (
	sectionHeader  = 0x0a0d0d0a
	interfaceBlock = 1
	oldPacket      = 2 // obsolete
	simplePacket   = 3
	statistics     = 5
	enhancedPacket = 6
)

// Options, by the block that they belong to.
const (
	ifName      = 2
	ifTSResol   = 9
	ifTSOffset  = 14
	epbFlags    = 2
	epbDropped  = 4
	isbEndTime  = 3
	isbIfDrop   = 5
	isbOSDrop   = 7
	maxIfName   = 256
	blockBounds = 12 // type, length, length
)

// block reads one block of a pcapng file.
//
//	|                          block type                           |
//	|                      block total length                       |
//	|                          block body                           |
//	|                      block total length                       |
func (f *Reader) block() (p capture.Packet, ok bool, err error) {
	b, err := f.peek(8)
	if err != nil {
		return p, false, err
	}
	if binary.LittleEndian.Uint32(b) == sectionHeader {
		return p, false, f.sectionHeader()
	}
	kind, total := f.order.Uint32(b), f.order.Uint32(b[4:])
	if total < blockBounds || total%4 != 0 {
		return p, false, f.broken("a block of %d bytes", total)
	}
	switch kind {
	case interfaceBlock, statistics:
		f.counts.Blocks++
		fallthrough
	case enhancedPacket, simplePacket, oldPacket:
		if total > maxBlock {
			if kind == enhancedPacket || kind == simplePacket || kind == oldPacket {
				f.counts.TooLong++
			}
			f.take(int64(total))
			return p, false, nil
		}
	default:
		f.counts.Blocks++
		f.take(int64(total))
		return p, false, nil
	}
	if b, err = f.peek(int(total)); err != nil {
		return p, false, err
	}
	if again := f.order.Uint32(b[total-4:]); again != total {
		return p, false, f.broken("a block of %d bytes that ends as one of %d", total, again)
	}
	body := b[8 : total-4]
	switch kind {
	case interfaceBlock:
		err = f.describe(body)
	case statistics:
		f.lost(body)
	case enhancedPacket:
		ok, err = f.enhanced(&p, body)
	case simplePacket:
		ok, err = f.simple(&p, body)
	case oldPacket:
		ok, err = f.old(&p, body)
	}
	if err != nil {
		return p, false, err
	}
	f.take(int64(total))
	return p, ok, nil
}

// sectionHeader begins a section, in which interfaces are counted anew.
//
//	|                   block type = 0x0a0d0d0a                     |
//	|                      block total length                       |
//	|                 byte-order magic = 0x1a2b3c4d                 |
//	|         major version         |         minor version         |
//	|                  section length, 8 bytes                      |
//	|                            options                            |
func (f *Reader) sectionHeader() error {
	b, err := f.peek(28)
	if err != nil {
		return err
	}
	f.order = binary.LittleEndian
	if f.order.Uint32(b[8:]) != 0x1a2b3c4d {
		f.order = binary.BigEndian
	}
	total := f.order.Uint32(b[4:])
	switch {
	case f.order.Uint32(b[8:]) != 0x1a2b3c4d:
		return f.broken("a section of unknown byte order (% x)", b[8:12])
	case total < 28 || total%4 != 0:
		return f.broken("a section header of %d bytes", total)
	case f.order.Uint16(b[12:]) != 1:
		return f.broken("version %d.%d of pcapng is not known", f.order.Uint16(b[12:]), f.order.Uint16(b[14:]))
	}
	f.counts.Blocks++
	f.section = f.section[:0]
	f.take(int64(total))
	return nil
}

// describe takes in an interface.
//
//	|           link type           |           reserved            |
//	|                            snap length                        |
//	|                            options                            |
func (f *Reader) describe(body []byte) error {
	if len(body) < 8 {
		return f.broken("an interface description of %d bytes", len(body))
	}
	i := Interface{LinkType: uint32(f.order.Uint16(body)), snap: f.order.Uint32(body[4:]), ticks: 1e6}
	f.options(body[8:], func(code uint16, value []byte) {
		switch {
		case code == ifName:
			i.Name = string(value[:min(len(value), maxIfName)])
		case code == ifTSResol && len(value) >= 1:
			i.ticks = ticks(value[0])
		case code == ifTSOffset && len(value) >= 8:
			i.offset = int64(f.order.Uint64(value))
		}
	})
	f.section = append(f.section, f.number(i))
	if len(f.section) > maxInterfaces {
		f.section = f.section[:maxInterfaces]
	}
	return nil
}

// number returns that of an interface: the same one for the same name and link type
// in another section, which is another run of the same capture.
func (f *Reader) number(i Interface) int {
	place := len(f.section)
	for n, known := range f.interfaces {
		same := known.Name == i.Name && known.LinkType == i.LinkType
		if same && i.Name != "" || same && n == place {
			if known.snap == i.snap && known.ticks == i.ticks && known.offset == i.offset {
				return n + 1
			}
		}
	}
	if len(f.interfaces) == maxInterfaces {
		return 0
	}
	f.interfaces = append(f.interfaces, &i)
	return len(f.interfaces)
}

// ticks is how many units of a timestamp make a second: a negative power of ten, or
// with the highest bit of two. 0: that is more than 64 bits hold.
func ticks(resolution byte) uint64 {
	if exponent := resolution & 0x7f; resolution&0x80 != 0 {
		if exponent > 63 {
			return 0
		}
		return 1 << exponent
	}
	n := uint64(1)
	for range resolution {
		hi, lo := bits.Mul64(n, 10)
		if hi != 0 {
			return 0
		}
		n = lo
	}
	return n
}

// stamp gives a packet its time.
func (f *Reader) stamp(p *capture.Packet, i *Interface, high, low uint32) {
	p.Time = i.timeOf(high, low)
	f.latest = p.Time
}

// timeOf is the time of a timestamp at the interface.
func (i *Interface) timeOf(high, low uint32) time.Time {
	units := uint64(high)<<32 | uint64(low)
	sec, nsec := int64(0), int64(0)
	if i.ticks > 0 {
		hi, lo := bits.Mul64(units%i.ticks, 1e9)
		n, _ := bits.Div64(hi, lo, i.ticks) // below 1e9: the remainder is below ticks
		sec, nsec = int64(min(units/i.ticks, math.MaxInt64)), int64(n)
	}
	if sum := sec + i.offset; (sum > sec) == (i.offset > 0) {
		sec = sum
	} else {
		sec = math.MaxInt64 // beyond all years; sec is not negative, so there is no other end
	}
	return at(sec, nsec)
}

// interfaceOf returns the interface that a block of this section refers to, nil for none.
func (f *Reader) interfaceOf(p *capture.Packet, id uint32) *Interface {
	if id >= uint32(len(f.section)) || f.section[id] == 0 {
		f.counts.NoInterface++
		return nil
	}
	p.Interface = f.section[id]
	return f.interfaces[p.Interface-1]
}

// enhanced reads an enhanced packet block.
//
//	|                         interface ID                          |
//	|                        timestamp (high)                       |
//	|                        timestamp (low)                        |
//	|                        captured length                        |
//	|                        original length                        |
//	|                     packet data, options                      |
func (f *Reader) enhanced(p *capture.Packet, body []byte) (bool, error) {
	if len(body) < 20 {
		return false, f.broken("a packet block of %d bytes", len(body))
	}
	word := func(at int) uint32 { return f.order.Uint32(body[at:]) }
	return f.packet(p, body[20:], word(0), word(4), word(8), word(12), word(16))
}

// old reads a packet block, which has a short interface ID and a counter of drops in
// the place of the long one.
func (f *Reader) old(p *capture.Packet, body []byte) (bool, error) {
	if len(body) < 20 {
		return false, f.broken("a packet block of %d bytes", len(body))
	}
	word := func(at int) uint32 { return f.order.Uint32(body[at:]) }
	if drops := f.order.Uint16(body[2:]); drops != 0xffff {
		f.counts.Lost += uint64(drops)
	}
	return f.packet(p, body[20:], uint32(f.order.Uint16(body)), word(4), word(8), word(12), word(16))
}

// packet reads what enhanced and old blocks have in common.
func (f *Reader) packet(p *capture.Packet, rest []byte, id, high, low, kept, original uint32) (bool, error) {
	if uint64(kept) > uint64(len(rest)) {
		return false, f.broken("a packet of %d bytes in a block for %d", kept, len(rest))
	}
	i := f.interfaceOf(p, id)
	if i == nil {
		return false, nil
	}
	f.stamp(p, i, high, low)
	f.options(rest[min(len(rest), (int(kept)+3)&^3):], func(code uint16, value []byte) {
		switch {
		case code == epbFlags && len(value) >= 4:
			p.Direction = direction(f.order.Uint32(value))
		case code == epbDropped && len(value) >= 8:
			f.counts.Lost += f.order.Uint64(value)
		}
	})
	return f.frame(p, rest[:kept], original, i.LinkType), nil
}

// direction reads epb_flags: bits 0 and 1 tell whether the packet came (1) or left
// (2), bits 2 to 4 how it was received (4: promiscuous, meant for somebody else).
func direction(flags uint32) capture.Direction {
	switch {
	case flags&3 == 2:
		return capture.Outgoing
	case flags&3 == 1 && flags>>2&7 == 4:
		return capture.Foreign
	case flags&3 == 1:
		return capture.Incoming
	}
	return 0
}

// simple reads a simple packet block: only the original length and the data, of the
// section's first interface. It has no time and gets the latest before it.
func (f *Reader) simple(p *capture.Packet, body []byte) (bool, error) {
	if len(body) < 4 {
		return false, f.broken("a simple packet block of %d bytes", len(body))
	}
	i := f.interfaceOf(p, 0)
	if i == nil {
		return false, nil
	}
	original := f.order.Uint32(body)
	kept := min(uint64(original), uint64(len(body)-4))
	if i.snap > 0 {
		kept = min(kept, uint64(i.snap))
	}
	p.Time = f.latest
	if p.Time.IsZero() {
		p.Time = at(0, 0)
	}
	return f.frame(p, body[4:4+kept], original, i.LinkType), nil
}

// lost takes in interface statistics: an interface ID, a timestamp and options.
func (f *Reader) lost(body []byte) {
	f.options(body[min(len(body), 12):], func(code uint16, value []byte) {
		switch {
		case len(value) < 8:
		case code == isbIfDrop || code == isbOSDrop:
			f.counts.Lost += f.order.Uint64(value)
		case code == isbEndTime:
			if id := f.order.Uint32(body); id < uint32(len(f.section)) && f.section[id] != 0 {
				f.until = f.interfaces[f.section[id]-1].timeOf(f.order.Uint32(value), f.order.Uint32(value[4:]))
			}
		}
	})
}

// options calls yield for each option of a block; what is cut short ends them.
//
//	|          option code          |         option length         |
//	|                  value, padded to 32 bits                     |
func (f *Reader) options(b []byte, yield func(code uint16, value []byte)) {
	for len(b) >= 4 {
		code, n := f.order.Uint16(b), int(f.order.Uint16(b[2:]))
		if code == 0 || n > len(b)-4 {
			return
		}
		yield(code, b[4:4+n])
		b = b[min(len(b), 4+(n+3)&^3):]
	}
}
