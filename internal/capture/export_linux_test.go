package capture

import (
	"net"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/net/bpf"
)

// Nothing is a hook with a program that does nothing, as a Source that shows nothing.
type Nothing struct {
	Source
	tap *Tap
	at  link.Link
}

// OpenNothing attaches it to eth0.
func OpenNothing() (*Nothing, error) {
	t := &Tap{local: addrLister{fd: -1}}
	if err := t.load(); err != nil {
		return nil, err
	}
	i, err := net.InterfaceByName("eth0")
	if err != nil {
		return nil, err
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: i.Index, Program: t.programs.Programs["nothing"], Attach: ebpf.AttachTCXIngress})
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

// Filters are ways to say what a packet socket shows: all of them the same, but the first,
// which shows nothing.
func Filters(cfg Config) map[string][]bpf.Instruction {
	return map[string][]bpf.Instruction{"nothing": nothing, "called": assembled(cfg, nil, false), "in-place": assembled(cfg, nil, true)}
}

// Attach has the ring show what the filter lets pass.
func (r *Ring) Attach(filter []bpf.Instruction) error { return r.attach(filter) }
