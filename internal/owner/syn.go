package owner

import (
	"golang.org/x/net/bpf"

	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// Offsets that the kernel gives a meaning (linux/filter.h).
const (
	netOffset    = 0xfff00000 // the network header
	adType       = 0xfffff004 // the packet's type
	typeOutgoing = 4

	synACK  = 0x12
	syn     = 0x02
	snapSYN = 128
)

// synOnly passes the SYNs that leave, of IPv4 and IPv6, and nothing else: this
// socket costs every other packet of the host a few instructions and no more.
// IPv6 with extension headers does not pass; such a flow is asked about later.
func synOnly() []bpf.Instruction {
	drop := bpf.RetConstant{}
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: adType, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeOutgoing, SkipTrue: 1},
		drop,
		bpf.LoadAbsolute{Off: netOffset, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x60, SkipTrue: 13},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0x40, SkipTrue: 11},
		// IPv4: the first fragment, TCP, flags behind the header.
		bpf.LoadAbsolute{Off: netOffset + 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 9},
		bpf.LoadAbsolute{Off: netOffset + 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoTCP, SkipTrue: 7},
		bpf.LoadAbsolute{Off: netOffset, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x0f},
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 4},
		bpf.TAX{},
		bpf.LoadIndirect{Off: netOffset + 13, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: synACK},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: syn, SkipTrue: 6},
		drop,
		// IPv6.
		bpf.LoadAbsolute{Off: netOffset + 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoTCP, SkipTrue: 4},
		bpf.LoadAbsolute{Off: netOffset + 40 + 13, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: synACK},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: syn, SkipTrue: 1},
		bpf.RetConstant{Val: snapSYN},
		drop,
	}
}

// synKey is the flow that an outgoing SYN opens; false for any other packet.
func synKey(b []byte) (trace.FlowKey, bool) {
	var ip wire.Packet
	var s wire.TCP
	if ip.Decode(b, len(b)) != nil || ip.Proto != protoTCP || ip.Fragment ||
		s.Decode(ip.Transport, ip.TransportLen) != nil || s.Flags&(wire.SYN|wire.ACK) != wire.SYN {
		return trace.FlowKey{}, false
	}
	return flow.Key(&ip, &s, true), true
}
