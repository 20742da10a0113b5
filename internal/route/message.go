package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"servicetraceroute/trace"
)

// Of rtnetlink(7), linux/netlink.h, linux/rtnetlink.h and linux/fib_rules.h.
const (
	getRoute   = 26
	newRoute   = 24
	isError    = 2
	request    = 1
	headerLen  = 16
	routeLen   = 12
	attrDst    = 1
	attrSrc    = 2
	attrOIF    = 4
	attrProto  = 27
	attrSPort  = 28
	attrDPort  = 29
	familyIn4  = 2
	familyIn6  = 10
	protoTCP   = 6
	protoUDP   = 17
	attrHeader = 4
)

var errShort = errors.New("a short answer")

// appendRequest appends the question for a flow's route (struct nlmsghdr, struct rtmsg,
// attributes): by all that balancing over several routes may depend on.
func appendRequest(b []byte, flow trace.FlowKey) []byte {
	src, dst := flow.Src.Addr(), flow.Dst.Addr()
	family, proto := uint8(familyIn4), uint8(protoTCP)
	if dst.Is6() {
		family = familyIn6
	}
	if flow.Proto == trace.UDP {
		proto = protoUDP
	}
	start := len(b)
	b = binary.NativeEndian.AppendUint32(b, 0) // the length, see below
	b = binary.NativeEndian.AppendUint16(b, getRoute)
	b = binary.NativeEndian.AppendUint16(b, request)
	b = append(b, make([]byte, 8)...) // sequence, port
	b = append(b, family, uint8(dst.BitLen()), uint8(src.BitLen()), 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = appendAttr(b, attrDst, dst.AsSlice())
	b = appendAttr(b, attrSrc, src.AsSlice())
	b = appendAttr(b, attrProto, []byte{proto})
	b = appendAttr(b, attrSPort, binary.BigEndian.AppendUint16(nil, flow.Src.Port()))
	b = appendAttr(b, attrDPort, binary.BigEndian.AppendUint16(nil, flow.Dst.Port()))
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

// appendAttr appends struct rtattr with its data and padding.
func appendAttr(b []byte, typ uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeader+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	return append(b, make([]byte, (4-len(data)%4)%4)...)
}

// parseAnswer returns the index of the interface that an answer names; an error is the
// kernel's own (syscall.ENETUNREACH), or says that the answer is none.
func parseAnswer(b []byte) (ifindex int, err error) {
	if len(b) < headerLen+4 {
		return 0, errShort
	}
	if whole := binary.NativeEndian.Uint32(b); whole < headerLen || int64(whole) > int64(len(b)) {
		return 0, errShort
	}
	body := b[headerLen:binary.NativeEndian.Uint32(b)]
	switch typ := binary.NativeEndian.Uint16(b[4:]); {
	case typ == isError && len(body) >= 4:
		return 0, syscall.Errno(-int32(binary.NativeEndian.Uint32(body)))
	case typ != newRoute:
		return 0, fmt.Errorf("an answer of type %d", typ)
	case len(body) < routeLen:
		return 0, errShort
	}
	for rest := body[routeLen:]; len(rest) >= attrHeader; {
		size, typ := int(binary.NativeEndian.Uint16(rest)), binary.NativeEndian.Uint16(rest[2:])
		if size < attrHeader || size > len(rest) {
			return 0, errShort
		}
		if typ == attrOIF && size >= attrHeader+4 {
			return int(binary.NativeEndian.Uint32(rest[attrHeader:])), nil
		}
		rest = rest[min((size+3)&^3, len(rest)):]
	}
	return 0, errors.New("an answer without an interface")
}
