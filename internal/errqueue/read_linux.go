package errqueue

import (
	"golang.org/x/sys/unix"
)

// room is for all control messages that an entry can have here.
const room = 512

// Read takes entries from a socket's error queue, without waiting, up to the first ICMP
// error, and returns that. data receives what the ICMP message quotes: of UDP from the
// datagram's payload on, n bytes of it, of TCP nothing useful. ok is false when there is
// none. It is told what the socket asked for: IP_RECVTTL or IPV6_RECVHOPLIMIT, and
// SO_TIMESTAMPNS_NEW.
func Read(fd int, data []byte) (e Error, n int, ok bool) {
	var control [room]byte
	for {
		got, oob, _, _, err := unix.Recvmsg(fd, data, control[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return Error{}, 0, false
		}
		if e, ok := Decode(control[:oob]); ok {
			return e, got, true
		}
	}
}

// Decode reads an entry's control messages; false: there is no ICMP error among them.
func Decode(control []byte) (e Error, ok bool) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return Error{}, false
	}
	for _, m := range messages {
		switch [2]int32{m.Header.Level, m.Header.Type} {
		case [2]int32{unix.IPPROTO_IP, unix.IP_RECVERR}, [2]int32{unix.IPPROTO_IPV6, unix.IPV6_RECVERR}:
			ok = e.extended(m.Data) || ok
		case [2]int32{unix.IPPROTO_IP, unix.IP_TTL}, [2]int32{unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT}:
			e.TTL = HopLimit(m.Data)
		case [2]int32{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW}:
			e.At = Stamp(m.Data)
		}
	}
	if !ok {
		return Error{}, false
	}
	return e, true
}
