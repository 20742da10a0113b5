package capture

import (
	"net"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/net/bpf"

	"servicetraceroute/trace"
)

// Nothing is a hook with a program that does nothing, as a Source that shows nothing.
type Nothing struct {
	Source
	tap *Tap
	at  link.Link
}

// OpenNothing attaches it to eth0, for what comes in there.
func OpenNothing() (*Nothing, error) { return OpenNothingAt(ebpf.AttachTCXIngress) }

// OpenNothingAt attaches it to eth0.
func OpenNothingAt(hook ebpf.AttachType) (*Nothing, error) {
	t := &Tap{local: addrLister{fd: -1}}
	if err := t.load(); err != nil {
		return nil, err
	}
	i, err := net.InterfaceByName("eth0")
	if err != nil {
		return nil, err
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: i.Index, Program: t.programs.Programs["nothing"], Attach: hook})
	return &Nothing{tap: t, at: l}, err
}

// ReadBatch implements Source.
func (n *Nothing) ReadBatch() ([]Packet, error) { return nil, net.ErrClosed }

// Stats implements Source.
func (n *Nothing) Stats() Stats { return Stats{} }

// Close implements Source.
func (n *Nothing) Close() error {
	err := n.at.Close()
	n.tap.programs.Close()
	return err
}

// ErrOthers is why a Tap is not opened where others decide first.
var ErrOthers = errOthers

// Forget has the kernel's table forget a flow, as it does the one that was silent for longest.
func (t *Tap) Forget(k trace.FlowKey) error {
	f := tapFlows(k, false)[0]
	return t.programs.Maps["flows"].Delete(unsafe.Pointer(&f))
}

// Hushed reports whether a flow, or one with the same bits, is among those at hand.
func (t *Tap) Hushed(k trace.FlowKey) bool {
	f := tapFlows(k, false)[0]
	h := f.hash()
	four := atomic.LoadUint64(&t.hushed[h>>18%tapHushed])
	for shift := 0; shift < 64; shift += 16 {
		if four>>shift&0xffff == uint64(max(t.noMore(h)>>16, 1)) {
			return true
		}
	}
	return false
}

// Hush puts a flow there.
func (t *Tap) Hush(k trace.FlowKey) {
	f := tapFlows(k, false)[0]
	h := f.hash()
	atomic.StoreUint64(&t.hushed[h>>18%tapHushed], uint64(max(t.noMore(h)>>16, 1)))
}

// RenewNow marks all flows that are followed, as the reader does within some seconds.
func (t *Tap) RenewNow() {
	for range 2 {
		t.renewal.began = time.Time{}
		t.renew()
	}
}

// Filters are ways to say what a packet socket shows: nothing, all, by fields in their places or
// not, and whole flows where they are followed, of which there are none.
func Filters(cfg Config) map[string][]bpf.Instruction {
	return map[string][]bpf.Instruction{"nothing": nothing, "called": assembled(cfg, nil, false, nil), "in-place": assembled(cfg, nil, true, nil), "few": assembled(cfg, nil, true, &few{udp: true})}
}

// Attach has the ring show what the filter lets pass.
func (r *Ring) Attach(filter []bpf.Instruction) error { return r.attach(filter) }

// Bind has the ring listen at another interface.
func (r *Ring) Bind(name string) error {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	return r.bind([]int{i.Index})
}

// Hook returns what attaches one of a Tap's programs to what comes in at an interface, instead of
// where it was before; on the loopback interface to none.
func (t *Tap) Hook(program string) func(name string) error {
	var at link.Link
	return func(name string) error {
		if at != nil {
			if err := at.Close(); err != nil {
				return err
			}
			at = nil
		}
		i, err := net.InterfaceByName(name)
		if err != nil || i.Flags&net.FlagLoopback != 0 {
			return err
		}
		at, err = link.AttachTCX(link.TCXOptions{Interface: i.Index, Program: t.programs.Programs[program], Attach: ebpf.AttachTCXIngress})
		return err
	}
}
