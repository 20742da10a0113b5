package servicetraceroute

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	keepaliveOnce  = 75  // seconds, the kernel's own default: nothing is repeated while we wait
	keepaliveCount = 127 // the highest that tcp(7) allows: unanswered ones must not end the connection
	tcpEstablished = 1   // TCP_ESTABLISHED, include/net/tcp_states.h
)

// keepAlive makes the kernel send a keepalive, again each second while it is not
// answered. It returns what asks for one more after an answer, and what puts the
// socket's options back; nil where that is not possible or not safe.
//
// tcp(7): TCP_KEEPIDLE and TCP_KEEPINTVL are whole seconds; on a socket that is idle
// for longer the first keepalive leaves as soon as TCP_KEEPIDLE is set. With
// TCP_USER_TIMEOUT the kernel ends a connection at its second keepalive, if that has
// been idle for so long (net/ipv4/tcp_timer.c, tcp_keepalive_timer).
func keepAlive(raw syscall.RawConn) (again, undo func()) {
	type option struct{ level, name, value, before int }
	options := []option{
		{level: unix.SOL_SOCKET, name: unix.SO_KEEPALIVE, value: 1},
		{level: unix.IPPROTO_TCP, name: unix.TCP_KEEPCNT, value: keepaliveCount},
		{level: unix.IPPROTO_TCP, name: unix.TCP_KEEPINTVL, value: 1},
		{level: unix.IPPROTO_TCP, name: unix.TCP_KEEPIDLE, value: 1},
	}
	ok := false
	err := raw.Control(func(fd uintptr) {
		if ms, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); err != nil || ms != 0 {
			return
		}
		for i := range options {
			o := &options[i]
			var err error
			if o.before, err = unix.GetsockoptInt(int(fd), o.level, o.name); err != nil {
				return
			}
		}
		if options[1].before == keepaliveCount && options[3].before == 1 {
			return // another Tracer is at it: what it saved is what has to come back
		}
		if options[0].before != 0 && options[1].before <= int(patience.Seconds()) {
			options[2].value = keepaliveOnce // unanswered ones count for the application's limit, too
		}
		for _, o := range options {
			_ = unix.SetsockoptInt(int(fd), o.level, o.name, o.value)
		}
		ok = true
	})
	if err != nil || !ok {
		return nil, nil
	}
	again = func() {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1)
		})
	}
	return again, func() {
		_ = raw.Control(func(fd uintptr) { // closed meanwhile: nothing to put back
			for i := len(options) - 1; i >= 0; i-- {
				_ = unix.SetsockoptInt(int(fd), options[i].level, options[i].name, options[i].before)
			}
		})
	}
}

// connClosed reports whether either side has closed the connection.
func connClosed(raw syscall.RawConn) (closed bool) {
	err := raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		closed = err == nil && info.State != tcpEstablished
	})
	return err != nil || closed
}
