package packetfile

import (
	"encoding/binary"
	"net/netip"

	"servicetraceroute/internal/wire"
)

// file builds captures by hand, in either byte order.
type file struct {
	order binary.AppendByteOrder
	b     []byte
}

func (f *file) u16(v ...uint16) *file {
	for _, n := range v {
		f.b = f.order.AppendUint16(f.b, n)
	}
	return f
}

func (f *file) u32(v ...uint32) *file {
	for _, n := range v {
		f.b = f.order.AppendUint32(f.b, n)
	}
	return f
}

// pcap begins a pcap file.
func pcap(order binary.AppendByteOrder, nano bool, link uint32) *file {
	f := &file{order: order}
	magic := uint32(0xa1b2c3d4)
	if nano {
		magic = 0xa1b23c4d
	}
	return f.u32(magic).u16(2, 4).u32(0, 0, 65535, link)
}

func (f *file) record(sec, frac uint32, data []byte, original int) *file {
	f.u32(sec, frac, uint32(len(data)), uint32(original))
	f.b = append(f.b, data...)
	return f
}

// block appends one block of pcapng.
func (f *file) block(kind uint32, body ...[]byte) *file {
	var all []byte
	for _, part := range body {
		all = append(all, part...)
		for len(all)%4 != 0 {
			all = append(all, 0)
		}
	}
	f.u32(kind, uint32(len(all)+12))
	f.b = append(f.b, all...)
	return f.u32(uint32(len(all) + 12))
}

// words are 32-bit ones.
func (f *file) words(v ...uint32) []byte { return (&file{order: f.order}).u32(v...).b }

func (f *file) option(code uint16, value []byte) []byte {
	o := (&file{order: f.order}).u16(code, uint16(len(value)))
	o.b = append(o.b, value...)
	for len(o.b)%4 != 0 {
		o.b = append(o.b, 0)
	}
	return o.b
}

// section begins a section of pcapng.
func section(order binary.AppendByteOrder) *file { return (&file{order: order}).section() }

func (f *file) section() *file {
	return f.block(sectionHeader, f.words(0x1a2b3c4d), (&file{order: f.order}).u16(1, 0).b, f.words(0xffffffff, 0xffffffff), f.option(4, []byte("test")))
}

func (f *file) iface(link uint16, options ...[]byte) *file {
	return f.block(interfaceBlock, append([][]byte{(&file{order: f.order}).u16(link, 0).b, f.words(262144)}, options...)...)
}

func (f *file) enhanced(id uint32, stamp uint64, data []byte, original int, options ...[]byte) *file {
	head := f.words(id, uint32(stamp>>32), uint32(stamp), uint32(len(data)), uint32(original))
	return f.block(enhancedPacket, append([][]byte{head, data}, options...)...)
}

// ip4 and ip6 are whole packets.
var (
	ip4 = (&wire.TCPProbe{
		Src: netip.MustParseAddrPort("192.0.2.1:40000"), Dst: netip.MustParseAddrPort("203.0.113.7:443"), TTL: 64, Flags: wire.ACK,
	}).AppendTo(nil)
	ip6 = (&wire.TCPProbe{
		Src: netip.MustParseAddrPort("[2001:db8::1]:40000"), Dst: netip.MustParseAddrPort("[2001:db8::7]:443"), TTL: 64, Flags: wire.ACK,
	}).AppendTo(nil)
)

func join(parts ...any) (b []byte) {
	for _, p := range parts {
		switch p := p.(type) {
		case []byte:
			b = append(b, p...)
		case string:
			b = append(b, p...)
		}
	}
	return b
}

const macs = "\x02\x00\x00\x00\x00\x07\x02\x00\x00\x00\x00\x01"
