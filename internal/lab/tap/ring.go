//go:build linux

package tap

import (
	"fmt"
	"math/bits"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Config says what a ring receives.
type Config struct {
	Interface      int // index; 0: all of the namespace
	IgnoreOutgoing bool
	Snap           int               // bytes of each frame to keep, from its link-layer header on
	Frames         int               // room for so many
	Filter         []unix.SockFilter // nil: everything
}

// Ring is a packet socket with a TPACKET_V2 ring: unlike V3 it hands over every
// packet at once, and unlike recvmsg it costs no system call. It is for one
// goroutine.
type Ring struct {
	fd       int
	mem      []byte
	size, n  int // of a frame; number of frames
	next     int
	held     bool // frame next-1 has not been given back
	perBlock int
	block    int
	dropped  uint64
}

// Frame is one received or sent frame.
type Frame struct {
	Time      int64 // ns since 1970, of the kernel
	Interface int
	Outgoing  bool
	Loopback  bool
	VLAN      uint32 // tag that the kernel took off: TPID<<16 | TCI; 0: none
	// Unfinished frames have no transport checksum yet: their sender's interface
	// offloads it.
	Unfinished bool
	Data       []byte // from the link-layer header on; valid until the next call of Next
	Net        int    // offset of the IP header in Data
	Len        int    // on the wire; more than len(Data) if the frame was cut
}

// headroom is what TPACKET_V2 puts before a frame with an Ethernet header:
// its own header, a sockaddr_ll and padding, rounded up.
const headroom = 96

// Open makes a ring. The socket belongs to the calling thread's namespace.
func Open(cfg Config) (*Ring, error) {
	// Protocol 0 receives nothing until bind, when filter and ring are in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("tap: packet socket: %w", err)
	}
	r := &Ring{fd: fd}
	if err := r.setUp(cfg); err != nil {
		r.Close()
		return nil, fmt.Errorf("tap: %w", err)
	}
	return r, nil
}

func (r *Ring) setUp(cfg Config) error {
	if err := unix.SetsockoptInt(r.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2); err != nil {
		return fmt.Errorf("PACKET_VERSION: %w", err)
	}
	if cfg.IgnoreOutgoing {
		if err := unix.SetsockoptInt(r.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			return fmt.Errorf("PACKET_IGNORE_OUTGOING: %w", err)
		}
	}
	if len(cfg.Filter) > 0 {
		prog := unix.SockFprog{Len: uint16(len(cfg.Filter)), Filter: &cfg.Filter[0]}
		if err := unix.SetsockoptSockFprog(r.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
			return fmt.Errorf("filter: %w", err)
		}
	}
	r.size = 1 << bits.Len(uint(max(cfg.Snap, 64)+headroom-1))
	r.block = max(r.size, 1<<16)
	r.perBlock = r.block / r.size
	blocks := max((cfg.Frames+r.perBlock-1)/r.perBlock, 1)
	r.n = blocks * r.perBlock
	req := unix.TpacketReq{
		Block_size: uint32(r.block), Block_nr: uint32(blocks),
		Frame_size: uint32(r.size), Frame_nr: uint32(r.n),
	}
	if err := unix.SetsockoptTpacketReq(r.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return fmt.Errorf("PACKET_RX_RING: %w", err)
	}
	var err error
	if r.mem, err = unix.Mmap(r.fd, 0, blocks*r.block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	addr := unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: cfg.Interface}
	if err := unix.Bind(r.fd, &addr); err != nil {
		return fmt.Errorf("bind to interface %d: %w", cfg.Interface, err)
	}
	return nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// FD returns the socket, to poll for POLLIN and to send frames on.
func (r *Ring) FD() int { return r.fd }

// status returns the frame's tp_status, which the kernel changes concurrently.
func (r *Ring) status(i int) *uint32 {
	return (*uint32)(unsafe.Pointer(&r.mem[i*r.size]))
}

// Next returns the next frame, if there is one, and gives the one before back to
// the kernel.
func (r *Ring) Next() (Frame, bool) {
	if r.held {
		atomic.StoreUint32(r.status((r.next+r.n-1)%r.n), unix.TP_STATUS_KERNEL)
		r.held = false
	}
	status := atomic.LoadUint32(r.status(r.next))
	if status&unix.TP_STATUS_USER == 0 {
		return Frame{}, false
	}
	frame := r.mem[r.next*r.size : (r.next+1)*r.size]
	r.next = (r.next + 1) % r.n
	r.held = true

	h := (*unix.Tpacket2Hdr)(unsafe.Pointer(&frame[0]))
	// struct sockaddr_ll follows the header, which is a multiple of its alignment.
	ll := (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&frame[unix.SizeofTpacket2Hdr]))
	f := Frame{
		Time:       int64(h.Sec)*1e9 + int64(h.Nsec),
		Interface:  int(ll.Ifindex),
		Outgoing:   ll.Pkttype == unix.PACKET_OUTGOING,
		Loopback:   ll.Hatype == unix.ARPHRD_LOOPBACK,
		Unfinished: status&unix.TP_STATUS_CSUMNOTREADY != 0,
		Data:       frame[h.Mac : int(h.Mac)+int(h.Snaplen)],
		Net:        int(h.Net) - int(h.Mac),
		Len:        int(h.Len),
	}
	if status&unix.TP_STATUS_VLAN_VALID != 0 {
		f.VLAN = uint32(unix.ETH_P_8021Q)<<16 | uint32(h.Vlan_tci)
		if status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
			f.VLAN = uint32(h.Vlan_tpid)<<16 | uint32(h.Vlan_tci)
		}
	}
	return f, true
}

// Dropped returns how many packets found no room since the ring was opened.
func (r *Ring) Dropped() uint64 {
	// Reading the kernel's counters sets them to zero.
	if s, err := unix.GetsockoptTpacketStats(r.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		r.dropped += uint64(s.Drops)
	}
	return r.dropped
}

// Close frees the ring. Frames must not be used any more.
func (r *Ring) Close() {
	if r.mem != nil {
		_ = unix.Munmap(r.mem)
		r.mem = nil
	}
	if r.fd >= 0 {
		_ = unix.Close(r.fd)
		r.fd = -1
	}
}
