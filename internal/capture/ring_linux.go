package capture

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"servicetraceroute/trace"
)

const (
	defaultRing = 16 << 20 // 128 blocks: a reader that stalls for 0.1 s loses nothing
	payloadRing = 32 << 20
	blockSize   = 128 << 10
	// retire is after how many milliseconds the kernel hands over a block that is
	// not full: no packet waits longer, so handshakes and ICMP errors are here
	// within 2 ms (before Linux 6.18 within a tick or two of the kernel, each up to
	// 10 ms). An empty block wakes nobody.
	retire = 1
)

// Ring is a packet socket with a TPACKET_V3 ring (packet(7), Linux
// networking/packet_mmap.rst) over the interfaces of one network namespace: that
// of the thread which opened it. It implements Source and Follower.
//
// Close may come from any goroutine, see lease.
type Ring struct {
	lease
	file  *os.File // the socket, non-blocking, so that waits obey deadlines
	conn  syscall.RawConn
	names names
	local addrLister
	clock *Clock

	mem    []byte
	blocks int
	next   int      // block to look at next
	held   []int    // blocks that the last batch refers to
	batch  []Packet // reused

	look   func(uintptr) bool // r.ready, made once
	looked bool

	cfg           Config
	followed      time.Time  // by the reader
	filterMu      sync.Mutex // over filter, indexes and shown
	filter        Config     // what is attached now
	indexes       []int
	shown         shown
	seen, dropped uint64
	handedOut     uint64
	udp           uint64 // of these
}

// Open opens a ring. All descriptors are made on the calling thread, which may
// have entered another network namespace for that.
//
// Errors match os.ErrPermission without CAP_NET_RAW, and ErrNoInterface.
func Open(cfg Config) (*Ring, error) {
	// Protocol 0: nothing is received before the filter stands (packet(7)).
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("capture: open packet socket: %w", Missing(err, "packet sockets", "CONFIG_PACKET"))
	}
	r := &Ring{cfg: cfg, file: os.NewFile(uintptr(fd), "packet socket"), local: addrLister{fd: -1}, clock: NewClock()}
	r.look, r.free = r.ready, r.unmap
	if r.conn, err = r.file.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("capture: %w", err), r.file.Close())
	}
	r.names.control, r.filter, r.followed = r.control, cfg, time.Now()
	r.shown.flows = map[trace.FlowKey]struct{}{}
	if err := r.setUp(); err != nil {
		return nil, errors.Join(fmt.Errorf("capture: %w", err), r.Close())
	}
	return r, nil
}

func (r *Ring) setUp() error {
	var missing string
	if r.indexes, missing = r.resolve(); slices.Contains(r.indexes, 0) {
		return fmt.Errorf("interface %q: %w", missing, ErrNoInterface)
	}
	if err := r.local.open(); err != nil {
		return fmt.Errorf("open route socket: %w", err)
	}
	if err := r.attach(nothing); err != nil {
		return err
	}
	if err := r.control(r.mapRing); err != nil {
		return err
	}
	if err := r.attach(program(r.cfg, r.indexes, nil)); err != nil {
		return err
	}
	return r.bind(r.indexes)
}

// control runs f on the socket. A Close meanwhile waits, so that f never meets
// another file which got the number.
func (r *Ring) control(f func(fd int) error) (err error) {
	if r.conn.Control(func(fd uintptr) { err = f(int(fd)) }) != nil {
		return net.ErrClosed
	}
	return err
}

func (r *Ring) mapRing(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("PACKET_VERSION: %w", Missing(err, "TPACKET_V3 rings", "Linux >= 3.2 and CONFIG_PACKET"))
	}
	size := r.cfg.RingBytes
	if size <= 0 {
		size = defaultRing
		if r.cfg.Payload {
			size = payloadRing
		}
	}
	r.blocks = max(size/blockSize, 4)
	req := unix.TpacketReq3{
		Block_size: blockSize, Block_nr: uint32(r.blocks),
		Frame_size: 2048, Frame_nr: uint32(r.blocks * (blockSize / 2048)), Retire_blk_tov: retire,
	}
	if err := unix.SetsockoptTpacketReq3(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		// An emulated kernel may know the version and yet have no ring.
		return fmt.Errorf("PACKET_RX_RING of %d bytes: %w", r.blocks*blockSize, Missing(err, "packet rings", "CONFIG_PACKET and CONFIG_MMU"))
	}
	var err error
	r.mem, err = unix.Mmap(fd, 0, r.blocks*blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the ring: %w", err)
	}
	return nil
}

// nothing is the filter that lets nothing pass.
var nothing = []bpf.Instruction{drop}

func (r *Ring) attach(instructions []bpf.Instruction) error {
	raw, err := bpf.Assemble(instructions)
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err = r.control(func(fd int) error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog)
	})
	if err != nil {
		return fmt.Errorf("attach filter of %d instructions: %w", len(filter), err)
	}
	return nil
}

// SetFilter narrows or widens what is captured, in place: opening anew would
// cost 12 ms and lose packets. Interfaces and memory stay as they were. It may be
// called while another goroutine reads.
func (r *Ring) SetFilter(cfg Config) error {
	r.filterMu.Lock()
	defer r.filterMu.Unlock()
	if err := r.attach(program(cfg, r.indexes, nil)); err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	r.filter = cfg
	r.shown.ignored = false
	r.shown.widened(fewAnew)
	return nil
}

// block is the header of a ring block (struct tpacket_block_desc).
func (r *Ring) block(i int) *unix.TpacketHdrV1 {
	const descHeader = 8 // version, offset to private data
	return (*unix.TpacketHdrV1)(unsafe.Pointer(&r.mem[i*blockSize+descHeader]))
}

// status is shared with the kernel.
func (r *Ring) status(i int) *uint32 { return &r.block(i).Block_status }

// ReadBatch implements Source. The batch lies in memory shared with the kernel.
func (r *Ring) ReadBatch() ([]Packet, error) {
	if !r.enter() {
		return nil, net.ErrClosed
	}
	r.follow()
	r.showFew()
	for {
		r.giveBack()
		if r.take() > 0 {
			r.clock.Steady(r.batch)
			return r.batch, nil
		}
		if err := r.wait(); err != nil {
			return nil, r.leave(err)
		}
	}
}

// giveBack returns the blocks of the last batch to the kernel.
func (r *Ring) giveBack() {
	for _, i := range r.held {
		atomic.StoreUint32(r.status(i), unix.TP_STATUS_KERNEL)
	}
	r.held = r.held[:0]
	r.batch = r.batch[:0]
}

// maxHeld bounds how much of the ring one batch withholds from the kernel.
const maxHeld = 8

// take collects the packets of the blocks that are ready.
func (r *Ring) take() int {
	for len(r.held) < min(maxHeld, r.blocks/2) {
		if atomic.LoadUint32(r.status(r.next))&unix.TP_STATUS_USER == 0 {
			break
		}
		h := r.block(r.next)
		at := r.next*blockSize + int(h.Offset_to_first_pkt)
		for range h.Num_pkts {
			at += r.packet(at)
		}
		r.held = append(r.held, r.next)
		r.next = (r.next + 1) % r.blocks
	}
	r.handedOut += uint64(len(r.batch))
	return len(r.batch)
}

// packet appends the packet whose tpacket3_hdr lies at offset at and returns the
// distance to the next one.
func (r *Ring) packet(at int) int {
	h := (*unix.Tpacket3Hdr)(unsafe.Pointer(&r.mem[at]))
	const lowLevel = 48 // struct sockaddr_ll stands behind the aligned header
	ll := (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&r.mem[at+lowLevel]))
	p := Packet{
		Time:      time.Unix(int64(h.Sec), int64(h.Nsec)),
		Interface: int(ll.Ifindex),
	}
	switch ll.Pkttype {
	case unix.PACKET_OUTGOING:
		p.Direction = Outgoing
	case unix.PACKET_OTHERHOST:
		p.Direction = Foreign
	default:
		p.Direction = Incoming
	}
	link := int(h.Net) - int(h.Mac)
	p.Len = int(h.Len) - link
	if kept := int(h.Snaplen) - link; kept > 0 {
		from := at + int(h.Net)
		p.Data = r.mem[from : from+kept : from+kept]
		if isUDP(p.Data) {
			r.udp++
		}
	}
	p.NextHop, p.NextHopKnown = r.nextHop(ll.Hatype, at+int(h.Mac), link)
	p.Tagged = h.Status&unix.TP_STATUS_VLAN_VALID != 0 || ll.Hatype == unix.ARPHRD_ETHER && link > ethernetHeader
	r.batch = append(r.batch, p)
	return int(h.Next_offset)
}

// isUDP reports whether a packet, that begins with its IP header, is a datagram; behind IPv6's
// extension headers it is not looked for.
func isUDP(ip []byte) bool {
	if len(ip) < 20 {
		return false
	}
	if ip[0]>>4 == 4 {
		return ip[9] == unix.IPPROTO_UDP
	}
	return ip[6] == unix.IPPROTO_UDP
}

const ethernetHeader = 14 // two addresses and a type

// nextHop reads whom a frame was addressed to. Links without addresses are known
// to have none.
func (r *Ring) nextHop(hatype uint16, mac, link int) (a HardwareAddr, known bool) {
	switch hatype {
	case unix.ARPHRD_ETHER, unix.ARPHRD_LOOPBACK:
		if link < ethernetHeader {
			return a, false
		}
		a.Len = 6
		copy(a.Addr[:6], r.mem[mac:mac+6])
		return a, true
	case unix.ARPHRD_NONE, unix.ARPHRD_VOID, unix.ARPHRD_PPP, unix.ARPHRD_TUNNEL, unix.ARPHRD_TUNNEL6,
		unix.ARPHRD_SIT, unix.ARPHRD_IPGRE, unix.ARPHRD_RAWIP:
		return a, true
	}
	return a, link == 0
}

// wait blocks until the socket is readable, the deadline passes or Close.
func (r *Ring) wait() error {
	r.looked = false
	return r.conn.Read(r.look)
}

// ready is asked before sleeping and after waking. Readiness is told once per
// change, so the first time it looks again.
func (r *Ring) ready(uintptr) bool {
	if r.looked {
		return true
	}
	r.looked = true
	return atomic.LoadUint32(r.status(r.next))&unix.TP_STATUS_USER != 0
}

// SetReadDeadline implements Source.
func (r *Ring) SetReadDeadline(t time.Time) error {
	err := r.file.SetReadDeadline(t)
	switch {
	case err == nil:
		return nil
	case r.closed.Load(): // os has an error of its own for that
		return net.ErrClosed
	}
	return fmt.Errorf("capture: %w", err)
}

// InterfaceName implements Source.
func (r *Ring) InterfaceName(index int) string { return r.names.name(index) }

// Stats implements Source. The kernel's counters start anew with every look.
func (r *Ring) Stats() Stats {
	_ = r.control(func(fd int) error {
		st, err := unix.GetsockoptTpacketStatsV3(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err == nil {
			r.dropped += uint64(st.Drops)
			r.seen += uint64(st.Packets) // dropped ones included
		}
		return err
	})
	return Stats{Seen: max(r.seen, r.handedOut), Dropped: r.dropped}
}

// Close implements Source.
func (r *Ring) Close() error {
	return r.close(func() error {
		// The mapping keeps the socket alive (mmap(2)): until it goes, the kernel must
		// have nothing to write there.
		_ = r.attach(nothing)
		r.filterMu.Lock()
		r.shown.widened(0)
		r.filterMu.Unlock()
		r.local.close()
		if err := r.file.Close(); err != nil {
			return fmt.Errorf("capture: close: %w", err)
		}
		return nil
	})
}

func (r *Ring) unmap() {
	if r.mem != nil {
		_ = unix.Munmap(r.mem)
		r.mem, r.held, r.batch = nil, nil, nil
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
