package capture

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"servicetraceroute/trace"
)

// What a Tap and its programs tell each other of flows. The types are of bpf/tap.c.

const (
	tapQuiet  = 1 << 18
	tapNoMore = 7
	tapHushed = 1 << 13
	tapFirst  = 16
)

// tableSize is how many flows the kernel's table holds on a machine with that much memory. It
// takes 120 bytes a flow, all at once; a table that is too small is not wrong, but shows the
// first packets of flows that it forgot over and over.
func tableSize(memory uint64) uint32 {
	if memory < 8<<30 {
		return 1 << 16
	}
	return 1 << 18
}

// memory is how much the machine has, 0 if that is not to be found out.
func memory() uint64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return uint64(info.Totalram) * uint64(info.Unit)
}

type tapFlow struct {
	near, far         [16]byte
	nearPort, farPort [2]byte // in the order of the network
	proto, v6         uint8
	_                 uint16
}

type tapState struct {
	epoch    uint32
	left     uint16
	followed uint8
	lean     uint8
	since    uint64
}

// Follow implements Follower.
func (t *Tap) Follow(k trace.FlowKey, both bool) (since time.Time) {
	t.followMu.Lock()
	defer t.followMu.Unlock()
	var ns uint64
	for _, f := range tapFlows(k, both) {
		t.followed[f] = struct{}{}
		since, _ := t.mark(f, 1)
		ns = max(ns, since)
	}
	t.following.Store(int64(len(t.followed)))
	return t.start.Add(time.Duration(int64(ns) - t.startNS))
}

// FirstShown implements Follower.
func (*Tap) FirstShown() bool { return true }

// Unfollow implements Follower.
func (t *Tap) Unfollow(k trace.FlowKey, both bool) (hidden bool) {
	t.followMu.Lock()
	defer t.followMu.Unlock()
	for _, f := range tapFlows(k, both) {
		delete(t.followed, f)
		t.mark(f, 0)
	}
	t.following.Store(int64(len(t.followed)))
	return true
}

// Ignore implements Follower. It is but a word in memory.
func (t *Tap) Ignore(k trace.FlowKey, both bool) (hidden bool) {
	for _, f := range tapFlows(k, both) {
		h := f.hash()
		atomic.StoreUint32(&t.quiet[h%tapQuiet], t.noMore(h))
	}
	return true
}

// mark tells the kernel whether a flow is followed, and returns since when, by its clock, all
// packets are shown, and whether the kernel knew the flow.
func (t *Tap) mark(f tapFlow, followed uint8) (since uint64, known bool) {
	flows := t.programs.Maps["flows"]
	s := tapState{epoch: atomic.LoadUint32(&t.conf.epoch), left: tapFirst}
	known = flows.Lookup(unsafe.Pointer(&f), unsafe.Pointer(&s)) == nil
	if !known && followed == 0 {
		return 0, false
	}
	// Where few of the first packets are left the next one may be hidden between look and mark.
	begins := !known || s.since == 0 || s.followed == 0 && s.left < tapFirst/4
	s.followed = followed
	tell := func() { _ = flows.Update(unsafe.Pointer(&f), unsafe.Pointer(&s), ebpf.UpdateAny) }
	tell()
	if followed == 1 {
		t.speak(f.hash())
	}
	if begins && followed == 1 { // now, and not a moment before
		s.since = uint64(time.Since(t.start).Nanoseconds() + t.startNS)
		tell()
	}
	return s.since, known
}

// noMore marks a flow of which nothing more is wanted.
func (t *Tap) noMore(hash uint64) uint32 {
	return (uint32(hash>>32) ^ atomic.LoadUint32(&t.conf.epoch)*0x9e3779b1) | tapNoMore
}

// speak takes a flow from those of which nothing more is wanted: in this order, for the programs
// look into quiet after they put it to the hushed.
func (t *Tap) speak(hash uint64) {
	atomic.StoreUint32(&t.quiet[hash%tapQuiet], 0)
	tag := uint64(max(t.noMore(hash)>>16, 1))
	for four := &t.hushed[hash>>18%tapHushed]; ; {
		was := atomic.LoadUint64(four)
		is := was
		for shift := 0; shift < 64; shift += 16 {
			if was>>shift&0xffff == tag {
				is &^= 0xffff << shift
			}
		}
		if is == was || atomic.CompareAndSwapUint64(four, was, is) {
			return
		}
	}
}

// hash is that of bpf/tap.c.
func (f *tapFlow) hash() uint64 {
	order := binary.NativeEndian
	h := uint64(order.Uint16(f.nearPort[:]))<<32 | uint64(order.Uint16(f.farPort[:]))<<16 | uint64(f.proto)
	h = (h ^ order.Uint64(f.near[:])) * 0x9e3779b97f4a7c15
	h = (h ^ h>>32 ^ order.Uint64(f.far[:])) * 0xc2b2ae3d27d4eb4f
	if f.v6 != 0 {
		h = (h ^ h>>32 ^ order.Uint64(f.near[8:])) * 0x9e3779b97f4a7c15
		h = (h ^ h>>32 ^ order.Uint64(f.far[8:])) * 0xc2b2ae3d27d4eb4f
	}
	return h ^ h>>29
}

// renewal is one round in which the flows that are followed are marked again.
type renewal struct {
	began time.Time
	flows []tapFlow
	done  int
}

// renew marks flows again that the kernel's table may have forgotten, a few at a time. It is
// called by the goroutine that reads.
func (t *Tap) renew() {
	r := &t.renewal
	elapsed := time.Since(r.began)
	due := len(r.flows)
	if elapsed < renewEach {
		due = int(int64(due) * int64(elapsed) / int64(renewEach))
		if due == r.done {
			return
		}
	}
	t.followMu.Lock()
	defer t.followMu.Unlock()
	for ; r.done < due; r.done++ {
		if f := r.flows[r.done]; t.follows(f) {
			if _, known := t.mark(f, 1); !known {
				t.forgotten.Add(1) // packets of it may have been hidden since
			}
		}
	}
	if elapsed >= renewEach {
		r.began, r.flows, r.done = time.Now(), r.flows[:0], 0
		for f := range t.followed {
			r.flows = append(r.flows, f)
		}
	}
}

func (t *Tap) follows(f tapFlow) bool {
	_, yes := t.followed[f]
	return yes
}

// tapFlows are the kernel's keys of a flow: of one that this host only forwards either end
// may be the near one.
func tapFlows(k trace.FlowKey, both bool) []tapFlow {
	f := tapFlow{near: tapAddr(k.Src.Addr()), far: tapAddr(k.Dst.Addr()), proto: unix.IPPROTO_TCP}
	binary.BigEndian.PutUint16(f.nearPort[:], k.Src.Port())
	binary.BigEndian.PutUint16(f.farPort[:], k.Dst.Port())
	if k.Proto == trace.UDP {
		f.proto = unix.IPPROTO_UDP
	}
	if k.Src.Addr().Is6() {
		f.v6 = 1
	}
	if !both {
		return []tapFlow{f}
	}
	turned := f
	turned.near, turned.far, turned.nearPort, turned.farPort = f.far, f.near, f.farPort, f.nearPort
	return []tapFlow{f, turned}
}

func tapAddr(a netip.Addr) (b [16]byte) {
	copy(b[:], a.AsSlice())
	return b
}
