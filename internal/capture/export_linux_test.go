package capture

import (
	"net"
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

// RenewNow marks all flows that are followed, as the reader does within some seconds.
func (t *Tap) RenewNow() {
	for range 2 {
		t.renewal.began = time.Time{}
		t.renew()
	}
}

// Filters are ways to say what a packet socket shows: all of them the same, but the first,
// which shows nothing.
func Filters(cfg Config) map[string][]bpf.Instruction {
	return map[string][]bpf.Instruction{"nothing": nothing, "called": assembled(cfg, nil, false), "in-place": assembled(cfg, nil, true)}
}

// Attach has the ring show what the filter lets pass.
func (r *Ring) Attach(filter []bpf.Instruction) error { return r.attach(filter) }
