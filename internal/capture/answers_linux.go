package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Answers receives what comes for new flows of our own: ICMP of both versions, and TCP
// segments to a range of ports. Unlike a Ring it shows packets as this host's own sockets
// get them, after its address translation. It is for one goroutine.
type Answers struct {
	sockets []answerSocket
	buf     [2048]byte
	oob     [256]byte
}

type answerSocket struct {
	fd    int
	v6    bool
	proto uint8
}

// OpenAnswers opens raw sockets (raw(7)) in the calling thread's network namespace; of TCP
// they take what goes to ports. Errors match os.ErrPermission without CAP_NET_RAW.
func OpenAnswers(ports PortRange) (*Answers, error) {
	a := &Answers{}
	for _, s := range []answerSocket{{0, false, protoICMP}, {0, false, protoTCP}, {0, true, protoICMPv6}, {0, true, protoTCP}} {
		family := unix.AF_INET
		if s.v6 {
			family = unix.AF_INET6
		}
		var err error
		s.fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(s.proto))
		if s.v6 && errors.Is(err, syscall.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("capture: open raw socket: %w", err), a.Close())
		}
		a.sockets = append(a.sockets, s)
		if err := s.configure(ports); err != nil {
			return nil, errors.Join(fmt.Errorf("capture: raw socket: %w", err), a.Close())
		}
	}
	return a, nil
}

// configure attaches the filter, and asks for times and hop limits.
func (s answerSocket) configure(ports PortRange) error {
	level, option := unix.IPPROTO_IP, unix.IP_RECVTTL
	if s.v6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT
	}
	err := errors.Join(
		unix.SetsockoptInt(s.fd, level, option, 1),
		unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20),
	)
	raw, e := bpf.Assemble(s.filter(ports))
	if err = errors.Join(err, e); err != nil {
		return err
	}
	program := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		program[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	return unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

// filter passes echo replies and errors, or segments to the ports. Sockets of IPv4 see the
// IP header, those of IPv6 do not.
func (s answerSocket) filter(ports PortRange) []bpf.Instruction {
	p := []bpf.Instruction{bpf.LoadConstant{Dst: bpf.RegX, Val: 0}}
	if !s.v6 {
		p = []bpf.Instruction{bpf.LoadMemShift{Off: 0}}
	}
	if s.proto == protoTCP {
		return append(p, bpf.LoadIndirect{Off: 2, Size: 2},
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(ports.First), SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(ports.Last), SkipTrue: 1},
			keep(2048), drop)
	}
	p = append(p, bpf.LoadIndirect{Off: 0, Size: 1})
	wanted := []uint32{0, 3, 11}
	if s.v6 {
		wanted = []uint32{1, 2, 3, 129}
	}
	for i, typ := range wanted {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: typ, SkipTrue: uint8(len(wanted) - i)})
	}
	return append(p, drop, keep(2048))
}

// Read waits until the deadline for one packet, whose Data is valid until the next Read.
// ok: there was one.
func (a *Answers) Read(deadline time.Time) (answer Answer, ok bool, err error) {
	fds := make([]unix.PollFd, len(a.sockets))
	for i, s := range a.sockets {
		fds[i] = unix.PollFd{Fd: int32(s.fd), Events: unix.POLLIN}
	}
	wait := unix.NsecToTimespec(max(time.Until(deadline), 0).Nanoseconds())
	if _, err := unix.Ppoll(fds, &wait, nil); err != nil && !errors.Is(err, syscall.EINTR) {
		return Answer{}, false, fmt.Errorf("capture: poll: %w", err)
	}
	for i, s := range a.sockets {
		if fds[i].Revents == 0 {
			continue
		}
		answer, ok, err = a.read(s)
		if ok || err != nil {
			return answer, ok, err
		}
	}
	return Answer{}, false, nil
}

func (a *Answers) read(s answerSocket) (Answer, bool, error) {
	n, oobn, _, from, err := unix.Recvmsg(s.fd, a.buf[:], a.oob[:], 0)
	switch {
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINTR):
		return Answer{}, false, nil
	case errors.Is(err, syscall.EBADF):
		return Answer{}, false, net.ErrClosed
	case err != nil:
		return Answer{}, false, fmt.Errorf("capture: receive: %w", err)
	}
	out := Answer{Proto: s.proto, Data: a.buf[:n], Time: time.Now()}
	switch from := from.(type) {
	case *unix.SockaddrInet4:
		out.From = netip.AddrFrom4(from.Addr)
		header := 0
		if n >= 20 {
			header = int(a.buf[0]&0x0f) * 4
		}
		if header < 20 || header > n {
			return Answer{}, false, nil
		}
		out.Data = a.buf[header:n]
	case *unix.SockaddrInet6:
		out.From = netip.AddrFrom16(from.Addr)
	default:
		return Answer{}, false, nil
	}
	out.control(a.oob[:oobn])
	return out, true, nil
}

// control takes the time and the hop limit from the control messages.
func (a *Answer) control(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})):
			ts := *(*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
			a.Time = time.Unix(ts.Unix())
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TTL && len(m.Data) >= 4,
			m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT && len(m.Data) >= 4:
			a.TTL = uint8(binary.NativeEndian.Uint32(m.Data))
		}
	}
}

// Close closes the sockets. No Read may be in progress.
func (a *Answers) Close() (err error) {
	for _, s := range a.sockets {
		err = errors.Join(err, unix.Close(s.fd))
	}
	a.sockets = nil
	return err
}
