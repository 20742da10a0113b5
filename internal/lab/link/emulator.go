//go:build linux

package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab/tap"
)

const (
	ringFrames = 2048
	// early is how much before its time a frame may leave: sleeping more exactly
	// than a wake-up takes is of no use.
	early = 10 * time.Microsecond
	// nap is how long arrivals may wait in the rings while the link is busy. The
	// kernel has noted when they came, so that the delay is exact all the same.
	nap = 500 * time.Microsecond
	// late frames are counted: they tell of a machine too busy for the lab.
	late = time.Millisecond
)

// emulator is a running link: one thread that owns both ways.
type emulator struct {
	ends [2]*tap.Ring // interfaces A and B
	mtu  [2]int       // longest frame each can send
	ways [2]*way      // from A to B, from B to A
	wake int          // eventfd that ends a wait

	base     time.Time // origin of the ways' clock
	stopping atomic.Bool
	done     chan struct{}

	mu   sync.Mutex // guards ways and lost between the thread and the roles
	lost []Segment
	buf  []byte
}

func newEmulator(cfg Config) (*emulator, error) {
	e := &emulator{done: make(chan struct{}), base: time.Now(), wake: -1}
	var longest int
	var indexes [2]int
	for i, name := range []string{cfg.A, cfg.B} {
		it, err := net.InterfaceByName(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		indexes[i] = it.Index
		e.mtu[i] = it.MTU + 14 + 4 // Ethernet header and one VLAN tag
		longest = max(longest, e.mtu[i])
		// Best effort: a namespace without IPv6 has no such file.
		_ = os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", name, "disable_ipv6"), []byte("1"), 0)
	}
	var err error
	if e.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	for i := range e.ends {
		e.ends[i], err = tap.Open(tap.Config{
			Interface: indexes[i], IgnoreOutgoing: true, Snap: longest, Frames: ringFrames,
		})
		if err != nil {
			e.close()
			return nil, err
		}
		// The frames have been queued here already. Not all drivers allow it.
		_ = unix.SetsockoptInt(e.ends[i].FD(), unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
		e.ways[i] = newWay(&cfg, uint64(i), e.noteLost)
	}
	return e, nil
}

func (e *emulator) close() {
	e.mu.Lock() // stop and stats use the descriptors
	defer e.mu.Unlock()
	for _, r := range e.ends {
		if r != nil {
			r.Close()
		}
	}
	if e.wake >= 0 {
		_ = unix.Close(e.wake)
		e.wake = -1
	}
}

func (e *emulator) noteLost(s Segment) {
	if len(e.lost) >= maxSegments {
		e.lost = e.lost[1:]
	}
	e.lost = append(e.lost, s)
}

func segment(h tap.Header, p place) Segment {
	return Segment{
		Src: netip.AddrPortFrom(h.Src, h.Sport), Dst: netip.AddrPortFrom(h.Dst, h.Dport),
		Seq: p.rel, Len: h.Payload, Anchor: p.seq, Occurrence: p.occurrence,
	}
}

// now is the ways' clock.
func (e *emulator) now() int64 { return int64(time.Since(e.base)) }

// run carries frames until stop.
func (e *emulator) run() {
	defer close(e.done)
	defer e.close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The kernel may otherwise wake a thread 50 µs late to save power.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	busy := false
	for !e.stopping.Load() {
		e.mu.Lock()
		received := e.receive()
		e.send()
		next, waiting := e.next()
		// A link that has no delay to speak of cannot let arrivals wait.
		patient := (busy || received) && e.ways[0].cfg.Delay >= 2*nap
		e.mu.Unlock()
		e.sleep(next, waiting, patient)
		busy = received
	}
}

// receive takes in all that has arrived and reports whether that was anything.
func (e *emulator) receive() bool {
	any := false
	for i, ring := range e.ends {
		w := e.ways[i]
		// A bound, so that a flood one way does not keep the other way waiting.
		for range ringFrames {
			f, ok := ring.Next()
			if !ok {
				break
			}
			any = true
			e.take(w, f, e.mtu[1-i])
		}
	}
	return any
}

func (e *emulator) take(w *way, f tap.Frame, mtu int) {
	if f.Outgoing {
		return
	}
	if len(f.Data) < f.Len || f.Len > mtu {
		w.counts.Received++
		w.counts.Oversize++
		return
	}
	wall := time.Now()
	age := min(max(wall.UnixNano()-f.Time, 0), int64(time.Second))
	arrived := int64(wall.Sub(e.base)) - age
	var ip []byte
	if f.Net >= 0 && f.Net < len(f.Data) {
		ip = f.Data[f.Net:]
	}
	if f.Unfinished {
		w.counts.Unfinished++
		tap.FinishChecksum(ip)
	}
	if ip != nil {
		n := w.cfg.rewrite(ip, w.back)
		if n < len(ip) {
			w.counts.Shortened++
		}
		ip = ip[:n]
		f.Data = f.Data[:f.Net+len(ip)]
	}
	data := f.Data
	if f.VLAN != 0 && len(data) >= 14 {
		data = e.retag(f)
	}
	w.admit(arrived, data, ip)
}

// retag puts a VLAN tag that the kernel took off back behind the addresses.
func (e *emulator) retag(f tap.Frame) []byte {
	e.buf = append(e.buf[:0], f.Data[:12]...)
	e.buf = binary.BigEndian.AppendUint32(e.buf, f.VLAN)
	e.buf = append(e.buf, f.Data[12:]...)
	return e.buf
}

// send sends what is due.
func (e *emulator) send() {
	now := e.now() + int64(early)
	for i, w := range e.ways {
		fd := e.ends[1-i].FD()
		for w.frames.n > 0 && w.frames.first().due <= now {
			f := w.frames.first()
			_, err := unix.SendmsgN(fd, f.data, nil, nil, unix.MSG_DONTWAIT)
			if err != nil {
				w.counts.Failed++
			} else {
				w.counts.Forwarded++
			}
			if e.now()-f.due > int64(late) {
				w.counts.Late++
			}
			w.underWay -= len(f.data)
			w.frames.pop()
		}
	}
}

// next returns when the next frame is due.
func (e *emulator) next() (due int64, ok bool) {
	for _, w := range e.ways {
		if d, has := w.due(); has && (!ok || d < due) {
			due, ok = d, true
		}
	}
	return due, ok
}

// sleep waits until a frame is due, or one arrives. A patient link, while it is
// busy, is not woken by arrivals: it finds them at the next due frame, or after a
// nap.
func (e *emulator) sleep(due int64, waiting, patient bool) {
	fds := []unix.PollFd{
		{Fd: int32(e.wake), Events: unix.POLLIN},
		{Fd: int32(e.ends[0].FD()), Events: unix.POLLIN},
		{Fd: int32(e.ends[1].FD()), Events: unix.POLLIN},
	}
	var timeout *unix.Timespec
	limit := int64(-1)
	if waiting {
		limit = max(due-e.now(), 0)
	}
	if patient {
		fds = fds[:1]
		if limit < 0 || limit > int64(nap) {
			limit = int64(nap)
		}
	}
	if limit >= 0 {
		ts := unix.NsecToTimespec(limit)
		timeout = &ts
	}
	if _, err := unix.Ppoll(fds, timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
		time.Sleep(time.Millisecond) // not expected; never spin
	}
	if fds[0].Revents != 0 {
		var b [8]byte
		_, _ = unix.Read(e.wake, b[:])
	}
}

// stop asks the thread to end.
func (e *emulator) stop() {
	e.stopping.Store(true)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.wake >= 0 {
		_, _ = unix.Write(e.wake, binary.NativeEndian.AppendUint64(nil, 1))
	}
}

func (e *emulator) set(cfg Config) {
	e.mu.Lock()
	for _, w := range e.ways {
		w.set(&cfg, e.now())
	}
	e.mu.Unlock()
}

func (e *emulator) stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := Stats{AB: e.ways[0].counts, BA: e.ways[1].counts, Lost: append([]Segment(nil), e.lost...)}
	s.AB.Missed, s.BA.Missed = e.ends[0].Dropped(), e.ends[1].Dropped()
	return s
}
