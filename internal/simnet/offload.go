package simnet

import (
	"bytes"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/wire"
)

// superPacket is how much payload the packets of segmentation and receive offload
// carry, unless Options.OffloadSize says otherwise.
const superPacket = 40 << 10

// super makes of a segment with much payload what a tap is shown: beyond 64 KiB
// neither header has room for the length. Linux then leaves it out of IPv4's, and
// puts a jumbo payload option (RFC 2675) behind that of IPv6 (BIG TCP).
//
//	| Next Header 6 | Hdr Ext Len 0 | Type 0xc2     | Length 4      |
//	|                      Jumbo Payload Length                     |
func super(data []byte) []byte {
	const header, option, most = 40, 8, 1<<16 - 1
	switch {
	case data[0]>>4 == 4 && len(data) > most:
		old := [2]byte(data[2:4])
		data[2], data[3] = 0, 0
		patch(data[10:12], old[:], data[2:4])
	case data[0]>>4 == 6 && len(data)-header > most:
		jumbo := be.AppendUint32([]byte{data[6], 0, 0xc2, 4}, uint32(len(data)-header+option))
		data = append(data, jumbo...)
		copy(data[header+option:], data[header:len(data)-option])
		copy(data[header:], jumbo)
		data[4], data[5], data[6] = 0, 0, 0 // payload length, hop-by-hop options
	}
	return data
}

// offload holds what came at one instant for receive offload: segments in a row of
// one flow, alike but for their payload (tcp_gro_receive).
type offload struct {
	node *node
	in   *iface
	held []*packet
	size int // payload
}

// take takes a packet that came to a host.
func (o *offload) take(p *packet, in *iface) {
	if len(o.held) > 0 && !o.continues(p, in) {
		o.flush()
	}
	if !p.isTCP || p.tcp.PayloadLen == 0 || p.tcp.Flags&^(wire.ACK|wire.PSH|wire.FIN) != 0 {
		o.node.captured(p.data, in, capture.Incoming)
		o.node.accept(p, in)
		return
	}
	if len(o.held) == 0 {
		o.in, o.size = in, 0
		// All that comes at this instant is due already, and comes before.
		o.node.net.at(o.node.net.now, o.flush)
	}
	o.held = append(o.held, p)
	o.size += p.tcp.PayloadLen
}

// continues reports whether a packet may become part of the one that is held.
func (o *offload) continues(p *packet, in *iface) bool {
	first, last := o.held[0], o.held[len(o.held)-1]
	const ending = wire.PSH | wire.FIN
	a, b := &first.tcp, &p.tcp
	return p.isTCP && in == o.in && p.tuple == first.tuple && b.Seq == segmentEnd(&last.tcp) && last.tcp.Flags&ending == 0 &&
		a.Ack == b.Ack && a.Window == b.Window && a.Flags == b.Flags&^ending &&
		b.PayloadLen > 0 && b.PayloadLen <= a.PayloadLen && last.tcp.PayloadLen == a.PayloadLen &&
		first.ip.TTL == p.ip.TTL && first.ip.TOS == p.ip.TOS && first.ip.FlowLabel == p.ip.FlowLabel &&
		bytes.Equal(options(first), options(p)) && o.size+b.PayloadLen <= o.node.net.opts.OffloadSize
}

func options(p *packet) []byte { return p.ip.Transport[20 : len(p.ip.Transport)-p.tcp.PayloadLen] }

// flush shows taps what is held as one packet, and gives TCP the segments.
func (o *offload) flush() {
	if len(o.held) == 0 {
		return
	}
	all := o.held
	o.held = nil
	if o.node.capturing() {
		o.node.captured(merge(all), o.in, capture.Incoming)
	}
	for _, p := range all {
		o.node.accept(p, o.in)
	}
}

// merge joins segments. Their checksum is not corrected: nobody looks at it.
func merge(all []*packet) []byte {
	first, last := all[0], all[len(all)-1]
	if len(all) == 1 {
		return first.data
	}
	data := bytes.Clone(first.data)
	for _, p := range all[1:] {
		data = append(data, p.tcp.Payload...)
	}
	at := len(first.data) - len(first.ip.Transport)
	data[at+13] |= byte(last.tcp.Flags)
	if first.ip.Version == 4 {
		old := [2]byte(data[2:4])
		be.PutUint16(data[2:], uint16(len(data)))
		patch(data[10:12], old[:], data[2:4])
	} else {
		be.PutUint16(data[4:], uint16(len(data)-at))
	}
	return super(data)
}
