package capture

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// names asks the socket's own network namespace for interface names, wherever
// the asking thread is (netdevice(7)).
type names struct {
	control func(func(fd int) error) error
	mu      sync.Mutex
	known   map[int]named
}

type named struct {
	name string
	at   time.Time
}

const nameLife = time.Second // interfaces are renamed and their indexes used again

func (n *names) name(index int) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if k, ok := n.known[index]; ok && time.Since(k.at) < nameLife {
		return k.name
	}
	req, _ := unix.NewIfreq("")
	req.SetUint32(uint32(index))
	name := ""
	if n.control(func(fd int) error { return unix.IoctlIfreq(fd, unix.SIOCGIFNAME, req) }) == nil {
		name = req.Name()
	}
	if n.known == nil || len(n.known) > 4096 {
		n.known = map[int]named{}
	}
	n.known[index] = named{name, time.Now()}
	return name
}

func (n *names) index(name string) (int, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := n.control(func(fd int) error { return unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req) }); err != nil {
		return 0, err
	}
	return int(req.Uint32()), nil
}

// addrLister reads the namespace's addresses over one rtnetlink(7) socket.
type addrLister struct {
	mu  sync.Mutex
	fd  int // -1: closed
	seq uint32

	changed bool // during the dump
}

func (l *addrLister) open() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return err
	}
	l.fd = fd
	return nil
}

func (l *addrLister) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd >= 0 {
		unix.Close(l.fd)
		l.fd = -1
	}
}

// LocalAddrs returns the addresses of the ring's network namespace. It may be
// called from any goroutine. Errors match net.ErrClosed after Close.
func (r *Ring) LocalAddrs() ([]netip.Addr, error) {
	addrs, err := r.local.list()
	if err != nil {
		return nil, fmt.Errorf("capture: list addresses: %w", err)
	}
	return addrs, nil
}

// list repeats a dump during which the addresses changed: it may lack some. The
// kernel says so (NLM_F_DUMP_INTR).
func (l *addrLister) list() (addrs []netip.Addr, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return nil, net.ErrClosed
	}
	for range 5 {
		l.changed = false
		if addrs, err = l.dump(); err != nil || !l.changed {
			break
		}
	}
	return addrs, err // changing all the time: the last is the best there is
}

func (l *addrLister) dump() ([]netip.Addr, error) {
	l.seq++
	req := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfAddrmsg)
	h := (*unix.NlMsghdr)(unsafe.Pointer(&req[0]))
	*h = unix.NlMsghdr{
		Len: uint32(len(req)), Type: unix.RTM_GETADDR, Flags: unix.NLM_F_REQUEST | unix.NLM_F_DUMP, Seq: l.seq,
	}
	if err := unix.Sendto(l.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var all []netip.Addr
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(l.fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		done := false
		if all, done, err = l.messages(buf[:n], all); done {
			return all, err
		}
	}
}

// messages reads one datagram of a dump.
func (l *addrLister) messages(b []byte, all []netip.Addr) (addrs []netip.Addr, done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		h := *(*unix.NlMsghdr)(unsafe.Pointer(&b[0]))
		if int(h.Len) < unix.SizeofNlMsghdr || int(h.Len) > len(b) {
			return all, true, unix.EBADMSG
		}
		body := b[unix.SizeofNlMsghdr:h.Len]
		if h.Flags&unix.NLM_F_DUMP_INTR != 0 {
			l.changed = true // read on: the next dump can begin only when this one is over
		}
		switch {
		case h.Seq != l.seq: // of a dump that was given up
		case h.Type == unix.NLMSG_DONE:
			return all, true, nil
		case h.Type == unix.NLMSG_ERROR && len(body) >= 4:
			return nil, true, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
		case h.Type == unix.RTM_NEWADDR && len(body) >= unix.SizeofIfAddrmsg:
			all = appendAddrs(all, body[unix.SizeofIfAddrmsg:])
		}
		b = b[min((int(h.Len)+3)&^3, len(b)):]
	}
	return all, false, nil
}

// appendAddrs takes IFA_LOCAL where there is one (point-to-point links), else
// IFA_ADDRESS.
func appendAddrs(all []netip.Addr, attrs []byte) []netip.Addr {
	var address, local netip.Addr
	for len(attrs) >= unix.SizeofRtAttr {
		a := *(*unix.RtAttr)(unsafe.Pointer(&attrs[0]))
		if int(a.Len) < unix.SizeofRtAttr || int(a.Len) > len(attrs) {
			break
		}
		v, _ := netip.AddrFromSlice(attrs[unix.SizeofRtAttr:a.Len])
		switch a.Type {
		case unix.IFA_ADDRESS:
			address = v
		case unix.IFA_LOCAL:
			local = v
		}
		attrs = attrs[min((int(a.Len)+3)&^3, len(attrs)):]
	}
	if local.IsValid() {
		address = local
	}
	if address.IsValid() {
		all = append(all, address)
	}
	return all
}
