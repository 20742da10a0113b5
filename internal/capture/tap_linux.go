package capture

import (
	"bytes"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

//go:generate ../../scripts/bpf.sh
//go:embed bpf/tap.o
var tapObject []byte

const (
	// lookEvery is how often the reader looks for packets while they come, without being woken
	// by each, which costs the host more than all the rest; quietAfter is how long after the last
	// one it goes on.
	lookEvery  = 2 * time.Millisecond
	quietAfter = 4 * time.Millisecond
	// Where more packets come than busyRate each millisecond and no flow is followed, whose
	// packets tell when to probe, it looks less and less often, until lookLate: each look costs
	// the host as much as some packets. While flows are brief ones, until lookLast, whatever the
	// rate; not with more than a part of fullLate of the ring in use.
	lookLate = 8 * time.Millisecond
	lookLast = 16 * time.Millisecond
	busyRate = 8
	fullLate = 8
	maxTaken = 2048 // packets of one batch
	// renewEach is how often a flow that is followed is told to the kernel again, whose
	// table may have forgotten it.
	renewEach = 5 * time.Second
)

// Tap is eBPF programs at the tcx hooks of one network namespace's interfaces (Linux 6.6 or
// newer; bpf/tap.c). Of a flow it shows the first packets and what begins or ends it, and all
// of those that are followed: whoever wants none of a host's packets pays for none. It
// implements Source and Follower.
//
// Close may come from any goroutine, see lease.
type Tap struct {
	lease
	programs *ebpf.Collection
	hooks    *hooks
	names    names
	local    addrLister
	socket   *os.File // for names
	ringFile *os.File // for waits
	conn     syscall.RawConn

	consumed, produced *uint64 // shared with the kernel
	data               []byte  // the ring, twice in a row
	size               uint64
	taken              uint64 // consumed, with the batch that is out
	freed              uint64 // of the last batch, bytes
	batch              []Packet
	look               func(uintptr) bool
	looked             bool
	active             time.Time     // when there was something
	pause              time.Duration // until the next look
	handedOutThen      uint64        // before the last look
	briefThen          uint64
	start              time.Time // of the monotonic clock
	startNS            int64     // the same moment, as the kernel tells it

	waitMu   sync.Mutex
	deadline time.Time // the caller's
	blocked  bool      // the reader is, until it is woken

	conf      *tapConf
	lost      *tapLost
	quiet     *[tapQuiet]uint32
	hushed    *[tapHushed]uint64 // four each
	confMu    sync.Mutex
	handedOut uint64

	followMu  sync.Mutex
	followed  map[tapFlow]struct{}
	following atomic.Int64  // how many those are
	forgotten atomic.Uint64 // how often the kernel's table forgot one of them
	renewal   renewal
}

// tapConf and the others are of bpf/tap.c.
type tapConf struct {
	epoch                  uint32
	udp, names, namesIn, _ uint8
	awake                  uint32
}

type tapLost struct{ full, withheld, brief uint64 }

// The offsets of struct record.
const (
	recordIndex   = 8
	recordLen     = 12
	recordKept    = 16
	recordEgress  = 18
	recordForeign = 19
	recordHop     = 20
	recordHopIs   = 26
	recordBrief   = 27
	recordData    = 32
)

// OpenTap loads and attaches the programs, in the network namespace of the calling thread.
//
// Errors match os.ErrPermission without CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON in the initial
// user namespace, ErrNoInterface, ErrPayload, and errors.ErrUnsupported where the kernel is
// too old.
func OpenTap(cfg Config) (*Tap, error) {
	if cfg.Payload {
		return nil, fmt.Errorf("capture: %w: %w", ErrEBPF, ErrPayload)
	}
	t := &Tap{local: addrLister{fd: -1}, followed: map[tapFlow]struct{}{}, pause: lookEvery}
	t.lease.free = t.unmap
	t.look = t.ready
	if err := t.open(cfg); err != nil {
		_ = t.Close()
		if errors.Is(err, ErrNoInterface) {
			return nil, fmt.Errorf("capture: %w", err)
		}
		return nil, fmt.Errorf("capture: %w: %w", ErrEBPF, err)
	}
	return t, nil
}

func (t *Tap) open(cfg Config) error {
	if err := t.local.open(); err != nil {
		return fmt.Errorf("open route socket: %w", err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	t.socket = os.NewFile(uintptr(fd), "socket for names")
	raw, err := t.socket.SyscallConn()
	if err != nil {
		return err
	}
	t.names.control = func(f func(fd int) error) (err error) {
		if raw.Control(func(fd uintptr) { err = f(int(fd)) }) != nil {
			return net.ErrClosed
		}
		return err
	}
	if err := t.load(); err != nil {
		return err
	}
	if err := t.mapRing(); err != nil {
		return err
	}
	if err := t.SetFilter(cfg); err != nil {
		return err
	}
	t.hooks, err = openHooks(cfg.Interfaces, t.programs)
	return err
}

// load brings the programs into the kernel, for links with Ethernet's header.
func (t *Tap) load() error {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(tapObject))
	if err != nil {
		return err
	}
	spec.Maps["flows"].MaxEntries = tableSize(memory())
	if t.programs, err = ebpf.NewCollection(spec); err != nil {
		var verifier *ebpf.VerifierError
		switch {
		case errors.As(err, &verifier):
			err = verifier.Unwrap() // its log is for developers
		case errors.Is(err, unix.EPERM):
			err = unix.EPERM // it is no limit of memory
		}
		return fmt.Errorf("load: %w", err)
	}
	bss := t.programs.Maps[".bss"]
	shared, err := unix.Mmap(bss.FD(), 0, int(bss.ValueSize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the programs' variables: %w", err)
	}
	// Whoever has the Tap may still ask for its counters when it is closed.
	runtime.AddCleanup(t, func(shared []byte) { _ = unix.Munmap(shared) }, shared)
	t.conf = (*tapConf)(unsafe.Pointer(&shared[spec.Variables["conf"].Offset]))
	t.lost = (*tapLost)(unsafe.Pointer(&shared[spec.Variables["lost"].Offset]))
	t.quiet = (*[tapQuiet]uint32)(unsafe.Pointer(&shared[spec.Variables["quiet"].Offset]))
	t.hushed = (*[tapHushed]uint64)(unsafe.Pointer(&shared[spec.Variables["hushed"].Offset]))
	return nil
}

// mapRing maps the ring (Linux bpf/ringbuf.rst): a page that holds where the reader is, one
// that holds where the writer is, and the bytes, twice in a row so that none of them wraps.
func (t *Tap) mapRing() error {
	ring := t.programs.Maps["ring"]
	t.size = uint64(ring.MaxEntries())
	page := os.Getpagesize()
	reader, err := unix.Mmap(ring.FD(), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the ring: %w", err)
	}
	writer, err := unix.Mmap(ring.FD(), int64(page), page+2*int(t.size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return errors.Join(fmt.Errorf("map the ring: %w", err), unix.Munmap(reader))
	}
	t.consumed, t.produced = (*uint64)(unsafe.Pointer(&reader[0])), (*uint64)(unsafe.Pointer(&writer[0]))
	t.data = writer[page:]
	var now unix.Timespec
	t.start = time.Now()
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	t.startNS = now.Nano()
	fd, err := unix.FcntlInt(uintptr(ring.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	t.ringFile = os.NewFile(uintptr(fd), "ring")
	t.conn, err = t.ringFile.SyscallConn()
	return err
}

// SetFilter tells anew what is wanted: of each flow the first packets are, once more.
func (t *Tap) SetFilter(cfg Config) error {
	if cfg.Payload {
		return fmt.Errorf("capture: %w", ErrPayload)
	}
	t.confMu.Lock()
	defer t.confMu.Unlock()
	flag := func(yes bool) uint8 {
		if yes {
			return 1
		}
		return 0
	}
	t.conf.udp, t.conf.names, t.conf.namesIn = flag(cfg.UDP), flag(cfg.Names), flag(cfg.NamesIn)
	atomic.AddUint32(&t.conf.epoch, 1)
	return nil
}

// ReadBatch implements Source. The batch lies in memory shared with the kernel.
func (t *Tap) ReadBatch() ([]Packet, error) {
	if !t.enter() {
		return nil, net.ErrClosed
	}
	t.renew()
	for {
		t.giveBack()
		if t.take() > 0 {
			t.active = time.Now()
			atomic.StoreUint32(&t.conf.awake, 1)
			return t.batch, nil
		}
		if err := t.wait(); err != nil {
			return nil, t.leave(err)
		}
	}
}

func (t *Tap) giveBack() {
	t.freed = t.taken - atomic.LoadUint64(t.consumed)
	atomic.StoreUint64(t.consumed, t.taken)
	t.batch = t.batch[:0]
}

// take collects what is there.
func (t *Tap) take() int {
	const busy, discarded, header = 1 << 31, 1 << 30, 8
	now := time.Now()
	since := now.Sub(t.start).Nanoseconds() + t.startNS
	end := atomic.LoadUint64(t.produced)
	for t.taken < end && len(t.batch) < maxTaken {
		at := t.taken & (t.size - 1)
		length := atomic.LoadUint32((*uint32)(unsafe.Pointer(&t.data[at])))
		if length&busy != 0 {
			break
		}
		n := uint64(length &^ (busy | discarded))
		if length&discarded == 0 {
			t.packet(now, since, t.data[at+header:at+header+n])
		}
		t.taken += (n + header + 7) &^ 7
	}
	if len(t.batch) == 0 {
		atomic.StoreUint64(t.consumed, t.taken) // what was discarded
	}
	t.handedOut += uint64(len(t.batch))
	return len(t.batch)
}

// packet appends one; since is what the kernel's clock reads at now.
func (t *Tap) packet(now time.Time, since int64, b []byte) {
	kept := int(binary.NativeEndian.Uint16(b[recordKept:]))
	p := Packet{
		Time:      now.Add(time.Duration(int64(binary.NativeEndian.Uint64(b)) - since)),
		Interface: int(binary.NativeEndian.Uint32(b[recordIndex:])),
		Direction: Incoming, NextHopKnown: true,
		Data: b[recordData : recordData+kept : recordData+kept],
		Len:  int(binary.NativeEndian.Uint32(b[recordLen:])), Brief: b[recordBrief] != 0,
	}
	switch {
	case b[recordEgress] != 0:
		p.Direction = Outgoing
	case b[recordForeign] != 0:
		p.Direction = Foreign
	}
	if b[recordHopIs] != 0 {
		p.NextHop.Len = 6
		copy(p.NextHop.Addr[:], b[recordHop:recordHop+6])
	}
	t.batch = append(t.batch, p)
}

// slacken decides on the time to the next look, by what came since the one before.
func (t *Tap) slacken() {
	came, brief, late := t.handedOut-t.handedOutThen, t.Brief(), lookLate
	t.handedOutThen = t.handedOut
	hurried := brief != t.briefThen
	t.briefThen = brief
	if hurried {
		late = lookLast
	}
	if t.following.Load() > 0 || !hurried && came < busyRate*uint64(t.pause/time.Millisecond) || t.freed > t.size/fullLate {
		t.pause = lookEvery
		return
	}
	t.pause = min(2*t.pause, late)
}

// wait blocks until there is something, the deadline passes or Close.
func (t *Tap) wait() error {
	t.slacken()
	for time.Since(t.active) < quietAfter {
		if over, err := t.rest(); over {
			return err
		}
	}
	if atomic.SwapUint32(&t.conf.awake, 0) != 0 {
		// Once more: a program that ran meanwhile may have read that nobody has to be woken.
		if over, err := t.rest(); over {
			return err
		}
	}
	t.waitMu.Lock()
	t.blocked = true
	err := t.ringFile.SetReadDeadline(t.deadline)
	t.waitMu.Unlock()
	if err != nil {
		return net.ErrClosed
	}
	t.looked = false
	err = t.conn.Read(t.look)
	t.waitMu.Lock()
	t.blocked = false
	t.waitMu.Unlock()
	return err
}

// rest sleeps while packets come and nobody wakes the reader, and reports whether the wait is
// over. A timer of the runtime that nothing moves costs little; a system call of one's own that
// sleeps costs more, for the runtime's monitor looks after it all the time.
func (t *Tap) rest() (over bool, err error) {
	t.waitMu.Lock()
	deadline := t.deadline
	t.waitMu.Unlock()
	for_ := t.pause
	if !deadline.IsZero() {
		for_ = min(for_, time.Until(deadline))
	}
	time.Sleep(for_)
	switch {
	case t.closed.Load():
		return true, net.ErrClosed
	case atomic.LoadUint64(t.produced) != t.taken:
		return true, nil
	}
	t.waitMu.Lock()
	defer t.waitMu.Unlock()
	if !t.deadline.IsZero() && !time.Now().Before(t.deadline) {
		return true, os.ErrDeadlineExceeded
	}
	return false, nil
}

// ready is asked before sleeping and after waking.
func (t *Tap) ready(uintptr) bool {
	if t.looked {
		return true
	}
	t.looked = true
	return atomic.LoadUint64(t.produced) != t.taken
}

// SetReadDeadline implements Source.
func (t *Tap) SetReadDeadline(at time.Time) error {
	if t.closed.Load() {
		return net.ErrClosed
	}
	t.waitMu.Lock()
	defer t.waitMu.Unlock()
	t.deadline = at
	if t.blocked && t.ringFile.SetReadDeadline(at) != nil {
		return net.ErrClosed
	}
	return nil
}

// InterfaceName implements Source.
func (t *Tap) InterfaceName(index int) string { return t.names.name(index) }

// LocalAddrs returns the addresses of the network namespace. It may be called from any
// goroutine. Errors match net.ErrClosed after Close.
func (t *Tap) LocalAddrs() ([]netip.Addr, error) {
	addrs, err := t.local.list()
	if err != nil {
		return nil, fmt.Errorf("capture: list addresses: %w", err)
	}
	return addrs, nil
}

// Stats implements Source. A flow that was not taken in when it began counts as one packet
// that was dropped.
func (t *Tap) Stats() Stats {
	// What a followed flow that the table forgot did not show is not known: one at least.
	dropped := atomic.LoadUint64(&t.lost.full) + t.forgotten.Load()
	return Stats{Seen: t.handedOut + dropped, Dropped: dropped}
}

// Withheld is how many packets were not shown because too many flows began at once.
func (t *Tap) Withheld() uint64 { return atomic.LoadUint64(&t.lost.withheld) }

// Brief is of how many flows only what tells whose they are was shown, because very many
// began.
func (t *Tap) Brief() uint64 { return atomic.LoadUint64(&t.lost.brief) }

// Close implements Source.
func (t *Tap) Close() error {
	return t.close(func() (err error) {
		if t.hooks != nil {
			err = t.hooks.close()
		}
		t.local.close()
		if t.socket != nil {
			err = errors.Join(err, t.socket.Close())
		}
		if t.ringFile != nil {
			err = errors.Join(err, t.ringFile.Close())
		}
		if t.programs != nil {
			t.programs.Close()
		}
		return err
	})
}

func (t *Tap) unmap() {
	page := os.Getpagesize()
	drop := func(p unsafe.Pointer, size int) {
		_ = unix.Munmap(unsafe.Slice((*byte)(p), size))
	}
	if t.produced != nil {
		drop(unsafe.Pointer(t.consumed), page)
		drop(unsafe.Pointer(t.produced), page+2*int(t.size))
	}
	t.batch, t.data = nil, nil
}
