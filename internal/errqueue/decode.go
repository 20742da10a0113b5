package errqueue

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"time"

	"servicetraceroute/internal/wire"
)

// Origins of an entry (linux/errqueue.h).
const (
	originICMP  = 2
	originICMP6 = 3
)

// Address families (linux/socket.h).
const (
	familyInet  = 2
	familyInet6 = 10
)

// Error is an ICMP error as the queue tells of it. The zero value is none.
type Error struct {
	Kind       wire.ICMPKind
	Type, Code uint8
	Errno      syscall.Errno // what the kernel makes of it
	MTU        uint32        // of wire.PacketTooBig; bytes
	From       netip.Addr    // who made it
	TTL        int           // it came with; 0: not told
	At         time.Time     // of the wall clock; zero: not told
}

// extended reads struct sock_extended_err, and the offender's socket address behind it
// (ip(7), SO_EE_OFFENDER), in the machine's own byte order but for the address:
//
//	| errno, 32 | origin, 8 | type, 8 | code, 8 | pad, 8 | info, 32 | data, 32 |
//	| family, 16 | port, 16 | IPv4 address, 32                                |
//	| family, 16 | port, 16 | flow label, 32 | IPv6 address, 128 | scope, 32  |
//
// Other origins than ICMP are none of a router's: false. So is what is too short, and what
// ends no path.
func (e *Error) extended(b []byte) bool {
	const head = 16
	if len(b) < head+8 {
		return false
	}
	origin, typ, code := b[4], b[5], b[6]
	family := binary.NativeEndian.Uint16(b[head:])
	version := uint8(4)
	switch {
	case origin == originICMP && family == familyInet:
		e.From = netip.AddrFrom4([4]byte(b[head+4 : head+8]))
	case origin == originICMP6 && family == familyInet6 && len(b) >= head+24:
		e.From, version = netip.AddrFrom16([16]byte(b[head+8:head+24])), 6
	default:
		return false
	}
	e.Kind, e.Type, e.Code = wire.KindOf(version, typ, code), typ, code
	e.Errno = syscall.Errno(binary.NativeEndian.Uint32(b))
	if e.Kind == wire.PacketTooBig {
		e.MTU = binary.NativeEndian.Uint32(b[8:])
	}
	switch e.Kind {
	case wire.OtherICMP, wire.EchoRequest, wire.EchoReply:
		return false
	}
	return true
}

// HopLimit reads the int of IP_TTL and IPV6_HOPLIMIT; 0: it is none.
func HopLimit(b []byte) int {
	if len(b) < 4 {
		return 0
	}
	return int(binary.NativeEndian.Uint32(b) & 0xff)
}

// Stamp reads struct __kernel_timespec, seconds and nanoseconds of 64 bits each; the zero
// time: it is none.
func Stamp(b []byte) (t time.Time) {
	if len(b) < 16 {
		return t
	}
	return time.Unix(int64(binary.NativeEndian.Uint64(b)), int64(binary.NativeEndian.Uint64(b[8:])))
}
