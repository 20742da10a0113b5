package packetfile

import (
	"servicetraceroute/internal/capture"
)

const (
	pcapHeader   = 24
	recordHeader = 16
)

// fileHeader reads the header of a pcap file.
//
//	|                          magic number                         |
//	|         major version         |         minor version         |
//	|                reserved (time zone, accuracy), 8 bytes        |
//	|                            snap length                        |
//	| FCS |f|   0   |                   link type                   |
func (f *Reader) fileHeader() error {
	b, err := f.peek(pcapHeader)
	if err != nil {
		return err
	}
	if major := f.order.Uint16(b[4:]); major != 2 {
		return f.broken("version %d.%d of pcap is not known", major, f.order.Uint16(b[6:]))
	}
	// The upper half tells of a frame check sequence, which stands behind the packet.
	f.interfaces = []*Interface{{LinkType: f.order.Uint32(b[20:]) & 0xffff}}
	f.next = f.record
	f.take(pcapHeader)
	return nil
}

// record reads one packet of a pcap file.
//
//	|                      timestamp (seconds)                      |
//	|            timestamp (microseconds or nanoseconds)            |
//	|                        captured length                        |
//	|                        original length                        |
//	|                          packet data                          |
func (f *Reader) record() (p capture.Packet, ok bool, err error) {
	b, err := f.peek(recordHeader)
	if err != nil {
		return p, false, err
	}
	kept := f.order.Uint32(b[8:])
	if kept > maxBlock-recordHeader {
		// Where the next record begins cannot be told any more.
		return p, false, f.broken("a packet of %d bytes", kept)
	}
	if b, err = f.peek(recordHeader + int(kept)); err != nil {
		return p, false, err
	}
	nsec := int64(f.order.Uint32(b[4:]))
	if !f.nano {
		nsec *= 1000
	}
	p.Time = at(int64(f.order.Uint32(b)), nsec)
	p.Interface = 1
	ok = f.frame(&p, b[recordHeader:], f.order.Uint32(b[12:]), f.interfaces[0].LinkType)
	f.take(int64(recordHeader) + int64(kept))
	return p, ok, nil
}
