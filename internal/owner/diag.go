package owner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"servicetraceroute/trace"
)

// The request (struct inet_diag_req_v2, linux/inet_diag.h), behind the 16 bytes of
// struct nlmsghdr. Numbers are of the machine's byte order but for ports and
// addresses:
//
//	 0 family  1 protocol  2 extensions  3 -  4 states
//	 8 local port  10 remote port  12 local address  28 remote address
//	44 interface  48 cookie
//
// and the answer (struct inet_diag_msg), with attributes from 72 on:
//
//	 0 family  1 state  2 timer  3 retransmissions  4 local port  6 remote port
//	 8 local address  24 remote address  40 interface  44 cookie
//	52 expires  56 receive queue  60 send queue  64 user id  68 inode
const (
	headerLen  = 16
	requestLen = 56
	answerLen  = 72

	sockDiagByFamily = 20 // SOCK_DIAG_BY_FAMILY
	nlmsgError       = 2  // NLMSG_ERROR
	nlmRequest       = 1  // NLM_F_REQUEST
	diagInfo         = 2  // INET_DIAG_INFO: struct tcp_info
	diagCgroupID     = 21 // INET_DIAG_CGROUP_ID, since Linux 5.7
	diagSockOpt      = 22 // INET_DIAG_SOCKOPT

	tcpEstablished = 1 // TCP_ESTABLISHED, which a connected UDP socket is, too

	protoTCP, protoUDP = 6, 17
	afINET, afINET6    = 2, 10 // of Linux
)

// answer is what the kernel knows of a socket.
type answer struct {
	state     uint8
	uid       uint32
	inode     uint32 // 0: no process has it open any more
	cgroup    uint64
	hasCgroup bool
	recvErr   bool // IP_RECVERR
	// hasSockOpt: whether recvErr is known.
	hasSockOpt bool
	handshake  Handshake
	hasInfo    bool
}

// Ears is what a UDP socket hears of ICMP errors about its flow. The zero value is nothing.
type Ears uint8

// What it may hear: nothing; that a datagram was refused, by its peer or a firewall, as every
// connected socket does (the fatal ones in Linux's icmp_err_convert, not Time Exceeded); or
// every error (IP_RECVERR, IPV6_RECVERR).
const (
	Deaf Ears = iota
	HearsRefusals
	HearsAll
)

// Handshake is what a TCP socket remembers of its connection's SYNs.
type Handshake struct {
	LocalScale, PeerScale uint8 // how far this end's and the peer's windows are shifted
	SACK                  bool  // permitted by both
}

// The bytes of struct tcp_info (linux/tcp.h) that are read here: its options, and the
// two scales as bit fields, the peer's first.
const (
	infoOptions, infoScales     = 5, 6
	infoSACK, infoWindowScaling = 2, 4 // TCPI_OPT_SACK, TCPI_OPT_WSCALE
)

// parseInfo reads a handshake; ok is false when too little is there.
func parseInfo(b []byte) (h Handshake, ok bool) {
	if len(b) <= infoScales {
		return h, false
	}
	h.SACK = b[infoOptions]&infoSACK != 0
	if b[infoOptions]&infoWindowScaling != 0 {
		h.PeerScale, h.LocalScale = b[infoScales]&0x0f, b[infoScales]>>4
	}
	return h, true
}

var (
	errGone  = errors.New("no such socket")
	errStale = errors.New("an answer to another question")
	errShort = errors.New("too short")
)

// appendRequest appends the netlink message that asks for exactly one socket. The
// interface is the one at which the flow's packet was seen: with 0 the kernel does
// not find a socket that is bound to one. Of what the kernel tells only when asked,
// attributes up to 8, it asks for one; 0 is none.
func appendRequest(b []byte, seq uint32, key trace.FlowKey, ifindex, attribute int) []byte {
	proto, local, remote := byte(protoTCP), key.Src, key.Dst
	if key.Proto == trace.UDP {
		// The kernel looks UDP sockets up as for an arriving packet.
		proto, local, remote = protoUDP, key.Dst, key.Src
	}
	native := binary.NativeEndian
	b = native.AppendUint32(b, headerLen+requestLen)
	b = native.AppendUint16(b, sockDiagByFamily)
	b = native.AppendUint16(b, nlmRequest)
	b = native.AppendUint32(b, seq)
	b = native.AppendUint32(b, 0)
	family := byte(afINET6)
	if key.Src.Addr().Is4() {
		family = afINET
	}
	var extensions byte
	if attribute > 0 {
		extensions = 1 << (attribute - 1)
	}
	b = append(b, family, proto, extensions, 0)
	b = native.AppendUint32(b, ^uint32(0)) // any state
	b = binary.BigEndian.AppendUint16(b, local.Port())
	b = binary.BigEndian.AppendUint16(b, remote.Port())
	b = appendAddr(b, local.Addr())
	b = appendAddr(b, remote.Addr())
	b = native.AppendUint32(b, uint32(ifindex))
	return native.AppendUint64(b, ^uint64(0)) // no cookie
}

// appendAddr appends 16 bytes, of which IPv4 uses the first 4.
func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		v := a.As4()
		return append(append(b, v[:]...), make([]byte, 12)...)
	}
	v := a.As16()
	return append(b, v[:]...)
}

// parseAnswer reads the kernel's message about the question with that number. It
// is total: any bytes give an answer or an error.
func parseAnswer(b []byte, seq uint32) (a answer, err error) {
	native := binary.NativeEndian
	if len(b) < headerLen {
		return a, errShort
	}
	length, kind := native.Uint32(b), native.Uint16(b[4:])
	if uint64(length) > uint64(len(b)) || length < headerLen {
		return a, errShort
	}
	if native.Uint32(b[8:]) != seq {
		return a, errStale
	}
	b = b[headerLen:length]
	switch {
	case kind == nlmsgError && len(b) >= 4:
		errno := syscall.Errno(-int32(native.Uint32(b)))
		if errno == syscall.ENOENT {
			return a, errGone
		}
		return a, fmt.Errorf("sock_diag: %w", errno)
	case kind != sockDiagByFamily:
		return a, fmt.Errorf("sock_diag: message of type %d", kind)
	case len(b) < answerLen:
		return a, errShort
	}
	a.state, a.uid, a.inode = b[1], native.Uint32(b[64:]), native.Uint32(b[68:])
	for b = b[answerLen:]; len(b) >= 4; {
		n := int(native.Uint16(b))
		if n < 4 || n > len(b) {
			break
		}
		switch value := b[4:n]; native.Uint16(b[2:]) {
		case diagCgroupID:
			if len(value) >= 8 {
				a.cgroup, a.hasCgroup = native.Uint64(value), true
			}
		case diagInfo:
			a.handshake, a.hasInfo = parseInfo(value)
		case diagSockOpt:
			a.hasSockOpt = len(value) > 0
			a.recvErr = a.hasSockOpt && value[0]&1 != 0
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return a, nil
}
